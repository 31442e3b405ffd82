//! Carries out the steps of a resync: reads the backing directory and turns what it finds into staged records.
//!
//! What vanishes or changes while it is read is no error: the ops that did it follow in the stream and are redone on what was staged.
//! What may not be read (EACCES) is sent as far as it is known: the replica keeps what it has of the rest, and has an empty file or
//! directory where it has nothing. Who reads keeps in mind what that is, and has it compared when it can be read.
//! Runs on its own thread in the daemon, and in place in the simulation.

use std::io;

use bytes::Bytes;
use tandem_proto::{
    Digest, InodeId, Name,
    chunk::CHUNK_MAX,
    chunks,
    limits::{COMPARE_BLOCK, DATA_MAX, GROUP_MAX, PIECES_MAX, STAGE_ENTRIES_MAX},
    stage::{
        Content, Listing, NodeState, NodeType, Piece, Stage, StageData, StageDir, StageEntry, StageNode, StageRecipe,
        stamp,
    },
};

use crate::{
    commit::{dirty::Scope, intervals::Intervals},
    resync::{
        plan::{Manner, Step, StepDone, Wanted},
        reader::{FileReader, ListedEntry, NodeView, StateReader, allowed},
    },
};

/// Files up to this length are sent without asking: a digest and its answer cost as much. The files of the simulation are small.
const SMALL_FILE: u64 = if cfg!(test) { 8 } else { 4096 };
/// Dirty extents from this length on are compared by digest before they are sent; where an unfinished resync left bytes, from
/// [`SMALL_FILE`] on.
const COMPARE_FROM: u64 = 1 << 20;
/// From this length on an extent is named by groups of chunks where the link is slow.
const GROUPS_FROM: u64 = 512 << 10;
/// Chunks of a group on average: 4 MiB.
const GROUP_CHUNKS: u8 = 64;
/// Read at once while chunks are cut.
const READ_BYTES: usize = 1 << 20;

/// Takes what was read, in order. An error ends the step (the connection is gone).
pub type Sink<'a> = &'a mut dyn FnMut(Stage) -> io::Result<()>;

/// Carries out one step. Barriers are the caller's.
pub fn carry_out(step: &Step, manner: Manner, reader: &dyn StateReader, sink: Sink<'_>) -> io::Result<StepDone> {
    match step {
        Step::List(dir) => {
            // What others changed while nobody watched has no mark. If the replica had it before the folder's own disk, a loss of power would
            // take it from the folder only, and no walk would find what is not there.
            if dir.is_root() && matches!(manner.scope, Scope::Walk(_)) {
                reader.sync_durable()?;
            }
            list(*dir, manner, reader, sink)
        }
        Step::Names(dir, names) => send_names(*dir, names, manner, reader, sink),
        Step::Node(id, wanted) => send_node(*id, wanted, manner, reader, sink),
        Step::Pieces(id, pieces) => send_pieces(*id, pieces, reader, sink),
        Step::Barrier(_) => Ok(StepDone::default()),
    }
}

fn stage_node(id: InodeId, view: &NodeView, content: Content) -> Stage {
    let size = if view.kind.is_regular() { view.size } else { 0 };
    let state = NodeState { kind: view.kind.clone(), attr: view.attr, xattrs: view.xattrs.clone(), size, content };
    Stage::Node(StageNode { id, state: Some(state) })
}

fn gone(id: InodeId) -> Stage {
    Stage::Node(StageNode { id, state: None })
}

fn stage_entry(entry: &ListedEntry) -> StageEntry {
    StageEntry {
        name: entry.name.clone(),
        node: Some((entry.id, entry.node_type)),
        stamp: Some(stamp(entry.node_type, &entry.attr, entry.size)),
    }
}

/// What a walk has to do with a listed entry beyond its stamp.
fn follow(entry: &ListedEntry, scope: Scope, done: &mut StepDone) {
    let changed = match scope {
        Scope::Cells => return,
        Scope::Walk(since) => entry.ctime >= since,
        Scope::Everything => true,
    };
    if entry.node_type == NodeType::Directory {
        done.directories.push(entry.id);
    } else if changed {
        done.changed.push(entry.id);
    }
}

