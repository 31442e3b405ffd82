//! `tandem completions`: what a shell completes.

use clap::CommandFactory as _;

use crate::{
    Cli,
    exit::{Exit, Failure},
    output::say,
};

/// Options of `tandem completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Runs it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tandem", &mut script);
    say(&String::from_utf8_lossy(&script))?;
    Ok(Exit::InSync)
}
