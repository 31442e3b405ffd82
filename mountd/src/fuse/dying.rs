//! Whether a thread that waits in a call is about to be ended by a signal.
//!
//! The kernel tells once that a signal came, not which. A call of a local file system is ended early by a signal that ends the process
//! and by no other: fsync never answers EINTR there, and a database that gets it gives up (PostgreSQL panics). So a signal that is
//! caught or ignored is none for us.

use std::fs;

/// Signals whose default is not to end the process: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH.
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
];

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Whether a signal that ends the process waits for this thread. Of a thread in another pid namespace (0) nothing is known: no.
pub fn is_dying(thread: u32) -> bool {
    if thread == 0 {
        return false;
    }
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => has_fatal_signal(&status),
        // It is gone already.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn has_fatal_signal(status: &str) -> bool {
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = mask("SigPnd:") | mask("ShdPnd:");
    let harmless = HARMLESS.iter().fold(0, |mask, signal| mask | bit(*signal));
    let survived = mask("SigBlk:") | mask("SigIgn:") | mask("SigCgt:") | harmless;
    // Nobody survives this one.
    pending & (!survived | bit(libc::SIGKILL)) != 0
}

#[cfg(test)]
mod tests {
    use super::{has_fatal_signal, is_dying};

    fn status(pending: u64, shared: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn only_signals_that_end_the_process_count() {
        let usr1 = 1 << (libc::SIGUSR1 - 1);
        let int = 1 << (libc::SIGINT - 1);
        assert!(!has_fatal_signal(&status(0, 0, 0)));
        assert!(!has_fatal_signal(&status(usr1, 0, usr1)), "caught");
        assert!(has_fatal_signal(&status(0, usr1, 0)), "its default ends the process");
        assert!(has_fatal_signal(&status(int, usr1, usr1)));
        assert!(!has_fatal_signal(&status(1 << (libc::SIGCHLD - 1), 0, 0)), "its default is to be ignored");
        assert!(has_fatal_signal(&status(1 << (libc::SIGKILL - 1), 0, u64::MAX)));
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0));
    }
}
