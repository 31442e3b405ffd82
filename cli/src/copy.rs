//! Copies single paths of one tree into another, with the directories that lead to them: data and holes, modes, owners where that is
//! allowed, times, extended attributes.

use std::{
    collections::BTreeSet,
    fs::{self, File, FileTimes},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;

/// Copies from one tree to another.
pub struct Copier {
    from: PathBuf,
    to: PathBuf,
    /// Directories that were made; they get their attributes at the end, as filling them changes these.
    dirs: BTreeSet<PathBuf>,
    /// Paths that were copied.
    pub paths: u64,
    /// Bytes of files that were copied.
    pub bytes: u64,
}

impl Copier {
    /// From the tree at `from` to the one at `to`, which exists and is empty.
    pub fn new(from: &Path, to: &Path) -> Copier {
        Copier { from: from.to_owned(), to: to.to_owned(), dirs: BTreeSet::new(), paths: 0, bytes: 0 }
    }

    /// Copies one path, unless it is there already; `deep`: with all that a directory holds.
    pub fn copy(&mut self, path: &Path, deep: bool) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            self.make_dirs(parent)?;
        }
        let (from, to) = (self.from.join(path), self.to.join(path));
        let metadata = fs::symlink_metadata(&from)?;
        if metadata.is_dir() {
            self.make_dirs(path)?;
            if deep {
                for entry in fs::read_dir(&from)? {
                    self.copy(&path.join(entry?.file_name()), true)?;
                }
            }
        } else if fs::symlink_metadata(&to).is_err() {
            self.object(&from, &to, &metadata)?;
        } else {
            return Ok(());
        }
        self.paths += 1;
        Ok(())
    }

    /// Gives the directories their attributes, the deepest first.
    pub fn finish(&mut self) -> io::Result<()> {
        for path in std::mem::take(&mut self.dirs).into_iter().rev() {
            let (from, to) = (self.from.join(&path), self.to.join(&path));
            attributes(&from, &to, &fs::symlink_metadata(&from)?)?;
        }
        Ok(())
    }

    fn make_dirs(&mut self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || self.dirs.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_dirs(parent)?;
        }
        fs::create_dir(self.to.join(path))?;
        self.dirs.insert(path.to_owned());
        Ok(())
    }

    fn object(&mut self, from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        } else if kind.is_file() {
            self.bytes += data(from, to, metadata.len())?;
        } else {
            let (kind, device) = match () {
                () if kind.is_fifo() => (FileType::Fifo, 0),
                () if kind.is_socket() => (FileType::Socket, 0),
                () if kind.is_char_device() => (FileType::CharacterDevice, metadata.rdev()),
                () => (FileType::BlockDevice, metadata.rdev()),
            };
            rustix::fs::mknodat(CWD, to, kind, Mode::from_raw_mode(0o600), device)?;
        }
        attributes(from, to, metadata)
    }
}

/// Copies data and leaves holes out.
fn data(from: &Path, to: &Path, size: u64) -> io::Result<u64> {
    let (source, target) = (File::open(from)?, File::create_new(to)?);
    target.set_len(size)?;
    let (mut at, mut copied, mut piece) = (0, 0, vec![0; PIECE]);
    while at < size {
        at = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(at)).unwrap_or(size).min(size);
        while at < end {
            let want = piece.len().min(usize::try_from(end - at).unwrap_or(PIECE));
            let read = std::os::unix::fs::FileExt::read_at(&source, &mut piece[..want], at)?;
            if read == 0 {
                return Ok(copied);
            }
            std::os::unix::fs::FileExt::write_all_at(&target, &piece[..read], at)?;
            at += read as u64;
            copied += read as u64;
        }
    }
    Ok(copied)
}

/// Owner, extended attributes, mode, times, in this order: each may undo what is set after it.
fn attributes(from: &Path, to: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let owned = lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    if rustix::process::geteuid().is_root() {
        owned?;
    }
    xattrs(from, to)?;
    if !metadata.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    if metadata.is_file() {
        let times = FileTimes::new().set_modified(metadata.modified()?);
        return File::open(to)?.set_times(times);
    }
    let modified = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: modified, last_modification: modified };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let Ok(len) = rustix::fs::llistxattr(from, &mut names) else { return Ok(()) };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let name = std::ffi::OsStr::from_bytes(name);
        let Ok(len) = rustix::fs::lgetxattr(from, name, &mut value) else { continue };
        match rustix::fs::lsetxattr(to, name, &value[..len], XattrFlags::empty()) {
            // What another file system or user may not have stays behind; the list has the path.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

    use super::Copier;

    #[test]
    fn single_paths_arrive_with_their_directories_and_attributes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b/moved/deep")).expect("mkdir");
        fs::create_dir(&to).expect("mkdir");
        let file = fs::File::create(from.join("a/b/holes")).expect("create");
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 10 << 20).expect("write");
        fs::write(from.join("a/other"), "not asked for").expect("write");
        fs::write(from.join("a/b/moved/deep/x"), "x").expect("write");
        std::os::unix::fs::symlink("nowhere", from.join("link")).expect("symlink");
        let mut copier = Copier::new(&from, &to);
        copier.copy(Path::new("a/b/holes"), false).expect("copied");
        copier.copy(Path::new("a/b/moved"), true).expect("copied");
        copier.copy(Path::new("link"), false).expect("copied");
        copier.finish().expect("copied");
        assert_eq!(fs::read(to.join("a/b/holes")).expect("there"), fs::read(from.join("a/b/holes")).expect("there"));
        assert!(fs::metadata(to.join("a/b/holes")).expect("there").blocks() < 1000);
        assert_eq!(fs::read(to.join("a/b/moved/deep/x")).expect("there"), b"x");
        assert_eq!(fs::read_link(to.join("link")).expect("there"), Path::new("nowhere"));
        assert!(!to.join("a/other").exists());
        let mtime = |path: &Path| fs::metadata(path).expect("there").modified().expect("known");
        assert_eq!(mtime(&to.join("a/b")), mtime(&from.join("a/b")));
    }
}
