//! Reads what is here, under the locks of the objects, and asks the replica at the place in the stream that this reading is of.
//!
//! *Calm*: many objects are read one after the other, and the place counts only if nobody had a lock of them since. *Exactly*: one object is
//! read, and its place made, under its lock; that always works, also for one that is written all the time.

use std::{
    io,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tandem_proto::{
    Digest, InodeId, Name, pb,
    stage::NodeType,
    verify::{Compared, EXTENT_MAX, Item, NamesDigest, NodeFacts, extent_digest, is_small, node_digest},
};

use super::{
    Worker,
    desk::{NoAnswer, Placed},
};
use crate::{
    resync::{FileReader, NodeView, reader::allowed},
    vfs::still::Still,
};

/// How long an answer is waited for before it is looked whether to end.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the replica may refuse to compare before that is told.
const REFUSED_MAX: Duration = Duration::from_secs(30);

/// Why a pass does not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// The mount ends, or nobody listens any more.
    Ending,
    /// In the background: somebody asks for a pass, which goes first.
    Yields,
    /// In words.
    Failed(String),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Failed(format!("reading the folder: {error}; look at its disk"))
    }
}

/// Objects that were read and must not have changed.
#[derive(Default)]
pub struct Watch<'a>(Vec<(Still<'a>, u64)>);

impl<'a> Watch<'a> {
    /// Watches an object since it had so many turns.
    pub fn add(&mut self, still: Still<'a>, turns: u64) {
        self.0.push((still, turns));
    }

    /// Whether nobody had a lock of any of them.
    pub fn is_calm(&self) -> bool {
        self.0.iter().all(|(still, turns)| still.turns() == *turns)
    }
}

/// An inode as it was read.
pub struct NodeRead {
    /// Its digest, with the data if it is small.
    pub digest: Digest,
    /// Its mtime is not part of that.
    pub untimed: bool,
    /// Bytes of a file whose data is compared by extents.
    pub large: Option<u64>,
    /// Bytes that were read.
    pub bytes: u64,
}

/// One name of a directory.
pub type Listed = (Name, InodeId, NodeType);

/// Digest of all names; they must be sorted.
pub fn names_digest(entries: &[Listed]) -> Digest {
    let mut digest = NamesDigest::default();
    entries.iter().for_each(|(name, id, _)| digest.add(name, id, None));
    digest.finish()
}

impl Worker {
    /// Opens a regular file; `None`: it is gone, or we may not read it.
    pub fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn FileReader>>> {
        Ok(allowed(self.reader.open(id))?.flatten())
    }

    /// Size in bytes of a regular file.
    pub fn size(&self, id: &InodeId) -> io::Result<u64> {
        Ok(allowed(self.reader.node(id))?.flatten().map_or(0, |view| view.size))
    }

    /// All names of a directory, sorted; `None`: it is gone, or we may not read it.
    pub fn list(&self, dir: &InodeId) -> io::Result<Option<Vec<Listed>>> {
        let mut entries: Vec<Listed> = Vec::new();
        let there = allowed(self.reader.list(dir, &mut |entry| {
            entries.push((entry.name, entry.id, entry.node_type));
            Ok(())
        }))?;
        entries.sort_by(|left, right| left.0.cmp(&right.0));
        Ok((there == Some(true)).then_some(entries))
    }

    /// Reads an inode. To be called under its lock.
    pub fn read_node(&self, id: &InodeId, untimed: bool) -> io::Result<Option<NodeRead>> {
        let read = allowed(self.reader.node(id))?.flatten();
        let Some(NodeView { kind, attr, xattrs, size, .. }) = read else { return Ok(None) };
        let mut data = None;
        if is_small(&kind, size) {
            let Some(file) = self.open(id)? else { return Ok(None) };
            let mut buffer = vec![0; size as usize];
            let read = file.read_at(0, &mut buffer)?;
            buffer.truncate(read);
            data = Some(buffer);
        }
        let facts = NodeFacts { kind: &kind, attr: &attr, xattrs: &xattrs, size, untimed };
        let digest = node_digest(&facts, data.as_deref());
        let large = (kind.is_regular() && data.is_none()).then_some(size);
        Ok(Some(NodeRead { digest, untimed, large, bytes: data.map_or(0, |data| data.len() as u64) }))
    }

