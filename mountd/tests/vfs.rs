//! The vfs over a temporary directory, called as the kernel calls it: its ops, applied to a model, must give what is in the
//! directory, whatever was done, in whatever order, by however many threads.

mod support;

use std::{
    ffi::OsStr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use support::{
    model::Model,
    recorder::Recorder,
    rng::{Rng, seed},
};
use tandem_mountd::{
    backing::{Backing, sys::Stat},
    commit::{MarkCell, marks::WHOLE_FILE},
    vfs::{
        CacheMode, Caller, CopyRange, Entry, FsyncMode, FsyncRules, Listed, Making, Place, SetAttr, SetTime, Sink, Vfs,
        VfsResult, Write, Writer, inodes::ROOT_NODE,
    },
};
use tandem_proto::{InodeId, Timestamp, limits::MARK_BLOCK};

struct World {
    dir: tempfile::TempDir,
    backing: Arc<Backing>,
    recorder: Arc<Recorder>,
    vfs: Arc<Vfs<Recorder>>,
    before: Model,
}

fn world() -> World {
    world_with(FsyncMode::Local)
}

fn world_with(fsync: impl Into<FsyncRules>) -> World {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir(dir.path().join("a")).expect("mkdir");
    std::fs::write(dir.path().join("a/b"), b"was here before").expect("write");
    let backing = Arc::new(Backing::open(dir.path(), false, true).expect("backing"));
    let recorder = Arc::new(Recorder::default());
    let vfs = Arc::new(Vfs::new(backing.clone(), recorder.clone(), fsync).expect("vfs"));
    let before = Model::read(&*backing);
    World { dir, backing, recorder, vfs, before }
}

impl World {
    /// The ops since the beginning give what is in the directory.
    fn check(&self, context: &str) {
        self.vfs.settle_all();
        let mut model = self.before.clone();
        for op in self.recorder.ops() {
            model.apply(&op);
        }
        model.assert_equals(&Model::read(&*self.backing), context);
    }
}

fn caller() -> Caller {
    Caller::daemon()
}

fn making(parent: u64, name: &str) -> Making<'_> {
    Making { caller: caller(), umask: 0o022, parent, name: OsStr::new(name) }
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// One user of the file system, who looks names up, keeps files open, and does things at random.
struct User {
    vfs: Arc<Vfs<Recorder>>,
    rng: Rng,
    open: Vec<u64>,
    dirs: Vec<u64>,
}

impl User {
    fn new(world: &World, seed: u64) -> User {
        User { vfs: world.vfs.clone(), rng: Rng::new(seed), open: Vec::new(), dirs: vec![ROOT_NODE] }
    }

    fn dir(&mut self) -> u64 {
        *self.rng.pick(&self.dirs)
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.rng.below(NAMES.len() as u64) as usize]
    }

    /// Does one thing. Errors are what the backing file system says, and part of the game.
    fn step(&mut self) {
        let result = match self.rng.below(24) {
            0..=3 => self.create(),
            4 | 5 => self.mkdir(),
            6 => self.make_special(),
            7..=9 => self.rename(),
            10 => self.link(),
            11 | 12 => self.remove(),
            13..=16 => self.write(),
            17 => self.set_attributes(),
            18 => self.set_xattr(),
            19 => self.allocate(),
            20 => self.copy(),
            21 => self.close(),
            22 => self.open(),
            _ => self.enter(),
        };
        drop(result);
    }

    fn create(&mut self) -> VfsResult<()> {
        let (dir, name) = (self.dir(), self.name());
        let flags = libc::O_RDWR | libc::O_CREAT | if self.rng.below(2) == 0 { libc::O_EXCL } else { libc::O_TRUNC };
        let mode = *self.rng.pick(&[0o644, 0o600, 0o4755, 0o2711]);
        let (_, opened) = self.vfs.create(making(dir, name), mode, flags)?;
        self.open.push(opened.handle);
        Ok(())
    }

    fn mkdir(&mut self) -> VfsResult<()> {
        let (dir, name) = (self.dir(), self.name());
        let entry = self.vfs.mkdir(making(dir, name), 0o2775)?;
        self.dirs.push(entry.node);
        Ok(())
    }

    fn make_special(&mut self) -> VfsResult<()> {
        let (dir, name) = (self.dir(), self.name());
        match self.rng.below(3) {
            0 => self.vfs.symlink(making(dir, name), OsStr::new("some/where"))?,
            1 => self.vfs.mknod(making(dir, name), libc::S_IFIFO | 0o640, 0)?,
            _ => self.vfs.mknod(making(dir, name), libc::S_IFREG | 0o604, 0)?,
        };
        Ok(())
    }

    fn rename(&mut self) -> VfsResult<()> {
        let (from, to) = ((self.dir(), self.name()), (self.dir(), self.name()));
        let flags = *self.rng.pick(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
        let from = Place { parent: from.0, name: OsStr::new(from.1) };
        let to = Place { parent: to.0, name: OsStr::new(to.1) };
        self.vfs.rename(caller(), from, to, flags)
    }

    fn link(&mut self) -> VfsResult<()> {
        let (dir, name) = (self.dir(), self.name());
        let entry = self.vfs.lookup(caller(), dir, OsStr::new(name))?;
        let (dir, name) = (self.dir(), self.name());
        let result = self.vfs.link(caller(), entry.node, dir, OsStr::new(name));
        self.vfs.forget(entry.node, 1);
        result.map(drop)
    }

    fn remove(&mut self) -> VfsResult<()> {
        let (dir, name) = (self.dir(), self.name());
        match self.rng.below(3) {
            0 => self.vfs.rmdir(caller(), dir, OsStr::new(name)),
            _ => self.vfs.unlink(caller(), dir, OsStr::new(name)),
        }
    }

    fn open_handle(&mut self) -> u64 {
        if self.open.is_empty() { 0 } else { *self.rng.pick(&self.open) }
    }

    fn write(&mut self) -> VfsResult<()> {
        let handle = self.open_handle();
        let (offset, len) = (self.rng.below(50_000), self.rng.below(9_000) as usize);
        let data = self.rng.bytes(len);
        let kill = self.rng.below(2) == 0;
        assert_eq!(self.vfs.write(caller(), handle, offset, &data, kill)?, len);
        let mut back = vec![0; len];
        self.vfs.read(handle, offset, &mut back)?;
        Ok(())
    }

    fn some_node(&mut self) -> VfsResult<u64> {
        let (dir, name) = (self.dir(), self.name());
        Ok(self.vfs.lookup(caller(), dir, OsStr::new(name))?.node)
    }

    fn set_attributes(&mut self) -> VfsResult<()> {
        let node = self.some_node()?;
        let mut set = SetAttr::default();
        match self.rng.below(5) {
            0 => set.mode = Some(*self.rng.pick(&[0o644, 0o755, 0o4755, 0o2775])),
            1 => set.size = Some(self.rng.below(60_000)),
            2 => {
                let time = Timestamp { seconds: self.rng.below(4_000_000_000) as i64 - 1_000_000_000, nanos: 7 };
                set.mtime = Some(SetTime::At(time));
            }
            3 => (set.atime, set.mtime) = (Some(SetTime::Now), Some(SetTime::Now)),
            _ => (set.uid, set.gid) = (Some(self.rng.below(3) as u32), Some(self.rng.below(3) as u32)),
        }
        self.vfs.setattr(caller(), node, None, set).map(drop)
    }

    fn set_xattr(&mut self) -> VfsResult<()> {
        let node = self.some_node()?;
        let name = OsStr::new(*self.rng.pick(&["user.one", "user.two"]));
        if self.rng.below(3) == 0 {
            return self.vfs.removexattr(caller(), node, name);
        }
        let len = self.rng.below(40) as usize;
        let value = self.rng.bytes(len);
        self.vfs.setxattr(caller(), node, name, &value, 0)
    }

    fn allocate(&mut self) -> VfsResult<()> {
        let handle = self.open_handle();
        let mode = *self.rng.pick(&[
            0,
            libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE,
            libc::FALLOC_FL_ZERO_RANGE,
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        ]);
        let (offset, len) = (self.rng.below(50_000), self.rng.below(20_000) + 1);
        self.vfs.fallocate(caller(), handle, mode, offset, len)
    }

    fn copy(&mut self) -> VfsResult<()> {
        let copy = CopyRange {
            from: self.open_handle(),
            from_offset: self.rng.below(20_000),
            to: self.open_handle(),
            to_offset: self.rng.below(60_000),
            len: self.rng.below(30_000),
        };
        self.vfs.copy_file_range(caller(), copy).map(drop)
    }

    fn open(&mut self) -> VfsResult<()> {
        let node = self.some_node()?;
        if self.vfs.getattr(caller(), node, None)?.is_regular() {
            self.open.push(self.vfs.open(node, libc::O_WRONLY)?.handle);
        }
        Ok(())
    }

    fn close(&mut self) -> VfsResult<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let at = self.rng.below(self.open.len() as u64) as usize;
        self.vfs.release(caller(), self.open.swap_remove(at))
    }

    fn enter(&mut self) -> VfsResult<()> {
        let node = self.some_node()?;
        if self.vfs.getattr(caller(), node, None)?.is_dir() && self.dirs.len() < 12 {
            self.dirs.push(node);
        }
        Ok(())
    }
}

