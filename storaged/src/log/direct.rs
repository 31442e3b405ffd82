//! A log file that is written around the page cache.
//!
//! The kernel takes whole blocks at whole block addresses only, and the log appends records of any length. So writes gather in
//! memory, and [`DirectFile::sync_data`] writes the blocks that they touch with one call, which returns when they are durable (O_DSYNC). The block that the last
//! record ends in is remembered: the next write begins with it again, with the same bytes in front. What stood behind the last
//! record in that block becomes zeroes.
//!
//! Promise: the same as of any [`DiskFile`]: what was written is durable after [`DirectFile::sync_data`], and read back after
//! it. Before that it is in memory only: a mark that follows a group goes to the disk with the next group, and costs nothing.
//!
//! Why, with figures: `docs/decisions/0008-direct-log.md`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::disk::DiskFile;

/// Alignment of addresses in the file and in memory. Disks ask for 512 or 4096.
pub(super) const BLOCK: usize = 4096;
/// Writes that gathered; beyond it they go to the disk before the next sync.
const GATHERED_MAX: usize = 4 << 20;

/// Bytes that begin at a whole address in memory.
#[derive(Debug, Default)]
struct Aligned {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn bytes(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.len]
    }

    /// Makes it `len` long; new bytes are zeroes.
    fn resize(&mut self, len: usize) {
        if self.start + len > self.storage.len() {
            let mut storage = vec![0; (len + len / 2).next_multiple_of(BLOCK) + BLOCK];
            let start = storage.as_ptr().align_offset(BLOCK);
            storage[start..start + self.len].copy_from_slice(self.bytes());
            (self.storage, self.start) = (storage, start);
        }
        let (from, to) = (self.start + self.len.min(len), self.start + len);
        self.storage[from..to].fill(0);
        self.len = len;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.storage[self.start + at..self.start + at + bytes.len()].copy_from_slice(bytes);
    }

    /// Forgets everything but the bytes from `keep` on.
    fn keep_from(&mut self, keep: usize) {
        if self.storage.len() > 2 * GATHERED_MAX {
            // A single large write, such as the cutting of a tail: its memory is not kept.
            let rest = self.bytes()[keep..].to_vec();
            *self = Aligned::default();
            self.resize(rest.len());
            self.put(0, &rest);
            return;
        }
        self.storage.copy_within(self.start + keep..self.start + self.len, self.start);
        self.len -= keep;
    }
}

/// Whole blocks that hold what was written and not yet synced, and the block that the last write ended in.
#[derive(Debug, Default)]
struct Gathered {
    /// Address of the first byte of `blocks` in the file.
    at: u64,
    blocks: Aligned,
    /// Where the last write ended.
    end: u64,
    /// Something is not on the disk.
    dirty: bool,
}

/// See the module.
#[derive(Debug)]
pub struct DirectFile {
    direct: File,
    /// For reading: a reader needs no whole blocks.
    buffered: File,
    gathered: Mutex<Gathered>,
    /// What was written before this file was opened is durable too.
    settled: AtomicBool,
}

impl DirectFile {
    /// Opens an existing file. `None`: its file system has no such way.
    pub fn open(path: &Path) -> io::Result<Option<DirectFile>> {
        let buffered = OpenOptions::new().read(true).write(true).open(path)?;
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path);
        let direct = match opened {
            Ok(direct) => direct,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        // A file system may take the flag and refuse our blocks; and a file that ends within a block would be made longer.
        let len = buffered.metadata()?.len();
        if len == 0 || !len.is_multiple_of(BLOCK as u64) {
            return Ok(None);
        }
        let mut probe = Aligned::default();
        probe.resize(BLOCK);
        let (start, end) = (probe.start, probe.start + BLOCK);
        match direct.read_at(&mut probe.storage[start..end], 0) {
            Ok(BLOCK) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(DirectFile { direct, buffered, gathered: Mutex::default(), settled: AtomicBool::new(false) }))
    }

    /// Makes room for a write at `offset`: the blocks that gathered go to the disk first if it does not continue them.
    fn make_room(&self, gathered: &mut Gathered, offset: u64) -> io::Result<()> {
        let block = offset / BLOCK as u64 * BLOCK as u64;
        let within = offset >= gathered.at && offset <= gathered.end && gathered.blocks.len > 0;
        if within && gathered.blocks.len <= GATHERED_MAX {
            return Ok(());
        }
        self.write_out(gathered)?;
        if within && block >= gathered.at {
            return Ok(());
        }
        // Elsewhere: what stands before it in its block is kept.
        gathered.blocks.resize(0);
        gathered.blocks.resize(BLOCK);
        (gathered.at, gathered.end) = (block, offset);
        let mut before = vec![0; (offset - block) as usize];
        self.buffered.read_exact_at(&mut before, block)?;
        gathered.blocks.put(0, &before);
        Ok(())
    }

