//! A whole tree in a form that can be compared and read: what the checkers of the simulation look at.

use std::collections::BTreeMap;

use tandem_proto::{Attr, InodeId, NodeKind};

/// A tree as text, path by path, the same for a folder and for a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// Path to what is there; also to which link group it belongs.
    pub lines: BTreeMap<String, String>,
    /// Path to inode id, as the catalog must know it too.
    pub ids: BTreeMap<String, InodeId>,
    /// Path to a file's bytes.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl Picture {
    /// Adds one path. `first` is the first path of the same inode.
    #[allow(clippy::too_many_arguments, reason = "the state of an inode has that many parts")]
    pub fn add(
        &mut self,
        path: &str,
        first: &str,
        kind: &NodeKind,
        attr: &Attr,
        size: usize,
        data: &[u8],
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) {
        let hash = blake3::hash(data).to_hex();
        let (time, mode) = (attr.mtime, attr.mode);
        let line = format!(
            "{kind:?} same as {first:?} {mode:o} {}:{} {}.{:09} size {size} data {} xattrs {xattrs:?}",
            attr.uid,
            attr.gid,
            time.seconds,
            time.nanos,
            &hash[..12]
        );
        self.lines.insert(path.to_owned(), line);
        if !data.is_empty() {
            self.data.insert(path.to_owned(), data.to_vec());
        }
    }

    /// Where the bytes of two files differ: the extent from the first to the last difference, with the bytes.
    fn byte_difference(&self, other: &Picture, path: &str) -> Option<String> {
        let (left, right) = (self.data.get(path)?, other.data.get(path)?);
        let differs = |at: &usize| left.get(*at) != right.get(*at);
        let all = 0..left.len().max(right.len());
        let (first, last) = (all.clone().find(differs)?, all.rev().find(differs)?);
        let show = |data: &[u8]| data.get(first..data.len().min(first + 16)).unwrap_or_default().to_vec();
        Some(format!("bytes {first} to {last} differ: {:x?} | {:x?}", show(left), show(right)))
    }

    /// Where two pictures differ, readably.
    pub fn differences(&self, other: &Picture) -> String {
        let paths: std::collections::BTreeSet<&String> = self.lines.keys().chain(other.lines.keys()).collect();
        let mut text = String::new();
        for path in paths {
            let (left, right) = (self.lines.get(path), other.lines.get(path));
            if left != right {
                let id = self.ids.get(path).or(other.ids.get(path));
                text.push_str(&format!("{path:?} {id:?}\n   folder:  {left:?}\n   replica: {right:?}\n"));
                if let Some(bytes) = self.byte_difference(other, path) {
                    text.push_str(&format!("   {bytes}\n"));
                }
            }
            if left.is_some() && right.is_some() && self.ids.get(path) != other.ids.get(path) {
                text.push_str(&format!("{path:?}: id {:?} | {:?}\n", self.ids.get(path), other.ids.get(path)));
            }
        }
        text
    }

    /// A digest of all of it.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (path, line) in &self.lines {
            hasher.update(path.as_bytes()).update(b"\0").update(line.as_bytes()).update(b"\n");
        }
        *hasher.finalize().as_bytes()
    }
}
