//! How much a volume may hold: a pure decision over what was measured and what came since.
//!
//! Promise: what a volume keeps in its tree stays below its quota. While a resync is under way as much again may be staged, because what it
//! replaces is still there beside it; what its publish would leave is looked at before it (`apply/room.rs`), and a volume that would
//! grow beyond its quota by it stays as it is. The writer is refused before anything of a message is taken, so the replica stays at
//! a consistent point, and goes on when there is room.
//!
//! Nothing is counted op by op. What is accepted is added up, overwritten or not, which is too much rather than too little; when that
//! sum reaches the quota the volume is measured (blocks, as `du` has them, by a thread of its own), and the sum begins anew. So a
//! volume that is far from its quota costs an addition, and one near it a walk for each 64th of its quota that is written.

use std::{
    collections::HashSet,
    ffi::CStr,
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use tandem_proto::{op::Change, stage::Stage};

use crate::{
    apply::{Growth, INODE_BYTES},
    ingest::incoming::Incoming,
    tree::Area,
};

/// Bytes of one block, as `stat` counts them.
const BLOCK_BYTES: u64 = 512;
/// What was accepted since a measurement may be so much, whatever the quota is, before it is made again.
const SLACK_BYTES: std::ops::RangeInclusive<u64> = (64 << 10)..=(256 << 20);
/// A volume that is full is measured again after so long, and after so many times what that takes.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
const AGAIN_TIMES: u32 = 20;

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Take it.
    Fits,
    /// Measure first.
    Measure,
    /// Refuse it: the volume is full.
    Over,
}

/// What a message may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Bytes.
    pub bytes: u64,
    /// Where they go.
    pub to: To,
}

/// Where the bytes of a message go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the tree.
    Tree,
    /// To the staging area.
    Staging,
    /// To the log, and with a publish to the tree.
    Log,
}

/// What a volume takes on its disk, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Its tree.
    pub tree: u64,
    /// What is staged.
    pub staging: u64,
}

impl Used {
    fn total(self) -> u64 {
        self.tree.saturating_add(self.staging)
    }
}

impl Cost {
    /// What a message may add; `None`: nothing.
    pub fn bytes_of(message: &Incoming) -> Option<u64> {
        let bytes = match message {
            Incoming::Batch(batch) => batch.ops.iter().flat_map(|op| &op.changes).map(change_bytes).sum(),
            Incoming::Stage(Stage::Data(data)) => data.data.len() as u64,
            Incoming::Stage(Stage::Node(node)) if node.state.is_some() => INODE_BYTES,
            _ => 0,
        };
        (bytes > 0).then_some(bytes)
    }
}

fn change_bytes(change: &Change) -> u64 {
    match change {
        Change::Birth { .. } => INODE_BYTES,
        Change::Copy { len, .. } => *len,
        other => other.data_len() as u64,
    }
}

/// The quota of one volume, and what is known of its size.
#[derive(Debug, Default)]
pub struct Quota {
    limit: Option<u64>,
    used: Option<Used>,
    /// Accepted since the last measurement began.
    since: u64,
    /// Of that, before the one that is under way.
    before: u64,
    /// Data of ops that wait for a publish: they are in the log, which no measurement sees.
    logged: u64,
    /// Nothing was accepted since the last measurement began.
    exact: bool,
    measured: Option<Instant>,
    took: Duration,
    /// A measurement is asked for, or under way since then.
    wanted: bool,
    begun: Option<Instant>,
    /// Its writer was refused, and that was logged.
    pub(super) told: bool,
}

impl Quota {
    /// Sets or lifts it.
    pub fn set(&mut self, limit: Option<u64>) {
        self.limit = limit;
        self.told = false;
        if limit.is_some() {
            self.wanted = true;
        }
    }

    /// How much the volume may hold.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// How much it holds at most; 0: not known.
    pub fn used(&self) -> u64 {
        self.used.map_or(0, |used| used.total().saturating_add(self.since).saturating_add(self.logged))
    }