fn list(dir: InodeId, manner: Manner, reader: &dyn StateReader, sink: Sink<'_>) -> io::Result<StepDone> {
    let mut done = StepDone { nodes: 1, names: 1, ..Default::default() };
    let Some(node) = allowed(reader.node(&dir))? else { return Ok(done) };
    match node {
        Some(view) if view.kind.is_directory() => sink(stage_node(dir, &view, Content::Unchanged))?,
        _ => {
            if !dir.is_root() {
                sink(gone(dir))?;
            }
            return Ok(done);
        }
    }
    let (mut entries, mut parts) = (Vec::new(), 0);
    let listed = reader.list(&dir, &mut |entry| {
        follow(&entry, manner.scope, &mut done);
        entries.push(stage_entry(&entry));
        done.names += 1;
        done.bytes_listed += entry.size;
        if entries.len() == STAGE_ENTRIES_MAX {
            let entries = std::mem::take(&mut entries);
            let part = StageDir { dir, listing: Listing::CompletePart, entries, born_since: manner.born_since };
            sink(Stage::Dir(part))?;
            parts += 1;
        }
        Ok(())
    });
    let there = match allowed(listed)? {
        Some(there) => there,
        // The replica keeps the names that it has.
        None if parts == 0 => return Ok(StepDone { nodes: 1, names: 1, ..Default::default() }),
        None => return Err(io::Error::other(format!("directory {dir} was closed while it was listed"))),
    };
    // A directory that vanished in the middle: the op that removed it follows. The listing is closed all the same. One that is still there
    // must not be taken for an empty one.
    if !there && reader.node(&dir)?.is_some_and(|view| view.kind.is_directory()) {
        return Err(io::Error::other(format!("directory {dir} is there, and cannot be listed")));
    }
    sink(Stage::Dir(StageDir { dir, listing: Listing::CompleteEnd, entries, born_since: manner.born_since }))?;
    Ok(done)
}

fn send_names(
    dir: InodeId,
    names: &[Name],
    manner: Manner,
    reader: &dyn StateReader,
    sink: Sink<'_>,
) -> io::Result<StepDone> {
    let mut done = StepDone::default();
    // The directory itself comes later, with the files: were it sent now, the replica would not ask for the other names of one that it
    // does not know.
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let Some(found) = allowed(reader.entry(&dir, name))? else { return Ok(StepDone::default()) };
        match found {
            Some(entry) => {
                follow(&entry, manner.scope, &mut done);
                entries.push(stage_entry(&entry));
            }
            None => entries.push(StageEntry { name: name.clone(), node: None, stamp: None }),
        }
    }
    sink(Stage::Dir(StageDir { dir, listing: Listing::Partial, entries, born_since: manner.born_since }))?;
    Ok(done)
}

fn send_node(
    id: InodeId,
    wanted: &Wanted,
    manner: Manner,
    reader: &dyn StateReader,
    sink: Sink<'_>,
) -> io::Result<StepDone> {
    let wholes = u64::from(*wanted == Wanted::Whole);
    let mut done = StepDone { nodes: 1, wholes, ..Default::default() };
    let view = match allowed(reader.node(&id))? {
        Some(Some(view)) => view,
        Some(None) if id.is_root() => return Ok(done),
        Some(None) => return sink(gone(id)).map(|()| done),
        // Below a directory that may not be searched.
        None => return Ok(done),
    };
    if view.kind.is_directory() {
        sink(stage_node(id, &view, Content::Unchanged))?;
        if *wanted == Wanted::Whole {
            done.directories.push(id);
        }
        return Ok(done);
    }
    if !view.kind.is_regular() {
        sink(stage_node(id, &view, if *wanted == Wanted::Whole { Content::Whole } else { Content::Unchanged }))?;
        return Ok(done);
    }
    match wanted {
        Wanted::Attributes => sink(stage_node(id, &view, Content::Unchanged))?,
        Wanted::Whole if view.size == 0 => sink(stage_node(id, &view, Content::Whole))?,
        Wanted::Whole | Wanted::Ranges(_) => match allowed(reader.open(&id))? {
            Some(file) => send_content(id, &view, (wanted, file.as_deref()), manner, &mut done, sink)?,
            None => sink(stage_node(id, &view, Content::Unchanged))?,
        },
    }
    Ok(done)
}

