//! A file that is not whole yet: its bytes from the beginning, as far as they have come, under a name of its own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tandem_proto::pb::CopyFrame;

use crate::{
    FRAME_BYTES,
    send::{Readable, digest, piece_of},
};

/// Bytes that are on their way to the disk at once, so that the sync at the end finds little to do.
const WRITE_BACK: u64 = 8 << 20;
/// Longest run of zeroes in a frame: the other end tells them frame by frame.
static ZEROES: [u8; FRAME_BYTES] = [0; FRAME_BYTES];

/// See the module.
pub struct Partial {
    path: PathBuf,
    /// Open once something is written.
    file: Option<File>,
    at: u64,
    hasher: blake3::Hasher,
    written_back: u64,
}

fn hashed(path: &Path) -> io::Result<(u64, blake3::Hasher)> {
    let (file, mut hasher, mut at, mut buffer) = (File::open(path)?, blake3::Hasher::new(), 0, vec![0; FRAME_BYTES]);
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok((at, hasher)),
            read => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
}

impl Partial {
    /// What is there under this name, of a file that should get `size` bytes. What is longer, or has another name as well without being
    /// whole, is no beginning of it and removed.
    pub fn open(path: PathBuf, size: u64) -> io::Result<Partial> {
        let usable = match fs::symlink_metadata(&path) {
            Ok(is) if is.is_file() && (is.nlink() == 1 && is.len() <= size || is.len() == size) => is.len() > 0,
            Ok(_) => {
                fs::remove_file(&path)?;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        let (at, hasher) = if usable { hashed(&path)? } else { (0, blake3::Hasher::new()) };
        Ok(Partial { path, file: None, at, hasher, written_back: at })
    }

    /// Bytes that are there.
    pub fn len(&self) -> u64 {
        self.at
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Their digest.
    pub fn digest(&self) -> Bytes {
        digest(&self.hasher)
    }

    /// What is there is no beginning of the file.
    pub fn restart(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        (self.file, self.at, self.hasher, self.written_back) = (None, 0, blake3::Hasher::new(), 0);
        Ok(())
    }

    fn opened(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = file.open(&self.path)?;
            // A second name means that it is part of something else already.
            if file.metadata()?.nlink() != 1 {
                return Err(io::Error::other("the part that is there is used elsewhere: run the command again"));
            }
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Appends a frame. `Ok(false)`: it does not belong there.
    pub fn append(&mut self, frame: &CopyFrame) -> io::Result<bool> {
        if frame.offset != self.at || frame.zeroes > FRAME_BYTES as u64 || (frame.zeroes > 0 && !frame.data.is_empty())
        {
            return Ok(false);
        }
        let at = self.at;
        if frame.zeroes > 0 {
            // Holes stay holes; the size is set at the end.
            self.opened()?;
            self.hasher.update(&ZEROES[..frame.zeroes as usize]);
            self.at += frame.zeroes;
        } else if !frame.data.is_empty() {
            self.opened()?.write_all_at(&frame.data, at)?;
            self.hasher.update(&frame.data);
            self.at += frame.data.len() as u64;
        }
        if self.at - self.written_back >= WRITE_BACK {
            self.write_back();
        }
        Ok(true)
    }

    fn write_back(&mut self) {
        let (from, len) = (self.written_back, self.at - self.written_back);
        if let Some(file) = &self.file {
            // SAFETY: plain numbers and an open descriptor. A hint: its failure changes nothing.
            let _ = unsafe {
                libc::sync_file_range(
                    file.as_raw_fd(),
                    from.cast_signed(),
                    len.cast_signed(),
                    libc::SYNC_FILE_RANGE_WRITE,
                )
            };
        }
        self.written_back = self.at;
    }

    /// All bytes have come and have this digest: its path. `None`: they are others, and are removed.
    pub fn finish(mut self, whole: &[u8]) -> io::Result<Option<PathBuf>> {
        if self.digest()[..] != *whole {
            self.restart()?;
            return Ok(None);
        }
        if self.file.is_some() || self.at == 0 {
            let at = self.at;
            let file = self.opened()?;
            if file.metadata()?.len() != at {
                file.set_len(at)?;
            }
        }
        Ok(Some(self.path))
    }
}

/// A file of this machine.
pub struct LocalFile {
    file: File,
    size: u64,
    stamp: (i64, i64, i64, i64, u64),
}

fn stamp(is: &fs::Metadata) -> (i64, i64, i64, i64, u64) {
    (is.mtime(), is.mtime_nsec(), is.ctime(), is.ctime_nsec(), is.len())
}

impl LocalFile {
    /// Opens it. Links are not followed.
    pub fn open(path: &Path) -> io::Result<LocalFile> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let is = file.metadata()?;
        if !is.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file any more"));
        }
        Ok(LocalFile { file, size: is.len(), stamp: stamp(&is) })
    }
}

impl Readable for LocalFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn piece(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        piece_of(&self.file, offset, len)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn is_unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|is| stamp(&is) == self.stamp)
    }
}
