//! Two trials of each database: cloned under load, started from the clone, checked. `scripts/databases` runs as many as wanted.

use tandem_tests::databases::{Kind, Mode, Options, run};

fn two_trials(kind: Kind) {
    for (mode, seed) in [(Mode::Local, 11), (Mode::Durable, 12)] {
        let Some(report) = run(kind, mode, &Options { trials: 1, seed, resync_mib: None }) else { return };
        assert!(report.bad.is_empty(), "{report:#?}");
        assert!(report.commits > 0, "the load did something: {report:#?}");
    }
}

#[test]
fn postgres_starts_from_a_clone_with_every_commit_that_it_may_and_must_have() {
    two_trials(Kind::Postgres);
}

#[test]
fn sqlite_with_a_write_ahead_log_opens_from_a_clone() {
    two_trials(Kind::SqliteWal);
}

#[test]
fn sqlite_with_a_rollback_journal_opens_from_a_clone() {
    two_trials(Kind::SqliteJournal);
}
