//! Reads that pass the daemon by (`passthrough=PATH`): the kernel reads the backing file itself, at the speed of the file system below.
//!
//! The kernel has an inode open in one way at a time, and refuses an open that does not fit, with EIO. So an open is answered as others of its
//! inode are, and two ways never meet:
//!
//! ```text
//! through  cached, or direct: each write is a request; mappings are of the kernel's pages of the mount     the rule where there is none
//! around   readers: passthrough; beside them, who writes: direct, so each write(2) is a request as ever
//! ```
//! Who reads *and* writes beside such a reader may map the file, and what is stored through that mapping goes to the backing file without a
//! request. So from then on the file is watched: its ctime tells that something was stored, and it is compared and sent again
//! ([`Journal::changed_around`]), until nobody has the backing file open for writing any more. A mapping outlives its descriptor, so it is the
//! kernel that is asked, by a lease. The rules: `include/uapi/linux/fuse.h`, `fs/fuse/iomode.c` and `fs/fuse/passthrough.c` of Linux 6.18.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use tandem_proto::Timestamp;

use super::{
    Access, CacheMode, Journal, Vfs,
    inodes::Inode,
    rules::{Mode, PathRules},
};
use crate::{
    backing::sys,
    commit::{ATTRIBUTES, MarkCell, dirty::DirtySet, marks::WHOLE_FILE},
};

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Reads {
    /// By the kernel, from the backing file.
    Passthrough,
    /// Through the kernel's cache of the mount: the stricter one, as it misses no store.
    #[default]
    Cached,
}

impl Mode for Reads {}

/// Which files are read how.
pub type ReadRules = PathRules<Reads>;

impl ReadRules {
    /// Whether any file may be read past the daemon.
    pub fn pass_any(&self) -> bool {
        self.mount() == Reads::Passthrough || self.below().any(|(_, reads)| reads == Reads::Passthrough)
    }

    /// The paths, as they are written.
    pub fn passing(&self) -> Vec<String> {
        let root = (self.mount() == Reads::Passthrough).then(|| "/".to_owned());
        let below = self.below().filter(|(_, reads)| *reads == Reads::Passthrough).map(|(path, _)| path);
        root.into_iter().chain(below).collect()
    }
}

/// The kernel's list of files that it may read itself.
pub trait BackingFiles: Send + Sync {
    /// Adds one; its number, which is not 0.
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<u32>;
    /// Takes one out. Who has it open goes on.
    fn remove(&self, number: u32);
}

/// How an inode is open.
#[derive(Debug, Default)]
pub struct Opens {
    /// So many opens are answered cached or direct.
    through: u32,
    /// So many pass the daemon by, or stand beside such.
    around: u32,
    /// Its number among the [`BackingFiles`]; 0: none.
    backing: u32,
    /// It may be mapped so that stores pass the daemon by.
    watched: bool,
    /// Nobody needs its number any more, or needs it again: it is looked at with the next tick.
    resting: bool,
}

impl Opens {
    /// How an open is answered. `may_pass`: whether the file may be read past the daemon, and has a number now.
    fn answer(&self, flags: i32, may_pass: impl FnOnce() -> bool) -> Access {
        let reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
        match self.is_around() {
            true if reads => Access::Passthrough,
            true => Access::Beside,
            false if reads && self.through == 0 && may_pass() => Access::Passthrough,
            false => Access::of(flags, CacheMode::Strict),
        }
    }

    fn is_around(&self) -> bool {
        self.around > 0 || self.watched
    }

    fn count(&mut self, access: Access) -> &mut u32 {
        if access.is_around() { &mut self.around } else { &mut self.through }
    }
}

/// A file that may be mapped for writing past the daemon.
struct Watched {
    inode: Arc<Inode>,
    file: OwnedFd,
    /// When it was changed last, as far as it was looked at.
    seen: Timestamp,
    /// Something was stored in it, or written, since it is watched.
    changed: bool,
    /// When it is looked at next.
    next: Instant,
    /// What is stored before it is looked at again must be found also if the daemon is killed.
    _mark: Option<Box<dyn Send>>,
}