    /// The next extent of a file from `at` on. To be called under its lock. `None`: nothing follows.
    pub fn read_extent(&self, id: &InodeId, file: &dyn FileReader, at: u64) -> io::Result<Option<Compared>> {
        let size = file.size()?;
        if at >= size {
            return Ok(None);
        }
        let (start, end) = file.next_data(at)?.unwrap_or((size, size));
        let (start, end) = (start.clamp(at, size), end.min(size));
        if start > at {
            let item = Item::Extent { id: *id, offset: at, len: start - at };
            return Ok(Some(Compared { item, digest: None }));
        }
        // Extents begin at multiples, whatever holes there are.
        let end = end.max(at + 1).min((at / EXTENT_MAX + 1) * EXTENT_MAX);
        let mut buffer = vec![0; (end - at) as usize];
        let read = file.read_at(at, &mut buffer)?;
        let item = Item::Extent { id: *id, offset: at, len: end - at };
        Ok(Some(Compared { item, digest: extent_digest(&buffer[..read]) }))
    }

    /// Digest of an extent as it is now, for a second look.
    pub fn reread_extent(&self, id: &InodeId, offset: u64, len: u64) -> io::Result<Option<Compared>> {
        let Some(file) = self.open(id)? else { return Ok(None) };
        let item = Item::Extent { id: *id, offset, len };
        let mut buffer = vec![0; len.min(EXTENT_MAX) as usize];
        if len <= EXTENT_MAX {
            let read = file.read_at(offset, &mut buffer)?;
            return Ok(Some(Compared { item, digest: extent_digest(&buffer[..read]) }));
        }
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let Some((start, stop)) = file.next_data(at)? else { break };
            let (start, stop) = (start.max(at), stop.min(end));
            if start >= stop {
                break;
            }
            let want = ((stop - start) as usize).min(buffer.len());
            let read = file.read_at(start, &mut buffer[..want])?;
            if read == 0 || extent_digest(&buffer[..read]).is_some() {
                // No hole any more: not the same question.
                return Ok(None);
            }
            at = start + read as u64;
        }
        Ok(Some(Compared { item, digest: None }))
    }

    /// Waits until the link is live.
    pub fn wait_open(&self, patience: Duration) -> Result<(), Stop> {
        let begun = Instant::now();
        while !self.commit.desk().is_open() {
            if self.is_ending() {
                return Err(Stop::Ending);
            }
            if begun.elapsed() > patience {
                let why = "the replica cannot be asked: the link is not live, or its storage daemon is of a version that does not compare";
                return Err(Stop::Failed(why.to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks, and waits. `None`: interrupted, it has to be read again.
    pub fn ask(
        &self,
        placed: Placed<'_>,
        items: &[Compared],
        confirm: bool,
        refused: &mut Option<Instant>,
    ) -> Result<Option<pb::VerifyResult>, Stop> {
        let answer = placed.fill(items.iter().map(pb::VerifyItem::from).collect(), confirm);
        self.commit.wake_link();
        loop {
            match answer.recv_timeout(LOOK_EVERY) {
                Ok(Ok(result)) => {
                    *refused = None;
                    return Ok(Some(result));
                }
                Ok(Err(NoAnswer::Refused(why))) => {
                    if refused.get_or_insert_with(Instant::now).elapsed() > REFUSED_MAX {
                        return Err(Stop::Failed(format!("the replica does not compare: {why}")));
                    }
                    std::thread::sleep(LOOK_EVERY);
                    return Ok(None);
                }
                Ok(Err(NoAnswer::Interrupted)) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if self.is_ending() => return Err(Stop::Ending),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
