//! The backing directory: the local files themselves, reached around the mount, by id.
//!
//! It promises: an [`InodeId`] names one object for its whole life, across renames and remounts, and is never reused; the object
//! is reached by it alone. Nothing here knows of FUSE, ops or locks.
//!
//! ```text
//! id = scope (4 bytes of the backing's identity) ‖ form ‖ rest         the root is the empty id
//!      form 0..=0xfe: type of a kernel file handle, rest = its bytes      (open_by_handle_at)
//!      form 0xff:     rest = inode number and time of birth               (no usable handles; found by name hints)
//! ```
//! With `CAP_DAC_READ_SEARCH` objects are opened by handle and no descriptor is kept but in a bounded cache. Without it, a hint
//! (directory id, name) per object that was seen leads from the root to it; the descriptor cache keeps that short.

pub mod handle;
pub mod identity;
pub mod private;
pub mod reader;
pub mod sys;
pub mod unreadable;

mod cache;

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use smallvec::SmallVec;
use tandem_proto::{InodeId, Name};

use crate::exclude::{self, Excludes};

use self::{cache::PathCache, handle::Handle, identity::Identity, private::Hold, sys::Stat, unreadable::Unreadable};

/// Form byte of ids made of inode number and time of birth. No file system registers a handle type of this value.
const FORM_INO_BTIME: u8 = 0xff;

/// O_PATH descriptors that are kept at most. 20,000 descriptors must suffice for any tree, and open files need most of them.
const PATH_CACHE_MAX: usize = 2048;
/// And no more than this part of all.
const PATH_CACHE_PART: usize = 8;

/// Magic numbers of the file systems whose directories can be volumes of their own: btrfs, bcachefs.
const WITH_SUBVOLUMES: [i64; 2] = [0x9123_683e, 0xca45_1a4e];
/// Directories that are not part of the volume and are remembered for who asks which there are.
const FOREIGN_MAX: usize = 256;

/// How many descriptors the process may have.
pub fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many of them are kept for the next use.
pub fn path_fds_max() -> usize {
    (descriptors_max() / PATH_CACHE_PART).min(PATH_CACHE_MAX)
}

/// Names of an object: its directory, and what it is called there.
type Places = SmallVec<[(InodeId, Name); 1]>;

/// Names of one object that are kept; older ones are forgotten.
const HINTS_MAX: usize = 8;

/// Deepest chain of name hints that is followed before something must be wrong.
const HINT_DEPTH_MAX: usize = 100_000;

/// Why a backing directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The directory cannot be opened.
    #[error("backing directory {dir}: {source}")]
    Open {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files of this file system have no identity that lasts.
    #[error(
        "backing directory {dir}: its file system gives files neither handles nor times of birth, so they cannot be told apart \
         after a restart; use -o weak_ids if every remount may compare everything"
    )]
    NoIdentity {
        /// The directory.
        dir: PathBuf,
    },
}

/// How ids are made and opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    /// Kernel handles, which also open the object.
    HandlesOpen,
    /// Kernel handles, but not allowed to open by them.
    HandlesOnly,
    /// Inode number and time of birth.
    InoBtime,
}

/// The backing directory. See the module.
pub struct Backing {
    dir: PathBuf,
    root: OwnedFd,
    root_stat: Stat,
    hold: Hold,
    identity: Identity,
    form: IdForm,
    cache: PathCache,
    /// How often an object was let go of: who opens one meanwhile must not keep it.
    forgotten: AtomicU64,
    /// Where objects were seen, the newest place last.
    hints: Mutex<HashMap<InodeId, Places>>,
    /// What is no part of the volume.
    excludes: Excludes,
    has_subvolumes: bool,
    /// Where directories were seen that are roots of something else.
    foreign: Mutex<BTreeSet<(InodeId, Name)>>,
    /// The daemon may not read everything: it is an ordinary user's.
    limited: bool,
    unreadable: Unreadable,
}

