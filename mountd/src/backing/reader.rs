//! What a resync reads: current state by id, while everything goes on changing.

use std::{
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use rustix::fs::{OFlags, RawDir, SeekFrom};
use tandem_proto::{InodeId, Name};

use super::{Backing, sys};
use crate::resync::{FileReader, ListedEntry, NodeView, StateReader};

/// Bytes of entries that are read at a time.
const LIST_BUFFER_BYTES: usize = 64 << 10;

impl Backing {
    /// A reading error that means "it is gone" is no error.
    fn gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ESTALE | libc::ENOTDIR | libc::ELOOP) => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn listed(
        &self,
        dir_id: &InodeId,
        dir: BorrowedFd<'_>,
        place: &[Vec<u8>],
        name: Name,
    ) -> io::Result<Option<ListedEntry>> {
        let os_name = OsStr::from_bytes(name.as_bytes());
        let Some(stat) = Self::gone(sys::stat_at(dir, os_name))? else { return Ok(None) };
        if self.is_foreign_at(dir_id, os_name, &stat) || self.leaves_out(place, name.as_bytes(), stat.is_dir()) {
            return Ok(None);
        }
        let Some(id) = Self::gone(self.id_at(dir, os_name, &stat))? else { return Ok(None) };
        self.remember(&id, dir_id, os_name);
        if !self.may_read_at(dir, os_name, &stat) {
            self.note_unreadable(&id, stat.is_dir());
        }
        let size = if stat.is_regular() { stat.size } else { 0 };
        Ok(Some(ListedEntry { name, id, node_type: stat.node_type(), attr: stat.attr(), size, ctime: stat.ctime }))
    }

    fn open_dir(&self, dir: &InodeId) -> io::Result<Option<OwnedFd>> {
        Ok(Self::gone(self.open_id(dir, OFlags::RDONLY | OFlags::DIRECTORY))?.flatten())
    }
}

impl StateReader for Backing {
    fn node(&self, id: &InodeId) -> io::Result<Option<NodeView>> {
        let Some(fd) = self.noting(id, false, || self.path_fd(id))? else { return Ok(None) };
        let stat = sys::stat(&*fd)?;
        if stat.nlink == 0 {
            return Ok(None);
        }
        let kind = sys::kind(&*fd, &stat)?;
        let (xattrs, refused) = sys::allowed_xattrs(&*fd)?;
        if refused {
            self.note_unreadable(id, stat.is_dir());
        }
        let size = if stat.is_regular() { stat.size } else { 0 };
        Ok(Some(NodeView { kind, attr: stat.attr(), xattrs, size, ctime: stat.ctime }))
    }

    fn entry(&self, dir: &InodeId, name: &Name) -> io::Result<Option<ListedEntry>> {
        let Some(fd) = self.noting(dir, true, || self.path_fd(dir))? else { return Ok(None) };
        let place = self.place_of(fd.as_fd());
        self.noting(dir, true, || self.listed(dir, fd.as_fd(), &place, name.clone()))
    }

    fn list(&self, dir: &InodeId, each: &mut dyn FnMut(ListedEntry) -> io::Result<()>) -> io::Result<bool> {
        let Some(fd) = self.noting(dir, true, || self.open_dir(dir))? else { return Ok(false) };
        if sys::stat(&fd)?.nlink == 0 {
            return Ok(false);
        }
        // One that can be read and not searched has names that nothing is known of.
        self.noting(dir, true, || sys::stat_at(&fd, OsStr::new(".")))?;
        let place = self.place_of(fd.as_fd());
        let mut buffer = vec![MaybeUninit::uninit(); LIST_BUFFER_BYTES];
        let mut stream = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = stream.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(rustix::io::Errno::NOENT) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            // `.` and `..` are no names.
            if let Some(name) = Name::new(entry.file_name().to_bytes().to_vec())
                && let Some(listed) = self.listed(dir, fd.as_fd(), &place, name)?
            {
                each(listed)?;
            }
        }
        Ok(true)
    }

    fn open(&self, id: &InodeId) -> io::Result<Option<Box<dyn FileReader>>> {
        let Some(path_fd) = self.noting(id, false, || self.path_fd(id))? else { return Ok(None) };
        let stat = sys::stat(&*path_fd)?;
        if !stat.is_regular() || stat.nlink == 0 {
            return Ok(None);
        }
        match self.noting(id, false, || self.open_id(id, OFlags::RDONLY | OFlags::NONBLOCK))? {
            Some(fd) => Ok(Some(Box::new(OpenReader { fd }))),
            None => Ok(None),
        }
    }

    fn sync_durable(&self) -> io::Result<()> {
        self.sync()
    }
}

/// A regular file that is read.
struct OpenReader {
    fd: OwnedFd,
}

impl FileReader for OpenReader {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(&self.fd, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match rustix::fs::seek(&self.fd, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            // Without support everything may hold data.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                let size = self.size()?;
                return Ok((from < size).then_some((from, size)));
            }
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::seek(&self.fd, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some((start, end))),
            // Cut off in between.
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn size(&self) -> io::Result<u64> {
        sys::size(&self.fd)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use tandem_proto::{InodeId, Name, NodeKind};

    use super::{Backing, StateReader as _};

    #[test]
    fn a_listing_shows_every_name_with_what_it_means() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dir.path().join("sub")).expect("mkdir");
        fs::write(dir.path().join("file"), b"12345").expect("write");
        std::os::unix::fs::symlink("target", dir.path().join("link")).expect("symlink");
        let backing = Backing::open(dir.path(), false, true).expect("backing");
        let mut found = Vec::new();
        let listed = backing.list(&InodeId::ROOT, &mut |entry| {
            found.push(entry);
            Ok(())
        });
        assert!(listed.expect("list"));
        found.sort_by(|left, right| left.name.cmp(&right.name));
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].name.as_bytes(), found[0].size), (&b"file"[..], 5));
        let link = backing.node(&found[1].id).expect("node").expect("there");
        assert_eq!(link.kind, NodeKind::Symlink("target".into()));
        let name = Name::new("sub").expect("name");
        assert_eq!(backing.entry(&InodeId::ROOT, &name).expect("entry").map(|entry| entry.id), Some(found[2].id));
    }

    #[test]
    fn what_is_gone_is_none_and_holes_are_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sparse");
        let file = fs::File::create(&path).expect("create");
        file.write_all_at(b"x", 1 << 20).expect("write");
        let backing = Backing::open(dir.path(), false, true).expect("backing");
        let name = Name::new("sparse").expect("name");
        let id = backing.entry(&InodeId::ROOT, &name).expect("entry").expect("there").id;
        let reader = backing.open(&id).expect("open").expect("there");
        let (start, end) = reader.next_data(0).expect("seek").expect("data");
        assert!(start > 0 && start <= 1 << 20 && end > 1 << 20, "{start} {end}");
        assert_eq!(reader.next_data(end).expect("seek"), None);
        drop((reader, file));
        backing.forget(&id);
        fs::remove_file(&path).expect("remove");
        assert!(backing.node(&id).expect("node").is_none());
        assert!(backing.open(&id).expect("open").is_none());
        assert!(backing.entry(&InodeId::ROOT, &name).expect("entry").is_none());
    }
}
