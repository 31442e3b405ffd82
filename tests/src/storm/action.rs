//! What a storm can do, as data.

use std::fmt;

use rustix::io::Errno;

/// Names from the storm's root downwards; the empty path is the root. Any depth: it is walked name by name, so PATH_MAX is no limit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Path(pub Vec<Vec<u8>>);

impl Path {
    /// This path with one more name.
    pub fn child(&self, name: &[u8]) -> Path {
        let mut names = self.0.clone();
        names.push(name.to_vec());
        Path(names)
    }

    /// Directory and name; `None` for the root.
    pub fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0.split_last().map(|(name, dir)| (dir, name.as_slice()))
    }

    /// Whether it is `other` or lies below it.
    pub fn is_within(&self, other: &Path) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.0 {
            write!(f, "/{}", name.escape_ascii())?;
        }
        if self.0.is_empty() { f.write_str("/") } else { Ok(()) }
    }
}

/// How to rename.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Replaces what is there.
    Plain,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
    /// RENAME_WHITEOUT: a character device 0:0 takes the old name.
    Whiteout,
}

/// What mknod makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeToMake {
    /// An empty regular file.
    Regular,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device (that of /dev/null).
    CharDevice,
}

/// One operation. Slots are a worker's open files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the arguments of the system call that the variant names")]
pub enum Action {
    /// open(O_CREAT), write, close.
    Create {
        path: Path,
        mode: u32,
        len: usize,
        fill: u64,
    },
    /// open(O_TMPFILE) beside the path, write; then linkat gives it the path, or it goes away without ever having had a name.
    CreateUnnamed {
        path: Path,
        mode: u32,
        len: usize,
        fill: u64,
        named: bool,
    },
    /// Keeps a file open in a slot; with `create` it is made if it is missing.
    Open {
        slot: usize,
        path: Path,
        append: bool,
        create: bool,
    },
    Write {
        slot: usize,
        offset: u64,
        len: usize,
        fill: u64,
    },
    /// write(2) at the descriptor's place, which is the end with O_APPEND.
    WriteNext {
        slot: usize,
        len: usize,
        fill: u64,
    },
    /// Stores through a shared mapping, then msync.
    MapWrite {
        slot: usize,
        offset: u64,
        len: usize,
        fill: u64,
    },
    SetLen {
        slot: usize,
        len: u64,
    },
    /// fallocate without a flag.
    Allocate {
        slot: usize,
        offset: u64,
        len: u64,
    },
    /// fallocate(PUNCH_HOLE | KEEP_SIZE).
    Punch {
        slot: usize,
        offset: u64,
        len: u64,
    },
    /// fallocate(ZERO_RANGE).
    Zero {
        slot: usize,
        offset: u64,
        len: u64,
    },
    Sync {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Copy {
        from: usize,
        to: usize,
        from_offset: u64,
        to_offset: u64,
        len: usize,
    },
    Read {
        slot: usize,
        offset: u64,
        len: usize,
    },
    TruncatePath {
        path: Path,
        len: u64,
    },
    MakeDir {
        path: Path,
        mode: u32,
    },
    MakeNode {
        path: Path,
        node: NodeToMake,
        mode: u32,
    },
    Symlink {
        path: Path,
        target: Vec<u8>,
    },
    Link {
        from: Path,
        to: Path,
    },
    Rename {
        from: Path,
        to: Path,
        how: Move,
    },
    Unlink {
        path: Path,
    },
    RemoveDir {
        path: Path,
    },
    /// rm -r.
    RemoveAll {
        path: Path,
    },
    SetMode {
        path: Path,
        mode: u32,
    },
    SetOwner {
        path: Path,
        uid: u32,
        gid: u32,
    },
    SetTimes {
        path: Path,
        seconds: i64,
        nanos: u32,
    },
    SetXattr {
        path: Path,
        name: &'static str,
        value: Vec<u8>,
    },
    RemoveXattr {
        path: Path,
        name: &'static str,
    },
    /// FS_IOC_SETFLAGS (chattr): these of [`CHANGED_FLAGS`] are set, the others of them cleared.
    SetFlags {
        path: Path,
        flags: u32,
    },
    Stat {
        path: Path,
    },
    List {
        path: Path,
    },
}

/// Inode flags that a storm sets and clears: immutable, append-only, synchronous, no dump, no atime, synchronous directory.
pub const CHANGED_FLAGS: u32 = 0x10 | 0x20 | 0x08 | 0x40 | 0x80 | 0x1_0000;

/// What came of an action: a number that two equal trees agree on (bytes written, digest of what was read), or the errno.
pub type Outcome = Result<u64, Errno>;
