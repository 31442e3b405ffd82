//! The replica's durable truth beside the tree: inode id ↔ object, names by id, and what the file system refused to keep.
//!
//! ```text
//!   set, remove ──► overlay (memory, sorted) ──checkpoint──► store (redb; one durable commit with the position)
//!   look-up, scan ◄── overlay over store
//! ```
//! Changes since the checkpoint live in memory only: the log has them. So a change costs one insertion into a tree map, a crash
//! always leaves exactly the state of a checkpoint, and the position of that state is in the same commit. Readers on other
//! threads share the catalog behind a lock that is held for one look-up.

pub mod codec;
pub mod store;
pub mod verify;

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::RwLock;
use store::{MemoryStore, Overlay, Row, Store, TABLES, Table};
use tandem_proto::{
    ids::{InodeId, Name},
    op::{NodeKind, Timestamp},
    position::Position,
};

use crate::apply::ObjectIdentity;

/// The catalog's store failed.
#[derive(Debug, thiserror::Error)]
#[error("the catalog {path} cannot be {action}: {problem}; check the disk under it")]
pub struct CatalogError {
    /// Which store.
    pub path: String,
    /// What was tried: `read`, `written`, `opened`.
    pub action: &'static str,
    /// The store's answer.
    pub problem: String,
}

impl CatalogError {
    /// Whether the operating system refused, as on a full disk, rather than the content being wrong.
    pub fn is_of_the_system(&self) -> bool {
        self.problem.contains("(os error ")
    }

    /// Whether it was room on the disk that was missing. The store passes the system's answer on in words only.
    pub fn is_no_space(&self) -> bool {
        [libc::ENOSPC, libc::EDQUOT].iter().any(|code| self.problem.contains(&format!("(os error {code})")))
    }

    fn new(path: &Path, action: &'static str, problem: impl ToString) -> Self {
        CatalogError { path: path.display().to_string(), action, problem: problem.to_string() }
    }
}

/// What the file system refused, and what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SideRecord {
    /// Owner, if it is not the object's.
    pub uid: Option<u32>,
    /// Group, if it is not the object's.
    pub gid: Option<u32>,
    /// Mode, if it is not the object's.
    pub mode: Option<u32>,
    /// A device node that is an empty regular file in the tree.
    pub placeholder: bool,
    /// Extended attributes that differ from the object's; no value: the object has one that should not be.
    pub xattrs: BTreeMap<Bytes, Option<Bytes>>,
}

/// What the catalog has of one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// What it is.
    pub kind: NodeKind,
    /// Its object in the tree.
    pub identity: ObjectIdentity,
    /// Position of its birth, or of the publish that brought it.
    pub born: Position,
    /// A directory's modification time: apply's own steps touch the object's.
    pub dir_mtime: Option<Timestamp>,
    /// What the file system refused.
    pub side: Option<Box<SideRecord>>,
}

/// What is committed together with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Meta {
    /// Position of the state.
    pub position: Position,
    /// Serial of the last publish in it; 0: none.
    pub serial: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// A name and where it is.
pub type Cell = (InodeId, Name);

/// Beyond so many changed rows they are moved to the store without making them durable, which bounds memory (about 200 bytes a
/// row) while a large staging is published.
const OVERLAY_ROWS_MAX: usize = 150_000;

struct Inner {
    store: Store,
    overlay: [Overlay; TABLES],
    inodes: u64,
}

/// Catalog of one volume. Cheap to clone: clones share it.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<RwLock<Inner>>,
    /// Number of inodes, for whoever only shows it: a commit of many rows holds the lock for seconds.
    shown: Arc<AtomicU64>,
}

impl Catalog {
    /// Opens the catalog in `directory`, or makes it.
    pub fn open(directory: &Path) -> Result<Self, CatalogError> {
        Self::with_store(Store::open(directory)?)
    }

    /// A catalog on a store in memory. To reopen it after a crash, hand in [`MemoryStore::after_crash`].
    pub fn in_memory(store: MemoryStore) -> Result<Self, CatalogError> {
        Self::with_store(Store::Memory(store))
    }

    fn with_store(store: Store) -> Result<Self, CatalogError> {
        let inner = Inner { store, overlay: Default::default(), inodes: 0 };
        let catalog = Catalog { inner: Arc::new(RwLock::new(inner)), shown: Arc::default() };
        let meta = catalog.meta()?;
        catalog.inner.write().inodes = meta.inodes;
        catalog.shown.store(meta.inodes, Ordering::Relaxed);
        Ok(catalog)
    }