#[test]
fn whatever_one_user_does_the_ops_say_all_of_it() {
    for round in 0..12 {
        let seed = seed().wrapping_mul(1000).wrapping_add(round);
        let world = world();
        let mut user = User::new(&world, seed);
        for step in 0..400 {
            user.step();
            if step % 80 == 79 {
                world.check(&format!("TANDEM_SEED={seed} step {step}"));
            }
        }
    }
}

#[test]
fn ops_of_several_threads_have_the_order_in_which_they_happened() {
    for round in 0..6 {
        let seed = seed().wrapping_mul(1000).wrapping_add(round);
        let world = world();
        std::thread::scope(|scope| {
            for user in 0..4 {
                let mut user = User::new(&world, seed * 10 + user);
                scope.spawn(move || (0..400).for_each(|_| user.step()));
            }
        });
        world.check(&format!("TANDEM_SEED={seed}"));
    }
}

#[test]
fn a_file_that_is_open_when_its_last_name_goes_lives_on_without_ops() {
    let world = world();
    let vfs = &world.vfs;
    let (entry, opened) = vfs.create(making(ROOT_NODE, "gone"), 0o644, libc::O_RDWR).expect("create");
    vfs.write(caller(), opened.handle, 0, b"one", false).expect("write");
    vfs.unlink(caller(), ROOT_NODE, OsStr::new("gone")).expect("unlink");
    let ops = world.recorder.len();
    vfs.write(caller(), opened.handle, 3, b"two", false).expect("write without a name");
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    vfs.setattr(caller(), entry.node, None, set).expect("chmod without a name");
    let again = vfs.open(entry.node, libc::O_RDONLY).expect("opened again through /proc");
    let mut data = [0; 6];
    assert_eq!(vfs.read(again.handle, 0, &mut data).expect("read"), 6);
    assert_eq!((&data, vfs.getattr(caller(), entry.node, None).expect("stat").nlink), (b"onetwo", 0));
    assert_eq!(world.recorder.len(), ops, "no op for what has no name");
    vfs.forget(entry.node, 1);
    world.check("after");
}

