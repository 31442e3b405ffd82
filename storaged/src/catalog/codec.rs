//! Bytes of the catalog's keys and values.
//!
//! Keys: `len u8, id` for nodes; `len u8, directory, name` for entries; `len u8, id, len u8, directory, name` for links. The
//! lengths keep one directory's names together and apart from all others. Values begin with a version.

use bytes::Bytes;
use tandem_proto::{
    chain::Chain,
    ids::{InodeId, Name},
    op::{NodeKind, Timestamp},
    position::{Epoch, Position, Seq},
};

use super::{Meta, NodeRecord, SideRecord};
use crate::apply::ObjectIdentity;

const NODE_VERSION: u8 = 1;
const META_VERSION: u8 = 1;

/// Key of an inode, and prefix of its links or of a directory's entries.
pub fn id_key(id: &InodeId) -> Vec<u8> {
    let bytes = id.as_bytes();
    let mut key = Vec::with_capacity(1 + bytes.len());
    key.push(bytes.len() as u8);
    key.extend_from_slice(bytes);
    key
}

/// Key of a name.
pub fn entry_key(dir: &InodeId, name: &Name) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + dir.as_bytes().len() + name.as_bytes().len());
    key.push(dir.as_bytes().len() as u8);
    key.extend_from_slice(dir.as_bytes());
    key.extend_from_slice(name.as_bytes());
    key
}

/// Key of a link.
pub fn link_key(id: &InodeId, dir: &InodeId, name: &Name) -> Vec<u8> {
    let mut key = id_key(id);
    key.extend_from_slice(&entry_key(dir, name));
    key
}

/// The id that a key begins with, and the rest.
pub fn split_id(key: &[u8]) -> Option<(InodeId, &[u8])> {
    let (len, rest) = key.split_first()?;
    let (id, rest) = rest.split_at_checked(usize::from(*len))?;
    Some((InodeId::new(id)?, rest))
}

/// The name that ends a key.
pub fn name(bytes: &[u8]) -> Option<Name> {
    Name::new(Bytes::copy_from_slice(bytes))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }
    fn option<V>(&mut self, read: impl FnOnce(&mut Self) -> Option<V>) -> Option<Option<V>> {
        match self.u8()? {
            0 => Some(None),
            _ => read(self).map(Some),
        }
    }
    fn position(&mut self) -> Option<Position> {
        let (epoch, seq) = (Epoch(self.u64()?), Seq(self.u64()?));
        Some(Position { epoch, seq, chain: Chain::from_slice(self.take(16)?)? })
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_option<V>(out: &mut Vec<u8>, value: Option<V>, put: impl FnOnce(&mut Vec<u8>, V)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    out.extend_from_slice(&position.epoch.0.to_le_bytes());
    out.extend_from_slice(&position.seq.0.to_le_bytes());
    out.extend_from_slice(&position.chain.0);
}

fn put_kind(out: &mut Vec<u8>, kind: &NodeKind) {
    out.push(kind.node_type() as u8);
    match kind {
        NodeKind::Symlink(target) => put_bytes(out, target),
        NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
            put_u32(out, *major);
            put_u32(out, *minor);
        }
        NodeKind::Regular | NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => {}
    }
}

fn kind(from: &mut Reader<'_>) -> Option<NodeKind> {
    Some(match from.u8()? {
        1 => NodeKind::Regular,
        2 => NodeKind::Directory,
        3 => NodeKind::Symlink(Bytes::copy_from_slice(from.bytes()?)),
        4 => NodeKind::Fifo,
        5 => NodeKind::Socket,
        6 => NodeKind::CharDevice { major: from.u32()?, minor: from.u32()? },
        7 => NodeKind::BlockDevice { major: from.u32()?, minor: from.u32()? },
        _ => return None,
    })
}

/// Value of an inode.
pub fn encode_node(node: &NodeRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.push(NODE_VERSION);
    put_kind(&mut out, &node.kind);
    put_bytes(&mut out, node.identity.as_bytes());
    put_position(&mut out, &node.born);
    put_option(&mut out, node.dir_mtime, |out, mtime| {
        out.extend_from_slice(&mtime.seconds.to_le_bytes());
        put_u32(out, mtime.nanos);
    });
    put_option(&mut out, node.side.as_deref(), |out, side| {
        put_option(out, side.uid, put_u32);
        put_option(out, side.gid, put_u32);
        put_option(out, side.mode, put_u32);
        out.push(u8::from(side.placeholder));
        put_u32(out, side.xattrs.len() as u32);
        for (name, value) in &side.xattrs {
            put_bytes(out, name);
            put_option(out, value.as_ref(), |out, value| put_bytes(out, value));
        }
    });
    out
}

/// The reverse of [`encode_node`].
pub fn decode_node(bytes: &[u8]) -> Option<NodeRecord> {
    let mut from = Reader(bytes);
    if from.u8()? != NODE_VERSION {
        return None;
    }
    Some(NodeRecord {
        kind: kind(&mut from)?,
        identity: ObjectIdentity::new(from.bytes()?)?,
        born: from.position()?,
        dir_mtime: from.option(|from| Some(Timestamp { seconds: from.u64()? as i64, nanos: from.u32()? }))?,
        side: from.option(|from| {
            let (uid, gid, mode) = (from.option(Reader::u32)?, from.option(Reader::u32)?, from.option(Reader::u32)?);
            let placeholder = from.u8()? != 0;
            let xattrs = (0..from.u32()?)
                .map(|_| {
                    let name = Bytes::copy_from_slice(from.bytes()?);
                    Some((name, from.option(|from| Some(Bytes::copy_from_slice(from.bytes()?)))?))
                })
                .collect::<Option<_>>()?;
            Some(Box::new(SideRecord { uid, gid, mode, placeholder, xattrs }))
        })?,
    })
}

/// Value of the meta data.
pub fn encode_meta(meta: &Meta) -> Vec<u8> {
    let mut out = vec![META_VERSION];
    put_position(&mut out, &meta.position);
    out.extend_from_slice(&meta.serial.to_le_bytes());
    out.extend_from_slice(&meta.inodes.to_le_bytes());
    out
}

/// The reverse of [`encode_meta`].
pub fn decode_meta(bytes: &[u8]) -> Option<Meta> {
    let mut from = Reader(bytes);
    if from.u8()? != META_VERSION {
        return None;
    }
    Some(Meta { position: from.position()?, serial: from.u64()?, inodes: from.u64()? })
}
