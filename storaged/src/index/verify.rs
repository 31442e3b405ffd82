//! Compares an index with the files of the replica, offline: what it says that changed means that somebody changed the tree, or
//! that the disk lost something.

use std::{io, path::Path};

use tandem_proto::{Digest, InodeId, Position};

use super::{Chunk, DAMAGED_MARK, IndexError, IndexedFile, Recipe, ReplicaFiles, STORE_DIR, store::Store};

/// Files that are asked for at once.
const PAGE: usize = 512;
/// Page cache of the database while it is only read.
const CACHE_BYTES: u64 = 32 << 20;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexFinding {
    /// The index is lost or behind; it is brought up to date while storaged serves.
    Stale(String),
    /// A file is not what it was when it was indexed, and no op changed it.
    Changed(String),
}

/// Looks at the index in `dir` of a replica at `applied`; with `read_files` also at the content of each file. Returns how many files
/// were read.
pub fn verify(
    dir: &Path,
    files: &dyn ReplicaFiles,
    applied: Position,
    read_files: bool,
    found: &mut dyn FnMut(IndexFinding),
) -> Result<u64, IndexError> {
    let mut stale = |what: &str| found(IndexFinding::Stale(format!("{what}; it is rebuilt while storaged serves")));
    if !dir.join(STORE_DIR).is_dir() {
        stale("it is missing");
        return Ok(0);
    }
    if dir.join(DAMAGED_MARK).exists() {
        stale("its database failed when it was last used");
        return Ok(0);
    }
    let (store, summary) = Store::open(&dir.join(STORE_DIR), CACHE_BYTES)?;
    let Some(summary) = summary.filter(|summary| summary.complete && summary.position == applied) else {
        stale("it is not at the position of the tree");
        return Ok(0);
    };
    let (mut after, mut known, mut read) = (None, 0, 0);
    loop {
        let ids = store.files_after(after, PAGE)?;
        let Some(last) = ids.last() else { break };
        after = Some(*last);
        for id in ids {
            known += 1;
            let Some(recipe) = store.recipe(&id)? else { continue };
            // It went while it was read for the index. A hint that leads nowhere; what the tree should have is the catalog's to say.
            if matches!(files.open(&id), Ok(None)) {
                found(IndexFinding::Stale(format!(
                    "inode {id}: it is indexed, and the replica does not have it any more"
                )));
                continue;
            }
            match compare(files, &id, &recipe, read_files) {
                Ok(None) => {}
                Ok(Some(what)) => found(IndexFinding::Changed(format!("inode {id}: {what}"))),
                Err(error) => found(IndexFinding::Changed(format!("inode {id} cannot be read: {error}"))),
            }
            read += u64::from(read_files);
        }
    }
    if known != summary.files {
        found(IndexFinding::Stale(format!("it counts {} files and has {known}", summary.files)));
    }
    Ok(read)
}

/// What is wrong with a file, if anything is.
fn compare(files: &dyn ReplicaFiles, id: &InodeId, recipe: &Recipe, read: bool) -> io::Result<Option<String>> {
    let Some(file) = files.open(id)? else { return Ok(None) };
    // Not the times: they may be set after the file was read.
    let size = file.stamp()?.size;
    if size != recipe.stamp.size {
        return Ok(Some(format!("it has {size} bytes, and had {} when it was indexed", recipe.stamp.size)));
    }
    if !read {
        return Ok(None);
    }
    compare_content(&*file, recipe)
}

/// What is wrong with the content of a file, if anything is.
pub fn compare_content(file: &dyn IndexedFile, recipe: &Recipe) -> io::Result<Option<String>> {
    let mut buffer = Vec::new();
    for chunk in &recipe.chunks {
        if let Some(what) = differs(file, chunk, &mut buffer)? {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// What is wrong with one chunk of a file, if anything is.
pub fn differs(file: &dyn IndexedFile, chunk: &Chunk, buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    buffer.resize(chunk.len as usize, 0);
    let have = file.read_at(chunk.offset, buffer)?;
    let same = have == buffer.len() && Digest::of(buffer) == chunk.digest;
    Ok((!same).then(|| format!("its content at byte {} is not what it was when it was indexed", chunk.offset)))
}
