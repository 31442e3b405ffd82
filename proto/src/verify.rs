//! Proof that both sides are equal: what is compared at one position, and the digests of it. Both sides compute them here, so that
//! equal state gives equal digests and nothing else does.
//!
//! ```text
//! GROUP of a directory ─┬─ name, inode id                 of every name in its range, in the order of bytes
//!                       └─ NODE of each that is no directory: type, attributes, xattrs, size ─ data, of a small file
//! NAMES of a directory ── name, inode id                  of every name
//! EXTENT of a file     ── bytes                           1 MiB of a larger file
//! ```
//! A group that differs is looked at name by name; so a pass over equal sides sends one digest for some hundred files.

use bytes::Bytes;

use crate::{
    chunk::Digest,
    convert::{self, Invalid},
    ids::{InodeId, Name},
    limits::OFFSET_MAX,
    op::{Attr, NodeKind},
    pb,
};

/// Data of files up to this length is part of their NODE; that of others is compared by extents.
pub const SMALL_FILE: u64 = 64 << 10;
/// Longest extent with data. Shorter ones cost more messages, longer ones hold a file's writers longer.
pub const EXTENT_MAX: u64 = 1 << 20;
/// Names of one group.
pub const GROUP_NAMES: usize = 256;
/// Items of one check.
pub const ITEMS_MAX: usize = 64;

/// What is compared of an inode, beside its data.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// What it is.
    pub kind: &'a NodeKind,
    /// Its attributes.
    pub attr: &'a Attr,
    /// Its extended attributes, in any order.
    pub xattrs: &'a [(Bytes, Bytes)],
    /// Size of a regular file; else 0.
    pub size: u64,
    /// The mtime does not count: the file is being written, and its mtime follows.
    pub untimed: bool,
}

fn put(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Digest of an inode. `data`: of a file whose data is part of it, see [`is_small`].
pub fn node_digest(facts: &NodeFacts<'_>, data: Option<&[u8]>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"node");
    hasher.update(&[facts.kind.node_type() as u8, u8::from(facts.untimed)]);
    match facts.kind {
        NodeKind::Symlink(target) => put(&mut hasher, target),
        NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
            hasher.update(&major.to_le_bytes());
            hasher.update(&minor.to_le_bytes());
        }
        NodeKind::Regular | NodeKind::Directory | NodeKind::Fifo | NodeKind::Socket => {}
    }
    for word in [facts.attr.mode, facts.attr.uid, facts.attr.gid] {
        hasher.update(&word.to_le_bytes());
    }
    if !facts.untimed {
        hasher.update(&facts.attr.mtime.seconds.to_le_bytes());
        hasher.update(&facts.attr.mtime.nanos.to_le_bytes());
    }
    hasher.update(&facts.size.to_le_bytes());
    let mut xattrs: Vec<&(Bytes, Bytes)> = facts.xattrs.iter().collect();
    xattrs.sort();
    hasher.update(&(xattrs.len() as u64).to_le_bytes());
    for (name, value) in xattrs {
        put(&mut hasher, name);
        put(&mut hasher, value);
    }
    if let Some(data) = data {
        put(&mut hasher, data);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// Whether the data of such an inode is part of its digest.
pub fn is_small(kind: &NodeKind, size: u64) -> bool {
    kind.is_regular() && size <= SMALL_FILE
}

/// Digest of an extent; `None`: all zeroes, also if it is a hole or lies behind the end.
pub fn extent_digest(bytes: &[u8]) -> Option<Digest> {
    bytes.iter().any(|byte| *byte != 0).then(|| Digest::of(bytes))
}

/// Digest over names of one directory, which are added in the order of their bytes.
#[derive(Debug)]
pub struct NamesDigest(blake3::Hasher);

impl Default for NamesDigest {
    fn default() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"names");
        NamesDigest(hasher)
    }
}

impl NamesDigest {
    /// Adds a name and what it means; for a group also the inode.
    pub fn add(&mut self, name: &Name, id: &InodeId, node: Option<&Digest>) {
        put(&mut self.0, name.as_bytes());
        put(&mut self.0, id.as_bytes());
        put(&mut self.0, node.map_or(&[], |digest| &digest.0));
    }

