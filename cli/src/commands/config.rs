//! `tandem config`: asks the daemons' programs whether they understand their configuration.
//!
//! Which keys there are is known to the program that reads the file, so it is asked: `tandem-mountd --check-config` or
//! `tandem-storaged --check-config`, as nginx and sshd do it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command as Process,
};

use crate::{
    exit::{Exit, Failure},
    output::say,
};

/// Where packages put the configuration of each program.
const PLACES: [(&str, &str); 2] =
    [("tandem-mountd", "/etc/tandem/mountd.toml"), ("tandem-storaged", "/etc/tandem/storaged.toml")];
/// Where programs are that no search path names for ordinary users.
const PROGRAM_DIRS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"];

/// Options of `tandem config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem config check                            the files in /etc/tandem
  tandem config check -v /tmp/storaged.toml      also what would be in effect, and where each value was written")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Says whether configuration files are understood, and what is in effect with them and the environment.
    #[command(after_help = "Examples:
  tandem config check                            the files in /etc/tandem
  tandem config check --for storaged new.toml    one that is nowhere yet")]
    Check {
        /// Files; default: /etc/tandem/mountd.toml and /etc/tandem/storaged.toml, as far as they are there.
        files: Vec<PathBuf>,
        /// For which daemon they are, if their names do not tell.
        #[arg(long = "for", value_name = "DAEMON", value_parser = ["mountd", "storaged"])]
        daemon: Option<String>,
        /// Prints also what is in effect, and where each value was written.
        #[arg(short, long)]
        verbose: bool,
    },
}

/// Runs it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let Command::Check { files, daemon, verbose } = &args.command;
    let mut files = files.clone();
    if files.is_empty() {
        files.extend(PLACES.iter().map(|(_, path)| PathBuf::from(path)).filter(|path| path.exists()));
    }
    if files.is_empty() {
        say("there is no configuration in /etc/tandem: the daemons take their defaults\n")?;
    }
    for file in &files {
        check(file, program_for(file, daemon.as_deref())?, *verbose)?;
    }
    Ok(Exit::InSync)
}

fn program_for(file: &Path, daemon: Option<&str>) -> Result<&'static str, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let told = |word: &str| daemon.map_or_else(|| name.contains(word), |daemon| daemon.contains(word));
    match (told("storaged"), told("mount")) {
        (true, false) => Ok("tandem-storaged"),
        (false, true) => Ok("tandem-mountd"),
        _ => Err(Failure::new(
            Exit::Usage,
            format!(
                "{}: its name does not tell for which daemon it is: say --for mountd or --for storaged",
                file.display()
            ),
        )),
    }
}

/// The daemon's program: beside this one, in the search path, or where packages put it.
fn find(program: &str) -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(env::split_paths(&path)).chain(PROGRAM_DIRS.map(PathBuf::from));
    places.map(|place| place.join(program)).find(|path| path.is_file())
}

fn check(file: &Path, program: &str, verbose: bool) -> Result<(), Failure> {
    let path = find(program).ok_or_else(|| {
        let message =
            format!("{program} is not on this machine, and only it knows whether {} is right", file.display());
        Failure::new(Exit::NoAnswer, message)
    })?;
    let output = Process::new(&path).arg("--check-config").arg("--config").arg(file).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::new(Exit::Usage, said.trim().trim_start_matches(&format!("{program}: ")).to_owned()));
    }
    say(&format!("{}: good\n", file.display()))?;
    if verbose {
        say(&String::from_utf8_lossy(&output.stdout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::program_for;

    #[test]
    fn a_file_is_for_the_daemon_that_it_is_named_after_or_that_somebody_says() {
        let program = |file: &str, daemon| program_for(Path::new(file), daemon).ok();
        assert_eq!(program("/etc/tandem/storaged.toml", None), Some("tandem-storaged"));
        assert_eq!(program("/x/mount-home.toml", None), Some("tandem-mountd"));
        assert_eq!(program("/x/home.toml", None), None);
        assert_eq!(program("/x/home.toml", Some("storaged")), Some("tandem-storaged"));
        assert_eq!(program("/x/storaged.toml", Some("mountd")), Some("tandem-mountd"));
    }
}