impl Backing {
    /// Opens `dir` as the root. `beneath_dead_mount`: `dir` is a mount whose daemon died, and the directory under it is meant.
    pub fn open(dir: &Path, beneath_dead_mount: bool, weak_ids: bool) -> Result<Backing, BackingError> {
        let failed = |source| BackingError::Open { dir: dir.to_owned(), source };
        let (root, hold) =
            if beneath_dead_mount { private::open_beneath(dir) } else { private::open(dir) }.map_err(failed)?;
        let root_stat = sys::stat(&root).map_err(failed)?;
        let form = probe_form(&root);
        if form == IdForm::InoBtime && root_stat.btime.is_none() && !weak_ids {
            return Err(BackingError::NoIdentity { dir: dir.to_owned() });
        }
        let mut root_id = Vec::new();
        encode_id(form, root.as_fd(), &root_stat, &mut root_id).map_err(failed)?;
        let identity = Identity::of(root.as_fd(), &root_id).map_err(failed)?;
        let magic = rustix::fs::fstatfs(&root).map_err(|errno| failed(errno.into()))?.f_type;
        let has_subvolumes = WITH_SUBVOLUMES.contains(&magic);
        Ok(Backing {
            dir: dir.to_owned(),
            root,
            root_stat,
            hold,
            identity,
            form,
            cache: PathCache::new(path_fds_max()),
            forgotten: AtomicU64::new(0),
            hints: Mutex::default(),
            excludes: Excludes::default(),
            has_subvolumes,
            foreign: Mutex::default(),
            limited: !rustix::process::geteuid().is_root(),
            unreadable: Unreadable::default(),
        })
    }

    /// The directory as the user named it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Identity of this backing directory.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Leaves out what matches, wherever the state of the volume is read.
    pub fn exclude(&mut self, excludes: Excludes) {
        self.excludes = excludes;
    }

    /// What is left out.
    pub fn excludes(&self) -> &Excludes {
        &self.excludes
    }

    /// Where a directory is, if that matters for what is left out.
    pub fn place_of(&self, dir: BorrowedFd<'_>) -> Vec<Vec<u8>> {
        if !self.excludes.has_paths() {
            return Vec::new();
        }
        exclude::path_between(self.root(), dir).unwrap_or_default()
    }

    /// Whether a name of a directory that is part of the volume is none.
    pub fn leaves_out(&self, place: &[Vec<u8>], name: &[u8], is_directory: bool) -> bool {
        if self.excludes.is_empty() {
            return false;
        }
        let place: Vec<&[u8]> = place.iter().map(Vec::as_slice).collect();
        self.excludes.matches(&place, name, is_directory)
    }

    /// How ids are made.
    pub fn id_form(&self) -> IdForm {
        self.form
    }

    /// How the directory is held.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// A real descriptor of the root.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Inode number of the root.
    pub fn root_ino(&self) -> u64 {
        self.root_stat.ino
    }

    /// Whether this directory is the root of something else: a nested mount or subvolume, which is not crossed.
    pub fn is_foreign(&self, stat: &Stat) -> bool {
        stat.is_dir() && stat.dev != self.root_stat.dev
    }

    /// Whether there can be such directories: what is mounted in a mount of our own is not seen, but some file systems have subvolumes.
    pub fn may_hold_foreign(&self) -> bool {
        self.has_subvolumes || self.hold == Hold::Descriptor
    }

    /// The same of what a name means; [`Backing::not_crossed`] names it then.
    pub fn is_foreign_at(&self, dir: &InodeId, name: &OsStr, stat: &Stat) -> bool {
        let foreign = self.is_foreign(stat);
        if foreign && let Some(name) = Name::new(name.as_bytes().to_vec()) {
            let mut seen = self.foreign.lock();
            if seen.len() < FOREIGN_MAX {
                seen.insert((*dir, name));
            }
        }
        foreign
    }