#[test]
fn what_has_no_name_is_changed_without_a_mark_until_it_gets_one() {
    let world = world();
    let vfs = &world.vfs;
    let (file, opened) = vfs.create(making(ROOT_NODE, "f"), 0o644, libc::O_RDWR).expect("create");
    vfs.write(caller(), opened.handle, 0, b"named", false).expect("write");
    assert!(!world.recorder.take_marked().is_empty());
    vfs.unlink(caller(), ROOT_NODE, OsStr::new("f")).expect("unlink");
    world.recorder.take_marked();
    vfs.write(caller(), opened.handle, 10 * MARK_BLOCK, b"nameless", false).expect("write");
    let set = SetAttr { mode: Some(0o600), mtime: Some(SetTime::Now), size: Some(3), ..SetAttr::default() };
    vfs.setattr(caller(), file.node, None, set).expect("set");
    assert_eq!(world.recorder.take_marked(), [], "each would be a write to the disk");
    let (file, opened) = match vfs.tmpfile(making(ROOT_NODE, ""), 0o644, libc::O_RDWR) {
        Err(error) => return eprintln!("SKIPPED: no O_TMPFILE here: {error}"),
        made => made.expect("made"),
    };
    vfs.write(caller(), opened.handle, 0, b"not yet", false).expect("write");
    assert_eq!(world.recorder.take_marked(), []);
    vfs.link(caller(), file.node, ROOT_NODE, OsStr::new("t")).expect("link");
    vfs.write(caller(), opened.handle, 0, b"now it is", false).expect("write");
    assert!(world.recorder.take_marked().contains(&MarkCell::File { id: id_of(&world, "t"), block: 0 }));
    world.check("names that went and came");
}

fn id_of(world: &World, name: &str) -> InodeId {
    let fd = std::fs::File::open(world.dir.path().join(name)).expect("it is there");
    let stat = tandem_mountd::backing::sys::stat(&fd).expect("stat");
    world.backing.id_of(&fd, &stat).expect("it has one")
}

#[test]
fn what_is_born_belongs_to_its_caller_and_a_setgid_directory_gives_its_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: giving files away needs root");
        return;
    }
    let world = world();
    let user = Caller { uid: 1234, gid: 2345, pid: 0 };
    let making = |parent, name| Making { caller: user, umask: 0o027, parent, name: OsStr::new(name) };
    let file = world.vfs.create(making(ROOT_NODE, "f"), 0o6777, libc::O_RDWR).expect("create").0.stat;
    assert_eq!((file.uid, file.gid, file.mode & 0o7777), (1234, 2345, 0o6750));
    let team = world.vfs.mkdir(making(ROOT_NODE, "team"), 0o777).expect("mkdir");
    let set = SetAttr { mode: Some(0o2775), gid: Some(77), ..SetAttr::default() };
    world.vfs.setattr(caller(), team.node, None, set).expect("setgid");
    let inner = world.vfs.mkdir(making(team.node, "inner"), 0o777).expect("mkdir").stat;
    assert_eq!((inner.uid, inner.gid, inner.mode & 0o7777), (1234, 77, 0o2750));
    world.check("owners");
}

