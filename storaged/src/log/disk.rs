//! The calls to a disk that durability is made of, each named by its purpose, so that a simulated disk can lose, tear or fail
//! exactly one of them. [`DirDisk`] is the real one: a directory.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use tandem_runtime::durable;

use super::direct::{BLOCK, DirectFile};

/// A flat set of named files.
pub trait Disk: Send + 'static {
    /// An open file.
    type File: DiskFile;
    /// Names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file of `len` zeroes whose blocks are allocated. Its name is durable after [`Disk::sync_names`] only.
    fn create(&self, name: &str, len: u64, blocks: Blocks) -> io::Result<Self::File>;
    /// Gives a file another name; durable after [`Disk::sync_names`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// The content of a small file; `None` if it does not exist.
    fn read_small(&self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Replaces a small file as a whole: after a crash the old or the new content; durable on return.
    fn replace_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// One file of a [`Disk`].
pub trait DiskFile: Send {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads all bytes of the extent.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes; read back and durable after [`DiskFile::sync_data`]. Up to the next multiple of 4096 what follows may become zeroes.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything that was written durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// What is done beforehand with the blocks of a new file, none of which can be missing afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// They are written: the first sync of each costs no change of metadata, and all of them are written twice.
    Written,
    /// They are allocated only, where the file system can.
    Allocated,
}

/// A directory of a real file system.
#[derive(Clone, Debug)]
pub struct DirDisk {
    directory: PathBuf,
    /// Around the page cache, where the file system can.
    direct: bool,
}

/// A file of a [`DirDisk`].
#[derive(Debug)]
pub enum DirFile {
    /// Around the page cache.
    Direct(DirectFile),
    /// Through it.
    Buffered(File),
}

/// Names that are on their way to replace a file; see `tandem_runtime::durable`.
const PARTIAL: &str = ".partial";

impl DirDisk {
    /// The disk in this directory, which is made (0700) if it does not exist.
    pub fn open_or_create(directory: &Path) -> io::Result<DirDisk> {
        if !directory.is_dir() {
            durable::create_private_dir(directory)?;
            if let Some(parent) = directory.parent() {
                durable::sync_directory(parent)?;
            }
        }
        Ok(DirDisk { directory: directory.to_owned(), direct: true })
    }

    /// The same, but all through the page cache.
    pub fn buffered(self) -> DirDisk {
        DirDisk { direct: false, ..self }
    }

    fn open_path(&self, path: &Path) -> io::Result<DirFile> {
        let direct = if self.direct { DirectFile::open(path)? } else { None };
        match direct {
            Some(direct) => Ok(DirFile::Direct(direct)),
            None => Ok(DirFile::Buffered(OpenOptions::new().read(true).write(true).open(path)?)),
        }
    }
}

impl Disk for DirDisk {
    type File = DirFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            if let Some(name) = entry?.file_name().to_str()
                && !name.ends_with(PARTIAL)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<DirFile> {
        self.open_path(&self.directory.join(name))
    }

    fn create(&self, name: &str, len: u64, blocks: Blocks) -> io::Result<DirFile> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let filled = fill_with_zeroes(&file, len.next_multiple_of(BLOCK as u64), blocks);
        if filled.is_err() {
            // A part of a segment is of no use and would hold the space that is missing.
            let _ = fs::remove_file(&path);
        }
        filled?;
        self.open_path(&path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        durable::sync_directory(&self.directory)
    }

    fn read_small(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.directory.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        durable::replace_file_durably(&self.directory.join(name), bytes)
    }
}

/// Allocates and writes zeroes: blocks that were written once cost fdatasync no change of metadata (measured: 60 against 90 us).
fn fill_with_zeroes(file: &File, len: u64, blocks: Blocks) -> io::Result<()> {
    match rustix::fs::fallocate(file.as_fd(), rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) if blocks == Blocks::Allocated => return file.sync_all(),
        // Where fallocate is unknown, writing allocates.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let zeroes = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let part = zeroes.len().min((len - at) as usize);
        file.write_all_at(&zeroes[..part], at)?;
        at += part as u64;
    }
    file.sync_all()
}

impl DiskFile for DirFile {
    fn len(&self) -> io::Result<u64> {
        match self {
            DirFile::Direct(file) => file.len(),
            DirFile::Buffered(file) => Ok(file.metadata()?.len()),
        }
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            DirFile::Direct(file) => file.read_exact_at(bytes, offset),
            DirFile::Buffered(file) => FileExt::read_exact_at(file, bytes, offset),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            DirFile::Direct(file) => file.write_all_at(bytes, offset),
            DirFile::Buffered(file) => FileExt::write_all_at(file, bytes, offset),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self {
            DirFile::Direct(file) => file.sync_data(),
            DirFile::Buffered(file) => file.sync_data(),
        }
    }
}
