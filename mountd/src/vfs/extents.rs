//! Whole extents: fallocate and copy_file_range.

use rustix::fs::FallocateFlags;
use smallvec::smallvec;
use tandem_proto::{Change, Changes, limits, stage::NodeType};

use super::{
    Caller, Journal, Reserved as _, Vfs, VfsError, VfsResult,
    data::{data_cells, read_back},
    handles::OpenFile,
    inodes::Locks,
    mtime_change,
};
use crate::{
    backing::sys,
    commit::{ATTRIBUTES, MarkCell},
};

/// The caller, if he may not keep what a change of content takes away.
fn unprivileged(caller: &Caller) -> Option<&Caller> {
    (caller.uid != 0).then_some(caller)
}

/// A copy from this length on is said as one: a shorter one costs its bytes and no turn of its own on the replica.
const COPY_FROM: usize = 64 << 10;

/// An extent of a copy: where it comes from and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct CopyRange {
    /// Handle that is read.
    pub from: u64,
    /// Where in it.
    pub from_offset: u64,
    /// Handle that is written.
    pub to: u64,
    /// Where in it.
    pub to_offset: u64,
    /// How much at most.
    pub len: u64,
}

impl<J: Journal> Vfs<J> {
    /// Allocates, punches or zeroes an extent.
    pub fn fallocate(&self, caller: Caller, handle: u64, mode: i32, offset: u64, len: u64) -> VfsResult<()> {
        let flags = FallocateFlags::from_bits(mode as u32).ok_or(VfsError::Unsupported)?;
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(flags) {
            // COLLAPSE and INSERT would have to be sent as all that moved.
            return Err(VfsError::Unsupported);
        }
        let file = self.file(handle)?;
        let inode = &*file.inode;
        let end = offset.checked_add(len).ok_or(VfsError::Invalid)?;
        let clears = flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE);
        let size_now = sys::size(&file.fd)?;
        let mut cells = if clears {
            data_cells(inode.id, offset, end.min(size_now).saturating_sub(offset))
        } else {
            super::data::data_cells(inode.id, offset, 1)
        };
        cells.push(MarkCell::File { id: inode.id, block: ATTRIBUTES });
        let (_mark, mut state) = self.mark_and_lock(inode, &cells)?;
        let privileged = self.before_content(&file, &mut state)?;
        let before = sys::stat(&file.fd)?;
        let slot = (!state.unnamed).then(|| self.journal.reserve());
        // A call that ran out of space in the middle may have grown the file all the same.
        let done: VfsResult<()> = rustix::fs::fallocate(&file.fd, flags, offset, len).map_err(Into::into);
        // One that clears may have cleared a part before it failed.
        let done = if clears { self.unsaid_if_begun(&cells, done) } else { self.failed(&cells, done) };
        if flags.contains(FallocateFlags::KEEP_SIZE) {
            self.outdate(inode, caller);
        }
        let after = self.unsaid(&cells, sys::stat(&file.fd).map_err(Into::into))?;
        let mut changes = Changes::new();
        let cleared = before.size.min(end).saturating_sub(offset);
        if done.is_ok() && clears && cleared > 0 {
            changes.push(Change::Hole { id: inode.id, offset, len: cleared });
        }
        if after.size != before.size {
            changes.push(Change::Size { id: inode.id, size: after.size });
        }
        if after.mtime != before.mtime {
            changes.push(mtime_change(inode.id, &after));
            state.written = None;
        }
        let kept = match done {
            Ok(()) => self.clear_privileges(&file, privileged, unprivileged(&caller), &mut state, &mut changes),
            Err(_) => Ok(()),
        };
        if let Some(slot) = slot {
            slot.fill(caller.origin(), changes);
        }
        done?;
        kept
    }

    /// Refused as a whole it did nothing; failed for want of space or by an I/O error it may have done a part.
    fn unsaid_if_begun(&self, cells: &[MarkCell], done: VfsResult<()>) -> VfsResult<()> {
        let begun = [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EINTR, libc::ENOMEM];
        match &done {
            Err(VfsError::Backing(error)) if error.raw_os_error().is_some_and(|errno| begun.contains(&errno)) => {
                self.unsaid(cells, done)
            }
            _ => done,
        }
    }

    /// Copies between files inside the backing file system; how much. Where the replica has what is copied, the op only says what was;
    /// else it carries the bytes that resulted. One call copies at most what one op can say, so that no half of it is ever a state of the
    /// replica.
    pub fn copy_file_range(&self, caller: Caller, copy: CopyRange) -> VfsResult<usize> {
        let (from, to) = (self.file(copy.from)?, self.file(copy.to)?);
        let len = usize::try_from(copy.len).unwrap_or(usize::MAX);
        if len >= COPY_FROM && self.journal.takes_copies() && from.inode.node_type == NodeType::Regular {
            return self.copy_by_reference(caller, copy, &from, &to);
        }
        if !to.readable {
            // Then the bytes that result cannot be read back; the kernel falls back to read and write.
            return Err(VfsError::Unsupported);
        }
        let len = len.min(limits::DATA_MAX);
        let inode = &to.inode;
        let cells = data_cells(inode.id, copy.to_offset, len as u64);
        let (_mark, mut state) = self.mark_and_lock(inode, &cells)?;
        let privileged = self.before_content(&to, &mut state)?;
        let slot = (!state.unnamed).then(|| self.journal.reserve());
        let copied = self.failed_content(&cells, inode, &mut state, copy_locally(&from, &to, copy, len))?;
        let (mut changes, mut cleared) = (Changes::new(), Ok(()));
        if copied > 0 {
            if slot.is_some() {
                let data = self.unsaid(&cells, read_back(&to.fd, copy.to_offset, copied))?;
                changes = smallvec![Change::Data { id: inode.id, offset: copy.to_offset, data }];
            }
            cleared = self.clear_privileges(&to, privileged, unprivileged(&caller), &mut state, &mut changes);
            self.note_write(&to.inode, &mut state);
        }
        if let Some(slot) = slot {
            slot.fill(caller.origin(), changes);
        }
        cleared?;
        Ok(copied)
    }

    /// The same, said as a copy. Both files are locked: what is copied is what the ops before this one made of the source.
    fn copy_by_reference(&self, caller: Caller, copy: CopyRange, from: &OpenFile, to: &OpenFile) -> VfsResult<usize> {
        let len = usize::try_from(copy.len).unwrap_or(usize::MAX).min(limits::COPY_MAX as usize);
        let cells = data_cells(to.inode.id, copy.to_offset, len as u64);
        let _mark = self.mark(&cells)?;
        let mut locks = Locks::take(&[&from.inode, &to.inode]);
        if locks.of(&from.inode).unnamed {
            // The replica has no file that has no name.
            return Err(VfsError::Unsupported);
        }
        let privileged = self.before_content(to, locks.of(&to.inode))?;
        let slot = (!locks.of(&to.inode).unnamed).then(|| self.journal.reserve());
        let copied = copy_locally(from, to, copy, len);
        let copied = self.failed_content(&cells, &to.inode, locks.of(&to.inode), copied)?;
        let (mut changes, mut cleared) = (Changes::new(), Ok(()));
        if copied > 0 {
            changes = smallvec![Change::Copy {
                id: to.inode.id,
                offset: copy.to_offset,
                from: from.inode.id,
                from_offset: copy.from_offset,
                len: copied as u64,
                data: None,
            }];
            let state = locks.of(&to.inode);
            cleared = self.clear_privileges(to, privileged, unprivileged(&caller), state, &mut changes);
            self.note_write(&to.inode, state);
        }
        if let Some(slot) = slot {
            slot.fill(caller.origin(), changes);
        }
        cleared?;
        Ok(copied)
    }
}

fn copy_locally(from: &OpenFile, to: &OpenFile, copy: CopyRange, len: usize) -> rustix::io::Result<usize> {
    let (mut from_offset, mut to_offset) = (copy.from_offset, copy.to_offset);
    rustix::fs::copy_file_range(&from.fd, Some(&mut from_offset), to.placing()?, Some(&mut to_offset), len)
}
