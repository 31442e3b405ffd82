//! One worker of a storm on a single tree.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::storm::{Action, Generator, Performer, Shape};

/// What a worker did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Actions tried.
    pub actions: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Errors that a healthy file system never gives here, with the first action that met each.
    pub unexpected: BTreeMap<i32, String>,
    /// Stopped because the mount was gone (ENOTCONN).
    pub disconnected: bool,
    /// The longest single action.
    pub slowest: Duration,
    /// Which that was.
    pub slowest_action: String,
}

/// Errors that are the right answer to a random request.
fn is_expected(error: Errno) -> bool {
    [
        Errno::NOENT,
        Errno::EXIST,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::NOTEMPTY,
        Errno::LOOP,
        Errno::INVAL,
        Errno::BUSY,
        Errno::NAMETOOLONG,
        Errno::NODATA,
        Errno::MLINK,
        Errno::NXIO,
        Errno::PERM,
        Errno::OPNOTSUPP,
        Errno::BADF,
        Errno::FAULT,
        Errno::NOSPC, // ext4 keeps at most one block of xattrs of an inode
        Errno::RANGE,
        Errno::ACCESS, // a default ACL on what is no directory
        Errno::TXTBSY,
    ]
    .contains(&error)
}

/// Storms `root` until `stop` is set or `time` is over.
pub fn run(root: &Path, seed: u64, shape: Shape, time: Duration, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut performer = match Performer::new(root) {
        Ok(performer) => performer,
        Err(error) => {
            report.unexpected.insert(error.raw_os_error(), "opening the root".to_owned());
            return report;
        }
    };
    let mut generator = Generator::new(seed, shape);
    let begin = Instant::now();
    while begin.elapsed() < time && !stop.load(Ordering::Relaxed) {
        let action = generator.next_action();
        let started = Instant::now();
        let outcome = performer.perform(&action);
        note(&mut report, &action, outcome.as_ref().err().copied(), started.elapsed());
        if report.disconnected {
            break;
        }
        generator.learn(&action, &outcome);
    }
    report
}

fn note(report: &mut Report, action: &Action, error: Option<Errno>, took: Duration) {
    report.actions += 1;
    if took > report.slowest {
        report.slowest = took;
        report.slowest_action = format!("{action:?}").chars().take(160).collect();
    }
    match error {
        None => report.succeeded += 1,
        Some(Errno::NOTCONN | Errno::CONNABORTED) => report.disconnected = true,
        Some(error) if is_expected(error) => {}
        Some(error) => {
            let text = || format!("{action:?}: {error}").chars().take(300).collect();
            report.unexpected.entry(error.raw_os_error()).or_insert_with(text);
        }
    }
}
