//! Paths of inodes, for the record: kept while nothing that leads to them is renamed.
//!
//! Each op names two or three objects. To ask the catalog for each of their names, up to the root, would be the most of what a line costs.

use std::{collections::HashMap, sync::Arc};

use tandem_proto::{
    ids::{InodeId, Name},
    op::Change,
};

/// Says a name of an inode and the directory that it stands in, as they are now; nothing of one that is gone, and of the root.
pub type NameOf = Box<dyn Fn(&InodeId) -> Option<(InodeId, Name)> + Send>;

/// So many are kept.
const KEPT_MAX: usize = 4096;
/// Length of those that are kept, in bytes: each directory on the way keeps its own, so a deep tree would need the square of its depth.
const LENGTH_MAX: usize = 1024;

struct Known {
    path: Arc<str>,
    /// Paths of what is below it are known, too.
    leads_on: bool,
}

/// See the module. What is known of an object is also known of all directories above it.
pub struct Paths {
    name_of: NameOf,
    known: HashMap<InodeId, Known>,
}

impl Paths {
    /// Nothing is known yet.
    pub fn new(name_of: NameOf) -> Paths {
        Paths { name_of, known: HashMap::new() }
    }

    /// Path of an object from the root on, as good as it is known now. None of one that is gone.
    pub fn path(&mut self, id: &InodeId) -> Option<Arc<str>> {
        if id.is_root() {
            return Some("/".into());
        }
        if let Some(known) = self.known.get(id) {
            return Some(known.path.clone());
        }
        let (mut unknown, mut at) = (Vec::new(), *id);
        let mut path: Arc<str> = loop {
            if at.is_root() {
                break "".into();
            }
            if let Some(known) = self.known.get_mut(&at) {
                known.leads_on = true;
                break known.path.clone();
            }
            let (dir, name) = (self.name_of)(&at)?;
            unknown.push((at, name));
            at = dir;
        };
        if self.known.len() + unknown.len() > KEPT_MAX {
            self.known.clear();
            // What is above them was forgotten, so they are not kept either.
            let names = unknown.iter().rev().map(|(_, name)| String::from_utf8_lossy(name.as_bytes()));
            return Some(names.fold(path.to_string(), |path, name| path + "/" + &name).into());
        }
        while let Some((id, name)) = unknown.pop() {
            path = format!("{path}/{}", String::from_utf8_lossy(name.as_bytes())).into();
            // What is below a long one is longer.
            if path.len() <= LENGTH_MAX {
                self.known.insert(id, Known { path: path.clone(), leads_on: !unknown.is_empty() });
            }
        }
        Some(path)
    }

    /// A change was made: what it moved is asked for again.
    pub fn changed(&mut self, change: &Change) {
        let Change::Entry { old, new, .. } = change else { return };
        for id in [old, new].into_iter().flatten() {
            if self.known.remove(id).is_some_and(|known| known.leads_on) {
                self.known.clear();
            }
        }
    }

    /// Anything may have changed.
    pub fn forget(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Arc, Mutex},
    };

    use tandem_proto::{
        ids::{InodeId, Name},
        op::Change,
    };

    use super::{KEPT_MAX, LENGTH_MAX, Paths};

    fn id(text: &str) -> InodeId {
        InodeId::new(text.as_bytes()).expect("short")
    }

    #[derive(Clone, Default)]
    struct Tree {
        names: Arc<Mutex<HashMap<InodeId, (InodeId, Name)>>>,
        asked: Arc<Mutex<usize>>,
    }

    impl Tree {
        fn put(&self, object: &str, dir: InodeId, name: &str) -> Change {
            let name = Name::new(name.as_bytes().to_vec()).expect("legal");
            self.names.lock().expect("whole").insert(id(object), (dir, name.clone()));
            Change::Entry { dir, name, old: None, new: Some(id(object)) }
        }

        fn paths(&self) -> Paths {
            let tree = self.clone();
            Paths::new(Box::new(move |id| {
                *tree.asked.lock().expect("whole") += 1;
                tree.names.lock().expect("whole").get(id).cloned()
            }))
        }

        fn asked(&self) -> usize {
            std::mem::take(&mut *self.asked.lock().expect("whole"))
        }
    }

    #[test]
    fn a_path_is_asked_for_once_until_something_on_it_moves() {
        let tree = Tree::default();
        let mut paths = tree.paths();
        tree.put("a", InodeId::ROOT, "a");
        tree.put("b", id("a"), "b");
        tree.put("f", id("b"), "f");
        tree.put("g", id("b"), "g");
        let path = |paths: &mut Paths, object: &str| paths.path(&id(object)).map(|path| path.to_string());
        assert_eq!(path(&mut paths, "f").as_deref(), Some("/a/b/f"));
        assert_eq!(tree.asked(), 3);
        assert_eq!(path(&mut paths, "g").as_deref(), Some("/a/b/g"));
        assert_eq!(
            (path(&mut paths, "f").as_deref(), path(&mut paths, "b").as_deref()),
            (Some("/a/b/f"), Some("/a/b"))
        );
        assert_eq!(tree.asked(), 1);
        // A file: only its own.
        paths.changed(&tree.put("f", InodeId::ROOT, "f"));
        assert_eq!((path(&mut paths, "f").as_deref(), path(&mut paths, "g").as_deref()), (Some("/f"), Some("/a/b/g")));
        assert_eq!(tree.asked(), 1);
        // A directory: all that is below it.
        paths.changed(&tree.put("a", InodeId::ROOT, "other"));
        assert_eq!(path(&mut paths, "g").as_deref(), Some("/other/b/g"));
        // Gone.
        tree.names.lock().expect("whole").remove(&id("g"));
        let name = Name::new(b"g".to_vec()).expect("legal");
        paths.changed(&Change::Entry { dir: id("b"), name, old: Some(id("g")), new: None });
        assert_eq!(path(&mut paths, "g"), None);
        assert_eq!(paths.path(&InodeId::ROOT).as_deref(), Some("/"));
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let tree = Tree::default();
        let mut paths = tree.paths();
        tree.put("d", InodeId::ROOT, "d");
        for at in 0..2 * KEPT_MAX {
            tree.put(&format!("f{at}"), id("d"), &format!("name-{at}"));
            assert_eq!(paths.path(&id(&format!("f{at}"))).as_deref(), Some(format!("/d/name-{at}").as_str()));
            assert!(paths.known.len() <= KEPT_MAX);
        }
    }

    #[test]
    fn of_a_deep_tree_no_more_is_kept_than_of_others_and_what_moves_on_its_way_is_noticed() {
        let tree = Tree::default();
        let mut paths = tree.paths();
        tree.put("d0", InodeId::ROOT, "top");
        for at in 1..300 {
            tree.put(&format!("d{at}"), id(&format!("d{}", at - 1)), &"n".repeat(200));
        }
        let expected = |top: &str| format!("/{top}{}", format!("/{}", "n".repeat(200)).repeat(299));
        assert_eq!(paths.path(&id("d299")).as_deref(), Some(expected("top").as_str()));
        assert!(paths.known.values().all(|known| known.path.len() <= LENGTH_MAX) && paths.known.len() < 10);
        paths.changed(&tree.put("d0", InodeId::ROOT, "else"));
        assert_eq!(paths.path(&id("d299")).as_deref(), Some(expected("else").as_str()));
    }
}
