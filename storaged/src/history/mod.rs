//! The record of ops, and the bound of what else lies in `history/` ([`surplus`]).
//!
//! The record of ops: who changed what and when, for people. Apart from the debug log, and never part of a decision.
//!
//! One JSON object a line in `history/ops-NNNNNNNN.jsonl`, written by a thread of its own behind apply. Writes of one file by one process that
//! follow each other are one line ([`writes`]): who writes a database page by page would fill the record in seconds, and keep a processor busy
//! with it. Bounded: the oldest file
//! goes when there are too many or when it is too old, and ops that come faster than they are written are counted instead of written.
//! [`reading`] tells it again to people, [`kept`] finds the deleted files.

pub mod kept;
pub mod paths;
pub mod reading;
mod surplus;
mod writes;

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use surplus::{Kept, Surplus, give_way_unserved};
use writes::{Writes, Written};

use paths::{NameOf, Paths};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use smallvec::SmallVec;
use tandem_proto::{
    ids::InodeId,
    op::{Change, NodeKind, Op},
    pb,
    position::Position,
};
use tandem_runtime::priority::{self, Priority};

/// A file is followed by the next one at this size.
const FILE_MAX_BYTES: u64 = 16 << 20;
/// So many files are kept: 128 MiB, some half a million ops.
const FILES_MAX: usize = 8;
/// Ops that wait for the thread; about 200 bytes each.
const WAITING_MAX: usize = 32 << 10;
/// Who asks for what is recorded waits at most so long for what is not in the file yet.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// Written lines reach the file at the latest after this.
const WRITE_AFTER: Duration = Duration::from_millis(500);
/// The thread rests for so long when it has written all: a wake-up for each op costs more than the op, and takes a processor from those
/// who wait for its acknowledgement.
const REST: Duration = Duration::from_millis(10);
const PREFIX: &str = "ops-";
const SUFFIX: &str = ".jsonl";
/// Paths that the line of a publish names.
const PUBLISHED_PATHS_MAX: usize = 100;
/// Lines that are kept for who looks at the newest items, without reading files: some 100 KiB.
const RECENT_LINES_MAX: usize = 256;
/// Length of a line that is kept in memory.
const RECENT_LINE_BYTES_MAX: usize = 16 << 10;
/// Items that he is shown.
const RECENT_MAX: usize = 64;

/// One change, short.
#[derive(Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Did {
    Create {
        id: String,
        kind: &'static str,
    },
    Name {
        dir: Object,
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        was: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        is: Option<String>,
    },
    Attr {
        of: Object,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        mtime_only: bool,
    },
    Xattr {
        of: Object,
        name: String,
        removed: bool,
    },
    Write {
        of: Object,
        offset: u64,
        len: u64,
    },
    Hole {
        of: Object,
        offset: u64,
        len: u64,
    },
    Size {
        of: Object,
        size: u64,
    },
}

/// An inode: by path if it is known, always by id.
#[derive(Serialize)]
struct Object {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Arc<str>>,
}

#[derive(Serialize)]
struct Line<'a> {
    time_ns: i64,
    epoch: u64,
    seq: u64,
    client: &'a str,
    uid: u32,
    pid: u32,
    process: String,
    changes: Vec<Did>,
    /// Ops that it tells of, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<u64>,
}

enum Event {
    Op { op: Box<Op>, lens: SmallVec<[u64; 2]>, position: Position, client: Arc<str> },
    Published { some: Vec<InodeId>, changed: usize, removed: usize, position: Position, client: Arc<str> },
    Flush(SyncSender<()>),
    Stop,
}

/// The record of one volume's ops.
pub struct History {
    events: SyncSender<Event>,
    dropped: Arc<AtomicU64>,
    client: Mutex<Arc<str>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    recent: Recent,
    directory: PathBuf,
}

/// The newest lines.
type Recent = Arc<Mutex<VecDeque<Vec<u8>>>>;

impl History {
    /// Opens the record in `directory` and starts its thread. Files that are older than `age` go.
    pub fn open(directory: &Path, name_of: NameOf, age: Option<Duration>) -> io::Result<History> {
        fs::create_dir_all(directory)?;
        let (events, received) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let recent = Recent::default();
        let writer = Writer {
            directory: directory.to_owned(),
            file: None,
            written: 0,
            paths: Paths::new(name_of),
            dropped: dropped.clone(),
            age,
            recent: recent.clone(),
            writes: Writes::default(),
        };
        let writer = std::thread::Builder::new().name("history".to_owned()).spawn(move || writer.run(&received))?;
        Ok(History {
            events,
            dropped,
            client: Mutex::new(Arc::from("")),
            writer: Mutex::new(Some(writer)),
            recent,
            directory: directory.to_owned(),
        })
    }

