//! What resyncs replaced or removed: kept in `history/EPOCH-SEQ/`, bounded.
//!
//! A full resync may replace everything that a replica has, and what it replaces is never destroyed by it. So `history/` would grow
//! without a bound. This thread looks at it behind apply, after each publish and once an hour, and deletes what is beyond the rule
//! (`--history-keep`), the oldest positions first. It touches settled positions only: a publish under way may still be filling its own.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tandem_proto::position::Position;
use tandem_runtime::priority::{self, Priority};

use crate::{
    apply::{KEPT_CLOSED as CLOSED, KEPT_OPEN as OPEN},
    config::KeepRule,
};

/// How often ages are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// Epoch and seq of the publish that replaced it, or up to which files were deleted.
type Place = (u64, u64, Of);

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    /// What a resync replaced.
    Resync,
    /// What was deleted or replaced live.
    Deleted,
}

/// What an object without any data counts as.
const OBJECT_BYTES: u64 = 512;

/// What `history/` holds, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Kept {
    /// On the disk.
    pub bytes: u64,
    /// Positions at which something was replaced.
    pub positions: u64,
    /// Positions that were deleted since the start, because of the rule.
    pub deleted: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    bytes: u64,
    age: Duration,
}

/// Which places must go so that the rest is within the rule: the oldest first.
fn beyond(entries: &BTreeMap<Place, Entry>, rule: &KeepRule) -> Vec<Place> {
    let mut bytes: u64 = entries.values().map(|entry| entry.bytes).sum();
    let mut gone = Vec::new();
    for (place, entry) in entries {
        let too_much = rule.bytes.is_some_and(|most| bytes > most);
        let too_old = rule.age.is_some_and(|most| entry.age > most);
        if too_much || too_old {
            bytes -= entry.bytes;
            gone.push(*place);
        }
    }
    gone
}

enum Event {
    Settled(Position),
    MakeRoom,
    Rule(KeepRule),
    Stop,
}

/// Keeps one volume's `history/` within its rule.
pub struct Surplus {
    events: Sender<Event>,
    kept: Arc<Mutex<Kept>>,
    rule: Mutex<KeepRule>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Surplus {
    /// Starts the thread for this `history/`.
    pub fn start(directory: &Path, rule: KeepRule) -> io::Result<Surplus> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (events, received) = channel();
        let keeper = Keeper { directory: directory.to_owned(), rule, kept: kept.clone(), sizes: BTreeMap::new() };
        let keeper =
            std::thread::Builder::new().name("history keep".to_owned()).spawn(move || keeper.run(&received))?;
        Ok(Surplus { events, kept, rule: Mutex::new(rule), keeper: Mutex::new(Some(keeper)) })
    }

    /// Everything up to this position is in the tree: what it replaced will not change any more. Never blocks.
    pub fn settled(&self, position: Position) {
        // A thread that is gone deletes nothing, which harms nobody.
        let _ = self.events.send(Event::Settled(position));
    }

    /// The disk is full: the oldest deleted files go. Never blocks.
    pub fn make_room(&self) {
        let _ = self.events.send(Event::MakeRoom);
    }

    /// Changes what is kept. Never blocks.
    pub fn set_rule(&self, rule: KeepRule) {
        *self.rule.lock() = rule;
        let _ = self.events.send(Event::Rule(rule));
    }

    /// What is to be kept.
    pub fn rule(&self) -> KeepRule {
        *self.rule.lock()
    }

    /// What is kept now.
    pub fn kept(&self) -> Kept {
        *self.kept.lock()
    }

    /// Ends the thread.
    pub fn close(&self) {
        let _ = self.events.send(Event::Stop);
        if let Some(keeper) = self.keeper.lock().take()
            && keeper.join().is_err()
        {
            tracing::error!("the thread that bounds the history panicked");
        }
    }
}

struct Keeper {
    directory: PathBuf,
    rule: KeepRule,
    kept: Arc<Mutex<Kept>>,
    /// What was measured; it does not change any more.
    sizes: BTreeMap<Place, u64>,
}