/// Time between two looks at a file that is watched, at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file is compared with the replica at this rate at most, in bytes a second, as each look that finds something reads all of it.
const COMPARED_RATE: u64 = 64 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Passthrough {
    rules: ReadRules,
    kernel: OnceLock<Box<dyn BackingFiles>>,
    watched: Mutex<Vec<Watched>>,
    /// Files that keep their numbers for a while, as the next open may come soon, and to get one takes as long as to open.
    resting: Mutex<Vec<Arc<Inode>>>,
}

impl Passthrough {
    pub fn new(rules: ReadRules) -> Passthrough {
        Passthrough { rules, ..Passthrough::default() }
    }

    pub fn has_paths(&self) -> bool {
        self.rules.has_paths()
    }

    /// The kernel may not need a number any more.
    fn rest(&self, inode: &Arc<Inode>, opens: &mut Opens) {
        if opens.backing != 0 && !opens.is_around() && !std::mem::replace(&mut opens.resting, true) {
            self.resting.lock().push(inode.clone());
        }
    }

    /// Takes the numbers back that nobody needed since they rest.
    fn remove_resting(&self) {
        let Some(kernel) = self.kernel.get() else { return };
        for inode in std::mem::take(&mut *self.resting.lock()) {
            let mut opens = inode.opens.lock();
            opens.resting = false;
            if !opens.is_around() {
                kernel.remove(std::mem::take(&mut opens.backing));
            }
        }
    }
}

impl<J: Journal> Vfs<J> {
    /// The same that lets the kernel read files itself where these rules say so, once it is told how ([`Vfs::pass_through`]). Not with
    /// `cache=writeback`, which the kernel refuses.
    #[must_use]
    pub fn with_passthrough(mut self, rules: ReadRules) -> Vfs<J> {
        self.passthrough = rules.pass_any().then(|| Passthrough::new(rules));
        self
    }

    /// Whether the kernel is to read files itself.
    pub fn passes_reads(&self) -> bool {
        self.passthrough.is_some()
    }

    /// Where files are told to the kernel that it may read. Only the first is kept.
    pub fn pass_through(&self, kernel: Box<dyn BackingFiles>) {
        if let Some(passthrough) = &self.passthrough {
            let _ = passthrough.kernel.set(kernel);
        }
    }

    /// How an open is answered, and the number of the backing file with it. To be followed by [`Vfs::leave`].
    pub(super) fn enter(&self, inode: &Arc<Inode>, flags: i32) -> (Access, u32) {
        let Some(passthrough) = &self.passthrough else { return (Access::of(flags, self.cache_mode), 0) };
        let mut opens = inode.opens.lock();
        let mut backing = opens.backing;
        let access = opens.answer(flags, || {
            let passes = passthrough.rules.of(inode) == Reads::Passthrough;
            if passes && backing == 0 {
                backing = self.add_backing_file(passthrough, inode).unwrap_or(0);
            }
            passes && backing != 0
        });
        opens.backing = backing;
        *opens.count(access) += 1;
        let maps = access == Access::Beside && flags & libc::O_ACCMODE == libc::O_RDWR;
        if maps && !opens.watched {
            opens.watched = self.watch(passthrough, inode);
        }
        (access, if access.is_around() { backing } else { 0 })
    }

    /// An open that was answered so is released.
    pub(super) fn leave(&self, inode: &Arc<Inode>, access: Access) {
        let Some(passthrough) = &self.passthrough else { return };
        let mut opens = inode.opens.lock();
        let count = opens.count(access);
        *count = count.saturating_sub(1);
        passthrough.rest(inode, &mut opens);
    }

    /// Tells the kernel of a file that it may read itself, unless somebody writes it past the mount. Under the lock of its opens,
    /// so that no open of the mount meets the lease.
    fn add_backing_file(&self, passthrough: &Passthrough, inode: &Inode) -> Option<u32> {
        let kernel = passthrough.kernel.get()?;
        let file = self.open_inode(inode, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC).ok()?;
        let added = sys::is_unwritten(&file).and_then(|unwritten| {
            if unwritten { kernel.add(std::os::fd::AsFd::as_fd(&file)).map(Some) } else { Ok(None) }
        });
        added.unwrap_or_else(|error| {
            tracing::debug!(inode = %inode.id, %error, "the kernel cannot read this file itself; it is read through the mount");
            None
        })
    }