    /// Whether a message may be taken.
    pub fn verdict(&self, cost: Cost, now: Instant) -> Verdict {
        let Some(limit) = self.limit else { return Verdict::Fits };
        let Some(used) = self.used else { return Verdict::Measure };
        // A resync replaces what is there until its end, be it more than the quota.
        let bound = if cost.to == To::Tree { limit } else { used.tree.max(limit).saturating_add(limit) };
        let used = used.total().saturating_add(self.logged);
        let slack = slack(limit);
        if used.saturating_add(self.since).saturating_add(cost.bytes) <= bound {
            return Verdict::Fits;
        }
        if self.since > slack {
            return Verdict::Measure;
        }
        let fresh_for = AGAIN_AFTER.max(self.took * AGAIN_TIMES);
        let fresh = self.measured.is_some_and(|at| now.saturating_duration_since(at) < fresh_for);
        match (used < bound && cost.bytes <= slack, fresh) {
            (true, _) => Verdict::Fits,
            (false, true) => Verdict::Over,
            (false, false) => Verdict::Measure,
        }
    }

    /// Whether a resync may be published that does this to the tree; without its growth as far as that can be said without it.
    pub fn publish_verdict(&self, growth: Option<Growth>) -> Verdict {
        let Some(limit) = self.limit else { return Verdict::Fits };
        let Some(used) = self.used.filter(|_| self.exact && self.begun.is_none()) else { return Verdict::Measure };
        let Some(growth) = growth else {
            return if self.used() <= limit { Verdict::Fits } else { Verdict::Over };
        };
        let left = used.tree.saturating_sub(growth.goes).saturating_add(growth.comes);
        // What is beyond its quota may become smaller, or stay. Ops may have written to the same place again and again.
        let most = used.tree.max(limit.saturating_add(slack(limit)));
        let fits = left <= most && left.saturating_add(self.logged) <= most.saturating_add(limit / 8);
        if fits { Verdict::Fits } else { Verdict::Over }
    }

    /// The staging came to its end: what waited in the log is in the tree now, or was dropped.
    pub fn staging_ended(&mut self, published: bool) {
        let logged = std::mem::take(&mut self.logged);
        if published && self.limit.is_some() {
            self.since = self.since.saturating_add(logged);
            self.want();
        }
    }

    /// A message was taken.
    pub fn note(&mut self, cost: Cost) {
        if self.limit.is_some() {
            self.exact = false;
            let sum = if cost.to == To::Log { &mut self.logged } else { &mut self.since };
            *sum = sum.saturating_add(cost.bytes);
            // A resync begins again and again with what fits.
            self.told &= cost.to != To::Tree;
        }
    }

    /// Asks for a measurement.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether one is asked for and not under way.
    pub fn wants(&self) -> bool {
        self.limit.is_some() && self.wanted && self.begun.is_none()
    }

    /// Whether one is asked for or under way.
    pub fn is_waiting(&self) -> bool {
        self.limit.is_some() && (self.wanted || self.begun.is_some())
    }

    /// One begins. What is accepted from now on may be in it or not.
    pub fn begin(&mut self, now: Instant) {
        self.wanted = false;
        self.begun = Some(now);
        self.before = self.since;
        self.exact = true;
    }

    /// It has ended; `None`: it failed, and what was known stands.
    pub fn measured(&mut self, used: Option<Used>, now: Instant) {
        self.took = self.begun.take().map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        if let Some(used) = used {
            self.used = Some(used);
            self.since -= self.before;
            self.measured = Some(now);
        } else if self.used.is_none() {
            // Without a measurement nothing can be said: the next message asks for one again.
            self.used = Some(Used::default());
        }
        self.before = 0;
    }

    /// What the writer is told when the volume is full.
    pub fn message(&self) -> String {
        let limit = self.limit.unwrap_or(0);
        format!(
            "the volume holds {} bytes and its quota is {limit}: what is new is not taken. Remove files from the folder, or raise it with \
             `tandem volume set NAME --quota SIZE` on the storage host; it goes on by itself",
            self.used.unwrap_or_default().total()
        )
    }

