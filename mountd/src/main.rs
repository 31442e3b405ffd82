//! `tandem-mountd`, also started as `mount.tandem`: see `tandem_mountd::run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tandem_mountd::run::main(std::env::args_os().collect())
}