impl Keeper {
    fn run(mut self, events: &Receiver<Event>) {
        priority::settle(Priority::Spare);
        let mut settled = None;
        loop {
            match events.recv_timeout(LOOK_EVERY) {
                Ok(Event::Settled(position)) => settled = Some(position),
                Ok(Event::MakeRoom) => {
                    if let Err(error) = self.drop_oldest_deleted() {
                        tracing::warn!(%error, "deleted files could not be given up for room");
                    }
                    continue;
                }
                Ok(Event::Rule(rule)) => self.rule = rule,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let Some(position) = settled else { continue };
            if let Err(error) = self.look((position.epoch.0, position.seq.0, Of::Deleted)) {
                tracing::warn!(%error, directory = %self.directory.display(), "the history cannot be looked at or bounded");
            }
        }
    }

    fn look(&mut self, settled: Place) -> io::Result<()> {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Some(place) = entry.file_name().to_str().and_then(place).filter(|place| *place <= settled) else {
                continue;
            };
            let bytes = match self.sizes.get(&place) {
                Some(bytes) => *bytes,
                None => disk_bytes(&entry.path())?,
            };
            let modified = entry.metadata()?.modified()?;
            // A clock that was set back makes it young.
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            entries.insert(place, Entry { bytes, age });
        }
        self.sizes = entries.iter().map(|(place, entry)| (*place, entry.bytes)).collect();
        self.show(0);
        for gone in beyond(&entries, &self.rule) {
            self.delete(gone, "beyond --history-keep")?;
        }
        Ok(())
    }

    fn delete(&mut self, gone: Place, why: &str) -> io::Result<()> {
        let path = self.directory.join(directory_name(gone));
        fs::remove_dir_all(&path)?;
        let bytes = self.sizes.remove(&gone).unwrap_or(0);
        tracing::info!(path = %path.display(), bytes, why, "deleted from the history");
        self.show(1);
        Ok(())
    }

    fn drop_oldest_deleted(&mut self) -> io::Result<()> {
        match oldest_deleted(&self.directory)? {
            Some(oldest) => self.delete(oldest, "the disk is full"),
            None => Ok(()),
        }
    }

    fn show(&self, deleted: u64) {
        let mut kept = self.kept.lock();
        kept.bytes = self.sizes.values().sum();
        kept.positions = self.sizes.len() as u64;
        kept.deleted += deleted;
    }
}

fn oldest_deleted(directory: &Path) -> io::Result<Option<Place>> {
    let mut places = Vec::new();
    for entry in fs::read_dir(directory)? {
        places.extend(entry?.file_name().to_str().and_then(place));
    }
    Ok(places.into_iter().filter(|place| place.2 == Of::Deleted).min())
}

/// Makes room on the full disk of a volume that is not served, whose log must be redone: deletes its oldest deleted files; if there are no
/// others, those of the place that was being filled. Whether there were any.
pub fn give_way_unserved(directory: &Path) -> io::Result<bool> {
    let path = match oldest_deleted(directory)? {
        Some(oldest) => directory.join(directory_name(oldest)),
        None => directory.join(OPEN),
    };
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(()) => {
            tracing::info!(path = %path.display(), why = "the disk is full", "deleted from the history");
            Ok(true)
        }
    }
}

/// The reverse of the name that apply gives.
fn place(name: &str) -> Option<Place> {
    let (of, name) = match name.strip_prefix(CLOSED) {
        Some(rest) => (Of::Deleted, rest),
        None => (Of::Resync, name),
    };
    let (epoch, seq) = name.split_once('-')?;
    Some((epoch.parse().ok()?, seq.parse().ok()?, of))
}

fn directory_name((epoch, seq, of): Place) -> String {
    match of {
        Of::Resync => format!("{epoch}-{seq}"),
        Of::Deleted => format!("{CLOSED}{epoch}-{seq}"),
    }
}

