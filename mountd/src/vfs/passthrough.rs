//! Reads that pass the daemon by (`passthrough=PATH`): the kernel reads the backing file itself, at the speed of the file system below.
//!
//! The kernel has an inode open in one way at a time, and refuses an open that does not fit, with EIO. So an open is answered as others of its
//! inode are, and two ways never meet:
//!
//! ```text
//! through  cached, or direct: each write is a request; mappings are of the kernel's pages of the mount
//! around   readers: passthrough; beside them, who only writes: direct, so each write is a request as ever
//! ```
//! Who reads *and* writes beside such a reader could map the backing file, and what is stored through that mapping no request would tell of. The
//! kernel has no other way to answer him, so he is refused for as long as it is read so: ETXTBSY, as for a program that runs. The rules:
//! `include/uapi/linux/fuse.h`, `fs/fuse/iomode.c` and `fs/fuse/passthrough.c` of Linux 6.18.

use std::{
    io, mem,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use tandem_proto::Timestamp;

use super::{
    Access, CacheMode, Journal, Vfs, VfsResult,
    inodes::Inode,
    rules::{Mode, PathRules},
};
use crate::backing::sys;

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Reads {
    /// By the kernel, from the backing file.
    Passthrough,
    /// Through the kernel's cache of the mount: the stricter one, as it refuses nobody.
    #[default]
    Cached,
}

impl Mode for Reads {}

/// Which files are read how.
pub type ReadRules = PathRules<Reads>;

impl ReadRules {
    /// Whether any file may be read past the daemon.
    pub fn pass_any(&self) -> bool {
        !self.passing().is_empty()
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
    /// Nobody needs its number any more, or needs it again: it is looked at with the next tick.
    resting: bool,
}

impl Opens {
    /// How an open is answered; `None`: not as long as others are. `may_pass`: whether the file may be read past the daemon, and has a number now.
    fn answer(&self, flags: i32, may_pass: impl FnOnce() -> bool) -> Option<Access> {
        match (self.around > 0, flags & libc::O_ACCMODE) {
            (true, libc::O_RDONLY) => Some(Access::Passthrough),
            (true, libc::O_WRONLY) => Some(Access::Beside),
            (true, _) => None,
            (false, libc::O_RDONLY) if self.through == 0 && may_pass() => Some(Access::Passthrough),
            (false, _) => Some(Access::of(flags, CacheMode::Strict)),
        }
    }

    fn count(&mut self, access: Access) -> &mut u32 {
        if access.is_around() { &mut self.around } else { &mut self.through }
    }
}

/// So many files keep their numbers for a while, at most: the kernel has each of them open.
const RESTING_MAX: usize = 1024;
/// So long an open waits for those that it does not fit to: their releases came before it, and are in another thread's hands.
const PATIENCE: Duration = Duration::from_millis(20);
/// Time between two looks meanwhile.
const LOOK: Duration = Duration::from_micros(200);
/// What was changed more lately is read through the mount: its author may not be done, and who just made it must get it open.
const REST: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub(super) struct Passthrough {
    rules: ReadRules,
    kernel: OnceLock<Box<dyn BackingFiles>>,
    /// Files that keep their numbers for a while, as the next open may come soon, and to get one takes as long as to open.
    resting: Mutex<Vec<Arc<Inode>>>,
    /// Who waits for others to close a file; one at a time, so that all but one thread answer meanwhile.
    waits: Mutex<()>,
    /// The kernel reads no backing file of this file system.
    unavailable: AtomicBool,
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
        if opens.backing == 0 || opens.around > 0 || opens.resting {
            return;
        }
        let mut resting = self.resting.lock();
        if resting.len() < RESTING_MAX {
            opens.resting = true;
            resting.push(inode.clone());
        } else {
            drop(resting);
            self.remove(opens);
        }
    }

    /// Takes its number back, if it has one; nobody is around.
    fn remove(&self, opens: &mut Opens) {
        if let Some(kernel) = self.kernel.get()
            && opens.backing != 0
        {
            kernel.remove(mem::take(&mut opens.backing));
        }
    }

    /// The kernel does not take a backing file.
    fn note_refusal(&self, inode: &Inode, error: &io::Error) {
        let for_all = matches!(error.raw_os_error(), Some(libc::EPERM | libc::ELOOP | libc::EOPNOTSUPP));
        if for_all && !self.unavailable.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the kernel reads no file of this folder's file system by itself (it is an overlay, or this root is not the machine's): \
                passthrough= has no effect");
        } else {
            tracing::debug!(inode = %inode.id, %error, "the kernel cannot read this file itself; it is read through the mount");
        }
    }

    /// Takes the numbers back that nobody needed since they rest.
    fn remove_resting(&self) {
        let resting = mem::take(&mut *self.resting.lock());
        for inode in resting {
            let mut opens = inode.opens.lock();
            opens.resting = false;
            if opens.around == 0 {
                self.remove(&mut opens);
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

    /// How an open is answered, and the number of the backing file with it. To be followed by [`Vfs::leave`]. ETXTBSY: the file is read past the
    /// daemon. Not to be called under the inode's lock.
    pub(super) fn enter(&self, inode: &Arc<Inode>, flags: i32) -> VfsResult<(Access, u32)> {
        let Some(passthrough) = &self.passthrough else { return Ok((Access::of(flags, self.cache_mode), 0)) };
        if let Some(entered) = self.enter_now(passthrough, inode, flags) {
            return Ok(entered);
        }
        let begun = Instant::now();
        let waits = passthrough.waits.try_lock();
        while waits.is_some() && begun.elapsed() < PATIENCE {
            thread::sleep(LOOK);
            if let Some(entered) = self.enter_now(passthrough, inode, flags) {
                return Ok(entered);
            }
        }
        Err(rustix::io::Errno::TXTBSY.into())
    }

    fn enter_now(&self, passthrough: &Passthrough, inode: &Arc<Inode>, flags: i32) -> Option<(Access, u32)> {
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
        let access = access?;
        *opens.count(access) += 1;
        if !access.is_around() && flags & libc::O_ACCMODE != libc::O_RDONLY {
            // The next reader finds out whether it is at rest.
            passthrough.remove(&mut opens);
        }
        Some((access, if access.is_around() { backing } else { 0 }))
    }

    /// An open that was answered so is released.
    pub(super) fn leave(&self, inode: &Arc<Inode>, access: Access) {
        let Some(passthrough) = &self.passthrough else { return };
        let mut opens = inode.opens.lock();
        let count = opens.count(access);
        *count = count.saturating_sub(1);
        if access == Access::Beside && opens.around == 0 {
            passthrough.remove(&mut opens);
        }
        passthrough.rest(inode, &mut opens);
    }

    /// Tells the kernel of a file at rest that it may read itself.
    fn add_backing_file(&self, passthrough: &Passthrough, inode: &Inode) -> Option<u32> {
        let kernel = passthrough.kernel.get().filter(|_| !passthrough.unavailable.load(Ordering::Relaxed))?;
        let file = self.open_inode(inode, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC).ok()?;
        if !is_at_rest(sys::stat(&file).ok()?.ctime, SystemTime::now()) {
            return None;
        }
        let added = kernel.add(file.as_fd());
        added.inspect_err(|error| passthrough.note_refusal(inode, error)).ok()
    }

    /// Takes back what the kernel needs no more to read files itself. To be called several times a second.
    pub(super) fn forget_backing_files(&self) {
        self.passthrough.as_ref().into_iter().for_each(Passthrough::remove_resting);
    }
}

/// Whether what was changed then was left alone since. A time that is yet to come says nothing.
fn is_at_rest(changed: Timestamp, now: SystemTime) -> bool {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::new(u64::try_from(changed.seconds).unwrap_or(0), changed.nanos);
    now.checked_sub(changed).is_some_and(|rest| rest > REST)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use tandem_proto::Timestamp;

    use super::{Access, Opens, is_at_rest};

    const FLAGS: [i32; 4] = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_SYNC];

    /// All states that opens and releases lead to, with up to three of each open at once.
    fn states() -> impl Iterator<Item = Opens> {
        let state = |through, around| Opens { through, around, backing: 1, resting: false };
        (0..4).flat_map(move |count| [state(count, 0), state(0, count)])
    }

    #[test]
    fn an_open_goes_the_way_of_those_that_are_open_and_nobody_who_may_map_it_for_writing_goes_around() {
        for opens in states() {
            for flags in FLAGS {
                for may_pass in [false, true] {
                    let mode = flags & libc::O_ACCMODE;
                    match opens.answer(flags, || may_pass) {
                        None => assert!(opens.around > 0 && mode == libc::O_RDWR, "{opens:?} {flags}"),
                        Some(access) if access.is_around() => {
                            assert_eq!(opens.through, 0, "{opens:?} {flags}");
                            assert_eq!(access == Access::Passthrough, mode == libc::O_RDONLY, "{opens:?} {flags}");
                            assert_ne!(mode, libc::O_RDWR);
                            assert!(may_pass || opens.around > 0);
                        }
                        Some(_) => assert_eq!(opens.around, 0, "{opens:?} {flags}"),
                    }
                }
            }
        }
    }

    #[test]
    fn only_a_reader_opens_the_way_around() {
        for flags in FLAGS {
            let access = Opens::default().answer(flags, || true).expect("nothing is open");
            assert_eq!(access.is_around(), flags == libc::O_RDONLY, "{flags}");
        }
        let beside_a_writer = Opens { through: 1, ..Opens::default() };
        assert_eq!(beside_a_writer.answer(libc::O_RDONLY, || true), Some(Access::Cached));
    }

    #[test]
    fn what_was_changed_lately_or_is_yet_to_change_is_not_at_rest() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let at_rest = |seconds, nanos| is_at_rest(Timestamp { seconds, nanos }, now);
        assert!(at_rest(999, 0) && at_rest(0, 0) && at_rest(-5, 1));
        assert!(!at_rest(999, 950_000_000) && !at_rest(1000, 0) && !at_rest(1001, 0));
    }
}
