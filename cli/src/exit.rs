//! Exit codes: part of the contract with scripts, so each has one name.

use std::{io, process::ExitCode};

use tandem_proto::pb;

/// What `--help` says about them.
pub const HELP: &str = "Exit codes: 0 in sync or done, 1 behind, paused or timed out, 2 replica unreachable, fenced, faulted or \
mismatched, 3 no such mount or its daemon does not answer, 64 wrong usage. With several mounts: the highest.";

/// How a command ended. Ordered: of several, the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// In sync, or what was asked for is done.
    InSync = 0,
    /// The replica does not have everything yet, or the wait timed out.
    Behind = 1,
    /// The replica cannot follow: unreachable, fenced, faulted or another one than expected.
    Unreachable = 2,
    /// The daemon that was asked does not answer, or there is none.
    NoAnswer = 3,
    /// The command line is wrong.
    Usage = 64,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// What the state of a mount means. A paused link counts as behind: nothing that is done now will arrive.
    pub fn of_mount(status: &pb::MountStatus) -> Exit {
        match status.state.as_str() {
            "live" | "lagging" if status.ops_behind == 0 && status.dirty_cells == 0 => Exit::InSync,
            "live" | "lagging" | "initial" | "catching-up" | "paused" => Exit::Behind,
            _ => Exit::Unreachable,
        }
    }

    /// What the state of a storage daemon's volume means.
    pub fn of_volume(status: &pb::VolumeStatus) -> Exit {
        match status.state.as_str() {
            "settled" => Exit::InSync,
            "applying" | "staging" => Exit::Behind,
            _ => Exit::Unreachable,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command could not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    /// With a message for people; an empty one is not printed.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }

    /// Prints the message and gives the code.
    pub fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            crate::output::complain(&self.message);
        }
        self.exit.into()
    }
}

/// Standard output failed. A closed pipe is no error: the reader had enough.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::new(Exit::InSync, "");
        }
        Failure::new(Exit::NoAnswer, format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::MountStatus;

    use super::Exit;

    #[test]
    fn a_mount_is_in_sync_only_when_it_is_live_and_nothing_is_missing() {
        let of = |state: &str, ops_behind, dirty_cells| {
            Exit::of_mount(&MountStatus { state: state.to_owned(), ops_behind, dirty_cells, ..Default::default() })
        };
        assert_eq!(of("live", 0, 0), Exit::InSync);
        assert_eq!(of("live", 1, 0), Exit::Behind);
        assert_eq!(of("lagging", 0, 1), Exit::Behind);
        assert_eq!(of("paused", 0, 0), Exit::Behind);
        assert_eq!(of("catching-up", 0, 0), Exit::Behind);
        assert_eq!(of("offline", 0, 0), Exit::Unreachable);
        assert_eq!(of("fenced", 0, 0), Exit::Unreachable);
        assert_eq!(of("", 0, 0), Exit::Unreachable);
    }
}