/// What a directory and all below it takes on the disk.
fn disk_bytes(top: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut open = vec![top.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let is = entry.metadata()?;
            // Names of one file share its blocks.
            bytes += is.blocks() * 512 / is.nlink().max(1) + OBJECT_BYTES;
            if is.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path, time::Duration};

    use tandem_proto::position::{Epoch, Position, Seq};

    use super::{Entry, Kept, Of, Surplus, beyond, give_way_unserved, place};
    use crate::config::KeepRule;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn the_oldest_go_first_and_no_more_than_needed() {
        let entries: BTreeMap<_, _> = [((1, 9), 10, 40), ((2, 0), 20, 20), ((2, 5), 30, 5), ((10, 0), 5, 1)]
            .map(|((epoch, seq), bytes, days)| ((epoch, seq, Of::Resync), Entry { bytes, age: days * DAY }))
            .into();
        let rule = |bytes, age: Option<u32>| KeepRule { bytes, age: age.map(|days| days * DAY) };
        let gone = |rule| beyond(&entries, &rule).into_iter().map(|(e, s, _)| (e, s)).collect::<Vec<_>>();
        assert_eq!(gone(rule(None, None)), []);
        assert_eq!(gone(rule(Some(65), None)), []);
        assert_eq!(gone(rule(Some(64), None)), [(1, 9)]);
        assert_eq!(gone(rule(Some(35), None)), [(1, 9), (2, 0)]);
        assert_eq!(gone(rule(Some(0), None)), [(1, 9), (2, 0), (2, 5), (10, 0)]);
        assert_eq!(gone(rule(None, Some(10))), [(1, 9), (2, 0)]);
        assert_eq!(gone(rule(Some(30), Some(30))), [(1, 9), (2, 0), (2, 5)]);
    }

    #[test]
    fn places_of_deleted_files_and_of_resyncs_are_told_apart() {
        assert_eq!(place("deleted-3-7"), Some((3, 7, Of::Deleted)));
        assert_eq!(place("3-7"), Some((3, 7, Of::Resync)));
        assert_eq!(place("open").or(place("ops")), None);
    }

    fn fill(directory: &Path, place: &str) {
        let deep = directory.join(place).join("a/b");
        fs::create_dir_all(&deep).expect("made");
        fs::write(deep.join("file"), vec![1; 100_000]).expect("written");
        std::os::unix::fs::symlink("/", deep.join("link")).expect("made");
    }

    #[test]
    fn of_a_volume_that_cannot_be_opened_deleted_files_go_the_oldest_first_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for place in ["1-5", "deleted-1-9", "deleted-2-1", "open", "ops"] {
            fill(dir.path(), place);
        }
        let mut gone = Vec::new();
        while give_way_unserved(dir.path()).expect("looked") {
            let there = |place: &&str| !dir.path().join(place).exists();
            gone.push(["deleted-1-9", "deleted-2-1", "open"].iter().filter(|place| there(place)).count());
        }
        assert_eq!(gone, [1, 2, 3]);
        assert!(!dir.path().join("open").exists());
        assert!(dir.path().join("1-5").exists() && dir.path().join("ops").exists(), "what resyncs replaced stays");
    }

    #[test]
    fn what_is_beyond_the_rule_is_deleted_but_not_what_is_still_being_filled() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for place in ["1-5", "2-0", "3-7", "ops"] {
            fill(dir.path(), place);
        }
        let surplus = Surplus::start(dir.path(), KeepRule { bytes: Some(150_000), age: None }).expect("started");
        let at = |epoch, seq| Position { epoch: Epoch(epoch), seq: Seq(seq), ..Default::default() };
        surplus.settled(at(3, 6));
        surplus.close();
        let Kept { bytes, positions, deleted } = surplus.kept();
        assert!((100_000..150_000).contains(&bytes), "{bytes}");
        assert_eq!((positions, deleted), (1, 1));
        let there = |place: &str| dir.path().join(place).exists();
        assert_eq!(["1-5", "2-0", "3-7", "ops"].map(there), [false, true, true, true]);
        assert!(Path::new("/").exists(), "links are not followed");
    }
}