    /// What the writer is told when a resync would leave more than the volume may hold.
    pub fn publish_message(&self, growth: Growth) -> String {
        let (limit, tree) = (self.limit.unwrap_or(0), self.used.unwrap_or_default().tree);
        let left = tree.saturating_sub(growth.goes).saturating_add(growth.comes).saturating_add(self.logged);
        format!(
            "the volume would hold {left} bytes and its quota is {limit}: the resync is not taken. Remove files from the folder, or raise it \
             with `tandem volume set NAME --quota SIZE` on the storage host; it goes on by itself"
        )
    }
}

fn slack(limit: u64) -> u64 {
    (limit / 64).clamp(*SLACK_BYTES.start(), *SLACK_BYTES.end())
}

/// Bytes that the tree and the staging of a volume take on their disk. Follows no links.
pub fn measure(volume: &Path) -> io::Result<Used> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mut total, mut used) = (Total::default(), Used::default());
    for (area, bytes) in [(Area::Tree, &mut used.tree), (Area::Staging, &mut used.staging)] {
        match rustix::fs::openat(CWD, volume.join(area.path()), flags, Mode::empty()) {
            Ok(top) => total.add_below(top)?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        *bytes = std::mem::take(&mut total.bytes);
    }
    Ok(used)
}

#[derive(Default)]
struct Total {
    bytes: u64,
    /// Inodes with several names that were counted.
    linked: HashSet<u64>,
}

