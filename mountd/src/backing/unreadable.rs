//! What the daemon may not read: where it runs as an ordinary user, a file of mode 0000 is closed to it as to any program of that user.
//!
//! A resync sends names and attributes of such objects and leaves the rest of them out; they are noted here, `status` lists them, and when
//! their owner lets the daemon read them, they are compared. Modes are never changed behind the owner's back: a crash in between would
//! leave open what was closed.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use rustix::fs::{Access, AtFlags};
use tandem_proto::InodeId;

use super::{
    Backing,
    sys::{self, Stat},
};
use crate::resync::reader::is_refusal;

/// Objects that are noted by name; of more than that it is known only that there are more.
const NOTED_MAX: usize = 10_000;

/// Objects that could not be read when a resync or a comparison last met them.
#[derive(Debug, Default)]
pub struct Unreadable {
    /// With whether it is a directory, as far as that is known.
    noted: Mutex<HashMap<InodeId, bool>>,
    /// Length of `noted`, to be looked at without its lock.
    count: AtomicUsize,
    /// There were more than could be noted.
    more: AtomicBool,
}

/// What has to be compared because it can be read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadableAgain {
    /// Objects.
    pub ids: Vec<InodeId>,
    /// A directory is among them: what lies below it was not seen either.
    pub below: bool,
}

impl Unreadable {
    fn note(&self, id: &InodeId, is_dir: bool) {
        let mut noted = self.noted.lock();
        if noted.len() >= NOTED_MAX && !noted.contains_key(id) {
            self.more.store(true, Ordering::Relaxed);
            return;
        }
        noted.insert(*id, is_dir);
        self.count.store(noted.len(), Ordering::Relaxed);
    }

    pub(super) fn forget(&self, id: &InodeId) {
        if self.count.load(Ordering::Relaxed) > 0 {
            let mut noted = self.noted.lock();
            noted.remove(id);
            self.count.store(noted.len(), Ordering::Relaxed);
        }
    }

    fn concerns(&self, id: &InodeId) -> bool {
        self.count.load(Ordering::Relaxed) > 0
            && (self.more.load(Ordering::Relaxed) || self.noted.lock().contains_key(id))
    }

    /// It can be read: it, and if it is a directory all that are noted, as some may lie below it.
    fn take(&self, id: &InodeId, is_dir: bool) -> ReadableAgain {
        let mut noted = self.noted.lock();
        noted.remove(id);
        let mut ids = vec![*id];
        if is_dir {
            ids.extend(noted.drain().map(|(id, _)| id));
            self.more.store(false, Ordering::Relaxed);
        }
        self.count.store(noted.len(), Ordering::Relaxed);
        ReadableAgain { ids, below: is_dir }
    }
}

impl Backing {
    /// Whether the daemon may read what a listing shows. Asks the kernel only where the mode does not say.
    pub(super) fn may_read_at(&self, dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> bool {
        if !self.limited || !(stat.is_dir() || stat.is_regular()) {
            return true;
        }
        let wanted = if stat.is_dir() { 0o500 } else { 0o400 };
        if stat.uid == rustix::process::geteuid().as_raw() {
            return stat.mode & wanted == wanted;
        }
        rustix::fs::accessat(dir, name, wanted_access(stat), AtFlags::empty()).is_ok()
    }

    /// Keeps in mind that an object cannot be read.
    pub(super) fn note_unreadable(&self, id: &InodeId, is_dir: bool) {
        self.unreadable.note(id, is_dir);
    }

    /// Reads; that an object cannot be read is kept in mind. Then it is tried once more: who made it readable in between found nothing noted.
    pub(super) fn noting<T>(&self, id: &InodeId, is_dir: bool, read: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match read() {
            Err(error) if is_refusal(&error) => {
                self.note_unreadable(id, is_dir);
                read()
            }
            result => result,
        }
    }

    /// Rights of an object are about to change: whether it, or something below it, could not be read when it was last met.
    pub fn was_unreadable(&self, id: &InodeId, fd: &OwnedFd) -> bool {
        if self.unreadable.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Of what lies below a closed directory that itself is noted, not always the directory.
        let is_closed = |stat: Stat| stat.is_dir() && stat.mode & 0o500 != 0o500;
        self.unreadable.concerns(id) || sys::stat(fd).is_ok_and(is_closed)
    }

    /// Rights of an object that could not be read changed: what has to be compared now, if it can be.
    pub fn readable_again(&self, id: &InodeId, fd: &OwnedFd) -> Option<ReadableAgain> {
        let stat = sys::stat(fd).ok()?;
        let path = sys::ProcPath::new(fd.as_fd());
        rustix::fs::access(path.as_str(), wanted_access(&stat)).ok()?;
        Some(self.unreadable.take(id, stat.is_dir()))
    }

    /// Objects that cannot be read: how many are known, and the paths of some.
    pub fn unreadable(&self, most: usize) -> (usize, Vec<String>) {
        let (count, ids): (usize, Vec<InodeId>) = {
            let noted = self.unreadable.noted.lock();
            // The same ones each time, whatever the order of the map.
            let mut ids: Vec<InodeId> = noted.keys().copied().collect();
            ids.sort_unstable();
            ids.truncate(most);
            (noted.len(), ids)
        };
        let path = |id: &InodeId| match self.names_of(id) {
            Some(names) => names.iter().map(|name| format!("/{name}")).collect(),
            None => format!("inode {id}"),
        };
        let mut paths: Vec<String> = ids.iter().map(path).collect();
        paths.sort();
        (count, paths)
    }
}

fn wanted_access(stat: &Stat) -> Access {
    if stat.is_dir() { Access::READ_OK | Access::EXEC_OK } else { Access::READ_OK }
}

#[cfg(test)]
mod tests {
    use tandem_proto::InodeId;

    use super::{NOTED_MAX, Unreadable};

    fn id(number: usize) -> InodeId {
        InodeId::new(&number.to_le_bytes()).expect("short")
    }

    #[test]
    fn a_file_that_can_be_read_again_is_compared_alone_and_a_directory_with_all_that_is_noted() {
        let noted = Unreadable::default();
        assert!(!noted.concerns(&id(1)));
        for number in 1..=3 {
            noted.note(&id(number), number == 3);
        }
        let file = noted.take(&id(1), false);
        assert_eq!((file.ids, file.below), (vec![id(1)], false));
        assert!(!noted.concerns(&id(1)) && noted.concerns(&id(2)));
        let mut directory = noted.take(&id(3), true);
        directory.ids.sort_unstable();
        assert_eq!((directory.ids, directory.below), (vec![id(2), id(3)], true));
        assert!(!noted.concerns(&id(2)));
    }

    #[test]
    fn beyond_the_bound_everything_may_be_one() {
        let noted = Unreadable::default();
        for number in 0..=NOTED_MAX {
            noted.note(&id(number), false);
        }
        assert_eq!(noted.noted.lock().len(), NOTED_MAX);
        assert!(noted.concerns(&id(NOTED_MAX)) && noted.concerns(&id(NOTED_MAX + 7)));
        noted.forget(&id(0));
        noted.note(&id(NOTED_MAX), false);
        assert!(noted.noted.lock().contains_key(&id(NOTED_MAX)));
    }
}
