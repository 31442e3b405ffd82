//! What the tests of apply share: a world that changes like a real folder, and a look at what a replica made of it.

pub mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use tandem_proto::{
    ids::{InodeId, Name},
    op::{Attr, NodeKind},
    stage::NodeType,
};

use crate::tree::{Area, ReplicaTree};

/// Small and repeatable.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % bound.max(1) as u64) as usize
    }

    /// One of several.
    pub fn pick<V: Clone>(&mut self, from: &[V]) -> Option<V> {
        if from.is_empty() { None } else { from.get(self.below(from.len())).cloned() }
    }
}

/// What stands at a path, as far as it is replicated state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which object it is: paths with the same number are links to one.
    pub group: usize,
    /// What it is.
    pub node_type: NodeType,
    /// Attributes.
    pub attr: Attr,
    /// Extended attributes.
    pub xattrs: BTreeMap<Bytes, Bytes>,
    /// Content.
    pub data: Vec<u8>,
}

/// A tree by path.
pub type Picture = BTreeMap<Vec<Name>, Shown>;

/// Walks a replica's tree as a stranger would.
pub fn picture_of<T: ReplicaTree>(tree: &T) -> Picture {
    let mut groups = BTreeMap::new();
    let mut picture = Picture::new();
    let mut waiting = vec![(Vec::new(), tree.area(Area::Tree))];
    while let Some((path, node)) = waiting.pop() {
        let stat = tree.stat(&node).expect("stat");
        let identity = tree.identity(&node).expect("identity");
        let xattrs = tree.list_xattrs(&node).expect("list xattrs");
        let xattrs =
            xattrs.into_iter().map(|name| (name.clone(), tree.xattr(&node, &name).expect("xattr").expect("value")));
        let xattrs = xattrs.collect();
        let mut data = Vec::new();
        if stat.node_type == NodeType::Regular {
            data = vec![0; stat.size as usize];
            assert_eq!(tree.read_at(&node, 0, &mut data).expect("read"), data.len());
        }
        if stat.node_type == NodeType::Directory {
            for (name, node_type) in tree.list(&node).expect("list") {
                let child = tree.open(&node, &name, node_type).expect("open");
                let mut below = path.clone();
                below.push(Name::new(name).expect("a legal name"));
                waiting.push((below, child));
            }
        }
        groups.entry(identity.clone()).or_insert_with(Vec::new).push(path.clone());
        picture.insert(path, Shown { group: 0, node_type: stat.node_type, attr: stat.attr, xattrs, data });
    }
    number_groups(&mut picture, groups.into_values());
    picture
}

/// Numbers groups of linked paths by their smallest path, so that pictures compare.
pub fn number_groups(picture: &mut Picture, groups: impl Iterator<Item = Vec<Vec<Name>>>) {
    let mut groups: Vec<Vec<Vec<Name>>> = groups
        .map(|mut paths| {
            paths.sort();
            paths
        })
        .collect();
    groups.sort();
    for (number, paths) in groups.into_iter().enumerate() {
        for path in paths {
            picture.get_mut(&path).expect("a path of the picture").group = number;
        }
    }
}

/// Fails with what differs.
pub fn assert_same(found: &Picture, wanted: &Picture, context: &str) {
    for (path, want) in wanted {
        match found.get(path) {
            None => panic!("{context}: {path:?} is missing"),
            Some(is) => assert_eq!(is, want, "{context}: at {path:?}"),
        }
    }
    for path in found.keys() {
        assert!(wanted.contains_key(path), "{context}: {path:?} should not be there");
    }
}

/// A short id.
pub fn id(number: u64) -> InodeId {
    if number == 0 { InodeId::ROOT } else { InodeId::new(&number.to_be_bytes()[4..]).expect("short") }
}

/// A name.
pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).expect("a legal name")
}

/// The root's kind.
pub const DIRECTORY: NodeKind = NodeKind::Directory;
