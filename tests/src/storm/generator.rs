//! Makes up actions. Decides by its seed and by the outcomes that it was told, never by looking at a tree.

use rustix::io::Errno;

use crate::{
    rng::Rng,
    storm::action::{Action, Move, NodeToMake, Outcome, Path},
};

/// Open files of one worker.
pub const SLOTS: usize = 8;
/// Paths that a generator remembers; older ones are forgotten, which keeps a storm going on what still exists.
const KNOWN_MAX: usize = 400;

/// Times that are set, in seconds: all that ext4 keeps, from 1901-12-13 to 2446-05-10. What another file system cannot keep it clamps, the
/// same way below a mount as elsewhere.
const OLDEST: i64 = -(1 << 31);
const NEWEST: i64 = (1 << 34) - (1 << 31) - 1;

/// What a storm may do.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Largest usual write in bytes.
    pub write_max: usize,
    /// Directories are not made below this depth.
    pub depth_max: usize,
    /// Owners, devices and trusted xattrs, which only root may set.
    pub privileged: bool,
    /// Shared mappings.
    pub mmap: bool,
    /// Names of any bytes; else plain ones only.
    pub weird_names: bool,
    /// Inode flags (chattr) that may be set, each a combination; empty: none are. Whoever sets some must clear them at the end.
    pub inode_flags: &'static [u32],
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            write_max: 64 << 10,
            depth_max: 130,
            privileged: rustix::process::geteuid().is_root(),
            mmap: true,
            weird_names: true,
            inode_flags: &[],
        }
    }
}

/// An endless stream of actions.
#[derive(Clone, Debug)]
pub struct Generator {
    rng: Rng,
    shape: Shape,
    dirs: Vec<Path>,
    files: Vec<Path>,
    names: Vec<Vec<u8>>,
}

fn names(weird: bool) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = (0..24).map(|at| format!("n{at}").into_bytes()).collect();
    if weird {
        names.extend(
            [
                &b"\xff\xfe\x80"[..],
                b"line\nbreak",
                b" ",
                b"-rf",
                b"*?[",
                "ünïcödé ✓".as_bytes(),
                b"\x01\x7f",
                b"a\\b\"c'",
                b"...",
            ]
            .map(<[u8]>::to_vec),
        );
    }
    names
}