    fn damaged(what: &str) -> CatalogError {
        CatalogError { path: what.to_owned(), action: "read", problem: "a row does not parse".to_owned() }
    }

    /// What the last durable commit said; the default if there was none.
    pub fn meta(&self) -> Result<Meta, CatalogError> {
        match self.inner.read().store.meta()? {
            None => Ok(Meta::default()),
            Some(bytes) => codec::decode_meta(&bytes).ok_or_else(|| Self::damaged("checkpoint")),
        }
    }

    /// Number of inodes now. Never waits.
    pub fn inodes(&self) -> u64 {
        self.shown.load(Ordering::Relaxed)
    }

    /// The inode's record.
    pub fn node(&self, id: &InodeId) -> Result<Option<NodeRecord>, CatalogError> {
        match self.inner.read().get(Table::Nodes, &codec::id_key(id))? {
            None => Ok(None),
            Some(bytes) => codec::decode_node(&bytes).map(Some).ok_or_else(|| Self::damaged("node")),
        }
    }

    /// Whether there is such an inode.
    pub fn has_node(&self, id: &InodeId) -> Result<bool, CatalogError> {
        Ok(self.inner.read().get(Table::Nodes, &codec::id_key(id))?.is_some())
    }

    /// Sets an inode's record.
    pub fn put_node(&self, id: &InodeId, node: &NodeRecord) -> Result<(), CatalogError> {
        let key = codec::id_key(id);
        let mut inner = self.inner.write();
        if inner.get(Table::Nodes, &key)?.is_none() {
            inner.inodes += 1;
            self.shown.store(inner.inodes, Ordering::Relaxed);
        }
        inner.set(Table::Nodes, key, Some(codec::encode_node(node)));
        Ok(())
    }

    /// Forgets an inode. Its names are the caller's.
    pub fn remove_node(&self, id: &InodeId) -> Result<(), CatalogError> {
        let key = codec::id_key(id);
        let mut inner = self.inner.write();
        if inner.get(Table::Nodes, &key)?.is_some() {
            inner.inodes = inner.inodes.saturating_sub(1);
            self.shown.store(inner.inodes, Ordering::Relaxed);
            inner.set(Table::Nodes, key, None);
        }
        Ok(())
    }

    /// What a name means.
    pub fn entry(&self, dir: &InodeId, name: &Name) -> Result<Option<InodeId>, CatalogError> {
        let value = self.inner.read().get(Table::Entries, &codec::entry_key(dir, name))?;
        value.map(|id| InodeId::new(&id).ok_or_else(|| Self::damaged("entry"))).transpose()
    }

    /// `(dir, name) := id`, in both directions. Returns what it meant before.
    pub fn set_entry(&self, dir: &InodeId, name: &Name, id: Option<&InodeId>) -> Result<Option<InodeId>, CatalogError> {
        let key = codec::entry_key(dir, name);
        let mut inner = self.inner.write();
        let old = inner.get(Table::Entries, &key)?;
        let old = old.map(|old| InodeId::new(&old).ok_or_else(|| Self::damaged("entry"))).transpose()?;
        if old.as_ref() == id {
            return Ok(old);
        }
        if let Some(old) = &old {
            inner.set(Table::Links, codec::link_key(old, dir, name), None);
        }
        if let Some(id) = id {
            inner.set(Table::Links, codec::link_key(id, dir, name), Some(Vec::new()));
        }
        inner.set(Table::Entries, key, id.map(|id| id.as_bytes().to_vec()));
        Ok(old)
    }

    /// Up to `limit` names of an inode.
    pub fn names(&self, id: &InodeId, limit: usize) -> Result<Vec<Cell>, CatalogError> {
        let prefix = codec::id_key(id);
        let rows = self.inner.read().scan(Table::Links, &prefix, Bound::Included(&prefix), limit)?;
        let parse = |key: &[u8]| {
            let (dir, name) = codec::split_id(&key[prefix.len()..])?;
            Some((dir, codec::name(name)?))
        };
        rows.iter().map(|(key, _)| parse(key).ok_or_else(|| Self::damaged("link"))).collect()
    }