/// A regular file and what is wanted of its content; `None`: it was removed meanwhile.
fn send_content(
    id: InodeId,
    view: &NodeView,
    (wanted, file): (&Wanted, Option<&dyn FileReader>),
    manner: Manner,
    done: &mut StepDone,
    sink: Sink<'_>,
) -> io::Result<()> {
    let content = if *wanted == Wanted::Whole { Content::Whole } else { Content::Ranges };
    sink(stage_node(id, view, content))?;
    let Some(file) = file else { return Ok(()) };
    match wanted {
        Wanted::Ranges(ranges) => send_ranges(id, (ranges, view.size), manner, file, done, sink),
        _ => send_whole(id, view.size, manner, file, done, sink),
    }
}

fn send_ranges(
    id: InodeId,
    (ranges, size): (&Intervals, u64),
    manner: Manner,
    file: &dyn FileReader,
    done: &mut StepDone,
    sink: Sink<'_>,
) -> io::Result<()> {
    for (start, end) in ranges.iter() {
        let end = end.min(size);
        if start >= end {
            continue;
        }
        done.bytes += end - start;
        let from = if manner.ask { SMALL_FILE } else { COMPARE_FROM };
        let compare = !manner.direct && end - start >= from;
        let mut at = start;
        while at < end {
            let data = match file.next_data(at)? {
                Some((data, data_end)) if data < end => (data.max(at), data_end.min(end)),
                _ => (end, end),
            };
            if data.0 > at {
                let hole = Piece::chunk(at, data.0 - at, None);
                sink(Stage::Recipe(StageRecipe { id, pieces: vec![hole] }))?;
            }
            if data.0 < data.1 {
                if manner.thrifty && data.1 - data.0 >= GROUPS_FROM {
                    send_groups(id, data.0, data.1, file, sink)?;
                } else if compare {
                    send_blocks(id, data.0, data.1, file, sink)?;
                } else {
                    done.sent += send_bytes(id, data.0, data.1, file, sink)?;
                }
            }
            at = data.1.max(at + 1);
        }
    }
    Ok(())
}

/// Everything of a file; holes are not sent.
fn send_whole(
    id: InodeId,
    size: u64,
    manner: Manner,
    file: &dyn FileReader,
    done: &mut StepDone,
    sink: Sink<'_>,
) -> io::Result<()> {
    done.bytes += size;
    let mut at = 0;
    while at < size {
        let Some((start, end)) = file.next_data(at)? else { break };
        let (start, end) = (start.max(at), end.min(size));
        if start >= end {
            break;
        }
        if manner.direct || size <= SMALL_FILE {
            done.sent += send_bytes(id, start, end, file, sink)?;
        } else if manner.thrifty && end - start >= GROUPS_FROM {
            send_groups(id, start, end, file, sink)?;
        } else {
            send_chunks(id, start, end, file, sink)?;
        }
        at = end;
    }
    Ok(())
}

/// Bytes without asking.
fn send_bytes(id: InodeId, start: u64, end: u64, file: &dyn FileReader, sink: Sink<'_>) -> io::Result<u64> {
    let mut at = start;
    while at < end {
        let len = (end - at).min(DATA_MAX as u64) as usize;
        let mut buffer = vec![0; len];
        let read = read_full(file, at, &mut buffer)?;
        if read == 0 {
            break;
        }
        buffer.truncate(read);
        sink(Stage::Data(StageData { id, offset: at, data: Bytes::from(buffer) }))?;
        at += read as u64;
    }
    Ok(at - start)
}

