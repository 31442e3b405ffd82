//! Rules for a mount and for what lies below a path of it; the longest path wins.
//!
//! A path is where an object *is*, as far as this mount has seen it named: a directory's rule follows the directory at a rename, with
//! all that is in it. A file with several names is bound by the strictest of those that the kernel has looked up since it knows the
//! file. One that lost its last name keeps the rule that it had. Names are kept only where there are rules for paths.

use std::sync::Arc;

use smallvec::SmallVec;

use super::inodes::Inode;

/// What a rule may say. Of two, the greater one is the stricter.
pub trait Mode: Copy + Ord + Default {}

/// The rules of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PathRules<M> {
    mount: M,
    /// Names from the root of the mount, and what holds there.
    below: Vec<(Vec<Box<[u8]>>, M)>,
}

impl<M> From<M> for PathRules<M> {
    fn from(mount: M) -> PathRules<M> {
        PathRules { mount, below: Vec::new() }
    }
}

impl<M: Mode> PathRules<M> {
    /// What holds where no rule for a path does.
    pub fn mount(&self) -> M {
        self.mount
    }

    /// The rules for paths, as they were set; a path as it is written.
    pub fn below(&self) -> impl Iterator<Item = (String, M)> {
        self.below.iter().map(|(names, mode)| {
            let path = names.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect();
            (path, *mode)
        })
    }

    /// Sets the rule of the mount.
    pub fn set_mount(&mut self, mode: M) {
        self.mount = mode;
    }

    /// Sets the rule for `path`, which begins with `/`, the root of the mount; the last one that is set for a path holds. `Err`: why
    /// that is no path.
    pub fn set_below(&mut self, path: &[u8], mode: M) -> Result<(), &'static str> {
        let Some(rest) = path.strip_prefix(b"/") else {
            return Err("a path begins with /, which is the root of the mount");
        };
        let names: Vec<Box<[u8]>> =
            rest.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(Box::from).collect();
        if names.iter().any(|name| **name == *b"..") {
            return Err("a path cannot go up (..)");
        }
        if names.is_empty() {
            self.mount = mode;
            return Ok(());
        }
        self.below.retain(|(other, _)| *other != names);
        self.below.push((names, mode));
        Ok(())
    }

    /// Whether names have to be known.
    pub fn has_paths(&self) -> bool {
        !self.below.is_empty()
    }

    /// What holds for a path, given by its names.
    fn at(&self, path: &[Box<[u8]>]) -> M {
        let covering = self.below.iter().filter(|(names, _)| path.starts_with(names));
        covering.max_by_key(|(names, _)| names.len()).map_or(self.mount, |(_, mode)| *mode)
    }

    /// The strictest of all rules, for what cannot be told.
    fn strictest(&self) -> M {
        self.below.iter().map(|(_, mode)| *mode).chain([self.mount]).max().unwrap_or_default()
    }

    /// What holds for an inode.
    pub fn of(&self, inode: &Inode) -> M {
        if self.below.is_empty() {
            return self.mount;
        }
        let names = inode.names.lock();
        if names.too_many {
            return self.strictest();
        }
        let known = names.known.clone();
        drop(names);
        // The root, and what was never named to us, have the mount's own rule.
        let modes = known.iter().map(|(dir, name)| self.of_name(dir, name));
        modes.max().unwrap_or(self.mount)
    }

    fn of_name(&self, dir: &Arc<Inode>, name: &[u8]) -> M {
        let mut path: Vec<Box<[u8]>> = vec![name.into()];
        let mut at = dir.clone();
        while let Some((dir, name)) = at.only_name() {
            if path.len() > DEPTH_MAX {
                return self.strictest();
            }
            path.push(name);
            at = dir;
        }
        path.reverse();
        self.at(&path)
    }
}

/// Deepest path that is followed up to the root.
const DEPTH_MAX: usize = 10_000;

/// Names of a file that are kept; with more, it is bound by the strictest rule of the mount.
const NAMES_MAX: usize = 16;

