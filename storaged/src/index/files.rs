//! Lets the index read the replica through tree and catalog.

use std::io;

use tandem_proto::InodeId;

use super::{FileStamp, IndexedFile, ReplicaFiles};
use crate::{
    apply::ApplyError,
    reader::{ReplicaFile, ReplicaReader},
    tree::ReplicaTree,
};

/// The files of a replica, found through its catalog.
pub struct CatalogFiles<T: ReplicaTree> {
    reader: ReplicaReader<T>,
}

impl<T: ReplicaTree> CatalogFiles<T> {
    /// Reads through `reader`.
    pub fn new(reader: ReplicaReader<T>) -> CatalogFiles<T> {
        CatalogFiles { reader }
    }
}

struct OpenFile<T: ReplicaTree> {
    reader: ReplicaReader<T>,
    id: InodeId,
    file: ReplicaFile<T>,
}

fn as_io(error: ApplyError) -> io::Error {
    io::Error::other(error)
}

impl<T: ReplicaTree> ReplicaFiles for CatalogFiles<T>
where
    ReplicaReader<T>: Send,
{
    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn IndexedFile>>> {
        let file = self.reader.open(id).map_err(as_io)?;
        Ok(file
            .map(|file| -> Box<dyn IndexedFile> { Box::new(OpenFile { reader: self.reader.clone(), id: *id, file }) }))
    }

    fn ids_after(&self, after: Option<InodeId>, limit: usize) -> io::Result<Vec<InodeId>> {
        self.reader.ids(after.as_ref(), limit).map_err(as_io)
    }

    fn count(&self) -> u64 {
        self.reader.inodes()
    }
}

impl<T: ReplicaTree> IndexedFile for OpenFile<T> {
    /// From the catalog, which knows no time of change: an edit that keeps size and mtime is seen live, but not by a walk.
    fn stamp(&self) -> io::Result<FileStamp> {
        let size = self.file.size()?;
        let Some(node) = self.reader.node(&self.id).map_err(as_io)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mtime = (node.attr.mtime.seconds, i64::from(node.attr.mtime.nanos));
        Ok(FileStamp { size, mtime, ctime: (0, 0) })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn forget_cached(&self) {
        self.file.forget_cached();
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        self.file.next_data(from)
    }
}
