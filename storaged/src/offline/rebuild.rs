//! Makes a catalog for a tree whose own one is lost or wrong.
//!
//! Every object gets an id of its own that no client can have. A full resync then takes each object over under the id that the
//! client has for that name, and compares its content, because nothing is known of an inode that is new; what is equal is not
//! sent. See `apply::staging`.

use std::collections::HashMap;

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::NodeKind,
    position::Position,
    stage::NodeType,
};

use super::tree_check::open_dir;
use crate::{
    apply::{ApplyError, ObjectIdentity, error::OnObject as _},
    catalog::{Catalog, NodeRecord},
    tree::{Area, FsTree, ReplicaTree as _},
};

/// Makes ids of rebuilt catalogs.
pub struct Ids {
    nonce: [u8; 8],
    next: u64,
}

impl Ids {
    /// Ids that begin with these random bytes.
    pub fn new(random: [u8; 16]) -> Ids {
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&random[..8]);
        Ids { nonce, next: 0 }
    }

    fn next(&mut self) -> InodeId {
        self.next += 1;
        let mut id = [0xff; 21];
        id[4] = b'R';
        id[5..13].copy_from_slice(&self.nonce);
        id[13..].copy_from_slice(&self.next.to_be_bytes());
        InodeId::new(&id).unwrap_or_else(|| unreachable!("21 bytes fit"))
    }
}

/// What was found in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Adopted {
    /// Inodes, the root included.
    pub inodes: u64,
    /// Names that cannot be in a catalog; they stay in the tree.
    pub passed_over: u64,
}

/// Fills an empty catalog from the tree. Not durable yet.
pub fn rebuild(tree: &FsTree, catalog: &Catalog, ids: &mut Ids, born: Position) -> Result<Adopted, ApplyError> {
    let mut adopted = Adopted { inodes: 1, passed_over: 0 };
    let record = |kind, identity| NodeRecord { kind, identity, born, dir_mtime: None, side: None };
    let root = tree.identity(&tree.area(Area::Tree)).on("identify", "the root")?;
    catalog.put_node(&InodeId::ROOT, &record(NodeKind::Directory, root))?;
    let mut known: HashMap<ObjectIdentity, InodeId> = HashMap::new();
    let mut open: Vec<(InodeId, Vec<Bytes>)> = vec![(InodeId::ROOT, Vec::new())];
    while let Some((dir_id, path)) = open.pop() {
        let dir = open_dir(tree, &path)?;
        for (name, _) in tree.list(&dir).on("list", "a directory of the tree")? {
            let Some(found) = tree.find(&dir, &name).on("look at", "a name of the tree")? else { continue };
            let Some(entry) = Name::new(name.clone()) else {
                adopted.passed_over += 1;
                continue;
            };
            let id = match known.get(&found.identity) {
                Some(id) => *id,
                None => {
                    let id = ids.next();
                    let kind = tree.kind(&dir, &name).on("read", &entry)?;
                    catalog.put_node(&id, &record(kind, found.identity.clone()))?;
                    adopted.inodes += 1;
                    // Directories have one name.
                    if found.node_type != NodeType::Directory {
                        known.insert(found.identity, id);
                    }
                    id
                }
            };
            catalog.set_entry(&dir_id, &entry, Some(&id))?;
            if found.node_type == NodeType::Directory {
                open.push((id, [&path[..], &[name]].concat()));
            }
        }
        catalog.relieve()?;
    }
    Ok(adopted)
}
