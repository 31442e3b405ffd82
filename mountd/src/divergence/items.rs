//! From cells to paths: one walk of the folder, and an item for each path that may differ.

use std::{collections::BTreeMap, io};

use tandem_proto::{InodeId, Name, stage::NodeType};

use crate::{
    commit::dirty::{DirtyData, DirtyNames, DirtyNode, DirtySet, Scope},
    resync::{ListedEntry, StateReader},
};

/// A path that differs, or may differ.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Item {
    /// Names from the root of the folder; the root has none.
    pub path: Vec<Name>,
    /// What the name means; `None`: nothing any more.
    pub node_type: Option<NodeType>,
    /// Size of a regular file.
    pub size: u64,
    /// The name is gone.
    pub removed: bool,
    /// The name was given.
    pub named: bool,
    /// The object was made.
    pub created: bool,
    /// Its data changed.
    pub data: bool,
    /// Its attributes changed.
    pub attributes: bool,
    /// Only a mark, or a scope, that covers it is known.
    pub coarse: bool,
    /// Of its data, at most.
    pub changed_bytes: u64,
}

impl Item {
    fn differs(&self) -> bool {
        self.removed || self.named || self.created || self.data || self.attributes || self.coarse
    }

    /// What is known of the object itself.
    fn note_node(&mut self, node: &DirtyNode) {
        self.attributes = true;
        self.created |= node.born;
        self.changed_bytes = match &node.data {
            _ if node.born => self.size,
            DirtyData::Clean => 0,
            DirtyData::All => self.size,
            DirtyData::Ranges(ranges) => {
                ranges.iter().map(|(start, end)| end.min(self.size).saturating_sub(start)).sum()
            }
        };
        self.data |= node.data != DirtyData::Clean || (node.born && self.size > 0);
    }
}

/// A directory that was not listed yet.
struct Open {
    id: InodeId,
    path: Vec<Name>,
    /// What lies in it may have been born under a mark.
    coarse: bool,
}

/// Calls `each` for every path whose cells are in `dirty`, in the order of names, directories before what they hold. An error of `each`
/// ends it.
pub fn list(
    dirty: &DirtySet,
    reader: &dyn StateReader,
    each: &mut dyn FnMut(Item) -> io::Result<()>,
) -> io::Result<()> {
    if let Some(node) = dirty.nodes().get(&InodeId::ROOT) {
        let mut root = Item { node_type: Some(NodeType::Directory), ..Item::default() };
        root.note_node(node);
        each(root)?;
    }
    let mut open = vec![Open { id: InodeId::ROOT, path: Vec::new(), coarse: false }];
    while let Some(dir) = open.pop() {
        let mut listed = BTreeMap::new();
        let there = reader.list(&dir.id, &mut |entry| {
            listed.insert(entry.name.clone(), entry);
            Ok(())
        })?;
        if !there {
            continue;
        }
        let names = dirty.dirs().get(&dir.id);
        let mut dirs = Vec::new();
        let mut items: BTreeMap<Name, Item> = removed(names, &listed, &dir.path);
        for (name, entry) in &listed {
            let path: Vec<Name> = dir.path.iter().chain([name]).cloned().collect();
            let item = item(dirty, names, dir.coarse, entry, path.clone());
            if entry.node_type == NodeType::Directory {
                // Who was born in a marked directory is covered by its mark, with what was born in it.
                let all = matches!(names, Some(DirtyNames::All)) && dirty.born_since().is_some();
                dirs.push(Open { id: entry.id, path, coarse: dir.coarse || all });
            }
            if item.differs() {
                items.insert(name.clone(), item);
            }
        }
        for (_, item) in items {
            each(item)?;
        }
        open.extend(dirs.into_iter().rev());
    }
    Ok(())
}