    fn watch(&self, passthrough: &Passthrough, inode: &Arc<Inode>) -> bool {
        let file = self.open_inode(inode, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC);
        let seen = file.and_then(|file| Ok((sys::stat(&file)?.ctime, file)));
        let (seen, file) = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::error!(inode = %inode.id, %error, "what is stored through a mapping of this file is found by a verify only");
                return false;
            }
        };
        let cells = [WHOLE_FILE, ATTRIBUTES].map(|block| MarkCell::File { id: inode.id, block });
        let mark = if inode.lock().unnamed { Ok(None) } else { self.journal.keep_marked(&cells) };
        let mark = mark.unwrap_or_else(|error| {
            tracing::warn!(inode = %inode.id, %error, "a file that may be mapped for writing has no mark");
            None
        });
        let next = Instant::now() + LOOK_EVERY;
        let watched = Watched { inode: inode.clone(), file, seen, changed: false, next, _mark: mark };
        passthrough.watched.lock().push(watched);
        true
    }

    /// Takes back what the kernel needs no more to read files itself. To be called several times a second.
    pub(super) fn forget_backing_files(&self) {
        self.passthrough.as_ref().into_iter().for_each(Passthrough::remove_resting);
    }

    /// Looks at the files that are watched, if it is time to or `all` are to be looked at, and has sent again what was changed.
    pub(super) fn look_at_watched(&self, all: bool) {
        let Some(passthrough) = &self.passthrough else { return };
        let now = Instant::now();
        let due = passthrough.watched.lock().extract_if(.., |watched| all || watched.next <= now).collect::<Vec<_>>();
        for mut watched in due {
            if self.look_at(passthrough, &mut watched) {
                passthrough.watched.lock().push(watched);
            }
        }
    }

    /// Whether it is to be watched further on.
    fn look_at(&self, passthrough: &Passthrough, watched: &mut Watched) -> bool {
        let inode = watched.inode.clone();
        // First, so that what was stored by the last one who could is seen below; and under this lock no open comes between.
        let mut opens = inode.opens.lock();
        let ended = sys::is_unwritten(&watched.file).unwrap_or(false);
        let Ok(stat) = sys::stat(&watched.file) else { return true };
        let found = stat.ctime != watched.seen;
        watched.changed |= found;
        if found {
            // The kernel knows of no store in the inode of the mount.
            self.ask_again(&inode);
        }
        watched.seen = stat.ctime;
        watched.next = Instant::now() + LOOK_EVERY.max(Duration::from_secs(stat.size / COMPARED_RATE));
        // The last time whatever was found now: what is stored in a page that is dirty already changes no time.
        if found || ended && watched.changed {
            let mut dirty = DirtySet::default();
            dirty.insert_file(inode.id);
            dirty.insert_attributes(inode.id);
            if !inode.lock().unnamed {
                self.journal.changed_around(&dirty);
            }
        }
        opens.watched = !ended;
        passthrough.rest(&inode, &mut opens);
        !ended
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Opens};

    const FLAGS: [i32; 4] = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_SYNC];

    /// All states that opens and releases lead to, with up to three of each open at once.
    fn states() -> impl Iterator<Item = Opens> {
        (0..4).flat_map(|count| {
            [(count, 0, false), (0, count, false), (0, count, true)].map(|(through, around, watched)| Opens {
                through,
                around,
                backing: 1,
                watched,
                resting: false,
            })
        })
    }

    #[test]
    fn an_open_goes_the_way_of_those_that_are_open() {
        for opens in states() {
            for flags in FLAGS {
                for may_pass in [false, true] {
                    let access = opens.answer(flags, || may_pass);
                    if opens.through > 0 {
                        assert!(!access.is_around(), "{opens:?} {flags}");
                    }
                    if opens.is_around() {
                        assert!(access.is_around(), "{opens:?} {flags}");
                    }
                    if access == Access::Passthrough {
                        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDONLY);
                        assert!(may_pass || opens.is_around());
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_reader_opens_the_way_around() {
        for flags in FLAGS {
            let access = Opens::default().answer(flags, || true);
            assert_eq!(access.is_around(), flags == libc::O_RDONLY, "{flags}");
        }
        let beside_a_writer = Opens { through: 1, ..Opens::default() };
        assert_eq!(beside_a_writer.answer(libc::O_RDONLY, || true), Access::Cached);
        let after_a_mapping = Opens { watched: true, ..Opens::default() };
        assert_eq!(after_a_mapping.answer(libc::O_RDWR, || true), Access::Beside);
    }
}