#[test]
fn an_unprivileged_write_takes_set_ids_away_and_says_so() {
    let world = world();
    let (entry, opened) = world.vfs.create(making(ROOT_NODE, "s"), 0o6755, libc::O_RDWR).expect("create");
    world.vfs.write(caller(), opened.handle, 0, b"x", false).expect("write");
    assert_eq!(world.vfs.getattr(caller(), entry.node, None).expect("stat").mode & 0o7777, 0o6755);
    world.vfs.write(caller(), opened.handle, 0, b"x", true).expect("write");
    assert_eq!(world.vfs.getattr(caller(), entry.node, None).expect("stat").mode & 0o7777, 0o755);
    world.check("set ids");
}

#[test]
fn who_writes_goes_on_before_the_op_is_filled_and_its_place_is_reserved() {
    let world = world();
    let (_, opened) = world.vfs.create(making(ROOT_NODE, "f"), 0o644, libc::O_RDWR).expect("create");
    let before = world.recorder.len();
    let writer = Writer::Call { kills_privileges: true };
    let write = Write { handle: opened.handle, offset: 0, data: b"said", writer };
    let mut told = Vec::new();
    let tell = |written| {
        let read = std::fs::read(world.dir.path().join("f")).expect("it is there");
        told.push((written, read, world.recorder.len() - before, world.recorder.open()));
    };
    assert_eq!(world.vfs.write_keeping(caller(), write, Bytes::copy_from_slice, tell).expect("written"), 4);
    assert_eq!(told, [(4, b"said".to_vec(), 1, 1)]);
    assert_eq!(world.recorder.open(), 0);
    world.check("a write that was answered early");
}

#[test]
fn who_has_all_mtimes_sent_after_a_write_that_was_answered_early_finds_its() {
    let world = world();
    let (_, opened) = world.vfs.create(making(ROOT_NODE, "f"), 0o644, libc::O_RDWR).expect("create");
    let before = world.recorder.len();
    let write =
        Write { handle: opened.handle, offset: 0, data: b"x", writer: Writer::Call { kills_privileges: false } };
    let mut settled = None;
    let tell = |_| {
        let vfs = world.vfs.clone();
        settled = Some(thread::spawn(move || vfs.settle_all()));
        // It has looked for what there is to send by then.
        thread::sleep(Duration::from_millis(50));
    };
    world.vfs.write_keeping(caller(), write, Bytes::copy_from_slice, tell).expect("written");
    settled.expect("told").join().expect("sent");
    assert_eq!(world.recorder.len() - before, 2, "the write and its time");
}

#[test]
fn who_sets_attributes_goes_on_before_the_op_is_filled_unless_something_failed() {
    let world = world();
    let (entry, _) = world.vfs.create(making(ROOT_NODE, "f"), 0o644, libc::O_RDWR).expect("create");
    let before = world.recorder.len();
    let mut told = Vec::new();
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let tell = |stat: &Stat| {
        let below = std::fs::metadata(world.dir.path().join("f")).expect("it is there").permissions().mode();
        told.push((stat.mode & 0o7777, below & 0o7777, world.recorder.len() - before, world.recorder.open()));
    };
    let after = world.vfs.setattr_telling(caller(), entry.node, None, set, tell).expect("set");
    assert_eq!((after.mode & 0o7777, told), (0o600, vec![(0o600, 0o600, 1, 1)]));
    assert_eq!(world.recorder.open(), 0);
    let wrong = SetAttr {
        mode: Some(0o640),
        mtime: Some(SetTime::At(Timestamp { seconds: 0, nanos: 2_000_000_000 })),
        ..SetAttr::default()
    };
    let failed = world.vfs.setattr_telling(caller(), entry.node, None, wrong, |stat| panic!("told {stat:?}"));
    assert!(failed.is_err());
    assert_eq!(world.recorder.open(), 0);
    world.check("attributes that were answered early");
}

#[test]
fn what_a_write_still_has_to_take_away_is_taken_before_it_is_answered() {
    let world = world();
    let (entry, opened) = world.vfs.create(making(ROOT_NODE, "s"), 0o4755, libc::O_RDWR).expect("create");
    let write = Write { handle: opened.handle, offset: 0, data: b"x", writer: Writer::Call { kills_privileges: true } };
    let mut told = Vec::new();
    let tell = |_| told.push(world.vfs.getattr(caller(), entry.node, None).expect("stat").mode & 0o7777);
    world.vfs.write_keeping(caller(), write, Bytes::copy_from_slice, tell).expect("written");
    assert_eq!(told, [0o755]);
    world.check("set ids before the answer");
}

