//! The end that has the files: reads one from where the other end's bytes stop, and tells the digest of all of it.

use std::{io, os::fd::AsFd};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use tandem_proto::pb::{CopyFrame, CopyWant};

use crate::FRAME_BYTES;

/// A file that is read for a copy.
pub trait Readable {
    /// Reads until the buffer is full or the file ends.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The bytes from `offset` on, `len` of them or until the file ends.
    fn piece(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = self.read_at(offset, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }
    /// Its size when it was opened.
    fn size(&self) -> u64;
    /// Whether it is still as it was when it was opened.
    fn is_unchanged(&self) -> bool;
}

/// [`Readable::piece`] of an open file: into memory that is not filled with zeroes first, which costs as much as a copy would.
pub fn piece_of(file: impl AsFd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(&file, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given more than was asked for.
    bytes.truncate(len);
    Ok(bytes)
}

/// Hashes the first bytes of a file; `None`: it has not so many.
fn hashed(file: &dyn Readable, len: u64) -> io::Result<Option<blake3::Hasher>> {
    let (mut hasher, mut at, mut buffer) = (blake3::Hasher::new(), 0, vec![0; FRAME_BYTES]);
    while at < len {
        let part = FRAME_BYTES.min(usize::try_from(len - at).unwrap_or(usize::MAX));
        match file.read_at(at, &mut buffer[..part])? {
            0 => return Ok(None),
            read => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
        }
    }
    Ok(Some(hasher))
}

/// The digest of a whole file.
pub fn digest_of(file: &dyn Readable) -> io::Result<Option<Bytes>> {
    Ok(hashed(file, file.size())?.map(|hasher| digest(&hasher)))
}

pub(crate) fn digest(hasher: &blake3::Hasher) -> Bytes {
    Bytes::copy_from_slice(hasher.finalize().as_bytes())
}

fn failed(item: u32, error: String, again: bool) -> CopyFrame {
    CopyFrame { item, last: true, error, again, ..Default::default() }
}

/// Sends what is wanted of a file, in frames, the last of which says how it ended. `out` says whether anybody listens.
pub fn send_file(
    want: &CopyWant,
    opened: Result<Box<dyn Readable>, String>,
    out: &mut dyn FnMut(CopyFrame) -> bool,
) -> bool {
    let item = want.item;
    let file = match opened {
        Ok(file) => file,
        Err(why) => return out(failed(item, why, false)),
    };
    match frames(want, &*file, out) {
        Ok(heard) => heard,
        Err(error) => out(failed(item, format!("reading it failed: {error}"), false)),
    }
}

fn frames(want: &CopyWant, file: &dyn Readable, out: &mut dyn FnMut(CopyFrame) -> bool) -> io::Result<bool> {
    let (item, size) = (want.item, file.size());
    let (mut hasher, mut offset) = (blake3::Hasher::new(), 0);
    if want.offset > 0
        && want.offset <= size
        && let Some(there) = hashed(file, want.offset)?
        && digest(&there) == want.prefix_digest
    {
        (hasher, offset) = (there, want.offset);
    }
    loop {
        let len = FRAME_BYTES.min(usize::try_from(size - offset).unwrap_or(usize::MAX));
        let data = file.piece(offset, len)?;
        let read = data.len();
        if read < len {
            return Ok(out(failed(item, "it got shorter while it was read".to_owned(), true)));
        }
        hasher.update(&data);
        let mut frame = CopyFrame { item, offset, last: offset + read as u64 == size, ..Default::default() };
        if !data.is_empty() && data.iter().all(|byte| *byte == 0) {
            frame.zeroes = read as u64;
        } else {
            frame.data = data.into();
        }
        if frame.last {
            if !file.is_unchanged() {
                return Ok(out(failed(item, "it was changed while it was read".to_owned(), true)));
            }
            frame.digest = digest(&hasher);
            return Ok(out(frame));
        }
        if !out(frame) {
            return Ok(false);
        }
        offset += read as u64;
    }
}