/// Dirty names that mean nothing now.
fn removed(names: Option<&DirtyNames>, listed: &BTreeMap<Name, ListedEntry>, dir: &[Name]) -> BTreeMap<Name, Item> {
    let Some(DirtyNames::Some(names)) = names else { return BTreeMap::new() };
    let gone = names.iter().filter(|name| !listed.contains_key(*name));
    gone.map(|name| {
        let path = dir.iter().chain([name]).cloned().collect();
        (name.clone(), Item { path, removed: true, ..Item::default() })
    })
    .collect()
}

fn item(dirty: &DirtySet, names: Option<&DirtyNames>, in_coarse: bool, entry: &ListedEntry, path: Vec<Name>) -> Item {
    let mut item = Item { path, node_type: Some(entry.node_type), size: entry.size, ..Item::default() };
    item.named = matches!(names, Some(DirtyNames::Some(names)) if names.contains(&entry.name));
    item.coarse = in_coarse || matches!(names, Some(DirtyNames::All));
    item.coarse |= match dirty.scope() {
        Scope::Cells => false,
        Scope::Walk(since) => entry.ctime >= since,
        Scope::Everything => true,
    };
    if let Some(node) = dirty.nodes().get(&entry.id) {
        item.note_node(node);
    } else if item.coarse {
        item.changed_bytes = entry.size;
    }
    item
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tandem_proto::{InodeId, Name};

    use super::{Item, list};
    use crate::{backing::Backing, commit::dirty::DirtySet, resync::StateReader as _};

    fn name(text: &'static str) -> Name {
        Name::new(text).expect("legal")
    }

    #[test]
    fn every_cell_becomes_the_path_that_it_has_now() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir_all(dir.path().join("d/deep")).expect("mkdir");
        for (path, text) in [("equal", "1"), ("d/changed", "12345"), ("d/deep/new", "abc"), ("d/renamed", "x")] {
            fs::write(dir.path().join(path), text).expect("write");
        }
        let backing = Backing::open(dir.path(), false, true).expect("backing");
        let id = |of: &InodeId, at: &'static str| backing.entry(of, &name(at)).expect("entry").expect("there").id;
        let d = id(&InodeId::ROOT, "d");
        let deep = id(&d, "deep");
        let mut dirty = DirtySet::default();
        dirty.insert_range(id(&d, "changed"), 1, u64::MAX);
        dirty.insert_name(deep, &name("new"));
        dirty.insert_birth(id(&deep, "new"));
        dirty.insert_name(d, &name("renamed"));
        dirty.insert_name(InodeId::ROOT, &name("gone"));
        let mut found = Vec::new();
        list(&dirty, &backing, &mut |item| {
            found.push(item);
            Ok(())
        })
        .expect("listed");
        let text = |item: &Item| {
            let path: Vec<_> = item.path.iter().map(|name| String::from_utf8_lossy(name.as_bytes())).collect();
            let flags = [
                ("removed", item.removed),
                ("named", item.named),
                ("created", item.created),
                ("data", item.data),
                ("coarse", item.coarse),
            ];
            let flags: Vec<_> = flags.iter().filter(|(_, set)| *set).map(|(flag, _)| *flag).collect();
            format!("{} {} {}", path.join("/"), flags.join(","), item.changed_bytes)
        };
        let found: Vec<_> = found.iter().map(text).collect();
        assert_eq!(
            found,
            ["gone removed 0", "d/changed data 4", "d/renamed named 0", "d/deep/new named,created,data 3"]
        );
    }

    #[test]
    fn a_directory_of_which_only_a_mark_is_known_lists_all_that_it_holds_as_possible() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("a"), "1").expect("write");
        let backing = Backing::open(dir.path(), false, true).expect("backing");
        let mut dirty = DirtySet::default();
        dirty.insert_directory(InodeId::ROOT);
        let mut found = Vec::new();
        list(&dirty, &backing, &mut |item| {
            found.push((item.coarse, item.named, item.path.len()));
            Ok(())
        })
        .expect("listed");
        assert_eq!(found, [(true, false, 1)]);
    }
}