#[test]
fn what_a_file_lacked_at_birth_is_noticed_once_somebody_gives_it() {
    let world = world();
    let vfs = &world.vfs;
    let (file, opened) = vfs.create(making(ROOT_NODE, "f"), 0o644, libc::O_RDWR).expect("create");
    let chmod = |mode| {
        let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
        vfs.setattr(caller(), file.node, None, set).expect("chmod");
    };
    let [acl, capability] = ["system.posix_acl_access", "security.capability"].map(OsStr::new);
    chmod(0o640);
    assert!(vfs.getxattr(file.node, capability).is_err() && vfs.getxattr(file.node, acl).is_err());
    if let Err(error) = vfs.setxattr(caller(), file.node, acl, &some_acl(), 0) {
        eprintln!("SKIPPED: no ACLs here: {error}");
        return;
    }
    let given = vfs.getxattr(file.node, acl).expect("given");
    chmod(0o600);
    assert_ne!(vfs.getxattr(file.node, acl).expect("it stays"), given, "its mask is part of the mode");
    world.check("an ACL after a chmod");
    // CAP_NET_RAW, effective, version 2.
    let raw = [&0x0200_0001u32.to_le_bytes()[..], &0x2000u32.to_le_bytes(), &[0; 12]].concat();
    if let Err(error) = vfs.setxattr(caller(), file.node, capability, &raw, 0) {
        eprintln!("SKIPPED: no capabilities here: {error}");
        return;
    }
    assert_eq!(vfs.getxattr(file.node, capability).expect("given"), raw);
    let chown = SetAttr { uid: Some(caller().uid), ..SetAttr::default() };
    vfs.setattr(caller(), file.node, None, chown).expect("chown");
    assert!(vfs.getxattr(file.node, capability).is_err(), "a chown takes it");
    world.check("a capability after a chown");
    chmod(0o4755);
    vfs.write(caller(), opened.handle, 0, b"x", true).expect("write");
    assert_eq!(vfs.getattr(caller(), file.node, None).expect("stat").mode & 0o7777, 0o755);
    world.check("suid after a write");
}

