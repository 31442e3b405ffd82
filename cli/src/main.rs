//! `tandem`: asks the daemons of TandemFS, over gRPC only, and says what they said.
//!
//! The mounts of this host answer on Unix sockets in the runtime directory, a storage daemon on its TCP port. Nothing is read
//! from the daemons' files. One subcommand, one file, in [`commands`]; what they share is finding mounts ([`mounts`]),
//! words and numbers ([`render`]), the JSON contract ([`json`]) and exit codes ([`exit`]).

mod archive;
mod bar;
mod commands;
mod copy;
mod exit;
mod json;
mod mountinfo;
mod mounts;
mod output;
mod render;
mod storage;
mod when;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};

use exit::{Exit, Failure};

/// Shows and steers the mounts of TandemFS on this host.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, about, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows each mount: its state, how far the replica is behind, and why.
    Status(commands::status::Args),
    /// Shows mounts live in the terminal: throughput, lag, calls, busiest files.
    Top(commands::top::Args),
    /// Shows the status again at each change, until interrupted.
    Watch(commands::watch::Args),
    /// Returns when everything done before the call is applied on the replica.
    Wait(commands::wait::Args),
    /// Unmounts, and says what the replica does not have yet.
    Umount(commands::umount::Args),
    /// Stops sending. Local work goes on.
    Pause(commands::pause::Args),
    /// Sends again, after pause.
    Resume(commands::resume::Args),
    /// Lists what the folder holds and the replica does not: of a fenced mount what nobody merges, to be looked at or copied.
    Divergence(commands::divergence::Args),
    /// Prints a one-time token with which a client joins; run it on the storage host.
    Invite(commands::invite::Args),
    /// Redeems a token: this user may then reach the storage daemon, with TLS.
    Join(commands::join::Args),
    /// Gives a client a role for a volume, instead of the one that it has.
    Grant(commands::grant::Args),
    /// Lists who has joined a storage daemon.
    Clients(commands::clients::Args),
    /// Lists, makes, bounds, renames and deletes the volumes of a storage daemon.
    Volume(commands::volume::Args),
    /// Says whether the daemons understand their configuration.
    Config(commands::config::Args),
    /// Prints what a shell needs to complete this command.
    #[command(hide = true)]
    Completions(commands::completions::Args),
    /// Takes its roles from a client, and cuts its connections.
    Revoke(commands::revoke::Args),
    /// Compares the folder with its replica while both are used, and repairs what differs.
    Verify(commands::verify::Args),
    /// Copies the replica's state at one exact position into a folder, without stopping whoever writes.
    Clone(commands::clone::Args),
    /// Copies files of a volume, as its replica has them, to this machine. Goes on where it was interrupted.
    Cp(commands::cp::Args),
    /// Tells what was done on a volume, when and by whom, and what was deleted and can be had back.
    History(commands::history::Args),
    /// Looks at what mounts and storage daemons of this host need, and says what to do.
    Doctor(commands::doctor::Args),
    /// Has deleted and replaced files back.
    Restore(commands::restore::Args),
}

impl Command {
    async fn run(self) -> Result<Exit, Failure> {
        match self {
            Command::Status(args) => commands::status::run(args).await,
            Command::Top(args) => commands::top::run(args).await,
            Command::Watch(args) => commands::watch::run(args).await,
            Command::Wait(args) => commands::wait::run(args).await,
            Command::Umount(args) => commands::umount::run(args).await,
            Command::Pause(args) => commands::pause::run(args).await,
            Command::Resume(args) => commands::resume::run(args).await,
            Command::Divergence(args) => commands::divergence::run(args).await,
            Command::Invite(args) => commands::invite::run(args).await,
            Command::Join(args) => commands::join::run(args).await,
            Command::Grant(args) => commands::grant::run(args).await,
            Command::Config(args) => commands::config::run(&args),
            Command::Clients(args) => commands::clients::run(args).await,
            Command::Volume(args) => commands::volume::run(args).await,
            Command::Completions(args) => commands::completions::run(&args),
            Command::Revoke(args) => commands::revoke::run(args).await,
            Command::Verify(args) => commands::verify::run(args).await,
            Command::Clone(args) => commands::clone::run(args).await,
            Command::Cp(args) => commands::cp::run(args).await,
            Command::History(args) => commands::history::run(args).await,
            Command::Doctor(args) => commands::doctor::run(args).await,
            Command::Restore(args) => commands::restore::run(args).await,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Its only failure is a closed pipe, and then nobody reads.
            let _ = error.print();
            return if asked_for { Exit::InSync.into() } else { Exit::Usage.into() };
        }
    };
    // Connections have a thread of their own: they answer while a command waits for the disk.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(Exit::NoAnswer, format!("cannot start: {error}")).report(),
    };
    match runtime.block_on(cli.command.run()) {
        Ok(exit) => exit.into(),
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn every_command_shows_examples() {
        show_examples(&Cli::command(), "tandem");
    }

    fn show_examples(above: &clap::Command, path: &str) {
        for command in above.get_subcommands().filter(|command| !command.is_hide_set()) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("Examples:\n  {path}")), "{path}");
            show_examples(command, &path);
        }
    }
}
