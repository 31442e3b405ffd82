//! A folder of this machine as the place where a copy goes.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::{CWD, Timespec, Timestamps};
use tandem_copy::{Destination, Failed, LocalFile, Readable, Taken, Whole};
use tandem_proto::{convert, op::Attr, pb};

use super::usage;
use crate::exit::Failure;

/// See the module.
pub struct Folder {
    into: PathBuf,
    rename: Option<OsString>,
    preserve: bool,
    /// Folders of the list, which exist. What is not below one of them is not written: a link of the list must not lead elsewhere.
    dirs: HashMap<Vec<Bytes>, PathBuf>,
    /// Their attributes, which are set at the end.
    attrs: Vec<(PathBuf, Attr)>,
    files: HashMap<u32, (PathBuf, Attr)>,
    whole: Vec<u32>,
}

fn item(path: &Path, error: impl std::fmt::Display) -> Failed {
    Failed::Item(format!("{}: {error}", path.display()))
}

/// The name of a file while it is incomplete.
fn partial(target: &Path) -> PathBuf {
    let mut name = vec![b'.'];
    name.extend_from_slice(target.file_name().unwrap_or_default().as_bytes());
    // Beside a name of the greatest length there is no room.
    name.truncate(240);
    name.extend_from_slice(b".tandem-part");
    target.with_file_name(OsString::from_vec(name))
}

fn set_attr(path: &Path, attr: &Attr, preserve: bool) -> io::Result<()> {
    if !preserve {
        return fs::set_permissions(path, fs::Permissions::from_mode(attr.mode & 0o777));
    }
    match std::os::unix::fs::lchown(path, Some(attr.uid), Some(attr.gid)) {
        // Only root gives files away.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(attr.mode & 0o7777))?;
    let time = Timespec { tv_sec: attr.mtime.seconds, tv_nsec: attr.mtime.nanos.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?)
}

impl Folder {
    /// `directory`: it has to be one.
    pub fn open(to: &Path, directory: bool, preserve: bool) -> Result<Folder, Failure> {
        let (into, rename) = if to.is_dir() {
            (to.to_owned(), None)
        } else if directory {
            return Err(usage(format!("{} is no folder", to.display())));
        } else {
            let name = to.file_name().ok_or_else(|| usage(format!("{} is no name", to.display())))?;
            let above = to.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if !above.is_dir() {
                return Err(usage(format!("there is no folder {}", above.display())));
            }
            (above.to_owned(), Some(name.to_owned()))
        };
        let (dirs, files) = (HashMap::new(), HashMap::new());
        Ok(Folder { into, rename, preserve, dirs, attrs: Vec::new(), files, whole: Vec::new() })
    }

    fn target(&self, node: &pb::PullNode) -> Result<PathBuf, Failed> {
        let (name, above) = node.path.split_last().ok_or_else(|| Failed::All("an item without a path".into()))?;
        let name = OsStr::from_bytes(name);
        if above.is_empty() {
            return Ok(self.into.join(self.rename.as_deref().unwrap_or(name)));
        }
        let above = self.dirs.get(above);
        let missing = || Failed::Item(format!("{}: its folder could not be made", name.to_string_lossy()));
        Ok(above.ok_or_else(missing)?.join(name))
    }
}

impl Destination for Folder {
    fn take(&mut self, key: u32, node: &pb::PullNode) -> Result<Taken, Failed> {
        let target = self.target(node)?;
        let attr = convert::attr_complete(&node.attr).map_err(|error| Failed::All(error.to_string()))?;
        let kind = node.kind.clone().unwrap_or_default();
        let there = fs::symlink_metadata(&target);
        match kind.r#type() {
            pb::FileType::Directory => {
                match there {
                    Ok(is) if is.is_dir() => {}
                    Ok(_) => return Err(item(&target, "something that is no folder is there")),
                    Err(_) => fs::create_dir(&target).map_err(|error| item(&target, error))?,
                }
                if self.dirs.insert(node.path.clone(), target.clone()).is_none() && self.preserve {
                    self.attrs.push((target, attr));
                }
                Ok(Taken::Made)
            }
            pb::FileType::Symlink => {
                match there {
                    Ok(is) if is.is_symlink() => fs::remove_file(&target).map_err(|error| item(&target, error))?,
                    Ok(_) => return Err(item(&target, "something that is no link is there")),
                    Err(_) => {}
                }
                let made = std::os::unix::fs::symlink(OsStr::from_bytes(&kind.target), &target);
                made.map(|()| Taken::Made).map_err(|error| item(&target, error))
            }
            pb::FileType::Regular if there.is_ok_and(|is| is.is_dir()) => Err(item(&target, "a folder is there")),
            pb::FileType::Regular => {
                self.files.insert(key, (target, attr));
                Ok(Taken::File)
            }
            _ => Err(item(&target, "devices, pipes and sockets are not copied")),
        }
    }

    fn partial(&self, key: u32) -> PathBuf {
        self.files.get(&key).map_or_else(|| self.into.join(".tandem-part"), |(target, _)| partial(target))
    }

    fn there(&self, key: u32, size: u64) -> Option<Box<dyn Readable>> {
        let file = LocalFile::open(&self.files.get(&key)?.0).ok()?;
        (file.size() == size).then(|| Box::new(file) as Box<dyn Readable>)
    }

    fn whole(&mut self, key: u32, how: Whole) -> Result<(), Failed> {
        let Some((target, attr)) = self.files.get(&key) else { return Ok(()) };
        let placed = match how {
            Whole::Arrived(part) => set_attr(&part, attr, self.preserve).and_then(|()| fs::rename(&part, target)),
            Whole::WasThere if self.preserve => set_attr(target, attr, true),
            Whole::WasThere => Ok(()),
        };
        placed.map_err(|error| item(target, error))?;
        self.whole.push(key);
        Ok(())
    }

    fn settle(&mut self, last: bool) -> Result<Vec<u32>, Failed> {
        if last {
            for (path, attr) in self.attrs.drain(..).rev() {
                set_attr(&path, &attr, true).map_err(|error| item(&path, error))?;
            }
            let synced = fs::File::open(&self.into).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
            synced.map_err(|error| item(&self.into, error))?;
        }
        Ok(std::mem::take(&mut self.whole))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use bytes::Bytes;
    use tandem_copy::{Destination as _, Failed};
    use tandem_proto::pb;

    use super::{Folder, partial};

    #[test]
    fn a_link_of_the_list_leads_nowhere() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut folder = Folder::open(dir.path(), false, false).expect("a folder");
        let node = |path: &[&'static str], kind: pb::FileType| pb::PullNode {
            path: path.iter().map(|name| Bytes::from_static(name.as_bytes())).collect(),
            kind: Some(pb::NodeKind { r#type: kind.into(), target: "/etc".into(), ..Default::default() }),
            attr: Some(pb::Attr {
                mode: Some(0o644),
                uid: Some(0),
                gid: Some(0),
                mtime_s: Some(1),
                ..Default::default()
            }),
            ..Default::default()
        };
        folder.take(0, &node(&["a"], pb::FileType::Symlink)).expect("made");
        assert!(matches!(folder.take(1, &node(&["a", "passwd"], pb::FileType::Regular)), Err(Failed::Item(_))));
        assert!(matches!(folder.take(2, &node(&["a"], pb::FileType::Directory)), Err(Failed::Item(_))));
        assert!(fs::symlink_metadata(dir.path().join("a")).expect("there").is_symlink());
        assert_eq!(partial(Path::new("/d/f")), Path::new("/d/.f.tandem-part"));
    }
}