/// user::rwx group::rwx mask::rwx other::r-x user:1000:rwx
fn some_acl() -> Vec<u8> {
    let entries: [(u16, u16, u32); 5] = [(0x01, 7, !0), (0x02, 7, 1000), (0x04, 7, !0), (0x10, 7, !0), (0x20, 5, !0)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

#[test]
fn default_acls_replace_the_umask_and_are_inherited_in_the_op() {
    let world = world();
    let vfs = &world.vfs;
    let dir = vfs.mkdir(making(ROOT_NODE, "acl"), 0o755).expect("mkdir");
    let acl = some_acl();
    let name = OsStr::new("system.posix_acl_default");
    if let Err(error) = vfs.setxattr(caller(), dir.node, name, &acl, 0) {
        eprintln!("SKIPPED: no ACLs here: {error}");
        return;
    }
    let file = vfs.create(making(dir.node, "f"), 0o666, libc::O_RDWR).expect("create").0;
    assert_eq!(file.stat.mode & 0o777, 0o664, "the umask does not count where a default ACL is");
    assert!(vfs.getxattr(file.node, OsStr::new("system.posix_acl_access")).is_ok());
    let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
    vfs.setattr(caller(), file.node, None, set).expect("chmod");
    world.check("ACLs");
}

#[test]
fn a_fenced_mount_reads_but_does_not_write() {
    let world = world();
    world.recorder.fenced.store(true, Ordering::Relaxed);
    let refused = world.vfs.create(making(ROOT_NODE, "x"), 0o644, libc::O_RDWR).map(drop);
    assert_eq!(refused.expect_err("fenced").errno(), libc::EROFS);
    let entry = world.vfs.lookup(caller(), ROOT_NODE, OsStr::new("a")).expect("lookup");
    assert!(entry.stat.is_dir());
    assert_eq!(world.vfs.open(entry.node, libc::O_WRONLY).expect_err("fenced").errno(), libc::EROFS);
    assert!(world.dir.path().join("a/b").exists());
}

#[test]
fn inodes_are_forgotten_when_the_kernel_forgets_them() {
    let world = world();
    let known = world.vfs.inodes_known();
    let entry = world.vfs.lookup(caller(), ROOT_NODE, OsStr::new("a")).expect("lookup");
    world.vfs.lookup(caller(), ROOT_NODE, OsStr::new("a")).expect("lookup");
    world.vfs.forget(entry.node, 1);
    assert_eq!(world.vfs.inodes_known(), known + 1);
    world.vfs.forget(entry.node, 1);
    assert_eq!(world.vfs.inodes_known(), known);
    assert_eq!(world.vfs.getattr(caller(), entry.node, None).expect_err("forgotten").errno(), libc::ESTALE);
    let long = "x".repeat(256);
    let too_long = world.vfs.lookup(caller(), ROOT_NODE, OsStr::new(&long)).expect_err("too long");
    assert_eq!(too_long.errno(), libc::ENAMETOOLONG);
}

#[test]
fn a_cut_over_several_blocks_marks_the_file_because_growing_it_again_shows_zeroes_that_nobody_wrote() {
    let world = world();
    let file = std::fs::File::options().write(true).open(world.dir.path().join("a/b")).expect("open");
    file.set_len(3 * MARK_BLOCK).expect("size");
    let dir = world.vfs.lookup(caller(), ROOT_NODE, OsStr::new("a")).expect("dir").node;
    let node = world.vfs.lookup(caller(), dir, OsStr::new("b")).expect("file").node;
    let cut = |size: u64| {
        world.recorder.take_marked();
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        world.vfs.setattr(caller(), node, None, set).expect("cut");
        world.recorder.take_marked()
    };
    let is_whole = |cell: &MarkCell| matches!(cell, MarkCell::File { block: WHOLE_FILE, .. });
    assert!(!cut(2 * MARK_BLOCK + 5).iter().any(is_whole), "within one block that block is enough");
    assert!(cut(100).iter().any(is_whole));
}

/// ext4 takes back a rename that was to leave a whiteout when the target turns out not to be empty, and gives the directory a new time for it.
#[test]
fn a_rename_that_fails_says_what_time_its_directory_has() {
    let world = world();
    for (parent, name) in [("", "moved"), ("", "full"), ("full", "inside")] {
        let parent = if parent.is_empty() {
            ROOT_NODE
        } else {
            world.vfs.lookup(caller(), ROOT_NODE, OsStr::new(parent)).expect("there").node
        };
        world.vfs.mkdir(making(parent, name), 0o755).expect("room");
    }
    let place = |name| Place { parent: ROOT_NODE, name: OsStr::new(name) };
    for flags in [0, libc::RENAME_WHITEOUT, libc::RENAME_NOREPLACE] {
        // The times that files are given move in steps of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        world.vfs.rename(caller(), place("moved"), place("full"), flags).expect_err("it is not empty");
        world.check(&format!("rename with flags {flags}"));
    }
}

#[test]
fn a_hole_of_thousands_of_blocks_is_one_mark() {
    let world = world();
    let file = std::fs::File::options().write(true).open(world.dir.path().join("a/b")).expect("open");
    file.set_len(5000 * MARK_BLOCK).expect("size");
    let dir = world.vfs.lookup(caller(), ROOT_NODE, OsStr::new("a")).expect("dir").node;
    let node = world.vfs.lookup(caller(), dir, OsStr::new("b")).expect("file").node;
    let handle = world.vfs.open(node, libc::O_RDWR).expect("open").handle;
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    world.recorder.take_marked();
    world.vfs.fallocate(caller(), handle, punch, 0, 5000 * MARK_BLOCK).expect("punched");
    assert!(world.recorder.take_marked().len() <= 2);
}

#[test]
fn a_write_between_two_fsyncs_that_wait_for_the_replica_is_one_op_and_the_mtime_is_true() {
    let world = world_with(FsyncMode::Durable);
    let vfs = &world.vfs;
    let (_, opened) = vfs.create(making(ROOT_NODE, "new"), 0o644, libc::O_RDWR).expect("create");
    let fsync = || {
        vfs.fsync(caller(), opened.handle, false, Box::new(|done| done.expect("fsync")));
    };
    let write = |at| assert_eq!(vfs.write(caller(), opened.handle, at, b"x", false).expect("write"), 1);
    write(0);
    fsync();
    for at in 1..10 {
        let before = world.recorder.len();
        write(at);
        fsync();
        assert_eq!(world.recorder.len(), before + 1, "write {at}");
        world.check("after each");
    }
    // Without an fsync in between only the first one says it; the rest is sent when the writing pauses.
    for at in 10..20 {
        write(at);
    }
    world.check("after many");
}

#[test]
fn fsyncs_that_do_not_wait_for_the_replica_have_the_mtime_said_now_and_then_and_the_last_one_at_rest() {
    let world = world();
    let vfs = &world.vfs;
    let (_, opened) = vfs.create(making(ROOT_NODE, "new"), 0o644, libc::O_RDWR).expect("create");
    let before = world.recorder.len();
    let begun = std::time::Instant::now();
    for at in 0..20 {
        assert_eq!(vfs.write(caller(), opened.handle, at, b"x", false).expect("write"), 1);
        vfs.fsync(caller(), opened.handle, false, Box::new(|done| done.expect("fsync")));
    }
    let said = world.recorder.len() - before - 20;
    let tenths = begun.elapsed().as_millis() as usize / 100;
    assert!((1..=1 + tenths).contains(&said), "{said} times in {tenths} tenths of a second");
    world.check("at rest");
    vfs.release(caller(), opened.handle).expect("release");
    world.check("closed");
}

#[test]
fn with_the_kernels_write_cache_it_asks_again_only_for_other_blocks_and_an_old_time_is_put_right_by_the_fsync() {
    let world = world();
    let vfs = Vfs::new(world.backing.clone(), world.recorder.clone(), FsyncMode::Local).expect("vfs");
    let vfs = vfs.with_cache_mode(CacheMode::Writeback);
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    vfs.when_attributes_change(Box::new(move |_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    let (entry, opened) = vfs.create(making(ROOT_NODE, "new"), 0o644, libc::O_RDWR).expect("create");
    let write_and_fsync = |at: u64| {
        assert_eq!(vfs.write(caller(), opened.handle, at, &[1; 4096], false).expect("write"), 4096);
        vfs.fsync(caller(), opened.handle, false, Box::new(|done| done.expect("fsync")));
        asked.swap(0, Ordering::SeqCst)
    };
    let below = || {
        let there = std::fs::metadata(world.dir.path().join("new")).expect("there");
        Timestamp { seconds: there.mtime(), nanos: there.mtime_nsec() as u32 }
    };
    assert_eq!(write_and_fsync(0), 1);
    assert_eq!((0..10).map(|_| write_and_fsync(0)).sum::<usize>(), 0, "it takes no other blocks");
    assert_eq!(write_and_fsync(1 << 20), 1);
    let old = Timestamp { seconds: 1_000_000_000, nanos: 5 };
    let set = SetAttr { mtime: Some(SetTime::At(old)), ..SetAttr::default() };
    vfs.setattr(caller(), entry.node, None, set).expect("set");
    write_and_fsync(0);
    assert_eq!(below(), old, "the time that the kernel has");
    vfs.release(caller(), opened.handle).expect("release");
    world.check("closed");
}

#[test]
fn the_kernel_is_told_of_other_times_that_it_only_asks_for_again_and_once_more_when_storing_pauses() {
    let world = world();
    let vfs = &world.vfs;
    let told = Arc::new(Mutex::new(Vec::<u64>::new()));
    let kept = told.clone();
    vfs.when_attributes_change(Box::new(move |node| kept.lock().push(node)));
    let told_of = || std::mem::take(&mut *told.lock());
    let (one, opened) = vfs.create(making(ROOT_NODE, "one"), 0o644, libc::O_RDWR).expect("create");
    assert_eq!(vfs.write(caller(), opened.handle, 0, b"x", false).expect("write"), 1);
    assert!(told_of().is_empty(), "a write(2) it counts itself");
    let store = |tell: &dyn Fn()| {
        let write = Write { handle: opened.handle, offset: 0, data: b"y", writer: Writer::PageCache };
        vfs.write_keeping(caller(), write, Bytes::copy_from_slice, |_| tell()).expect("written");
    };
    store(&|| assert!(told_of().is_empty(), "nobody has asked"));
    vfs.getattr(caller(), one.node, None).expect("there");
    store(&|| assert_eq!(told_of(), [one.node], "before it is answered"));
    vfs.flush(caller(), opened.handle).expect("flush");
    assert!(told_of().is_empty(), "that its time was said");
    vfs.settle_all();
    assert_eq!(told_of(), [one.node], "once more");
    vfs.settle_all();
    assert!(told_of().is_empty());
    world.check("stored");
}

/// What it is, of which nodes it makes void what others were told, and the call.
type Call<'a> = (&'a str, &'a [u64], &'a dyn Fn() -> VfsResult<()>);

#[test]
fn what_somebody_else_was_told_of_is_made_void_by_who_changes_it() {
    struct One(u32);
    impl Sink for One {
        fn take(&mut self, _: Listed<'_>, _: Option<&Entry>) -> bool {
            self.0 += 1;
            false
        }
    }
    let world = world();
    let vfs = &world.vfs;
    let told = Arc::new(Mutex::new(Vec::<u64>::new()));
    let kept = told.clone();
    vfs.when_attributes_change(Box::new(move |node| kept.lock().push(node)));
    let told_of = || std::mem::take(&mut *told.lock());
    let other = Caller { pid: caller().pid + 1, ..caller() };
    let (file, opened) = vfs.create(making(ROOT_NODE, "file"), 0o644, libc::O_RDWR).expect("create");
    let (twin, _) = vfs.create(making(ROOT_NODE, "twin"), 0o644, libc::O_RDWR).expect("create");
    let dir = vfs.mkdir(making(ROOT_NODE, "dir"), 0o755).expect("mkdir").node;
    let place = |parent, name| Place { parent, name: OsStr::new(name) };
    let user = OsStr::new("user.some");
    let (id, set) = (twin.node, |mode| SetAttr { mode: Some(mode), ..SetAttr::default() });
    let calls: [Call<'_>; 12] = [
        ("mknod", &[dir], &|| vfs.mknod(making(dir, "node"), libc::S_IFIFO | 0o600, 0).map(drop)),
        ("link", &[dir], &|| vfs.link(caller(), id, dir, OsStr::new("link")).map(drop)),
        ("symlink", &[dir], &|| vfs.symlink(making(dir, "symlink"), OsStr::new("x")).map(drop)),
        ("unlink", &[dir], &|| vfs.unlink(caller(), dir, OsStr::new("symlink"))),
        ("mkdir", &[dir], &|| vfs.mkdir(making(dir, "below"), 0o755).map(drop)),
        ("rmdir", &[dir], &|| vfs.rmdir(caller(), dir, OsStr::new("below"))),
        ("rename", &[ROOT_NODE, dir, file.node], &|| {
            vfs.rename(caller(), place(ROOT_NODE, "file"), place(dir, "f"), 0)
        }),
        ("exchange", &[dir, ROOT_NODE, file.node, id], &|| {
            vfs.rename(caller(), place(dir, "f"), place(ROOT_NODE, "twin"), libc::RENAME_EXCHANGE)
        }),
        ("setxattr", &[file.node], &|| vfs.setxattr(caller(), file.node, user, b"x", 0)),
        ("removexattr", &[file.node], &|| vfs.removexattr(caller(), file.node, user)),
        ("fallocate", &[file.node], &|| {
            vfs.fallocate(caller(), opened.handle, libc::FALLOC_FL_KEEP_SIZE, 1 << 20, 4096)
        }),
        ("chmod, of which the kernel knows itself", &[], &|| {
            vfs.setattr(caller(), file.node, None, set(0o600)).map(drop)
        }),
    ];
    for (name, changed, call) in calls {
        for node in changed {
            vfs.getattr(other, *node, None).expect("there");
        }
        call().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(told_of(), changed, "{name}");
    }
    // By name and by list as well; but not who asked himself.
    let make = |name| vfs.mkdir(making(dir, name), 0o755).map(drop).expect("mkdir");
    vfs.getattr(caller(), dir, None).expect("there");
    make("1");
    assert!(told_of().is_empty(), "he has heard of it");
    vfs.lookup(other, ROOT_NODE, OsStr::new("dir")).expect("there");
    make("2");
    assert_eq!(told_of(), [dir]);
    vfs.readdir_plus(other, ROOT_NODE, 0, &mut One(0)).expect("listed");
    make("3");
    assert_eq!(told_of(), [dir]);
    make("4");
    assert!(told_of().is_empty(), "nobody asked since");
}

#[test]
fn a_rule_for_a_path_follows_what_is_moved_in_and_out_of_it() {
    let mut rules = FsyncRules::from(FsyncMode::Local);
    rules.set_below(b"/db", FsyncMode::Durable).expect("path");
    rules.set_below(b"/db/tmp", FsyncMode::Local).expect("path");
    let world = world_with(rules);
    let vfs = &world.vfs;
    let waits = |fsync: &dyn Fn()| {
        let before = world.recorder.promises.load(Ordering::Relaxed);
        fsync();
        world.recorder.promises.load(Ordering::Relaxed) > before
    };
    let fsync = |handle| {
        waits(&|| {
            vfs.fsync(caller(), handle, false, Box::new(|done| done.expect("fsync")));
        })
    };
    let fsync_dir = |node| {
        waits(&|| {
            vfs.fsync_dir(node, Box::new(|done| done.expect("fsync")));
        })
    };
    let place = |parent, name: &'static str| Place { parent, name: OsStr::new(name) };

    let db = vfs.mkdir(making(ROOT_NODE, "db"), 0o755).expect("mkdir").node;
    let deep = vfs.mkdir(making(db, "deep"), 0o755).expect("mkdir").node;
    let tmp = vfs.mkdir(making(db, "tmp"), 0o755).expect("mkdir").node;
    assert!(fsync_dir(db) && fsync_dir(deep) && !fsync_dir(tmp) && !fsync_dir(ROOT_NODE));
    let (file, opened) = vfs.create(making(deep, "file"), 0o644, libc::O_RDWR).expect("create");
    assert!(fsync(opened.handle));

    // The directory moves out with all that is in it, and in again.
    vfs.rename(caller(), place(ROOT_NODE, "db"), place(ROOT_NODE, "elsewhere"), 0).expect("rename");
    assert!(!fsync(opened.handle) && !fsync_dir(deep));
    vfs.rename(caller(), place(ROOT_NODE, "elsewhere"), place(ROOT_NODE, "db"), 0).expect("rename");
    assert!(fsync(opened.handle));

    // The file moves to where the rule is another.
    vfs.rename(caller(), place(deep, "file"), place(tmp, "file"), 0).expect("rename");
    assert!(!fsync(opened.handle));
    // The strictest of several names binds; when it goes, the other one does.
    vfs.link(caller(), file.node, deep, OsStr::new("second")).expect("link");
    assert!(fsync(opened.handle));
    vfs.unlink(caller(), deep, OsStr::new("second")).expect("unlink");
    assert!(!fsync(opened.handle));
    // Without a name it keeps the rule that it had.
    vfs.rename(caller(), place(tmp, "file"), place(db, "file"), 0).expect("rename");
    vfs.unlink(caller(), db, OsStr::new("file")).expect("unlink");
    assert!(fsync(opened.handle));
}