    /// The id of the object behind a descriptor (O_PATH will do).
    pub fn id_of(&self, fd: impl AsFd, stat: &Stat) -> io::Result<InodeId> {
        if stat.ino == self.root_stat.ino && stat.is_dir() {
            return Ok(InodeId::ROOT);
        }
        if self.form != IdForm::InoBtime {
            return self.id_of_handle(&Handle::of(fd)?);
        }
        let mut id = Vec::with_capacity(tandem_proto::limits::INODE_ID_MAX);
        id.extend_from_slice(&self.identity.scope());
        encode_id(self.form, fd.as_fd(), stat, &mut id)?;
        InodeId::new(&id).ok_or_else(|| io::Error::other("the file handle is too long"))
    }

    /// The id of what a name means, without opening it.
    pub fn id_at(&self, dir: impl AsFd, name: &OsStr, stat: &Stat) -> io::Result<InodeId> {
        if stat.ino == self.root_stat.ino && stat.is_dir() {
            return Ok(InodeId::ROOT);
        }
        if self.form == IdForm::InoBtime {
            return self.id_of(dir, stat);
        }
        self.id_of_handle(&Handle::at(dir, name)?)
    }

    fn id_of_handle(&self, handle: &Handle) -> io::Result<InodeId> {
        let mut id = [0; tandem_proto::limits::INODE_ID_MAX];
        let bytes = handle.bytes();
        let (Some(kind), Some(id)) = (handle.kind(), id.get_mut(..5 + bytes.len())) else {
            return Err(io::Error::other("the file handle is too long"));
        };
        id[..4].copy_from_slice(&self.identity.scope());
        id[4] = kind;
        id[5..].copy_from_slice(bytes);
        InodeId::new(id).ok_or_else(|| io::Error::other("the file handle is too long"))
    }

    /// A name of an object that has others went.
    pub fn lost_name(&self, id: &InodeId, dir: &InodeId, name: &OsStr) {
        if self.form != IdForm::HandlesOpen {
            let mut hints = self.hints.lock();
            if let Some(places) = hints.get_mut(id) {
                places.retain(|(hint, at)| hint != dir || at.as_bytes() != name.as_bytes());
                if places.is_empty() {
                    hints.remove(id);
                }
            }
        }
    }

    /// Keeps in mind where an object has a name, for the case that it cannot be opened by its handle.
    pub fn remember(&self, id: &InodeId, dir: &InodeId, name: &OsStr) {
        if self.form != IdForm::HandlesOpen
            && !id.is_root()
            && let Some(name) = Name::new(name.as_bytes().to_vec())
        {
            let mut hints = self.hints.lock();
            let places = hints.entry(*id).or_default();
            let place = (*dir, name);
            if places.last() == Some(&place) {
                return;
            }
            places.retain(|other| *other != place);
            if places.len() >= HINTS_MAX {
                places.remove(0);
            }
            places.push(place);
        }
    }

    /// The names that lead from the root to an object, as far as hints are kept.
    pub fn names_of(&self, id: &InodeId) -> Option<Vec<Name>> {
        let hints = self.hints.lock();
        let mut names = Vec::new();
        let mut at = *id;
        while !at.is_root() {
            let (dir, name) = hints.get(&at).filter(|_| names.len() < HINT_DEPTH_MAX)?.last()?;
            names.push(name.clone());
            at = *dir;
        }
        names.reverse();
        Some(names)
    }

