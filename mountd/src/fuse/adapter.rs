//! Which call of the vfs a request is.

use std::{ffi::OsStr, sync::Arc, time::Instant};

use bytes::Bytes;
use fuser::{IoctlFlags, WriteFlags};

use super::{
    WRITE_MAX,
    abi::{self, opcode},
    buffers::Buffer,
    convert::{self, caller, errno},
    device::{Device, Reply},
    gate::Gate,
    inside::{self, Inside},
    interrupts::Interrupts,
    listing::Listing,
    splice::{Message, Scratch},
    wire::{self, Fields, Header, Out, Short},
};
use crate::{
    commit::waiters::Ticket,
    meters::Meters,
    vfs::{CopyRange, Entry, Journal, Making, Place, Vfs, VfsResult, Write, Writer},
};

/// What all threads that take requests share.
pub struct Adapter<J: Journal> {
    /// What is asked.
    pub vfs: Arc<Vfs<J>>,
    /// Calls that wait for the replica.
    pub interrupts: Arc<Interrupts<Ticket>>,
    /// Writes that are held back.
    pub gate: Gate,
    /// What was asked, and how long it took.
    pub meters: Arc<Meters>,
    /// `.tandem`, which is not in the folder.
    pub inside: Inside,
}

type Called = Result<(), Short>;

fn answer<T>(reply: Reply, result: VfsResult<T>, done: impl FnOnce(Reply, T)) {
    match result {
        Ok(value) => done(reply, value),
        Err(error) => reply.error(errno(&error)),
    }
}

fn answer_empty(reply: Reply, result: VfsResult<()>) {
    answer(reply, result, |reply, ()| reply.ok());
}

fn answer_entry(reply: Reply, result: VfsResult<Entry>) {
    answer(reply, result, |reply, entry| reply.out(convert::entry(&entry)));
}

fn answer_written(reply: Reply, result: VfsResult<usize>) {
    answer(reply, result, |reply, written| reply.out(Out::default().u32(written as u32).u32(0)));
}

fn answer_xattr(reply: Reply, size: u32, result: VfsResult<impl AsRef<[u8]>>) {
    answer(reply, result, |reply, value| match value.as_ref() {
        value if size == 0 => reply.out(Out::default().u32(value.len() as u32).u32(0)),
        value if value.len() > size as usize => reply.error(libc::ERANGE),
        value => reply.data(value),
    });
}

fn making<'a>(header: &Header, umask: u32, name: &'a OsStr) -> Making<'a> {
    Making { caller: caller(header), umask, parent: header.node, name }
}

impl<J: Journal> Adapter<J> {
    /// Answers the request of this length in `buffer`, now or later. `scratch` is what reads go through.
    pub fn handle(&self, buffer: &Buffer, len: usize, device: &Arc<Device>, scratch: &mut Scratch) {
        let bytes = &buffer.bytes()[..len];
        let Ok((header, fields)) = wire::request(bytes) else {
            tracing::error!(len = bytes.len(), "a request of the kernel makes no sense");
            return;
        };
        let held_back = header.opcode == opcode::WRITE
            && self.gate.holds_back(header.unique, fields, || self.vfs.journal().congested(), bytes, device);
        if !held_back {
            self.call(header, fields, Some(buffer), device, scratch);
        }
    }

    /// Answers a request that nothing holds back. `buffer`: what it lies in, if parts of it can be kept there.
    pub fn call(
        &self,
        header: Header,
        fields: Fields<'_>,
        buffer: Option<&Buffer>,
        device: &Arc<Device>,
        scratch: &mut Scratch,
    ) {
        let begin = Instant::now();
        let called = match header.opcode {
            // These have no answer.
            opcode::FORGET | opcode::BATCH_FORGET => self.forget(header, fields),
            opcode::INTERRUPT => self.interrupt(fields),
            _ => self.call_answered(header, fields, buffer, Reply::new(header.unique, device), scratch),
        };
        self.meters.called(header.opcode, begin);
        if let Err(Short) = called {
            tracing::error!(opcode = header.opcode, "a request of the kernel is too short");
        }
    }

