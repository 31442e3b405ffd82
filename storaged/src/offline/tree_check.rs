//! Compares a tree with its catalog, name by name: is the object that stands there the one that the catalog means?

use std::collections::BTreeMap;

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    stage::NodeType,
};

use crate::{
    apply::{ApplyError, error::OnObject as _},
    catalog::{Catalog, NodeRecord},
    tree::{Area, ReplicaTree},
};

/// Names that are read from the catalog at once.
const PAGE: usize = 4096;

/// What was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Compared {
    /// Names.
    pub names: u64,
    /// Directories, the root included.
    pub directories: u64,
}

fn show(path: &[Bytes], name: &[u8]) -> String {
    let mut text = String::new();
    for part in path.iter().map(|part| &part[..]).chain([name]) {
        text.push('/');
        text.push_str(&String::from_utf8_lossy(part));
    }
    text
}

/// The type that a record's object has in the tree.
fn object_type(record: &NodeRecord) -> NodeType {
    match &record.side {
        Some(side) if side.placeholder => NodeType::Regular,
        _ => record.kind.node_type(),
    }
}

/// Opens a directory of the tree by its path.
pub fn open_dir<T: ReplicaTree>(tree: &T, path: &[Bytes]) -> Result<T::Node, ApplyError> {
    let mut node = tree.area(Area::Tree);
    for (at, name) in path.iter().enumerate() {
        node = tree.open(&node, name, NodeType::Directory).on("open", show(&path[..at], name))?;
    }
    Ok(node)
}

/// Compares everything, and tells what differs. The volume must be at one position, and nobody may change it meanwhile.
pub fn compare<T: ReplicaTree>(
    tree: &T,
    catalog: &Catalog,
    found: &mut dyn FnMut(String),
) -> Result<Compared, ApplyError> {
    let mut compared = Compared::default();
    let root = tree.identity(&tree.area(Area::Tree)).on("identify", "the root")?;
    if catalog.node(&InodeId::ROOT)?.is_some_and(|record| record.identity != root) {
        found("its root is not the directory that the catalog means: it was copied or restored".to_owned());
    }
    let mut open: Vec<(InodeId, Vec<Bytes>)> = vec![(InodeId::ROOT, Vec::new())];
    while let Some((id, path)) = open.pop() {
        compared.directories += 1;
        let dir = open_dir(tree, &path)?;
        let there: BTreeMap<Bytes, NodeType> = tree.list(&dir).on("list", show(&path, b""))?.into_iter().collect();
        let mut rest = there;
        let mut after: Option<Name> = None;
        loop {
            let entries = catalog.entries(&id, after.as_ref(), PAGE)?;
            let Some((last, _)) = entries.last() else { break };
            after = Some(last.clone());
            for (name, child) in entries {
                compared.names += 1;
                let here = rest.remove(name.as_bytes()).is_some();
                let is_it = compare_one(tree, catalog, &dir, &name, &child, here);
                match is_it? {
                    Ok(true) => open.push((child, [&path[..], &[name.to_bytes()]].concat())),
                    Ok(false) => {}
                    Err(problem) => found(format!("{}: {problem}", show(&path, name.as_bytes()))),
                }
            }
        }
        for name in rest.keys() {
            found(format!("{}: it is not in the catalog: it was added from outside", show(&path, name)));
        }
    }
    Ok(compared)
}

/// Whether a name is a directory to be compared too, or what is wrong with it.
fn compare_one<T: ReplicaTree>(
    tree: &T,
    catalog: &Catalog,
    dir: &T::Node,
    name: &Name,
    id: &InodeId,
    listed: bool,
) -> Result<Result<bool, &'static str>, ApplyError> {
    if !listed {
        return Ok(Err("it is missing"));
    }
    let Some(record) = catalog.node(id)? else { return Ok(Err("its inode is missing in the catalog")) };
    let Some(is) = tree.find(dir, name.as_bytes()).on("look at", name)? else { return Ok(Err("it is missing")) };
    if is.node_type != object_type(&record) {
        return Ok(Err("it has another type than in the catalog"));
    }
    if is.identity != record.identity {
        return Ok(Err("it is another object than the catalog means: it was replaced, copied or restored"));
    }
    Ok(Ok(record.kind.is_directory()))
}