impl Generator {
    /// Actions of this seed.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let names = names(shape.weird_names);
        Generator { rng: Rng::new(seed), shape, dirs: vec![Path::default()], files: Vec::new(), names }
    }

    fn dir(&mut self) -> Path {
        // The last ones are the deepest and newest; both ends of the list must be met.
        match self.rng.below(10) {
            0..3 => Path::default(),
            3..5 => self.dirs.last().cloned().unwrap_or_default(),
            _ => self.rng.pick(&self.dirs).clone(),
        }
    }

    fn new_path(&mut self) -> Path {
        let dir = self.dir();
        if self.shape.weird_names && dir.0.len() < 3 && self.rng.chance(3) {
            return dir.child(&vec![b'a' + self.rng.below(4) as u8; 255]);
        }
        let name = self.rng.pick(&self.names).clone();
        dir.child(&name)
    }

    fn file(&mut self) -> Path {
        if self.files.is_empty() || self.rng.chance(15) { self.new_path() } else { self.rng.pick(&self.files).clone() }
    }

    fn any(&mut self) -> Path {
        match self.rng.below(10) {
            0..5 => self.file(),
            5..8 => self.rng.pick(&self.dirs).clone(),
            _ => self.new_path(),
        }
    }

    fn slot(&mut self) -> usize {
        self.rng.index(SLOTS)
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(20) {
            0 => self.rng.below(64 << 20),
            1..6 => self.rng.below(64) * 4096,
            _ => self.rng.below(256 << 10),
        }
    }

    fn len(&mut self) -> usize {
        match self.rng.below(10) {
            0 => 1 + self.rng.index(16),
            1..4 => 4096 * (1 + self.rng.index(4)),
            _ => 1 + self.rng.index(self.shape.write_max),
        }
    }

    fn fill(&mut self) -> u64 {
        self.rng.bits()
    }

    fn mode(&mut self) -> u32 {
        *self.rng.pick(&[0o644, 0o600, 0o755, 0o777, 0o444, 0o4755, 0o2770, 0o1777, 0o000])
    }

    /// The next action.
    pub fn next_action(&mut self) -> Action {
        match self.rng.below(100) {
            0..40 => self.on_open_file(),
            40..62 => self.make(),
            62..84 => self.move_or_remove(),
            84..95 => self.attributes(),
            _ => self.look(),
        }
    }

    fn on_open_file(&mut self) -> Action {
        let slot = self.slot();
        match self.rng.below(40) {
            0..7 => Action::Open { slot, path: self.file(), append: self.rng.chance(30), create: self.rng.chance(60) },
            7..17 => Action::Write { slot, offset: self.offset(), len: self.len(), fill: self.fill() },
            17..22 => Action::WriteNext { slot, len: self.len(), fill: self.fill() },
            22..24 if self.shape.mmap => Action::MapWrite {
                slot,
                offset: self.rng.below(64 << 10),
                len: 1 + self.rng.index(9000),
                fill: self.fill(),
            },
            22..26 => Action::SetLen { slot, len: self.rng.below(300 << 10) },
            26..27 => Action::Allocate { slot, offset: self.offset(), len: 1 + self.rng.below(64 << 10) },
            27..29 => Action::Punch { slot, offset: self.offset(), len: 1 + self.rng.below(64 << 10) },
            29..30 => Action::Zero { slot, offset: self.offset(), len: 1 + self.rng.below(64 << 10) },
            30..32 => Action::Sync { slot },
            32..35 => Action::Close { slot },
            35..37 => Action::Copy {
                from: slot,
                to: self.slot(),
                from_offset: self.rng.below(128 << 10),
                to_offset: self.offset(),
                // From some length on a copy is sent as one, without its bytes.
                len: if self.rng.chance(40) { self.rng.index(512 << 10) } else { self.len() },
            },
            _ => Action::Read { slot, offset: self.rng.below(128 << 10), len: self.len() },
        }
    }

    fn make(&mut self) -> Action {
        let path = self.new_path();
        match self.rng.below(20) {
            0..9 => Action::Create { path, mode: self.mode(), len: self.len(), fill: self.fill() },
            9..10 => {
                let named = self.rng.chance(80);
                Action::CreateUnnamed { path, mode: self.mode(), len: self.len(), fill: self.fill(), named }
            }
            10..15 if path.0.len() > self.shape.depth_max => Action::Unlink { path },
            10..15 => Action::MakeDir { path, mode: self.mode() | 0o700 },
            15..16 => {
                let node = match self.rng.below(4) {
                    0 => NodeToMake::Regular,
                    1 => NodeToMake::Socket,
                    2 if self.shape.privileged => NodeToMake::CharDevice,
                    _ => NodeToMake::Fifo,
                };
                Action::MakeNode { path, node, mode: self.mode() }
            }
            16..18 => {
                let longest = if self.rng.chance(10) { 4000 } else { 40 };
                let len = 1 + self.rng.index(longest);
                let target = crate::rng::content(self.fill(), len).iter().map(|byte| byte | 1).collect();
                Action::Symlink { path, target }
            }
            _ => Action::Link { from: self.file(), to: path },
        }
    }

    fn move_or_remove(&mut self) -> Action {
        let path = self.file();
        match self.rng.below(22) {
            0..6 => Action::Rename { from: path, to: self.new_path(), how: Move::Plain },
            6..8 => Action::Rename { from: path, to: self.file(), how: Move::Plain },
            8..9 => Action::Rename { from: path, to: self.new_path(), how: Move::NoReplace },
            9..11 => Action::Rename { from: self.any(), to: self.any(), how: Move::Exchange },
            11..12 if self.shape.privileged => Action::Rename { from: path, to: self.new_path(), how: Move::Whiteout },
            11..15 => Action::Rename { from: self.rng.pick(&self.dirs).clone(), to: self.new_path(), how: Move::Plain },
            15..19 => Action::Unlink { path },
            19..20 => Action::RemoveDir { path: self.rng.pick(&self.dirs).clone() },
            20 if self.rng.chance(30) => Action::RemoveAll { path: self.rng.pick(&self.dirs).clone() },
            _ => Action::TruncatePath { path, len: self.rng.below(200 << 10) },
        }
    }

    fn attributes(&mut self) -> Action {
        let path = self.any();
        if !self.shape.inode_flags.is_empty() && self.rng.chance(12) {
            return Action::SetFlags { path, flags: *self.rng.pick(self.shape.inode_flags) };
        }
        match self.rng.below(12) {
            0..3 => Action::SetMode { path, mode: self.mode() },
            3..5 if self.shape.privileged => {
                Action::SetOwner { path, uid: self.rng.below(3) as u32, gid: self.rng.below(3) as u32 }
            }
            3..7 => Action::SetTimes {
                path,
                seconds: OLDEST + self.rng.below(OLDEST.abs_diff(NEWEST) + 1) as i64,
                nanos: self.rng.below(1_000_000_000) as u32,
            },
            7..10 => {
                let name = *self.rng.pick(&["user.a", "user.long", "trusted.t"]);
                let name = if self.shape.privileged { name } else { "user.a" };
                let len = if name == "user.long" { self.rng.index(2000) } else { self.rng.index(60) };
                Action::SetXattr { path, name, value: crate::rng::content(self.fill(), len) }
            }
            10 => Action::RemoveXattr { path, name: "user.a" },
            _ => {
                let name = *self.rng.pick(&["system.posix_acl_access", "system.posix_acl_default"]);
                Action::SetXattr { path, name, value: acl(&mut self.rng) }
            }
        }
    }

    fn look(&mut self) -> Action {
        if self.rng.chance(60) { Action::Stat { path: self.any() } } else { Action::List { path: self.dir() } }
    }

    /// Remembers what exists now.
    pub fn learn(&mut self, action: &Action, outcome: &Outcome) {
        match (action, outcome) {
            (Action::MakeDir { path, .. }, Ok(_) | Err(Errno::EXIST)) => remember(&mut self.dirs, path, &mut self.rng),
            (Action::CreateUnnamed { path, named: true, .. }, Ok(_)) => remember(&mut self.files, path, &mut self.rng),
            (Action::Create { path, .. } | Action::Symlink { path, .. } | Action::MakeNode { path, .. }, Ok(_))
            | (Action::Open { path, create: true, .. } | Action::Link { to: path, .. }, Ok(_)) => {
                remember(&mut self.files, path, &mut self.rng);
            }
            (Action::Rename { from, to, how }, Ok(_)) => self.renamed(from, to, *how),
            (Action::Unlink { path } | Action::RemoveDir { path } | Action::RemoveAll { path }, Ok(_)) => {
                self.forget(path)
            }
            (action, Err(Errno::NOENT | Errno::NOTDIR)) => {
                if let Some(path) = subject(action) {
                    self.forget(&path.clone());
                }
            }
            _ => {}
        }
    }

    fn renamed(&mut self, from: &Path, to: &Path, how: Move) {
        if how == Move::Exchange || from == to {
            return;
        }
        for list in [&mut self.dirs, &mut self.files] {
            list.retain(|path| !path.is_within(to) || path.0.is_empty());
            for path in list.iter_mut().filter(|path| path.is_within(from)) {
                let mut names = to.0.clone();
                names.extend_from_slice(&path.0[from.0.len()..]);
                *path = Path(names);
            }
        }
    }

    fn forget(&mut self, gone: &Path) {
        if gone.0.is_empty() {
            return;
        }
        self.dirs.retain(|path| !path.is_within(gone));
        self.files.retain(|path| !path.is_within(gone));
    }
}