    /// Whether there is such a name in the root.
    pub fn has_in_root(&self, name: &str) -> bool {
        rustix::fs::statat(self.root(), name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Lets go of what is kept for an object whose last name is gone.
    pub fn forget(&self, id: &InodeId) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        self.cache.remove(id);
        self.unreadable.forget(id);
        if self.form != IdForm::HandlesOpen {
            self.hints.lock().remove(id);
        }
    }

    /// Hands over a descriptor that was just opened, so that the next use finds it.
    pub fn keep_path_fd(&self, id: &InodeId, fd: Arc<OwnedFd>) {
        let kept = fd.clone();
        self.cache.insert(*id, fd);
        // Somebody may have removed it already; a descriptor would keep its space.
        if sys::stat(&*kept).is_ok_and(|stat| stat.nlink == 0) {
            self.cache.remove(id);
        }
    }

    /// An O_PATH descriptor of the object; `None`: it is gone.
    pub fn path_fd(&self, id: &InodeId) -> io::Result<Option<Arc<OwnedFd>>> {
        if let Some(fd) = self.cache.get(id) {
            return Ok(Some(fd));
        }
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let Some(fd) = self.open_uncached(id, OFlags::PATH | OFlags::NOFOLLOW)? else { return Ok(None) };
        let fd = Arc::new(fd);
        self.cache.insert(*id, fd.clone());
        if self.forgotten.load(Ordering::SeqCst) != forgotten {
            // Perhaps this one, after it was opened: kept, it would stay on the disk without a name.
            self.cache.remove(id);
        }
        Ok(Some(fd))
    }

    /// Lets go of the descriptors that are kept for the next use.
    pub fn close_path_fds(&self) {
        self.cache.clear();
    }

    /// Whether an id opens its object wherever that is now, and whatever rights it has.
    pub fn opens_by_handle(&self) -> bool {
        self.form == IdForm::HandlesOpen
    }

    /// Opens the object; `None`: it is gone. Only for regular files and directories, others are opened O_PATH.
    pub fn open_id(&self, id: &InodeId, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        if self.form == IdForm::HandlesOpen {
            return self.open_uncached(id, flags);
        }
        match self.path_fd(id)? {
            Some(fd) => sys::reopen(&fd, flags).map(Some),
            None => Ok(None),
        }
    }

    fn open_uncached(&self, id: &InodeId, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        if id.is_root() {
            return rustix::fs::openat(&self.root, c".", flags | OFlags::CLOEXEC, rustix::fs::Mode::empty())
                .map(Some)
                .map_err(Into::into);
        }
        let bytes = id.as_bytes();
        let Some((scope, [form, rest @ ..])) = bytes.split_at_checked(4) else { return Ok(None) };
        if scope != self.identity.scope() {
            return Ok(None);
        }
        if self.form != IdForm::HandlesOpen {
            return self.open_by_hint(id);
        }
        let Some(handle) = Handle::from_parts(*form, rest) else { return Ok(None) };
        match handle.open(&self.root, flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::ENOENT)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tries the places where the object was seen, the newest first.
    fn open_by_hint(&self, id: &InodeId) -> io::Result<Option<OwnedFd>> {
        let places = self.hints.lock().get(id).cloned().unwrap_or_default();
        for (dir, name) in places.into_iter().rev() {
            if let Some(fd) = self.open_at_place(*id, dir, name)? {
                return Ok(Some(fd));
            }
        }
        Ok(None)
    }

    /// Follows the hints up to something that is open, then opens downwards, checking that each step is what it should be.
    fn open_at_place(&self, id: InodeId, dir: InodeId, name: Name) -> io::Result<Option<OwnedFd>> {
        let mut steps = vec![(id, name)];
        let mut at = dir;
        let mut fd = loop {
            if at.is_root() {
                break Arc::new(self.root.try_clone()?);
            }
            if let Some(fd) = self.cache.get(&at) {
                break fd;
            }
            let hint = self.hints.lock().get(&at).and_then(|places| places.last().cloned());
            let Some((dir, name)) = hint.filter(|_| steps.len() <= HINT_DEPTH_MAX) else { return Ok(None) };
            steps.push((at, name));
            at = dir;
        };
        while let Some((id, name)) = steps.pop() {
            let next = match sys::open_path_at(&fd, OsStr::from_bytes(name.as_bytes())) {
                Ok(next) => next,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if self.id_of(&next, &sys::stat(&next)?)? != id {
                return Ok(None);
            }
            if steps.is_empty() {
                return Ok(Some(next));
            }
            fd = Arc::new(next);
            self.cache.insert(id, fd.clone());
        }
        Ok(None)
    }

    /// Makes everything that was written to the file system durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// What is below the directory and not part of the volume: nested mounts, and the subvolumes that were seen so far, for people.
    pub fn not_crossed(&self) -> Vec<String> {
        let Ok(dir) = self.dir.canonicalize() else { return Vec::new() };
        let mounts = crate::mount::table::read().unwrap_or_default().into_iter().map(|mount| mount.mountpoint);
        let mut found: BTreeSet<PathBuf> =
            mounts.filter(|mountpoint| mountpoint.starts_with(&dir) && *mountpoint != dir).collect();
        let seen = self.foreign.lock().clone();
        for place in seen {
            match self.still_foreign(&place.0, &place.1) {
                Ok(Some(path)) => drop(found.insert(dir.join(path))),
                Ok(None) => drop(self.foreign.lock().remove(&place)),
                // It cannot be looked at now.
                Err(_) => {}
            }
        }
        found.iter().map(|path| path.display().to_string()).collect()
    }

    /// Where, below the root, a directory is that was no part of the volume; `None`: there is none there any more.
    fn still_foreign(&self, dir: &InodeId, name: &Name) -> io::Result<Option<PathBuf>> {
        let Some(fd) = self.path_fd(dir)? else { return Ok(None) };
        let name = OsStr::from_bytes(name.as_bytes());
        match sys::stat_at(&fd, name) {
            Ok(stat) if self.is_foreign(&stat) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let between = exclude::path_between(self.root(), fd.as_fd());
        Ok(between.map(|names| names.iter().map(|name| OsStr::from_bytes(name)).collect::<PathBuf>().join(name)))
    }
}

/// Finds out which form of ids this file system and our rights allow.
fn probe_form(root: &OwnedFd) -> IdForm {
    let Ok(handle) = Handle::of(root) else { return IdForm::InoBtime };
    let room = tandem_proto::limits::INODE_ID_MAX - 5;
    if handle.bytes().len() > room || handle.kind().is_none_or(|kind| kind == FORM_INO_BTIME) {
        return IdForm::InoBtime;
    }
    match handle.open(root, OFlags::PATH) {
        Ok(_) => IdForm::HandlesOpen,
        Err(_) => IdForm::HandlesOnly,
    }
}

fn encode_id(form: IdForm, fd: BorrowedFd<'_>, stat: &Stat, out: &mut Vec<u8>) -> io::Result<()> {
    match form {
        IdForm::HandlesOpen | IdForm::HandlesOnly => {
            let handle = Handle::of(fd)?;
            out.push(handle.kind().unwrap_or(FORM_INO_BTIME));
            out.extend_from_slice(handle.bytes());
        }
        IdForm::InoBtime => {
            out.push(FORM_INO_BTIME);
            out.extend_from_slice(&stat.ino.to_le_bytes());
            let born = stat.btime.unwrap_or_default();
            out.extend_from_slice(&born.seconds.to_le_bytes());
            out.extend_from_slice(&born.nanos.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt as _};

    use rustix::fs::OFlags;
    use tandem_proto::InodeId;

    use super::{Backing, IdForm, sys};

    fn temporary() -> (tempfile::TempDir, Backing) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let backing = Backing::open(dir.path(), false, true).expect("backing");
        (dir, backing)
    }

    #[test]
    fn an_id_survives_a_rename_and_dies_with_the_last_name() {
        let (dir, backing) = temporary();
        fs::write(dir.path().join("a"), b"x").expect("write");
        let fd = sys::open_path_at(backing.root(), OsStr::new("a")).expect("open");
        let id = backing.id_of(&fd, &sys::stat(&fd).expect("stat")).expect("id");
        backing.remember(&id, &InodeId::ROOT, OsStr::new("a"));
        drop(fd);
        assert!(!id.is_root());
        fs::rename(dir.path().join("a"), dir.path().join("b")).expect("rename");
        backing.remember(&id, &InodeId::ROOT, OsStr::new("b"));
        assert!(backing.open_id(&id, OFlags::RDONLY).expect("open").is_some());
        backing.forget(&id);
        fs::remove_file(dir.path().join("b")).expect("remove");
        fs::write(dir.path().join("b"), b"another").expect("write");
        assert!(backing.open_id(&id, OFlags::RDONLY).expect("open").is_none());
    }

    #[test]
    fn the_root_is_the_empty_id_and_names_may_be_any_bytes() {
        let (dir, backing) = temporary();
        assert_eq!(
            backing.id_of(backing.root(), &sys::stat(backing.root()).expect("stat")).expect("id"),
            InodeId::ROOT
        );
        let name = OsStr::from_bytes(b"\xff\n \x01");
        fs::write(dir.path().join(name), b"x").expect("write");
        assert!(sys::stat_at(backing.root(), name).expect("stat").is_regular());
    }

    #[test]
    fn without_handles_objects_are_found_by_where_they_were_seen() {
        let (dir, mut backing) = temporary();
        backing.form = IdForm::InoBtime;
        let mut parent = (InodeId::ROOT, std::sync::Arc::new(backing.root.try_clone().expect("clone")));
        for depth in 0..50 {
            let name = format!("d{depth}");
            rustix::fs::mkdirat(&parent.1, name.as_str(), rustix::fs::Mode::RWXU).expect("mkdir");
            let fd = sys::open_path_at(&parent.1, OsStr::new(&name)).expect("open");
            let id = backing.id_of(&fd, &sys::stat(&fd).expect("stat")).expect("id");
            backing.remember(&id, &parent.0, OsStr::new(&name));
            parent = (id, std::sync::Arc::new(fd));
        }
        assert!(backing.path_fd(&parent.0).expect("path").is_some());
        fs::remove_dir_all(dir.path().join("d0")).expect("remove");
        backing.cache.clear();
        assert!(backing.path_fd(&parent.0).expect("path").is_none());
    }

    #[test]
    fn without_handles_a_file_is_found_by_any_of_its_names_that_is_left() {
        let (dir, mut backing) = temporary();
        backing.form = IdForm::InoBtime;
        fs::write(dir.path().join("a"), b"x").expect("write");
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).expect("link");
        let fd = sys::open_path_at(backing.root(), OsStr::new("a")).expect("open");
        let id = backing.id_of(&fd, &sys::stat(&fd).expect("stat")).expect("id");
        for name in ["a", "b"] {
            backing.remember(&id, &InodeId::ROOT, OsStr::new(name));
        }
        fs::remove_file(dir.path().join("b")).expect("remove");
        backing.lost_name(&id, &InodeId::ROOT, OsStr::new("b"));
        assert!(backing.path_fd(&id).expect("path").is_some());
        // Also if nobody said so.
        backing.cache.clear();
        fs::rename(dir.path().join("a"), dir.path().join("c")).expect("rename");
        backing.remember(&id, &InodeId::ROOT, OsStr::new("c"));
        fs::rename(dir.path().join("c"), dir.path().join("a")).expect("rename");
        assert!(backing.path_fd(&id).expect("path").is_some());
    }

    #[test]
    fn what_was_removed_meanwhile_is_not_kept_open() {
        let (dir, backing) = temporary();
        fs::create_dir(dir.path().join("d")).expect("mkdir");
        let fd = std::sync::Arc::new(sys::open_path_at(backing.root(), OsStr::new("d")).expect("open"));
        let id = backing.id_of(&*fd, &sys::stat(&*fd).expect("stat")).expect("id");
        fs::remove_dir(dir.path().join("d")).expect("rmdir");
        backing.forget(&id);
        backing.keep_path_fd(&id, fd);
        assert!(backing.path_fd(&id).expect("path").is_none());
    }

    #[test]
    fn another_directory_has_another_identity() {
        let (_one, first) = temporary();
        let (_two, second) = temporary();
        assert_ne!(first.identity(), second.identity());
    }
}