impl Total {
    /// One open directory a level.
    fn add_below(&mut self, top: OwnedFd) -> io::Result<()> {
        let mut open = vec![self.list(top)?];
        while let Some((dir, names)) = open.last_mut() {
            let Some(name) = names.pop() else {
                open.pop();
                continue;
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&*dir, &name, flags, Mode::empty()) {
                Ok(below) => open.push(self.list(below)?),
                // Apply goes on meanwhile.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Counts what a directory holds, and says which directories.
    fn list(&mut self, dir: OwnedFd) -> io::Result<(OwnedFd, Vec<std::ffi::CString>)> {
        let mut below = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
            if is_directory {
                below.push(name.to_owned());
            } else if stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
                continue;
            }
            self.bytes += stat.st_blocks as u64 * BLOCK_BYTES + INODE_BYTES;
        }
        Ok((dir, below))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Cost, Quota, To, Used, Verdict, measure};
    use crate::apply::Growth;

    const MIB: u64 = 1 << 20;

    fn op(bytes: u64) -> Cost {
        Cost { bytes, to: To::Tree }
    }

    fn tree(bytes: u64) -> Option<Used> {
        Some(Used { tree: bytes, staging: 0 })
    }

    #[test]
    fn a_volume_without_a_quota_takes_everything_and_one_with_it_is_measured_first() {
        let (mut quota, now) = (Quota::default(), Instant::now());
        assert_eq!(quota.verdict(op(u64::MAX), now), Verdict::Fits);
        quota.set(Some(100 * MIB));
        assert_eq!(quota.verdict(op(1), now), Verdict::Measure);
        assert!(quota.wants());
        quota.begin(now);
        assert!(!quota.wants() && quota.is_waiting());
        quota.measured(tree(90 * MIB), now);
        assert_eq!(quota.verdict(op(10 * MIB), now), Verdict::Fits);
        assert_eq!(quota.verdict(op(12 * MIB), now), Verdict::Over);
        let staged = |bytes| Cost { bytes, to: To::Staging };
        assert_eq!(quota.verdict(staged(110 * MIB), now), Verdict::Fits, "what is replaced is there until the end");
        assert_eq!(quota.verdict(staged(111 * MIB), now), Verdict::Over);
    }

    #[test]
    fn what_is_written_in_place_does_not_fill_a_volume_for_ever() {
        let (mut quota, now) = (Quota::default(), Instant::now());
        quota.set(Some(64 * MIB));
        quota.begin(now);
        quota.measured(tree(60 * MIB), now);
        for _ in 0..4 {
            quota.note(op(MIB));
        }
        assert_eq!(quota.verdict(op(2 * MIB), now), Verdict::Measure, "it may all have been overwritten");
        quota.begin(now);
        quota.note(op(MIB));
        quota.measured(tree(60 * MIB), now);
        assert_eq!(quota.used(), 61 * MIB, "what came during a measurement counts beside it");
        assert_eq!(quota.verdict(op(2 * MIB), now), Verdict::Fits);
    }

    #[test]
    fn a_full_volume_is_looked_at_again_after_a_time_and_takes_what_fits_then() {
        let (mut quota, now) = (Quota::default(), Instant::now());
        quota.set(Some(MIB));
        quota.begin(now);
        quota.measured(tree(2 * MIB), now);
        assert_eq!(quota.verdict(op(1), now), Verdict::Over);
        assert!(quota.message().contains("tandem volume set"));
        let later = now + Duration::from_secs(3);
        assert_eq!(quota.verdict(op(1), later), Verdict::Measure);
        quota.begin(later);
        quota.measured(tree(0), later);
        assert_eq!(quota.verdict(op(MIB), later), Verdict::Fits);
    }

    #[test]
    fn a_resync_is_published_if_what_it_leaves_is_within_the_quota_or_no_more_than_there_was() {
        let (mut quota, now) = (Quota::default(), Instant::now());
        quota.set(Some(100 * MIB));
        let growth = |comes, goes| Some(Growth { comes: comes * MIB, goes: goes * MIB });
        quota.begin(now);
        quota.measured(Some(Used { tree: 90 * MIB, staging: 90 * MIB }), now);
        assert_eq!(quota.publish_verdict(None), Verdict::Over, "to be looked at");
        assert_eq!(quota.publish_verdict(growth(90, 90)), Verdict::Fits);
        assert_eq!(quota.publish_verdict(growth(90, 70)), Verdict::Over);
        quota.note(Cost { bytes: 20 * MIB, to: To::Log });
        assert_eq!(quota.publish_verdict(growth(90, 90)), Verdict::Measure);
        quota.begin(now);
        quota.measured(Some(Used { tree: 90 * MIB, staging: 90 * MIB }), now);
        assert_eq!(quota.publish_verdict(growth(90, 90)), Verdict::Fits, "they may write to one place");
        assert_eq!(quota.publish_verdict(growth(98, 90)), Verdict::Over);
        assert!(quota.publish_message(Growth::default()).contains("would hold 115343360 bytes"));
        quota.staging_ended(true);
        assert_eq!(quota.used(), 200 * MIB, "until it is measured");
        // Lowered below what is there: it may stay, or become less.
        quota.set(Some(MIB));
        assert_eq!(quota.publish_verdict(growth(10, 10)), Verdict::Fits);
        assert_eq!(quota.publish_verdict(growth(11, 10)), Verdict::Over);
    }

    #[test]
    fn the_size_of_a_volume_counts_blocks_and_inodes_and_a_linked_file_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("a/b/c")).expect("made");
        assert_eq!(measure(&dir.path().join("missing")).expect("nothing there"), Used::default());
        let empty = measure(dir.path()).expect("measured").tree;
        std::fs::write(tree.join("a/b/c/data"), vec![1; 1 << 20]).expect("written");
        std::fs::hard_link(tree.join("a/b/c/data"), tree.join("again")).expect("linked");
        std::os::unix::fs::symlink("/usr", tree.join("elsewhere")).expect("linked");
        let sparse = std::fs::File::create(tree.join("sparse")).expect("made");
        sparse.set_len(1 << 40).expect("sparse");
        std::fs::File::open(tree.join("a/b/c/data")).and_then(|file| file.sync_all()).expect("allocated");
        let grown = measure(dir.path()).expect("measured").tree - empty;
        assert!((MIB..MIB + (64 << 10)).contains(&grown), "{grown}");
    }
}