fn remember(list: &mut Vec<Path>, path: &Path, rng: &mut Rng) {
    if list.contains(path) {
        return;
    }
    list.push(path.clone());
    if list.len() > KNOWN_MAX {
        // Index 0 of the directories is the root, which stays.
        let drop = 1 + rng.index(list.len() - 2);
        list.remove(drop);
    }
}

fn subject(action: &Action) -> Option<&Path> {
    match action {
        Action::Unlink { path }
        | Action::RemoveDir { path }
        | Action::RemoveAll { path }
        | Action::SetMode { path, .. }
        | Action::SetOwner { path, .. }
        | Action::SetTimes { path, .. }
        | Action::SetXattr { path, .. }
        | Action::SetFlags { path, .. }
        | Action::Stat { path }
        | Action::List { path }
        | Action::TruncatePath { path, .. }
        | Action::Open { path, .. }
        | Action::Rename { from: path, .. }
        | Action::Link { from: path, .. } => Some(path),
        _ => None,
    }
}

/// A valid POSIX ACL: version 2, then (tag, permissions, id) of owner, a named user, group, mask, others.
fn acl(rng: &mut Rng) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let named = 1000 + rng.below(3) as u32;
    for (tag, id) in [(0x01u16, u32::MAX), (0x02, named), (0x04, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        let permissions = if tag == 0x01 { 7 } else { rng.below(8) as u16 };
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}