/// Fixed pieces by digest: for extents of a known file, whose unchanged blocks lie where they were.
fn send_blocks(id: InodeId, start: u64, end: u64, file: &dyn FileReader, sink: Sink<'_>) -> io::Result<()> {
    let mut buffer = vec![0; COMPARE_BLOCK as usize];
    let mut pieces = Vec::new();
    let mut at = start;
    while at < end {
        // Cut at multiples, so that a shifted start finds the same blocks.
        let until = ((at / COMPARE_BLOCK + 1) * COMPARE_BLOCK).min(end);
        let read = read_full(file, at, &mut buffer[..(until - at) as usize])?;
        if read == 0 {
            break;
        }
        push_piece(id, at, &buffer[..read], &mut pieces, sink)?;
        at += read as u64;
    }
    flush_pieces(id, &mut pieces, sink)
}

/// Takes the content-defined chunks of an extent, in order.
type EachChunk<'a> = &'a mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

/// Content-defined pieces by digest: found wherever the replica has them.
fn send_chunks(id: InodeId, start: u64, end: u64, file: &dyn FileReader, sink: Sink<'_>) -> io::Result<()> {
    let mut pieces = Vec::new();
    each_chunk(start, end, file, &mut |offset, bytes| push_piece(id, offset, bytes, &mut pieces, sink))?;
    flush_pieces(id, &mut pieces, sink)
}

fn each_chunk(start: u64, end: u64, file: &dyn FileReader, each: EachChunk<'_>) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES.min((end - start) as usize).max(1)];
    let (mut have, mut at) = (0usize, start);
    loop {
        let want = ((end - at) as usize).min(buffer.len());
        if want > have {
            have += read_full(file, at + have as u64, &mut buffer[have..want])?;
        }
        if have == 0 {
            break;
        }
        let last = have < want || at + have as u64 >= end;
        let cuts: Vec<(usize, usize)> = chunks(&buffer[..have]).collect();
        let usable = if last || have < CHUNK_MAX { cuts.len() } else { cuts.len() - 1 };
        let mut used = 0;
        for (offset, len) in &cuts[..usable] {
            each(at + *offset as u64, &buffer[*offset..offset + len])?;
            used = offset + len;
        }
        buffer.copy_within(used..have, 0);
        have -= used;
        at += used as u64;
        if last || used == 0 {
            break;
        }
    }
    Ok(())
}

/// Chunks that are named by one digest.
struct Group {
    offset: u64,
    len: u64,
    chunks: u32,
    first: Digest,
    hasher: blake3::Hasher,
}

impl Group {
    fn begin(offset: u64, bytes: &[u8], digest: Digest) -> Group {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytes);
        Group { offset, len: bytes.len() as u64, chunks: 1, first: digest, hasher }
    }

    fn piece(&self) -> Piece {
        // A group of one chunk is that chunk.
        let first = (self.chunks > 1).then_some(self.first);
        let digest = Digest(*self.hasher.finalize().as_bytes());
        Piece { offset: self.offset, len: self.len, digest: Some(digest), first }
    }
}

/// Groups of chunks by digest: what nearly nothing is known of, nor changed of, costs next to nothing. Groups end where a chunk's digest
/// says so, hence the same chunks are the same groups, wherever they lie. What the replica lacks it asks for: then come the chunks.
fn send_groups(id: InodeId, start: u64, end: u64, file: &dyn FileReader, sink: Sink<'_>) -> io::Result<()> {
    let mut pieces = Vec::new();
    let mut open: Option<Group> = None;
    each_chunk(start, end, file, &mut |offset, bytes| {
        if bytes.iter().all(|byte| *byte == 0) {
            pieces.extend(open.take().map(|group| group.piece()));
            return push_piece(id, offset, bytes, &mut pieces, sink);
        }
        let digest = Digest::of(bytes);
        let group = match &mut open {
            Some(group) => {
                group.hasher.update(bytes);
                group.len += bytes.len() as u64;
                group.chunks += 1;
                group
            }
            None => open.insert(Group::begin(offset, bytes, digest)),
        };
        let ends = digest.0[0].is_multiple_of(GROUP_CHUNKS) || group.len + CHUNK_MAX as u64 > GROUP_MAX;
        if ends {
            pieces.push(group.piece());
            open = None;
        }
        if pieces.len() >= PIECES_MAX { flush_pieces(id, &mut pieces, sink) } else { Ok(()) }
    })?;
    pieces.extend(open.take().map(|group| group.piece()));
    flush_pieces(id, &mut pieces, sink)
}