    /// A reply that is dropped because the request is too short answers EIO.
    fn call_answered(
        &self,
        header: Header,
        fields: Fields<'_>,
        buffer: Option<&Buffer>,
        reply: Reply,
        scratch: &mut Scratch,
    ) -> Called {
        if inside::is_inside(header.node) {
            return self.inside.call(header, fields, reply);
        }
        match header.opcode {
            opcode::READ => self.read(header, fields, reply, scratch),
            opcode::WRITE => self.write(header, fields, buffer, reply),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(header, fields, reply),
            opcode::LOOKUP | opcode::GETATTR | opcode::SETATTR | opcode::STATX | opcode::STATFS | opcode::READLINK => {
                self.look(header, fields, reply)
            }
            opcode::OPEN
            | opcode::FLUSH
            | opcode::RELEASE
            | opcode::FALLOCATE
            | opcode::LSEEK
            | opcode::COPY_FILE_RANGE
            | opcode::IOCTL => self.file(header, fields, reply),
            opcode::READDIR | opcode::READDIRPLUS => self.list(header, fields, reply),
            opcode::CREATE | opcode::TMPFILE | opcode::MKNOD | opcode::MKDIR | opcode::SYMLINK | opcode::LINK => {
                self.make(header, fields, reply)
            }
            opcode::UNLINK | opcode::RMDIR | opcode::RENAME | opcode::RENAME2 => self.unmake(header, fields, reply),
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
                self.xattr(header, fields, reply)
            }
            opcode::RELEASEDIR | opcode::DESTROY => {
                reply.ok();
                Ok(())
            }
            // The kernel then does it by itself (OPENDIR: it opens directories and caches listings), or without.
            _ => {
                reply.error(libc::ENOSYS);
                Ok(())
            }
        }
    }

    fn forget(&self, header: Header, mut fields: Fields<'_>) -> Called {
        if header.opcode == opcode::FORGET {
            if !inside::is_inside(header.node) {
                self.vfs.forget(header.node, fields.u64()?);
            }
            return Ok(());
        }
        let count = fields.u32()?;
        fields.u32()?;
        for _ in 0..count {
            let (node, lookups) = (fields.u64()?, fields.u64()?);
            if !inside::is_inside(node) {
                self.vfs.forget(node, lookups);
            }
        }
        Ok(())
    }

    /// A signal came to the process of a request.
    fn interrupt(&self, mut fields: Fields<'_>) -> Called {
        let unique = fields.u64()?;
        if !self.gate.interrupt(unique) {
            self.interrupts.signal(unique);
        }
        Ok(())
    }

    fn fsync(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        let (handle, flags) = (fields.u64()?, fields.u32()?);
        self.sync(header, handle, flags & abi::FSYNC_FDATASYNC != 0, move |result| answer_empty(reply, result));
        Ok(())
    }

    /// Makes a file durable as the mount promises, then answers.
    fn sync(&self, header: Header, handle: u64, data_only: bool, answer: impl FnOnce(VfsResult<()>) + Send + 'static) {
        let unique = header.unique;
        self.interrupts.begin(unique, header.pid, header.node);
        let interrupts = self.interrupts.clone();
        let (meters, vfs) = (self.meters.clone(), self.vfs.clone());
        let done = Box::new(move |result: VfsResult<()>| {
            interrupts.end(unique);
            if result.is_ok() {
                meters.synced(vfs.journal().last_reserved());
            }
            answer(result);
        });
        let waits = match header.opcode {
            opcode::FSYNCDIR => self.vfs.fsync_dir(header.node, done),
            _ => self.vfs.fsync(caller(&header), handle, data_only, done),
        };
        if let Some(ticket) = waits {
            self.interrupts.waits(unique, ticket);
        }
    }

    fn read(&self, header: Header, mut fields: Fields<'_>, reply: Reply, scratch: &mut Scratch) -> Called {
        let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?.min(WRITE_MAX) as usize);
        let reply = match scratch.message(offset, size) {
            Some(message) => {
                let back = self.read_pages(header, (handle, offset, size), reply, message);
                scratch.spliced(back.is_none());
                match back {
                    Some(reply) => reply,
                    None => return Ok(()),
                }
            }
            None => reply,
        };
        let bytes = scratch.bytes(size);
        let result = self.vfs.read(handle, offset, bytes);
        if let Ok(read) = &result {
            self.meters.read(header.node, *read);
        }
        answer(reply, result, |reply, read| reply.data(&bytes[..read]));
        Ok(())
    }

    /// Answers a read without copying what is read. Back if that cannot be had: read as usual, it says why, or does it.
    fn read_pages(
        &self,
        header: Header,
        (handle, offset, size): (u64, u64, usize),
        reply: Reply,
        message: &mut Message,
    ) -> Option<Reply> {
        match self.vfs.splice(handle, offset, size, message.data()) {
            Ok(read) => {
                message.has(read);
                match reply.pages(message) {
                    Ok(()) => {
                        self.meters.read(header.node, read);
                        None
                    }
                    Err(reply) => Some(reply),
                }
            }
            Err(_) => Some(reply),
        }
    }

    fn write(&self, header: Header, mut fields: Fields<'_>, buffer: Option<&Buffer>, reply: Reply) -> Called {
        let (handle, offset, size, flags) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
        // The owner of a lock, the flags of the file with those of this call, padding.
        let (_, file_flags, _) = (fields.u64()?, fields.u32()? as i32, fields.u32()?);
        let data = fields.bytes(size as usize)?;
        let flags = WriteFlags::from_bits_retain(flags);
        let writer = match flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            true => Writer::PageCache,
            false => Writer::Call { kills_privileges: flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) },
        };
        let keep = |part: &[u8]| match buffer {
            Some(buffer) => buffer.keep(part),
            None => Bytes::copy_from_slice(part),
        };
        let syncs = size > 0 && file_flags & libc::O_DSYNC != 0 && self.vfs.syncs_writes(handle);
        let mut reply = Some(reply);
        let tell = |written| {
            if !syncs && let Some(reply) = reply.take() {
                answer_written(reply, Ok(written));
            }
        };
        let write = Write { handle, offset, data, writer };
        let result = self.vfs.write_keeping(caller(&header), write, keep, tell);
        if let Ok(written) = &result {
            self.meters.written(header.node, *written);
        }
        match (reply, result) {
            (None, _) => {}
            (Some(reply), Ok(written)) if written > 0 => {
                let data_only = file_flags & libc::O_SYNC != libc::O_SYNC;
                self.sync(header, handle, data_only, move |synced| answer_written(reply, synced.map(|()| written)));
            }
            (Some(reply), result) => answer_written(reply, result),
        }
        Ok(())
    }

    fn look(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        let node = header.node;
        match header.opcode {
            opcode::LOOKUP => {
                let name = fields.name()?;
                let mut reply = Some(reply);
                let mut tell = |entry: &Entry| {
                    if let Some(reply) = reply.take() {
                        reply.out(convert::entry(entry));
                    }
                };
                let found = self.vfs.lookup_telling(caller(&header), node, name, Some(&mut tell));
                match (reply, found) {
                    (None, _) => {}
                    (Some(reply), Err(error)) if error.errno() == libc::ENOENT && inside::is_entrance(node, name) => {
                        reply.out(self.inside.entrance());
                    }
                    (Some(reply), Err(error)) if error.errno() == libc::ENOENT => reply.out(convert::nothing()),
                    (Some(reply), other) => answer_entry(reply, other),
                }
            }
            opcode::SETATTR => {
                let (handle, set) = convert::set_attr(&mut fields)?;
                let mut reply = Some(reply);
                let tell = |stat: &_| {
                    if let Some(reply) = reply.take() {
                        reply.out(convert::attributes(stat));
                    }
                };
                let set = self.vfs.setattr_telling(caller(&header), node, handle, set, tell);
                if let (Some(reply), Err(error)) = (reply, set) {
                    reply.error(errno(&error));
                }
            }
            opcode::READLINK => answer(reply, self.vfs.readlink(node), |reply, target| reply.data(&target)),
            opcode::STATFS => answer(reply, self.vfs.statfs(), |reply, fs| reply.out(convert::statfs(&fs))),
            // GETATTR and STATX begin alike.
            _ => {
                let flags = fields.u32()?;
                fields.u32()?;
                let handle = fields.u64()?;
                let stat = self.vfs.getattr(caller(&header), node, (flags & abi::GETATTR_FH != 0).then_some(handle));
                let statx = header.opcode == opcode::STATX;
                answer(reply, stat, |reply, stat| {
                    reply.out(if statx { convert::statx(&stat) } else { convert::attributes(&stat) });
                });
            }
        }
        Ok(())
    }

    fn file(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        if header.opcode == opcode::OPEN {
            let opened = self.vfs.open(header.node, fields.u32()? as i32);
            answer(reply, opened, |reply, opened| reply.out(convert::opened(Out::default(), opened)));
            return Ok(());
        }
        let handle = fields.u64()?;
        match header.opcode {
            opcode::FLUSH => answer_empty(reply, self.vfs.flush(caller(&header), handle)),
            opcode::RELEASE => answer_empty(reply, self.vfs.release(caller(&header), handle)),
            opcode::FALLOCATE => {
                let (offset, len, mode) = (fields.u64()?, fields.u64()?, fields.u32()? as i32);
                answer_empty(reply, self.vfs.fallocate(caller(&header), handle, mode, offset, len));
            }
            opcode::LSEEK => {
                let (offset, whence) = (fields.u64()?, fields.u32()? as i32);
                answer(reply, self.vfs.lseek(handle, offset, whence), |reply, found| {
                    reply.out(Out::default().u64(found))
                });
            }
            opcode::COPY_FILE_RANGE => {
                let (from_offset, _node, to, to_offset) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
                let copy = CopyRange { from: handle, from_offset, to, to_offset, len: fields.u64()? };
                answer_written(reply, self.vfs.copy_file_range(caller(&header), copy));
            }
            _ => {
                let (flags, command) = (fields.u32()?, fields.u32()?);
                let (_argument, in_size, out_size) = (fields.u64()?, fields.u32()?, fields.u32()?);
                if IoctlFlags::from_bits_retain(flags).contains(IoctlFlags::FUSE_IOCTL_UNRESTRICTED) {
                    reply.error(libc::ENOSYS);
                } else {
                    let result =
                        self.vfs.ioctl(header.node, command, fields.bytes(in_size as usize)?, out_size as usize);
                    answer(reply, result, |reply, data| reply.parts(Out::default().zeroes(16), &data));
                }
            }
        }
        Ok(())
    }

    fn list(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let plus = header.opcode == opcode::READDIRPLUS;
        let mut listing = Listing::new(size as usize, plus);
        let listed = match plus {
            true => self.vfs.readdir_plus(caller(&header), header.node, offset, &mut listing),
            false => self.vfs.readdir(header.node, offset, &mut listing),
        };
        match listed {
            // What was taken counts lookups, so it must reach the kernel even if the listing failed further on.
            Err(error) if listing.as_bytes().is_empty() => reply.error(errno(&error)),
            Ok(()) | Err(_) => reply.data(listing.as_bytes()),
        }
        Ok(())
    }

    fn make(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        match header.opcode {
            opcode::CREATE | opcode::TMPFILE => {
                let (flags, mode, umask) = (fields.u32()? as i32, fields.u32()?, fields.u32()?);
                fields.u32()?;
                let making = making(&header, umask, fields.name()?);
                let created = match header.opcode {
                    opcode::TMPFILE => self.vfs.tmpfile(making, mode, flags),
                    _ => self.vfs.create(making, mode, flags),
                };
                answer(reply, created, |reply, (entry, opened)| {
                    reply.out(convert::opened(convert::entry(&entry), opened));
                });
            }
            opcode::MKNOD => {
                let (mode, device, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                fields.u32()?;
                let making = making(&header, umask, fields.name()?);
                answer_entry(reply, self.vfs.mknod(making, mode, convert::device(device)));
            }
            opcode::MKDIR => {
                let (mode, umask) = (fields.u32()?, fields.u32()?);
                answer_entry(reply, self.vfs.mkdir(making(&header, umask, fields.name()?), mode));
            }
            opcode::SYMLINK => {
                let making = making(&header, 0, fields.name()?);
                answer_entry(reply, self.vfs.symlink(making, fields.name()?));
            }
            _ => {
                let node = fields.u64()?;
                answer_entry(reply, self.vfs.link(caller(&header), node, header.node, fields.name()?));
            }
        }
        Ok(())
    }

    fn unmake(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        let caller = caller(&header);
        match header.opcode {
            opcode::UNLINK => answer_empty(reply, self.vfs.unlink(caller, header.node, fields.name()?)),
            opcode::RMDIR => answer_empty(reply, self.vfs.rmdir(caller, header.node, fields.name()?)),
            _ => {
                let new_parent = fields.u64()?;
                let mut flags = 0;
                if header.opcode == opcode::RENAME2 {
                    flags = fields.u32()?;
                    fields.u32()?;
                }
                let from = Place { parent: header.node, name: fields.name()? };
                let to = Place { parent: new_parent, name: fields.name()? };
                answer_empty(reply, self.vfs.rename(caller, from, to, flags));
            }
        }
        Ok(())
    }

    fn xattr(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Called {
        let (caller, node) = (caller(&header), header.node);
        if header.opcode == opcode::REMOVEXATTR {
            answer_empty(reply, self.vfs.removexattr(caller, node, fields.name()?));
            return Ok(());
        }
        let (size, flags) = (fields.u32()?, fields.u32()? as i32);
        match header.opcode {
            opcode::SETXATTR => {
                let (name, value) = (fields.name()?, fields.bytes(size as usize)?);
                answer_empty(reply, self.vfs.setxattr(caller, node, name, value, flags));
            }
            opcode::GETXATTR => {
                let name = fields.name()?;
                match self.vfs.getxattr(node, name) {
                    Err(error) if error.errno() == libc::ENODATA && name == inside::POSITION_XATTR => {
                        let position = self.vfs.position_of(node).map(|position| position.to_string().into_bytes());
                        answer_xattr(reply, size, position);
                    }
                    value => answer_xattr(reply, size, value),
                }
            }
            _ => answer_xattr(reply, size, self.vfs.listxattr(caller, node)),
        }
        Ok(())
    }
}