    /// Writes what gathered, and remembers only the last block.
    fn write_out(&self, gathered: &mut Gathered) -> io::Result<()> {
        if gathered.dirty {
            self.direct.write_all_at(gathered.blocks.bytes(), gathered.at)?;
            gathered.dirty = false;
        }
        let last = gathered.end / BLOCK as u64 * BLOCK as u64;
        if gathered.blocks.len > 0 && last > gathered.at {
            let keep = (last - gathered.at) as usize;
            if keep < gathered.blocks.len {
                gathered.blocks.keep_from(keep);
            } else {
                // It ended with a block: the next one begins with nothing.
                gathered.blocks.resize(0);
            }
            gathered.at = last;
        }
        Ok(())
    }
}

impl DiskFile for DirectFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut gathered = self.gathered.lock();
        self.write_out(&mut gathered)?;
        self.buffered.read_exact_at(bytes, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut gathered = self.gathered.lock();
        let gathered = &mut *gathered;
        self.make_room(gathered, offset)?;
        let at = (offset - gathered.at) as usize;
        let end = (at + bytes.len()).next_multiple_of(BLOCK);
        if end > gathered.blocks.len {
            gathered.blocks.resize(end);
        }
        gathered.blocks.put(at, bytes);
        gathered.end = offset + bytes.len() as u64;
        gathered.dirty = true;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut gathered = self.gathered.lock();
        self.write_out(&mut gathered)?;
        // Each write of this file is durable when it returns. A process that was killed may have left others.
        if !self.settled.load(Ordering::Relaxed) {
            self.direct.sync_data()?;
            self.settled.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::{BLOCK, DirectFile, GATHERED_MAX};
    use crate::log::disk::DiskFile as _;

    /// On the file system of the build, because temporary ones may have no such way.
    fn file(blocks: usize) -> Option<(tempfile::TempDir, DirectFile)> {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
        let path = dir.path().join("segment");
        fs::write(&path, vec![0xee; blocks * BLOCK]).expect("written");
        let Some(file) = DirectFile::open(&path).expect("opened") else {
            println!("SKIPPED: no O_DIRECT here");
            return None;
        };
        Some((dir, file))
    }

    fn content(dir: &tempfile::TempDir) -> Vec<u8> {
        fs::read(dir.path().join("segment")).expect("read")
    }

    #[test]
    fn nothing_reaches_the_disk_before_a_sync_and_everything_with_it() {
        let Some((dir, file)) = file(4) else { return };
        file.write_all_at(b"first", 0).expect("written");
        file.sync_data().expect("synced");
        file.write_all_at(b"second", 5).expect("written");
        assert_eq!(&content(&dir)[..12], b"first\0\0\0\0\0\0\0");
        file.sync_data().expect("synced");
        let whole = content(&dir);
        assert_eq!(&whole[..12], b"firstsecond\0");
        assert_eq!(whole.len(), 4 * BLOCK);
        assert!(whole[BLOCK..].iter().all(|byte| *byte == 0xee), "other blocks are left alone");
        let mut read = [0; 6];
        file.read_exact_at(&mut read, 5).expect("read");
        assert_eq!(&read, b"second");
    }

    #[test]
    fn a_file_that_is_no_whole_number_of_blocks_is_not_opened() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
        let path = dir.path().join("odd");
        fs::write(&path, vec![0; BLOCK + 1]).expect("written");
        assert!(DirectFile::open(&path).expect("opened").is_none());
    }

    #[test]
    fn more_than_is_gathered_goes_to_the_disk_in_between() {
        let blocks = 3 * GATHERED_MAX / BLOCK;
        let Some((dir, file)) = file(blocks) else { return };
        let part: Vec<u8> = (0..100_003u32).map(|at| at as u8).collect();
        let mut expected = Vec::new();
        while expected.len() + part.len() < blocks * BLOCK {
            file.write_all_at(&part, expected.len() as u64).expect("written");
            expected.extend_from_slice(&part);
        }
        file.sync_data().expect("synced");
        assert!(content(&dir).starts_with(&expected));
    }

    proptest! {
        // Each case waits for the disk many times.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn appends_of_any_length_are_read_back(parts in prop::collection::vec((1..3 * BLOCK, any::<bool>()), 1..20)) {
            let Some((dir, file)) = file(80) else { return Ok(()) };
            let mut expected = Vec::new();
            for (number, (len, sync)) in parts.into_iter().enumerate() {
                file.write_all_at(&vec![number as u8 + 1; len], expected.len() as u64).expect("written");
                expected.resize(expected.len() + len, number as u8 + 1);
                if sync {
                    file.sync_data().expect("synced");
                    assert!(content(&dir).starts_with(&expected));
                }
            }
            let mut read = vec![0; expected.len()];
            file.read_exact_at(&mut read, 0).expect("read");
            assert_eq!(read, expected);
        }
    }
}
