//! Bytes of the catalog's keys and values.
//!
//! Keys: `len u8, id` for nodes; `len u8, directory, name` for entries; `len u8, id, len u8, directory, name` for links. The
//! lengths keep one directory's names together and apart from all others. Values begin with a version.

use bytes::Bytes;
use tandem_proto::{
    fields::{Fields, put_id, put_position},
    ids::{InodeId, Name},
    op::{NodeKind, Timestamp},
};

use super::{Meta, NodeRecord, SideRecord};
use crate::apply::ObjectIdentity;

const NODE_VERSION: u8 = 1;
const META_VERSION: u8 = 1;

/// Key of an inode, and prefix of its links or of a directory's entries.
pub fn id_key(id: &InodeId) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + id.as_bytes().len());
    put_id(&mut key, id);
    key
}

/// Key of a name.
pub fn entry_key(dir: &InodeId, name: &Name) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + dir.as_bytes().len() + name.as_bytes().len());
    put_id(&mut key, dir);
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
    let mut fields = Fields::new(key);
    Some((fields.id()?, fields.rest()))
}

/// The name that ends a key.
pub fn name(bytes: &[u8]) -> Option<Name> {
    Name::new(Bytes::copy_from_slice(bytes))
}

/// Bytes behind their length.
fn long_bytes<'a>(from: &mut Fields<'a>) -> Option<&'a [u8]> {
    let len = from.u32()?;
    from.bytes(len as usize)
}

fn option<'a, V>(from: &mut Fields<'a>, read: impl FnOnce(&mut Fields<'a>) -> Option<V>) -> Option<Option<V>> {
    match from.u8()? {
        0 => Some(None),
        _ => read(from).map(Some),
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

fn kind(from: &mut Fields<'_>) -> Option<NodeKind> {
    Some(match from.u8()? {
        1 => NodeKind::Regular,
        2 => NodeKind::Directory,
        3 => NodeKind::Symlink(Bytes::copy_from_slice(long_bytes(from)?)),
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
    let mut from = Fields::new(bytes);
    if from.u8()? != NODE_VERSION {
        return None;
    }
    Some(NodeRecord {
        kind: kind(&mut from)?,
        identity: ObjectIdentity::new(long_bytes(&mut from)?)?,
        born: from.position()?,
        dir_mtime: option(&mut from, |from| Some(Timestamp { seconds: from.u64()? as i64, nanos: from.u32()? }))?,
        side: option(&mut from, |from| {
            let (uid, gid, mode) = (option(from, Fields::u32)?, option(from, Fields::u32)?, option(from, Fields::u32)?);
            let placeholder = from.u8()? != 0;
            let xattrs = (0..from.u32()?)
                .map(|_| {
                    let name = Bytes::copy_from_slice(long_bytes(from)?);
                    Some((name, option(from, |from| Some(Bytes::copy_from_slice(long_bytes(from)?)))?))
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
    let mut from = Fields::new(bytes);
    if from.u8()? != META_VERSION {
        return None;
    }
    Some(Meta { position: from.position()?, serial: from.u64()?, inodes: from.u64()? })
}