    /// Where it is written.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The newest items, oldest first.
    pub fn recent(&self) -> Vec<pb::HistoryItem> {
        let lines: Vec<Vec<u8>> = self.recent.lock().iter().cloned().collect();
        let mut items = VecDeque::new();
        for item in lines.iter().filter_map(|line| reading::item(line)) {
            reading::merge(&mut items, item);
        }
        items.drain(..items.len().saturating_sub(RECENT_MAX));
        items.into()
    }

    /// Returns when everything that was put before is in the files, or after a second. Blocks.
    pub fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        if self.events.try_send(Event::Flush(done)).is_ok() {
            // Who asks sees what is there; one that is late is not waited for.
            let _ = flushed.recv_timeout(FLUSH_WITHIN);
        }
    }

    /// A live op was applied. Never blocks.
    pub fn op(&self, op: &Op, position: Position, client: &str) {
        if op.changes.is_empty() {
            return;
        }
        let mut op = Box::new(op.clone());
        // The bytes must not be kept alive for their length.
        let lens = op.changes.iter().map(|change| change.data_len() as u64).collect();
        for change in &mut op.changes {
            match change {
                Change::Data { data, .. } => *data = Bytes::new(),
                Change::Xattr { value: Some(value), .. } => *value = Bytes::new(),
                _ => {}
            }
        }
        self.put(Event::Op { op, lens, position, client: self.name(client) });
    }

    /// A whole state was published. Never blocks.
    pub fn published(&self, changed: &[InodeId], removed: usize, position: Position, client: &str) {
        let some = changed.iter().take(PUBLISHED_PATHS_MAX).copied().collect();
        self.put(Event::Published { some, changed: changed.len(), removed, position, client: self.name(client) });
    }

    fn name(&self, client: &str) -> Arc<str> {
        let mut known = self.client.lock();
        if **known != *client {
            *known = Arc::from(client);
        }
        known.clone()
    }

    fn put(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits and ends the thread.
    pub fn close(&self) {
        if let Some(writer) = self.writer.lock().take() {
            // A full channel is emptied by the writer, so this waits shortly.
            let _ = self.events.send(Event::Stop);
            let _ = writer.join();
        }
    }
}

struct Writer {
    directory: PathBuf,
    file: Option<BufWriter<File>>,
    written: u64,
    paths: Paths,
    dropped: Arc<AtomicU64>,
    age: Option<Duration>,
    recent: Recent,
    writes: Writes,
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kind_name(kind: &NodeKind) -> &'static str {
    match kind {
        NodeKind::Regular => "file",
        NodeKind::Directory => "directory",
        NodeKind::Symlink(_) => "symlink",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
        NodeKind::CharDevice { .. } | NodeKind::BlockDevice { .. } => "device",
    }
}

impl Writer {
    fn run(mut self, events: &Receiver<Event>) {
        priority::settle(Priority::Patient);
        let mut unwritten = false;
        loop {
            let event = if let Ok(event) = events.try_recv() {
                Some(event)
            } else if unwritten {
                std::thread::sleep(REST);
                match events.recv_timeout(WRITE_AFTER) {
                    Ok(event) => Some(event),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => Some(Event::Stop),
                }
            } else {
                Some(events.recv().unwrap_or(Event::Stop))
            };
            let stop = matches!(event, Some(Event::Stop));
            let result = match event {
                Some(Event::Op { op, lens, position, client }) => {
                    unwritten = true;
                    self.op(&op, &lens, position, &client)
                }
                Some(Event::Published { some, changed, removed, position, client }) => {
                    unwritten = true;
                    self.paths.forget();
                    let paths: Vec<Arc<str>> = some.iter().filter_map(|id| self.paths.path(id)).collect();
                    let line = serde_json::json!({
                        "time_ns": now_ns(), "epoch": position.epoch.0, "seq": position.seq.0, "client": &*client,
                        "do": "publish", "changed": changed, "removed": removed, "paths": paths,
                    });
                    self.tell_writes().and_then(|()| self.line(&line))
                }
                Some(Event::Flush(done)) => {
                    unwritten = false;
                    let flushed = self.flush();
                    let _ = done.send(());
                    flushed
                }
                Some(Event::Stop) | None => {
                    unwritten = false;
                    self.flush()
                }
            };
            if let Err(error) = result {
                // People lose a line, the replica loses nothing.
                tracing::warn!(%error, directory = %self.directory.display(), "the record of ops cannot be written");
                self.file = None;
            }
            if stop {
                return;
            }
        }
    }

