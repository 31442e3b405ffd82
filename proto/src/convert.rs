//! Between generated protobuf types and domain types. Everything that comes from outside passes here and is checked once.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    chain::Chain,
    chunk::Digest,
    ids::{InodeId, Name, Uuid},
    limits::{
        CHANGES_MAX, COPY_MAX, DATA_MAX, GROUP_MAX, NAME_MAX, OFFSET_MAX, PIECES_MAX, STAGE_ENTRIES_MAX, TARGET_MAX,
        XATTR_NAME_MAX, XATTR_VALUE_MAX,
    },
    op::{Attr, AttrPatch, Change, NodeKind, Op, Origin, Timestamp},
    pb,
    position::{COUNT_MAX, Epoch, Position, Seq},
    stage::{Content, Listing, NodeState, NodeType, Piece, StageData, StageDir, StageEntry, StageNode, StageRecipe},
};

/// A message from outside breaks a rule of the protocol. It names the field; nothing of the message was used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field, as in the .proto files.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

fn invalid<T>(field: &'static str, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { field, problem: problem.into() })
}

/// An inode id from its wire form.
pub fn inode_id(field: &'static str, bytes: &[u8]) -> Result<InodeId, Invalid> {
    InodeId::new(bytes).ok_or_else(|| Invalid { field, problem: format!("an inode id of {} bytes", bytes.len()) })
}

/// A file name from its wire form.
pub fn name(field: &'static str, bytes: Bytes) -> Result<Name, Invalid> {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(NAME_MAX)]).into_owned();
    Name::new(bytes).ok_or_else(|| Invalid { field, problem: format!("{shown:?} is not a file name") })
}

/// A 128-bit id from its wire form.
pub fn uuid(field: &'static str, bytes: &[u8]) -> Result<Uuid, Invalid> {
    Uuid::from_slice(bytes).ok_or_else(|| Invalid { field, problem: format!("{} bytes instead of 16", bytes.len()) })
}

/// A counter that others count on from.
fn count(field: &'static str, number: u64) -> Result<u64, Invalid> {
    if number > COUNT_MAX { invalid(field, format!("{number} is more than {COUNT_MAX}")) } else { Ok(number) }
}

/// An epoch from its wire form.
pub fn epoch(field: &'static str, number: u64) -> Result<Epoch, Invalid> {
    count(field, number).map(Epoch)
}

/// The seq of a batch's first op from its wire form: one from which any batch can be counted.
pub fn first_seq(field: &'static str, number: u64) -> Result<Seq, Invalid> {
    if number == 0 { invalid(field, "0 is not the seq of an op") } else { count(field, number).map(Seq) }
}

/// A chain from its wire form.
pub fn chain(field: &'static str, bytes: &[u8]) -> Result<Chain, Invalid> {
    Chain::from_slice(bytes).ok_or_else(|| Invalid { field, problem: format!("{} bytes instead of 16", bytes.len()) })
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Option<Digest>, Invalid> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match Digest::from_slice(bytes) {
        Some(digest) => Ok(Some(digest)),
        None => invalid(field, format!("{} bytes instead of 32", bytes.len())),
    }
}

/// That an extent ends within the largest file.
pub fn extent(field: &'static str, offset: u64, len: u64) -> Result<(), Invalid> {
    match offset.checked_add(len) {
        Some(end) if end <= OFFSET_MAX => Ok(()),
        _ => invalid(field, format!("{len} bytes at {offset} end behind the largest file offset")),
    }
}

fn root_or_id(dir: &Bytes) -> Result<InodeId, Invalid> {
    inode_id("dir", dir)
}

fn some_id(field: &'static str, bytes: &[u8]) -> Result<Option<InodeId>, Invalid> {
    if bytes.is_empty() { Ok(None) } else { inode_id(field, bytes).map(Some) }
}

