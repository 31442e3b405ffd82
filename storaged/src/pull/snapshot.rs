//! A snapshot of a replica: what a walk found, kept beside the tree, so that apply need not wait for whoever reads it.
//!
//! One file `list` holds the messages of the walk in order. The data of small files is in it; larger ones are files of their own that
//! share extents with the tree, which only some file systems can (xfs, btrfs, bcachefs). Everything lies in `staging/clones/N`, goes when
//! the snapshot is dropped, and at the next start if the daemon was killed.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use prost::Message as _;
use rustix::{
    fs::{SeekFrom, ioctl_ficlone, seek},
    io::Errno,
};
use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{self, pull_message::Body},
};
use tandem_runtime::durable;
use tonic::Status;

use super::{
    Stop,
    walk::{Extents, Sink, each_data},
};
use crate::{tree::read_full_at, volume::hold::Abort};

/// Data of files up to this size is copied: cheaper than a file of its own.
const COPIED_MAX_BYTES: u64 = 64 << 10;
const LIST: &str = "list";
/// What follows in the list.
const TAG_MESSAGE: u8 = 1;
const TAG_FILE: u8 = 2;

/// Where snapshots lie below a volume's directory.
fn area(volume: &Path) -> PathBuf {
    volume.join("staging").join("clones")
}

/// Removes what a daemon that was killed left.
pub fn clear(volume: &Path) -> io::Result<()> {
    match fs::remove_dir_all(area(volume)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn full(error: io::Error) -> Stop {
    Stop::Failed(Status::unavailable(format!("the snapshot cannot be written on the storage side: {error}")))
}

/// A snapshot that is being made or read.
pub struct Snapshot {
    directory: PathBuf,
    list: BufWriter<File>,
    files: u64,
    abort: Abort,
}

impl Snapshot {
    /// Begins a snapshot; `None` where the file system cannot share extents.
    pub fn begin(volume: &Path, abort: Abort) -> io::Result<Option<Snapshot>> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let directory = area(volume).join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        durable::create_private_dir(&directory)?;
        let list = BufWriter::with_capacity(1 << 20, File::create(directory.join(LIST))?);
        let snapshot = Snapshot { directory, list, files: 0, abort };
        Ok(snapshot.can_share()?.then_some(snapshot))
    }

    fn can_share(&self) -> io::Result<bool> {
        let (one, other) = (self.directory.join("probe"), self.directory.join("probe2"));
        fs::write(&one, [1; 4096])?;
        match ioctl_ficlone(&File::create(other)?, &File::open(one)?) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn message(&mut self, message: &pb::PullMessage) -> Result<(), Stop> {
        let bytes = message.encode_to_vec();
        let head = [&[TAG_MESSAGE][..], &(bytes.len() as u64).to_le_bytes()].concat();
        self.list.write_all(&head).and_then(|()| self.list.write_all(&bytes)).map_err(full)
    }

    /// Reads the snapshot back, in the order of the walk.
    pub fn replay(mut self, sink: &mut dyn Sink) -> Result<(), Stop> {
        self.list.flush().map_err(full)?;
        let failed = |error: io::Error| Stop::Failed(Status::internal(format!("reading a snapshot: {error}")));
        let mut list = BufReader::with_capacity(1 << 20, File::open(self.directory.join(LIST)).map_err(failed)?);
        let mut head = [0; 9];
        loop {
            match list.read_exact(&mut head[..1]) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                answer => answer.map_err(failed)?,
            }
            list.read_exact(&mut head[1..]).map_err(failed)?;
            let number = u64::from_le_bytes([head[1], head[2], head[3], head[4], head[5], head[6], head[7], head[8]]);
            match head[0] {
                TAG_MESSAGE if number <= MESSAGE_MAX_BYTES as u64 => {
                    let mut bytes = vec![0; number as usize];
                    list.read_exact(&mut bytes).map_err(failed)?;
                    let message =
                        pb::PullMessage::decode(&bytes[..]).map_err(|error| failed(io::Error::other(error)))?;
                    if let Some(body) = message.body {
                        sink.put(body)?;
                    }
                }
                TAG_FILE => {
                    let path = self.directory.join(number.to_string());
                    let file = File::open(&path).map_err(failed)?;
                    sink.data(&Shared(&file), file.metadata().map_err(failed)?.len())?;
                    // Its blocks are free as soon as the tree's file changes.
                    let _ = fs::remove_file(path);
                }
                _ => return Err(failed(io::ErrorKind::InvalidData.into())),
            }
            sink.check()?;
        }
    }
}

impl Sink for Snapshot {
    fn put(&mut self, body: Body) -> Result<(), Stop> {
        self.message(&pb::PullMessage { body: Some(body) })
    }

    fn data(&mut self, file: &dyn Extents, size: u64) -> Result<(), Stop> {
        if size <= COPIED_MAX_BYTES {
            return each_data(file, |data| self.put(Body::Data(data)));
        }
        self.files += 1;
        let path = self.directory.join(self.files.to_string());
        File::create(path).and_then(|copy| file.share_with(&copy)).map_err(full)?;
        let head = [&[TAG_FILE][..], &self.files.to_le_bytes()].concat();
        self.list.write_all(&head).map_err(full)
    }

    fn check(&self) -> Result<(), Stop> {
        super::check(&self.abort)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a snapshot is left until the next start");
        }
    }
}

/// A file of a snapshot.
struct Shared<'a>(&'a File);

impl Extents for Shared<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        read_full_at(self.0, offset, buffer)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match seek(self.0, SeekFrom::Data(from)) {
            Err(Errno::NXIO) => return Ok(None),
            answer => answer?,
        };
        Ok(Some((start, seek(self.0, SeekFrom::Hole(start))?)))
    }

    fn share_with(&self, file: &File) -> io::Result<()> {
        Ok(ioctl_ficlone(file, self.0)?)
    }
}