    /// The digest.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// Part of the state, to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// All names of a directory.
    Names(InodeId),
    /// An inode.
    Node {
        /// Which.
        id: InodeId,
        /// See [`NodeFacts::untimed`].
        untimed: bool,
    },
    /// A range of a file.
    Extent {
        /// Which file.
        id: InodeId,
        /// From here.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A range of a directory's names, with the inodes.
    Group {
        /// The directory.
        dir: InodeId,
        /// Names after this one; `None`: from the first.
        after: Option<Name>,
        /// Up to this one; `None`: to the last.
        until: Option<Name>,
    },
}

/// An item with what the asking side has of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// What.
    pub item: Item,
    /// Its digest; of an extent of zeroes there is none.
    pub digest: Option<Digest>,
}

impl From<&Compared> for pb::VerifyItem {
    fn from(compared: &Compared) -> Self {
        use pb::verify_item::Kind;
        let bytes = |id: &InodeId| Bytes::copy_from_slice(id.as_bytes());
        let name = |name: &Option<Name>| name.as_ref().map(Name::to_bytes).unwrap_or_default();
        let digest = compared.digest.map(|digest| Bytes::copy_from_slice(&digest.0)).unwrap_or_default();
        let item = pb::VerifyItem { digest, ..Default::default() };
        match &compared.item {
            Item::Names(id) => pb::VerifyItem { kind: Kind::Names.into(), id: bytes(id), ..item },
            Item::Node { id, untimed } => {
                pb::VerifyItem { kind: Kind::Node.into(), id: bytes(id), untimed: *untimed, ..item }
            }
            Item::Extent { id, offset, len } => {
                pb::VerifyItem { kind: Kind::Extent.into(), id: bytes(id), offset: *offset, len: *len, ..item }
            }
            Item::Group { dir, after, until } => pb::VerifyItem {
                kind: Kind::Group.into(),
                id: bytes(dir),
                after: name(after),
                until: name(until),
                ..item
            },
        }
    }
}

impl TryFrom<pb::VerifyItem> for Compared {
    type Error = Invalid;

    fn try_from(item: pb::VerifyItem) -> Result<Self, Invalid> {
        use pb::verify_item::Kind;
        let bad = |field, problem: &str| Invalid { field, problem: problem.to_owned() };
        let kind = item.kind();
        let id = if item.id.is_empty() { InodeId::ROOT } else { convert::inode_id("verify.id", &item.id)? };
        let digest = match item.digest.is_empty() {
            true => None,
            false => Some(Digest::from_slice(&item.digest).ok_or_else(|| bad("verify.digest", "not 32 bytes"))?),
        };
        if digest.is_none() && kind != Kind::Extent {
            return Err(bad("verify.digest", "missing"));
        }
        let name =
            |field, bytes: Bytes| if bytes.is_empty() { Ok(None) } else { convert::name(field, bytes).map(Some) };
        let item = match kind {
            Kind::Unspecified => return Err(bad("verify.kind", "not known to this version")),
            Kind::Names => Item::Names(id),
            Kind::Node => Item::Node { id, untimed: item.untimed },
            Kind::Extent => {
                let fits = item.offset.checked_add(item.len).is_some_and(|end| end <= OFFSET_MAX);
                // Zeroes are looked at without reading holes; data is read at once.
                if !fits || (digest.is_some() && item.len > EXTENT_MAX) {
                    return Err(bad("verify.len", "beyond its bound"));
                }
                Item::Extent { id, offset: item.offset, len: item.len }
            }
            Kind::Group => Item::Group {
                dir: id,
                after: name("verify.after", item.after)?,
                until: name("verify.until", item.until)?,
            },
        };
        Ok(Compared { item, digest })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Compared, EXTENT_MAX, Item, NamesDigest, NodeFacts, extent_digest, node_digest};
    use crate::{
        chunk::Digest,
        ids::{InodeId, Name},
        op::{Attr, NodeKind, Timestamp},
        pb,
    };

    fn id(byte: u8) -> InodeId {
        InodeId::new(&[byte; 5]).expect("short")
    }