fn id_bytes(id: &InodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

impl From<&Position> for pb::Position {
    fn from(position: &Position) -> Self {
        pb::Position { epoch: position.epoch.0, seq: position.seq.0, chain: Bytes::copy_from_slice(&position.chain.0) }
    }
}

impl TryFrom<&pb::Position> for Position {
    type Error = Invalid;

    fn try_from(position: &pb::Position) -> Result<Self, Invalid> {
        Ok(Position {
            epoch: epoch("position.epoch", position.epoch)?,
            seq: Seq(count("position.seq", position.seq)?),
            chain: chain("position.chain", &position.chain)?,
        })
    }
}

/// A position that must be there.
pub fn position(field: &'static str, position: &Option<pb::Position>) -> Result<Position, Invalid> {
    match position {
        Some(position) => position.try_into(),
        None => invalid(field, "missing"),
    }
}

impl From<&NodeKind> for pb::NodeKind {
    fn from(kind: &NodeKind) -> Self {
        let mut message = pb::NodeKind { r#type: file_type(kind.node_type()).into(), ..Default::default() };
        match kind {
            NodeKind::Symlink(target) => message.target = target.clone(),
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                (message.rdev_major, message.rdev_minor) = (*major, *minor);
            }
            NodeKind::Regular | NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => {}
        }
        message
    }
}

impl TryFrom<pb::NodeKind> for NodeKind {
    type Error = Invalid;

    fn try_from(kind: pb::NodeKind) -> Result<Self, Invalid> {
        let (major, minor) = (kind.rdev_major, kind.rdev_minor);
        Ok(match node_type(kind.r#type)? {
            NodeType::Regular => NodeKind::Regular,
            NodeType::Directory => NodeKind::Directory,
            NodeType::Symlink => {
                if kind.target.is_empty() || kind.target.len() > TARGET_MAX || kind.target.contains(&0) {
                    return invalid("kind.target", format!("a symlink target of {} bytes", kind.target.len()));
                }
                NodeKind::Symlink(kind.target)
            }
            NodeType::Fifo => NodeKind::Fifo,
            NodeType::Socket => NodeKind::Socket,
            NodeType::CharDevice => NodeKind::CharDevice { major, minor },
            NodeType::BlockDevice => NodeKind::BlockDevice { major, minor },
        })
    }
}

/// The wire form of a node type.
pub fn file_type(node: NodeType) -> pb::FileType {
    match node {
        NodeType::Regular => pb::FileType::Regular,
        NodeType::Directory => pb::FileType::Directory,
        NodeType::Symlink => pb::FileType::Symlink,
        NodeType::Fifo => pb::FileType::Fifo,
        NodeType::Socket => pb::FileType::Socket,
        NodeType::CharDevice => pb::FileType::CharDevice,
        NodeType::BlockDevice => pb::FileType::BlockDevice,
    }
}

fn node_type(value: i32) -> Result<NodeType, Invalid> {
    Ok(match pb::FileType::try_from(value) {
        Ok(pb::FileType::Regular) => NodeType::Regular,
        Ok(pb::FileType::Directory) => NodeType::Directory,
        Ok(pb::FileType::Symlink) => NodeType::Symlink,
        Ok(pb::FileType::Fifo) => NodeType::Fifo,
        Ok(pb::FileType::Socket) => NodeType::Socket,
        Ok(pb::FileType::CharDevice) => NodeType::CharDevice,
        Ok(pb::FileType::BlockDevice) => NodeType::BlockDevice,
        Ok(pb::FileType::Unspecified) | Err(_) => return invalid("kind.type", format!("unknown file type {value}")),
    })
}

/// The wire form of attributes.
pub fn attr_message(id: &InodeId, patch: &AttrPatch) -> pb::Attr {
    pb::Attr {
        id: id_bytes(id),
        mode: patch.mode,
        uid: patch.uid,
        gid: patch.gid,
        mtime_s: patch.mtime.map(|time| time.seconds),
        mtime_ns: patch.mtime.map_or(0, |time| time.nanos),
    }
}

fn attr_patch(attr: &pb::Attr) -> Result<AttrPatch, Invalid> {
    if attr.mode.is_some_and(|mode| mode > 0o7777) {
        return invalid("attr.mode", format!("{:#o} has more than permission bits", attr.mode.unwrap_or(0)));
    }
    if attr.mtime_ns >= 1_000_000_000 {
        return invalid("attr.mtime_ns", format!("{} is not below a second", attr.mtime_ns));
    }
    Ok(AttrPatch {
        mode: attr.mode,
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime_s.map(|seconds| Timestamp { seconds, nanos: attr.mtime_ns }),
    })
}

/// Attributes that must all be there.
pub fn attr_complete(attr: &Option<pb::Attr>) -> Result<Attr, Invalid> {
    let patch = match attr {
        Some(attr) => attr_patch(attr)?,
        None => return invalid("attr", "missing"),
    };
    match patch {
        AttrPatch { mode: Some(mode), uid: Some(uid), gid: Some(gid), mtime: Some(mtime) } => {
            Ok(Attr { mode, uid, gid, mtime })
        }
        _ => invalid("attr", "incomplete"),
    }
}

fn xattr_checked(xattr: pb::Xattr) -> Result<(Bytes, Option<Bytes>), Invalid> {
    if xattr.name.is_empty() || xattr.name.len() > XATTR_NAME_MAX || xattr.name.contains(&0) {
        return invalid("xattr.name", format!("{} bytes, or a NUL in it", xattr.name.len()));
    }
    if xattr.value.as_ref().is_some_and(|value| value.len() > XATTR_VALUE_MAX) {
        return invalid("xattr.value", "longer than 64 KiB");
    }
    Ok((xattr.name, xattr.value))
}

/// A complete set of extended attributes.
pub fn xattr_set(xattrs: Vec<pb::Xattr>) -> Result<Vec<(Bytes, Bytes)>, Invalid> {
    xattrs
        .into_iter()
        .map(|xattr| {
            let (name, value) = xattr_checked(xattr)?;
            value
                .map(|value| (name, value))
                .ok_or(Invalid { field: "xattrs", problem: "an entry without a value".into() })
        })
        .collect()
}

/// The wire form of a complete set of extended attributes.
pub fn xattr_messages(xattrs: &[(Bytes, Bytes)]) -> Vec<pb::Xattr> {
    xattrs
        .iter()
        .map(|(name, value)| pb::Xattr { id: Bytes::new(), name: name.clone(), value: Some(value.clone()) })
        .collect()
}

impl From<&Change> for pb::Change {
    fn from(change: &Change) -> Self {
        use pb::change::Kind;
        let id_or_none = |id: &Option<InodeId>| id.as_ref().map_or_else(Bytes::new, id_bytes);
        let kind = match change {
            Change::Birth { id, kind } => Kind::Birth(pb::Birth { id: id_bytes(id), kind: Some(kind.into()) }),
            Change::Entry { dir, name, old, new } => Kind::Entry(pb::Entry {
                dir: id_bytes(dir),
                name: name.to_bytes(),
                old: id_or_none(old),
                new: id_or_none(new),
            }),
            Change::Attr { id, patch } => Kind::Attr(attr_message(id, patch)),
            Change::Xattr { id, name, value } => {
                Kind::Xattr(pb::Xattr { id: id_bytes(id), name: name.clone(), value: value.clone() })
            }
            Change::Data { id, offset, data } => {
                Kind::Data(pb::Data { id: id_bytes(id), offset: *offset, data: data.clone() })
            }
            Change::Copy { id, offset, from, from_offset, len, data } => Kind::Copy(pb::Copy {
                id: id_bytes(id),
                offset: *offset,
                from: id_bytes(from),
                from_offset: *from_offset,
                len: *len,
                data: data.clone().unwrap_or_default(),
            }),
            Change::Hole { id, offset, len } => Kind::Hole(pb::Hole { id: id_bytes(id), offset: *offset, len: *len }),
            Change::Size { id, size } => Kind::Size(pb::Size { id: id_bytes(id), size: *size }),
        };
        pb::Change { kind: Some(kind) }
    }
}

impl TryFrom<pb::Change> for Change {
    type Error = Invalid;

    fn try_from(change: pb::Change) -> Result<Self, Invalid> {
        use pb::change::Kind;
        Ok(match change.kind {
            None => return invalid("change", "unknown kind; the other side may be newer: upgrade this one"),
            Some(Kind::Birth(birth)) => Change::Birth {
                id: node_id("birth.id", &birth.id)?,
                kind: match birth.kind {
                    Some(kind) => kind.try_into()?,
                    None => return invalid("birth.kind", "missing"),
                },
            },
            Some(Kind::Entry(entry)) => Change::Entry {
                dir: root_or_id(&entry.dir)?,
                name: name("entry.name", entry.name)?,
                old: some_id("entry.old", &entry.old)?,
                new: some_id("entry.new", &entry.new)?,
            },
            Some(Kind::Attr(attr)) => Change::Attr { id: inode_id("attr.id", &attr.id)?, patch: attr_patch(&attr)? },
            Some(Kind::Xattr(xattr)) => {
                let id = inode_id("xattr.id", &xattr.id)?;
                let (name, value) = xattr_checked(xattr)?;
                Change::Xattr { id, name, value }
            }
            Some(Kind::Data(data)) => {
                if data.data.len() > DATA_MAX {
                    return invalid("data.data", format!("{} bytes in one change", data.data.len()));
                }
                extent("data.offset", data.offset, data.data.len() as u64)?;
                Change::Data { id: node_id("data.id", &data.id)?, offset: data.offset, data: data.data }
            }
            Some(Kind::Copy(copy)) => {
                if copy.len == 0 || copy.len > COPY_MAX || !(copy.data.is_empty() || copy.data.len() as u64 == copy.len)
                {
                    return invalid("copy.len", format!("{} bytes, with {} of data", copy.len, copy.data.len()));
                }
                extent("copy.offset", copy.offset, copy.len)?;
                extent("copy.from_offset", copy.from_offset, copy.len)?;
                Change::Copy {
                    id: node_id("copy.id", &copy.id)?,
                    offset: copy.offset,
                    from: node_id("copy.from", &copy.from)?,
                    from_offset: copy.from_offset,
                    len: copy.len,
                    data: (!copy.data.is_empty()).then_some(copy.data),
                }
            }
            Some(Kind::Hole(hole)) => {
                extent("hole.offset", hole.offset, hole.len)?;
                Change::Hole { id: node_id("hole.id", &hole.id)?, offset: hole.offset, len: hole.len }
            }
            Some(Kind::Size(size)) => {
                extent("size.size", size.size, 0)?;
                Change::Size { id: node_id("size.id", &size.id)?, size: size.size }
            }
        })
    }
}

/// An id that is not the root's.
fn node_id(field: &'static str, bytes: &[u8]) -> Result<InodeId, Invalid> {
    if bytes.is_empty() { invalid(field, "missing") } else { inode_id(field, bytes) }
}

impl From<&Op> for pb::Op {
    fn from(op: &Op) -> Self {
        pb::Op {
            origin: Some(pb::Origin {
                time_ns: op.origin.time_ns,
                uid: op.origin.uid,
                gid: op.origin.gid,
                pid: op.origin.pid,
                process: op.origin.process.clone(),
            }),
            changes: op.changes.iter().map(Into::into).collect(),
        }
    }
}

/// An op from its wire form; its seq is known from its place in the batch.
pub fn op(seq: Seq, op: pb::Op) -> Result<Op, Invalid> {
    if op.changes.len() > CHANGES_MAX {
        return invalid("op.changes", format!("{} changes in one op", op.changes.len()));
    }
    let origin = op.origin.unwrap_or_default();
    if origin.process.len() > NAME_MAX {
        return invalid("origin.process", "longer than a name");
    }
    Ok(Op {
        seq,
        origin: Origin {
            time_ns: origin.time_ns,
            uid: origin.uid,
            gid: origin.gid,
            pid: origin.pid,
            process: origin.process,
        },
        changes: op.changes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
    })
}

/// The chain after this op, over its protobuf encoding. `scratch` is reused between calls to save allocations.
pub fn chain_after(before: &Chain, seq: Seq, op: &pb::Op, scratch: &mut Vec<u8>) -> Chain {
    use pb::change::Kind;
    let made = |change: &pb::Change| matches!(&change.kind, Some(Kind::Copy(copy)) if !copy.data.is_empty());
    let as_sent = op.changes.iter().any(made).then(|| {
        let mut op = op.clone();
        for change in &mut op.changes {
            if let Some(Kind::Copy(copy)) = &mut change.kind {
                copy.data.clear();
            }
        }
        op
    });
    let op = as_sent.as_ref().unwrap_or(op);
    scratch.clear();
    scratch.reserve(op.encoded_len());
    // Encoding into a Vec that has the room cannot fail.
    let _ = op.encode(scratch);
    before.after(seq, scratch.len() as u64, crc32c::crc32c(scratch))
}

impl From<&StageDir> for pb::StageDir {
    fn from(stage: &StageDir) -> Self {
        pb::StageDir {
            session: 0,
            dir: id_bytes(&stage.dir),
            listing: match stage.listing {
                Listing::Partial => pb::Listing::Partial,
                Listing::CompletePart => pb::Listing::CompletePart,
                Listing::CompleteEnd => pb::Listing::CompleteEnd,
            }
            .into(),
            entries: stage
                .entries
                .iter()
                .map(|entry| pb::StageEntry {
                    name: entry.name.to_bytes(),
                    id: entry.node.as_ref().map_or_else(Bytes::new, |(id, _)| id_bytes(id)),
                    r#type: entry.node.map_or(pb::FileType::Unspecified, |(_, kind)| file_type(kind)).into(),
                    stamp: entry.stamp.unwrap_or(0),
                })
                .collect(),
            born_since: stage.born_since.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<pb::StageDir> for StageDir {
    type Error = Invalid;

    fn try_from(stage: pb::StageDir) -> Result<Self, Invalid> {
        if stage.entries.len() > STAGE_ENTRIES_MAX {
            return invalid("stage_dir.entries", format!("{} entries in one message", stage.entries.len()));
        }
        let listing = match pb::Listing::try_from(stage.listing) {
            Ok(pb::Listing::Partial) => Listing::Partial,
            Ok(pb::Listing::CompletePart) => Listing::CompletePart,
            Ok(pb::Listing::CompleteEnd) => Listing::CompleteEnd,
            Err(_) => return invalid("stage_dir.listing", format!("unknown value {}", stage.listing)),
        };
        let entries = stage.entries.into_iter().map(|entry| {
            let node = match some_id("entries.id", &entry.id)? {
                Some(id) => Some((id, node_type(entry.r#type)?)),
                None => None,
            };
            Ok(StageEntry {
                name: name("entries.name", entry.name)?,
                node,
                stamp: (entry.stamp != 0).then_some(entry.stamp),
            })
        });
        Ok(StageDir {
            dir: root_or_id(&stage.dir)?,
            listing,
            entries: entries.collect::<Result<_, Invalid>>()?,
            born_since: stage.born_since.as_ref().map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&StageNode> for pb::StageNode {
    fn from(stage: &StageNode) -> Self {
        let id = id_bytes(&stage.id);
        match &stage.state {
            None => pb::StageNode { id, gone: true, ..Default::default() },
            Some(state) => pb::StageNode {
                session: 0,
                id: id.clone(),
                gone: false,
                kind: Some((&state.kind).into()),
                attr: Some(attr_message(&stage.id, &state.attr.into())),
                xattrs: xattr_messages(&state.xattrs),
                size: state.size,
                content: match state.content {
                    Content::Unchanged => pb::Content::Unchanged,
                    Content::Ranges => pb::Content::Ranges,
                    Content::Whole => pb::Content::Whole,
                }
                .into(),
            },
        }
    }
}

impl TryFrom<pb::StageNode> for StageNode {
    type Error = Invalid;

    fn try_from(stage: pb::StageNode) -> Result<Self, Invalid> {
        let id = inode_id("stage_node.id", &stage.id)?;
        if stage.gone {
            return Ok(StageNode { id, state: None });
        }
        extent("stage_node.size", stage.size, 0)?;
        let content = match pb::Content::try_from(stage.content) {
            Ok(pb::Content::Unchanged) => Content::Unchanged,
            Ok(pb::Content::Ranges) => Content::Ranges,
            Ok(pb::Content::Whole) => Content::Whole,
            Err(_) => return invalid("stage_node.content", format!("unknown value {}", stage.content)),
        };
        let kind = match stage.kind {
            Some(kind) => NodeKind::try_from(kind)?,
            None => return invalid("stage_node.kind", "missing"),
        };
        if id.is_root() && !kind.is_directory() {
            return invalid("stage_node.kind", "the root is a directory");
        }
        Ok(StageNode {
            id,
            state: Some(NodeState {
                kind,
                attr: attr_complete(&stage.attr)?,
                xattrs: xattr_set(stage.xattrs)?,
                size: stage.size,
                content,
            }),
        })
    }
}

/// The wire form of pieces.
pub fn piece_messages(pieces: &[Piece]) -> Vec<pb::Piece> {
    pieces
        .iter()
        .map(|piece| pb::Piece {
            offset: piece.offset,
            len: piece.len,
            digest: piece.digest.map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest.0)),
            first: piece.first.map_or_else(Bytes::new, |digest| Bytes::copy_from_slice(&digest.0)),
        })
        .collect()
}

/// Pieces from their wire form.
pub fn pieces(pieces: Vec<pb::Piece>) -> Result<Vec<Piece>, Invalid> {
    if pieces.len() > PIECES_MAX {
        return invalid("pieces", format!("{} pieces in one message", pieces.len()));
    }
    let mut end = 0;
    pieces
        .into_iter()
        .map(|piece| {
            extent("piece.offset", piece.offset, piece.len)?;
            if piece.offset < end || piece.len == 0 {
                return invalid("piece.offset", "pieces overlap, are empty or are out of order");
            }
            end = piece.offset + piece.len;
            let digest = digest("piece.digest", &piece.digest)?;
            let first = self::digest("piece.first", &piece.first)?;
            let longest = if first.is_some() { GROUP_MAX } else { DATA_MAX as u64 };
            if digest.is_some() && piece.len > longest {
                return invalid("piece.len", format!("{} bytes in one chunk", piece.len));
            }
            Ok(Piece { offset: piece.offset, len: piece.len, digest, first })
        })
        .collect()
}

impl From<&StageRecipe> for pb::StageRecipe {
    fn from(stage: &StageRecipe) -> Self {
        pb::StageRecipe { session: 0, id: id_bytes(&stage.id), pieces: piece_messages(&stage.pieces) }
    }
}

impl TryFrom<pb::StageRecipe> for StageRecipe {
    type Error = Invalid;

    fn try_from(stage: pb::StageRecipe) -> Result<Self, Invalid> {
        Ok(StageRecipe { id: node_id("stage_recipe.id", &stage.id)?, pieces: pieces(stage.pieces)? })
    }
}

impl From<&StageData> for pb::StageData {
    fn from(stage: &StageData) -> Self {
        pb::StageData {
            session: 0,
            id: id_bytes(&stage.id),
            offset: stage.offset,
            data: stage.data.clone(),
            crc32c: crc32c::crc32c(&stage.data),
        }
    }
}

impl TryFrom<pb::StageData> for StageData {
    type Error = Invalid;

    fn try_from(stage: pb::StageData) -> Result<Self, Invalid> {
        if stage.data.len() > DATA_MAX {
            return invalid("stage_data.data", format!("{} bytes in one message", stage.data.len()));
        }
        extent("stage_data.offset", stage.offset, stage.data.len() as u64)?;
        if crc32c::crc32c(&stage.data) != stage.crc32c {
            return invalid("stage_data.crc32c", "the bytes are not those that were sent");
        }
        Ok(StageData { id: node_id("stage_data.id", &stage.id)?, offset: stage.offset, data: stage.data })
    }
}

#[cfg(test)]
mod tests {
    use super::op;
    use crate::{
        ids::{InodeId, Name},
        op::{AttrPatch, Change, NodeKind, Op, Timestamp},
        pb,
        position::Seq,
    };

    fn id(byte: u8) -> InodeId {
        InodeId::new(&[byte]).expect("short")
    }

    #[test]
    fn an_op_of_every_change_survives_the_wire() {
        let name = Name::new(&b"\xff name"[..]).expect("legal");
        let mtime = Some(Timestamp { seconds: -5, nanos: 999_999_999 });
        let changes = [
            Change::Birth { id: id(1), kind: NodeKind::CharDevice { major: 1, minor: 3 } },
            Change::Birth { id: id(2), kind: NodeKind::Symlink("t".into()) },
            Change::Entry { dir: InodeId::ROOT, name, old: Some(id(3)), new: None },
            Change::Attr { id: id(1), patch: AttrPatch { mode: Some(0o4755), mtime, ..Default::default() } },
            Change::Xattr { id: id(1), name: "user.a".into(), value: Some("".into()) },
            Change::Data { id: id(1), offset: 5, data: "bytes".into() },
            Change::Hole { id: id(1), offset: 5, len: 1 << 40 },
            Change::Size { id: id(1), size: 0 },
        ];
        let before = Op { seq: Seq(7), origin: Default::default(), changes: changes.into_iter().collect() };
        assert_eq!(op(Seq(7), pb::Op::from(&before)), Ok(before));
    }

    #[test]
    fn offsets_and_names_from_outside_are_bounded() {
        let change = |kind| pb::Op { origin: None, changes: vec![pb::Change { kind: Some(kind) }] };
        let hole = pb::Hole { id: "x".into(), offset: u64::MAX, len: 2 };
        assert_eq!(op(Seq(1), change(pb::change::Kind::Hole(hole))).expect_err("too far").field, "hole.offset");
        let entry = pb::Entry { name: "../etc".into(), ..Default::default() };
        assert_eq!(op(Seq(1), change(pb::change::Kind::Entry(entry))).expect_err("leads out").field, "entry.name");
        let data = pb::Data { id: vec![1; 32].into(), ..Default::default() };
        assert_eq!(op(Seq(1), change(pb::change::Kind::Data(data))).expect_err("too long").field, "data.id");
    }
}