    /// Everything so far is in the files.
    fn flush(&mut self) -> io::Result<()> {
        self.tell_writes()?;
        self.file.as_mut().map_or(Ok(()), |file| file.flush())
    }

    /// Writes the lines of writes that waited for others like them.
    fn tell_writes(&mut self) -> io::Result<()> {
        for written in self.writes.take() {
            let of = self.object(&written.id);
            self.line(&Line {
                time_ns: written.origin.time_ns,
                epoch: written.epoch.0,
                seq: written.seq.0,
                client: &written.client,
                uid: written.origin.uid,
                pid: written.origin.pid,
                process: text(&written.origin.process),
                changes: vec![Did::Write { of, offset: written.offset, len: written.bytes }],
                ops: (written.ops > 1).then_some(written.ops),
            })?;
        }
        Ok(())
    }

    fn op(&mut self, op: &Op, lens: &[u64], position: Position, client: &Arc<str>) -> io::Result<()> {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.paths.forget();
            self.line(&serde_json::json!({
                "time_ns": now_ns(), "not_recorded": dropped, "reason": "ops came faster than they are written",
            }))?;
        }
        if let Some(written) = Written::of(op, lens, position, client) {
            if self.writes.is_over(&written) {
                self.tell_writes()?;
            }
            self.writes.add(written);
            return Ok(());
        }
        self.tell_writes()?;
        op.changes.iter().for_each(|change| self.paths.changed(change));
        let line = Line {
            time_ns: op.origin.time_ns,
            epoch: position.epoch.0,
            seq: op.seq.0,
            client,
            uid: op.origin.uid,
            pid: op.origin.pid,
            process: text(&op.origin.process),
            changes: op.changes.iter().zip(lens).map(|(change, len)| self.did(change, *len)).collect(),
            ops: None,
        };
        self.line(&line)
    }

    fn object(&mut self, id: &InodeId) -> Object {
        Object { id: id.to_hex(), path: self.paths.path(id) }
    }

    fn did(&mut self, change: &Change, data_len: u64) -> Did {
        match change {
            Change::Birth { id, kind } => Did::Create { id: id.to_hex(), kind: kind_name(kind) },
            Change::Entry { dir, name, old, new } => Did::Name {
                dir: self.object(dir),
                name: text(name.as_bytes()),
                was: old.as_ref().map(InodeId::to_hex),
                is: new.as_ref().map(InodeId::to_hex),
            },
            Change::Attr { id, patch } => Did::Attr {
                of: self.object(id),
                mtime_only: patch.mode.is_none() && patch.uid.is_none() && patch.gid.is_none(),
            },
            Change::Xattr { id, name, value } => {
                Did::Xattr { of: self.object(id), name: text(name), removed: value.is_none() }
            }
            Change::Data { id, offset, .. } => Did::Write { of: self.object(id), offset: *offset, len: data_len },
            Change::Copy { id, offset, len, .. } => Did::Write { of: self.object(id), offset: *offset, len: *len },
            Change::Hole { id, offset, len } => Did::Hole { of: self.object(id), offset: *offset, len: *len },
            Change::Size { id, size } => Did::Size { of: self.object(id), size: *size },
        }
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        if self.written >= FILE_MAX_BYTES
            && let Some(mut full) = self.file.take()
        {
            full.flush()?;
        }
        if self.file.is_none() {
            self.next_file()?;
        }
        self.written += bytes.len() as u64;
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&bytes));
        let mut recent = self.recent.lock();
        if recent.len() == RECENT_LINES_MAX {
            recent.pop_front();
        }
        // Paths of a deep tree are long; those lines are in the file only.
        if bytes.len() <= RECENT_LINE_BYTES_MAX {
            recent.push_back(bytes);
        }
        written
    }

    /// Opens the newest file if it has room, else the next one, and deletes the oldest beyond the bound.
    fn next_file(&mut self) -> io::Result<()> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let path = |number: u64| self.directory.join(format!("{PREFIX}{number:08}{SUFFIX}"));
        let too_old = |number: &u64| {
            let modified = fs::metadata(path(*number)).and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
            self.age.zip(age).is_some_and(|(most, age)| age > most)
        };
        let newest = numbers.last().copied().unwrap_or(0);
        let size = fs::metadata(path(newest)).map_or(FILE_MAX_BYTES, |metadata| metadata.len());
        let (number, written) = if size < FILE_MAX_BYTES { (newest, size) } else { (newest + 1, 0) };
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path(number))?;
        for (place, old) in numbers.iter().rev().enumerate() {
            if *old != number && (place >= FILES_MAX - 1 || too_old(old)) {
                fs::remove_file(path(*old))?;
            }
        }
        (self.file, self.written) = (Some(BufWriter::new(file)), written);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use tandem_proto::{
        ids::{InodeId, Name},
        op::{Change, Op, Origin},
        position::{Position, Seq},
    };

    use super::History;

    #[test]
    fn writes_that_follow_each_other_are_one_line_in_the_order_of_ops() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let history = History::open(dir.path(), Box::new(|_| None), None).expect("opened");
        let id = |name: &str| InodeId::new(name.as_bytes()).expect("short");
        let op = |seq, change| {
            let origin = Origin { time_ns: seq as i64, uid: 1, gid: 2, pid: 3, process: "db".into() };
            Op { seq: Seq(seq), origin, changes: smallvec![change] }
        };
        let write = |seq, name: &str, offset| op(seq, Change::Data { id: id(name), offset, data: "12345".into() });
        let ops = [
            write(1, "a", 100),
            write(2, "b", 0),
            write(3, "a", 50),
            op(4, Change::Size { id: id("a"), size: 7 }),
            write(5, "a", 0),
        ];
        ops.iter().for_each(|op| history.op(op, Position::default(), "me"));
        history.flush();
        let lines = std::fs::read_to_string(dir.path().join("ops-00000001.jsonl")).expect("written");
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().expect("a number")).collect();
        assert_eq!(seqs, [2, 3, 4, 5]);
        assert_eq!((&lines[1]["ops"], &lines[1]["changes"][0]["offset"]), (&2.into(), &50.into()));
        assert_eq!(lines[1]["changes"][0]["len"], 10);
        assert!(lines[0].get("ops").is_none(), "as it was before several could be told by one line");
        let told = super::reading::read(dir.path(), &super::reading::Question::default()).expect("read");
        let written: Vec<_> =
            told.iter().filter(|item| item.what == "written").map(|item| (item.ops, item.bytes)).collect();
        assert_eq!(written.iter().map(|(ops, _)| ops).sum::<u64>(), 4);
        assert_eq!(written.iter().map(|(_, bytes)| bytes).sum::<u64>(), 20);
        assert_eq!(history.recent().len(), told.len());
        history.close();
    }

    #[test]
    fn ops_are_recorded_with_path_process_and_client() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let id = InodeId::new(b"f").expect("short");
        let name_of = move |of: &InodeId| match *of == id {
            true => Some((InodeId::new(b"d").expect("short"), Name::new("file").expect("legal"))),
            false => Some((InodeId::ROOT, Name::new("dir").expect("legal"))),
        };
        let history = History::open(dir.path(), Box::new(name_of), None).expect("opened");
        let origin = Origin { time_ns: 5, uid: 1, gid: 2, pid: 3, process: "vi".into() };
        let change = Change::Data { id, offset: 10, data: "12345".into() };
        let op = Op { seq: Seq(9), origin, changes: smallvec![change] };
        history.op(&op, Position::default(), "me@here");
        history.published(&[id], 1, Position::default(), "me@here");
        history.close();
        let lines = std::fs::read_to_string(dir.path().join("ops-00000001.jsonl")).expect("written");
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines[0]["process"], "vi");
        assert_eq!(lines[0]["seq"], 9);
        assert_eq!(lines[0]["changes"][0]["do"], "write");
        assert_eq!(lines[0]["changes"][0]["of"]["path"], "/dir/file");
        assert_eq!(lines[0]["changes"][0]["offset"], 10);
        assert_eq!(lines[1]["do"], "publish");
        assert_eq!(lines[1]["paths"][0], "/dir/file");
        let recent = history.recent();
        assert_eq!((recent[0].what.as_str(), recent[0].path.as_str(), recent[0].bytes), ("written", "/dir/file", 5));
        assert!(!lines[0].to_string().contains("12345"), "the bytes are not recorded");
    }
}
