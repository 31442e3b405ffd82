//! A plain directory as a replica: a file's id is its name.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, MetadataExt as _},
    },
    path::PathBuf,
};

use rustix::fs::SeekFrom;
use tandem_proto::InodeId;

use super::{FileStamp, IndexedFile, ReplicaFiles};

/// The files of one directory.
pub struct PlainFiles(pub PathBuf);

/// One of them, open.
pub struct PlainFile(pub File);

impl ReplicaFiles for PlainFiles {
    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn IndexedFile>>> {
        match File::open(self.0.join(OsStr::from_bytes(id.as_bytes()))) {
            Ok(file) if file.metadata()?.is_file() => Ok(Some(Box::new(PlainFile(file)))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ids_after(&self, after: Option<InodeId>, limit: usize) -> io::Result<Vec<InodeId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let id = InodeId::new(&entry?.file_name().into_vec()).expect("tests use short names");
            if after.is_none_or(|after| id > after) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        ids.truncate(limit);
        Ok(ids)
    }

    fn count(&self) -> u64 {
        fs::read_dir(&self.0).map_or(0, |entries| entries.count() as u64)
    }
}

impl IndexedFile for PlainFile {
    fn stamp(&self) -> io::Result<FileStamp> {
        let found = self.0.metadata()?;
        let mtime = (found.mtime(), found.mtime_nsec());
        Ok(FileStamp { size: found.len(), mtime, ctime: (found.ctime(), found.ctime_nsec()) })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut have = 0;
        while have < buffer.len() {
            match self.0.read_at(&mut buffer[have..], offset + have as u64)? {
                0 => break,
                read => have += read,
            }
        }
        Ok(have)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(from)) {
            Ok(start) => Ok(Some((start, rustix::fs::seek(&self.0, SeekFrom::Hole(start))?))),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