/// A directory, and a name in it.
type KnownName = (Arc<Inode>, Box<[u8]>);

/// The names under which an inode is known.
#[derive(Debug, Default)]
pub struct Names {
    known: SmallVec<[KnownName; 1]>,
    too_many: bool,
}

impl Names {
    fn position(&self, dir: &Inode, name: &[u8]) -> Option<usize> {
        self.known.iter().position(|(known, at)| known.id == dir.id && **at == *name)
    }
}

impl Inode {
    /// A name of it is known now.
    pub fn named(self: &Arc<Inode>, dir: &Arc<Inode>, name: &[u8]) {
        if dir.id == self.id {
            return;
        }
        let mut names = self.names.lock();
        let is_dir = self.node_type == tandem_proto::stage::NodeType::Directory;
        if is_dir {
            // It has one name, and the newest is the true one.
            names.known.clear();
        } else if names.position(dir, name).is_some() {
            return;
        }
        if names.known.len() >= NAMES_MAX {
            names.too_many = true;
        } else {
            names.known.push((dir.clone(), name.into()));
        }
    }

    /// A name of it went. The last one that is known is kept: its rule still binds who has the file open.
    pub fn unnamed_at(&self, dir: &Inode, name: &[u8]) {
        let mut names = self.names.lock();
        if names.known.len() > 1
            && let Some(at) = names.position(dir, name)
        {
            names.known.remove(at);
        }
    }

    /// It was moved.
    pub fn renamed(self: &Arc<Inode>, from: (&Inode, &[u8]), to: (&Arc<Inode>, &[u8])) {
        let mut names = self.names.lock();
        if let Some(at) = names.position(from.0, from.1) {
            names.known.remove(at);
        }
        drop(names);
        self.named(to.0, to.1);
    }

    fn only_name(&self) -> Option<(Arc<Inode>, Box<[u8]>)> {
        self.names.lock().known.first().cloned()
    }
}

/// A chain of directories as deep as a tree may be must not be dropped by recursion.
impl Drop for Inode {
    fn drop(&mut self) {
        let mut above = std::mem::take(&mut self.names.get_mut().known);
        while let Some((dir, _)) = above.pop() {
            if let Some(mut dir) = Arc::into_inner(dir) {
                above.append(&mut dir.names.get_mut().known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::vfs::{FsyncMode, FsyncRules};

    fn path(text: &str) -> Vec<Box<[u8]>> {
        text.split('/').filter(|name| !name.is_empty()).map(|name| name.as_bytes().into()).collect()
    }

    #[test]
    fn the_longest_path_wins_and_ends_at_whole_names() {
        let mut rules = FsyncRules::from(FsyncMode::Local);
        rules.set_below(b"/db", FsyncMode::Durable).expect("path");
        rules.set_below(b"/db//tmp/", FsyncMode::Local).expect("path");
        let cases = [
            ("/", FsyncMode::Local),
            ("/db", FsyncMode::Durable),
            ("/db/wal/1", FsyncMode::Durable),
            ("/db/tmp", FsyncMode::Local),
            ("/db/tmp/x", FsyncMode::Local),
            ("/db/tmpx", FsyncMode::Durable),
            ("/dbx", FsyncMode::Local),
            ("/x/db", FsyncMode::Local),
        ];
        for (at, mode) in cases {
            assert_eq!(rules.at(&path(at)), mode, "{at}");
        }
        assert_eq!(rules.to_string(), "local,durable:/db,local:/db/tmp");
    }

    #[test]
    fn a_path_that_is_none_is_refused_and_the_root_is_the_mount() {
        let mut rules = FsyncRules::default();
        assert!(rules.set_below(b"db", FsyncMode::Durable).is_err());
        assert!(rules.set_below(b"/a/../b", FsyncMode::Durable).is_err());
        rules.set_below(b"/", FsyncMode::Durable).expect("the root");
        assert_eq!(rules, FsyncRules::from(FsyncMode::Durable));
    }
}