    #[test]
    fn each_difference_of_an_inode_changes_its_digest() {
        let attr = Attr { mode: 0o644, uid: 1, gid: 2, mtime: Timestamp { seconds: 3, nanos: 4 } };
        let xattrs = [(Bytes::from("user.a"), Bytes::from("1")), (Bytes::from("user.b"), Bytes::from("2"))];
        let facts = NodeFacts { kind: &NodeKind::Regular, attr: &attr, xattrs: &xattrs, size: 3, untimed: false };
        let same = node_digest(&facts, Some(b"abc"));
        let turned = [xattrs[1].clone(), xattrs[0].clone()];
        assert_eq!(node_digest(&NodeFacts { xattrs: &turned, ..facts }, Some(b"abc")), same, "the order says nothing");
        let later = Attr { mtime: Timestamp { seconds: 3, nanos: 5 }, ..attr };
        let others = [
            node_digest(&facts, Some(b"abd")),
            node_digest(&NodeFacts { size: 4, ..facts }, Some(b"abc")),
            node_digest(&NodeFacts { attr: &later, ..facts }, Some(b"abc")),
            node_digest(&NodeFacts { attr: &Attr { mode: 0o600, ..attr }, ..facts }, Some(b"abc")),
            node_digest(&NodeFacts { xattrs: &xattrs[..1], ..facts }, Some(b"abc")),
            node_digest(&NodeFacts { kind: &NodeKind::Fifo, ..facts }, Some(b"abc")),
            node_digest(&NodeFacts { untimed: true, ..facts }, Some(b"abc")),
        ];
        assert!(others.iter().all(|other| *other != same));
        let untimed = |attr| node_digest(&NodeFacts { attr, untimed: true, ..facts }, None);
        assert_eq!(untimed(&attr), untimed(&later));
    }

    #[test]
    fn names_cannot_be_shifted_into_one_another() {
        let digest = |names: &[(&str, u8)]| {
            let mut digest = NamesDigest::default();
            names.iter().for_each(|(name, byte)| {
                digest.add(&Name::new(name.as_bytes().to_vec()).expect("legal"), &id(*byte), None);
            });
            digest.finish()
        };
        assert_ne!(digest(&[("ab", 1), ("c", 2)]), digest(&[("a", 1), ("bc", 2)]));
        assert_ne!(digest(&[("a", 1)]), digest(&[("a", 2)]));
        assert_ne!(digest(&[]), digest(&[("a", 1)]));
    }

    #[test]
    fn zeroes_are_a_hole() {
        assert_eq!(extent_digest(&[0; 100]), None);
        assert_eq!(extent_digest(&[]), None);
        assert!(extent_digest(&[0, 1]).is_some());
    }

    #[test]
    fn items_survive_the_wire_and_what_is_out_of_bounds_is_refused() {
        let name = |text: &str| Name::new(text.as_bytes().to_vec());
        let digest = Some(Digest::of(b"x"));
        let items = [
            Compared { item: Item::Names(InodeId::ROOT), digest },
            Compared { item: Item::Node { id: id(1), untimed: true }, digest },
            Compared { item: Item::Extent { id: id(1), offset: 5, len: EXTENT_MAX }, digest },
            Compared { item: Item::Extent { id: id(1), offset: 5, len: 1 << 40 }, digest: None },
            Compared { item: Item::Group { dir: id(2), after: name("a"), until: None }, digest },
        ];
        for item in &items {
            assert_eq!(Compared::try_from(pb::VerifyItem::from(item)).as_ref(), Ok(item));
        }
        let good = pb::VerifyItem::from(&items[2]);
        let bad = [
            pb::VerifyItem { len: EXTENT_MAX + 1, ..good.clone() },
            pb::VerifyItem { offset: u64::MAX, ..good.clone() },
            pb::VerifyItem { kind: 99, ..good.clone() },
            pb::VerifyItem { digest: Bytes::from_static(b"short"), ..good.clone() },
            pb::VerifyItem { id: Bytes::from(vec![1; 40]), ..good.clone() },
            pb::VerifyItem { kind: pb::verify_item::Kind::Group.into(), until: Bytes::from_static(b"a/b"), ..good },
        ];
        for item in bad {
            assert!(Compared::try_from(item.clone()).is_err(), "{item:?}");
        }
    }
}