fn push_piece(id: InodeId, offset: u64, bytes: &[u8], pieces: &mut Vec<Piece>, sink: Sink<'_>) -> io::Result<()> {
    let digest = if bytes.iter().all(|byte| *byte == 0) { None } else { Some(Digest::of(bytes)) };
    pieces.push(Piece::chunk(offset, bytes.len() as u64, digest));
    if pieces.len() >= PIECES_MAX { flush_pieces(id, pieces, sink) } else { Ok(()) }
}

fn flush_pieces(id: InodeId, pieces: &mut Vec<Piece>, sink: Sink<'_>) -> io::Result<()> {
    if pieces.is_empty() {
        return Ok(());
    }
    sink(Stage::Recipe(StageRecipe { id, pieces: std::mem::take(pieces) }))
}

fn send_pieces(id: InodeId, pieces: &[Piece], reader: &dyn StateReader, sink: Sink<'_>) -> io::Result<StepDone> {
    let mut done = StepDone::default();
    // A file that is gone by now leaves the pieces unanswered: the op that removed it follows. So does one that was closed to us.
    if let Some(Some(file)) = allowed(reader.open(&id))? {
        for piece in pieces {
            let end = piece.offset.saturating_add(piece.len);
            if piece.len > CHUNK_MAX as u64 {
                // A group: some of its chunks may be there all the same.
                send_chunks(id, piece.offset, end, &*file, sink)?;
            } else {
                done.sent += send_bytes(id, piece.offset, end, &*file, sink)?;
            }
        }
    }
    Ok(done)
}

fn read_full(file: &dyn FileReader, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset + done as u64, &mut buffer[done..])? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io;

    use tandem_proto::{Attr, InodeId, Name, NodeKind, Timestamp};

    use super::carry_out;
    use crate::{
        commit::dirty::Scope,
        resync::{
            plan::{Manner, Step},
            reader::{FileReader, ListedEntry, NodeView, StateReader},
        },
    };

    /// An empty directory on a disk that takes nothing.
    struct Dying;

    impl StateReader for Dying {
        fn node(&self, _: &InodeId) -> io::Result<Option<NodeView>> {
            let attr = Attr { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
            let (kind, xattrs, ctime) = (NodeKind::Directory, Vec::new(), Timestamp::default());
            Ok(Some(NodeView { kind, attr, xattrs, size: 0, ctime }))
        }

        fn entry(&self, _: &InodeId, _: &Name) -> io::Result<Option<ListedEntry>> {
            Ok(None)
        }

        fn list(&self, _: &InodeId, _: &mut dyn FnMut(ListedEntry) -> io::Result<()>) -> io::Result<bool> {
            Ok(true)
        }

        fn open(&self, _: &InodeId) -> io::Result<Option<Box<dyn FileReader>>> {
            Ok(None)
        }

        fn sync_durable(&self) -> io::Result<()> {
            Err(io::Error::other("it takes nothing"))
        }
    }

    #[test]
    fn a_walk_sends_nothing_that_may_not_be_on_the_folders_disk() {
        let sent = |scope| {
            let (manner, mut sent) = (Manner { scope, ..Manner::default() }, 0);
            let done = carry_out(&Step::List(InodeId::ROOT), manner, &Dying, &mut |_| {
                sent += 1;
                Ok(())
            });
            (done.is_ok(), sent)
        };
        assert_eq!(sent(Scope::Cells), (true, 2), "what has marks is listed all the same");
        assert_eq!(sent(Scope::Walk(Timestamp::default())), (false, 0));
    }
}