    /// Up to `limit` names of a directory after `after`, sorted.
    pub fn entries(
        &self,
        dir: &InodeId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, InodeId)>, CatalogError> {
        let prefix = codec::id_key(dir);
        let start = after.map(|name| codec::entry_key(dir, name));
        let from = start.as_deref().map_or(Bound::Included(&prefix[..]), Bound::Excluded);
        let rows = self.inner.read().scan(Table::Entries, &prefix, from, limit)?;
        let parse = |(key, id): &Row| Some((codec::name(&key[prefix.len()..])?, InodeId::new(id)?));
        rows.iter().map(|row| parse(row).ok_or_else(|| Self::damaged("entry"))).collect()
    }

    /// Up to `limit` inode ids after `after`, in an order that does not change.
    pub fn ids(&self, after: Option<&InodeId>, limit: usize) -> Result<Vec<InodeId>, CatalogError> {
        let start = after.map(codec::id_key);
        let from = start.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let rows = self.inner.read().scan(Table::Nodes, &[], from, limit)?;
        let parse = |key: &[u8]| codec::split_id(key).map(|(id, _)| id);
        rows.iter().map(|(key, _)| parse(key).ok_or_else(|| Self::damaged("node"))).collect()
    }

    /// Number of rows that wait for a checkpoint.
    pub fn uncommitted_rows(&self) -> usize {
        self.inner.read().overlay.iter().map(BTreeMap::len).sum()
    }

    /// Moves changes out of memory when they are many. They stay as easily lost as before.
    pub fn relieve(&self) -> Result<(), CatalogError> {
        if self.uncommitted_rows() < OVERLAY_ROWS_MAX {
            return Ok(());
        }
        self.inner.write().commit(None)
    }

    /// Goes back to the last durable commit: what came since describes a tree that may have lost it.
    pub fn revert(&self) -> Result<(), CatalogError> {
        let mut inner = self.inner.write();
        inner.store.revert()?;
        inner.overlay = Default::default();
        inner.inodes = match inner.store.meta()? {
            None => 0,
            Some(bytes) => codec::decode_meta(&bytes).ok_or_else(|| Self::damaged("checkpoint"))?.inodes,
        };
        self.shown.store(inner.inodes, Ordering::Relaxed);
        Ok(())
    }

    /// Makes everything durable, as the state of `position` after publish number `serial`.
    pub fn checkpoint_durably(&self, position: Position, serial: u64) -> Result<(), CatalogError> {
        let mut inner = self.inner.write();
        let meta = Meta { position, serial, inodes: inner.inodes };
        inner.commit(Some(meta))
    }
}

impl Inner {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Box<[u8]>>, CatalogError> {
        match self.overlay[table as usize].get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(table, key),
        }
    }

    fn set(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.overlay[table as usize].insert(key.into_boxed_slice(), value.map(Vec::into_boxed_slice));
    }

    /// Merges overlay and store in key order.
    fn scan(&self, table: Table, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> Result<Vec<Row>, CatalogError> {
        let mut over = self.overlay[table as usize]
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let (mut rows, mut next): (Vec<Row>, _) = (Vec::new(), from.map(<Box<[u8]>>::from));
        while rows.len() < limit {
            let want = limit - rows.len();
            let page = self.store.scan(table, prefix, next.as_ref().map(|key| &**key), want)?;
            let last = page.last().map(|(key, _)| key.clone());
            for (key, value) in page {
                while let Some((over_key, over_value)) = over.next_if(|(over_key, _)| ***over_key < *key) {
                    rows.extend(over_value.clone().map(|value| (over_key.clone(), value)));
                }
                match over.next_if(|(over_key, _)| ***over_key == *key) {
                    Some((_, over_value)) => rows.extend(over_value.clone().map(|value| (key, value))),
                    None => rows.push((key, value)),
                }
            }
            match last {
                Some(last) => next = Bound::Excluded(last),
                None => break,
            }
        }
        if rows.len() < limit {
            rows.extend(over.filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        }
        rows.truncate(limit);
        Ok(rows)
    }

    fn commit(&mut self, meta: Option<Meta>) -> Result<(), CatalogError> {
        let meta = meta.map(|meta| codec::encode_meta(&meta));
        self.store.commit(&self.overlay, meta.as_deref())?;
        self.overlay = Default::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
