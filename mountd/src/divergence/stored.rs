//! A dirty set as a file. JSON, so that a person can read it; names and ids are hexadecimal, as they may be any bytes.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use tandem_proto::{InodeId, Name, Timestamp, ids::hex};
use tandem_runtime::durable;

use crate::commit::dirty::{DirtyData, DirtyNames, DirtySet, Scope};

/// Name of the file in the state directory.
pub const FILE: &str = "divergence.json";
/// Its format.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    dirs: Vec<StoredDir>,
    nodes: Vec<StoredNode>,
    /// Everything may differ.
    everything: bool,
    /// What was changed at or after this time may differ.
    walk_since: Option<(i64, u32)>,
}

#[derive(Serialize, Deserialize)]
struct StoredDir {
    id: String,
    /// Absent: all names.
    names: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
struct StoredNode {
    id: String,
    born: bool,
    whole: bool,
    ranges: Vec<(u64, u64)>,
}

/// Writes the cells down.
pub fn save_durably(state_dir: &Path, dirty: &DirtySet) -> io::Result<()> {
    let names = |names: &DirtyNames| match names {
        DirtyNames::All => None,
        DirtyNames::Some(names) => Some(names.iter().map(|name| hex(name.as_bytes())).collect()),
    };
    let mut stored = Stored {
        version: VERSION,
        dirs: dirty.dirs().iter().map(|(id, of)| StoredDir { id: hex(id.as_bytes()), names: names(of) }).collect(),
        nodes: Vec::new(),
        everything: dirty.scope() == Scope::Everything,
        walk_since: match dirty.scope() {
            Scope::Walk(since) => Some((since.seconds, since.nanos)),
            Scope::Cells | Scope::Everything => None,
        },
    };
    for (id, node) in dirty.nodes() {
        let ranges = match &node.data {
            DirtyData::Ranges(ranges) => ranges.iter().collect(),
            DirtyData::Clean | DirtyData::All => Vec::new(),
        };
        let whole = node.data == DirtyData::All;
        stored.nodes.push(StoredNode { id: hex(id.as_bytes()), born: node.born, whole, ranges });
    }
    stored.dirs.sort_by(|left, right| left.id.cmp(&right.id));
    stored.nodes.sort_by(|left, right| left.id.cmp(&right.id));
    let bytes = serde_json::to_vec(&stored)?;
    durable::replace_file_durably(&state_dir.join(FILE), &bytes)
}

/// What was written down; `None` if nothing was, or if it cannot be understood: then the marks have to do.
pub fn load(state_dir: &Path) -> Option<DirtySet> {
    let bytes = fs::read(state_dir.join(FILE)).ok()?;
    let dirty = parse(&bytes);
    if dirty.is_none() {
        tracing::warn!(file = FILE, "it cannot be understood: what differs is known as far as the marks go");
    }
    dirty
}

/// Of an earlier life of the folder.
pub fn forget(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(state_dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What the bytes of such a file say.
pub fn parse(bytes: &[u8]) -> Option<DirtySet> {
    decode(&serde_json::from_slice::<Stored>(bytes).ok().filter(|stored| stored.version == VERSION)?)
}

fn decode(stored: &Stored) -> Option<DirtySet> {
    let mut dirty = DirtySet::default();
    for dir in &stored.dirs {
        let id = inode(&dir.id)?;
        match &dir.names {
            None => dirty.insert_directory(id),
            Some(names) => {
                for name in names {
                    dirty.insert_name(id, &Name::new(unhex(name)?)?);
                }
            }
        }
    }
    for node in &stored.nodes {
        let id = inode(&node.id)?;
        dirty.insert_attributes(id);
        node.ranges.iter().for_each(|(start, end)| dirty.insert_range(id, *start, *end));
        if node.whole {
            dirty.insert_file(id);
        }
        if node.born {
            dirty.insert_birth(id);
        }
    }
    if let Some((seconds, nanos)) = stored.walk_since {
        dirty.insert_scope(Scope::Walk(Timestamp { seconds, nanos }));
    }
    if stored.everything {
        dirty.insert_scope(Scope::Everything);
    }
    Some(dirty)
}

fn inode(text: &str) -> Option<InodeId> {
    InodeId::new(&unhex(text)?)
}

/// The reverse of [`hex`].
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use tandem_proto::{InodeId, Name, Timestamp};

    use super::{DirtySet, FILE, Scope, forget, load, save_durably};

    #[test]
    fn cells_survive_their_file_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(load(dir.path()).is_none());
        let id = |byte: u8| InodeId::new(&[byte, 1]).expect("short");
        let mut dirty = DirtySet::default();
        dirty.insert_name(InodeId::ROOT, &Name::new(b"odd \xff\n".to_vec()).expect("legal"));
        dirty.insert_directory(id(1));
        dirty.insert_range(id(2), 5, 9);
        dirty.insert_range(id(2), 100, u64::MAX);
        dirty.insert_file(id(3));
        dirty.insert_birth(id(4));
        dirty.insert_scope(Scope::Walk(Timestamp { seconds: -3, nanos: 7 }));
        save_durably(dir.path(), &dirty).expect("written");
        let read = load(dir.path()).expect("whole");
        assert_eq!((read.dirs(), read.nodes(), read.scope()), (dirty.dirs(), dirty.nodes(), dirty.scope()));
        std::fs::write(dir.path().join(FILE), b"{").expect("written");
        assert!(load(dir.path()).is_none());
        forget(dir.path()).expect("removed");
        forget(dir.path()).expect("nothing there");
    }
}
