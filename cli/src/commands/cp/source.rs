//! Files of this machine for a copy: the list, and the bytes of what is asked for.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tandem_copy::{ITEMS_MAX, LocalFile, Readable, send_file};
use tandem_proto::pb::{self, copy_down::Body};
use tokio::sync::mpsc;

use super::usage;
use crate::exit::{Exit, Failure};

/// Everything that is to be copied, directories before what they hold.
pub struct Listed {
    items: Vec<(PathBuf, pb::CopyItem)>,
    /// What was finished by an attempt.
    done: HashSet<usize>,
}

fn kind_of(path: &Path, is: &fs::Metadata) -> io::Result<(pb::NodeKind, &'static str)> {
    let file_type = is.file_type();
    let (kind, skipped) = match () {
        () if file_type.is_file() => (pb::FileType::Regular, ""),
        () if file_type.is_dir() => (pb::FileType::Directory, ""),
        () if file_type.is_symlink() => (pb::FileType::Symlink, ""),
        () => (pb::FileType::Fifo, "devices, pipes and sockets are not copied"),
    };
    let target = match kind {
        pb::FileType::Symlink => Bytes::copy_from_slice(fs::read_link(path)?.as_os_str().as_bytes()),
        _ => Bytes::new(),
    };
    Ok((pb::NodeKind { r#type: kind.into(), target, ..Default::default() }, skipped))
}

fn node_of(path: &Path, names: &[Bytes], is: &fs::Metadata) -> io::Result<pb::CopyItem> {
    let (kind, skipped) = kind_of(path, is)?;
    let attr = pb::Attr {
        id: Bytes::new(),
        mode: Some(is.mode() & 0o7777),
        uid: Some(is.uid()),
        gid: Some(is.gid()),
        mtime_s: Some(is.mtime()),
        mtime_ns: u32::try_from(is.mtime_nsec()).unwrap_or(0),
    };
    let size = if is.is_file() { is.len() } else { 0 };
    let node = pb::PullNode { path: names.to_vec(), kind: Some(kind), attr: Some(attr), xattrs: Vec::new(), size };
    Ok(pb::CopyItem { node: Some(node), skipped: skipped.to_owned() })
}

impl Listed {
    /// Walks these paths. What was named is followed if it is a link, what is found below is not.
    pub fn list(paths: &[PathBuf], recursive: bool) -> Result<Listed, Failure> {
        let on = |path: &Path, error: io::Error| Failure::new(Exit::NoAnswer, format!("{}: {error}", path.display()));
        let mut listed = Listed { items: Vec::new(), done: HashSet::new() };
        for named in paths {
            let path = named.canonicalize().map_err(|error| on(named, error))?;
            // As it was named, unless that is no name, as `.`.
            let name = named.file_name().or(path.file_name()).ok_or_else(|| usage("name what below / is meant"))?;
            let mut open = vec![(path.clone(), vec![Bytes::copy_from_slice(name.as_bytes())])];
            while let Some((path, names)) = open.pop() {
                let is = match fs::symlink_metadata(&path) {
                    Ok(is) => is,
                    Err(error) if error.kind() == io::ErrorKind::NotFound && names.len() > 1 => continue,
                    Err(error) => return Err(on(&path, error)),
                };
                if is.is_dir() && !recursive {
                    return Err(usage(format!("{} is a folder: use -r", named.display())));
                }
                let item = node_of(&path, &names, &is).map_err(|error| on(&path, error))?;
                if is.is_dir() {
                    let first = open.len();
                    for entry in fs::read_dir(&path).map_err(|error| on(&path, error))? {
                        let entry = entry.map_err(|error| on(&path, error))?;
                        let mut names = names.clone();
                        names.push(Bytes::copy_from_slice(entry.file_name().as_bytes()));
                        open.push((entry.path(), names));
                    }
                    open[first..].sort_by(|left, right| right.0.cmp(&left.0));
                }
                if listed.items.len() >= ITEMS_MAX {
                    return Err(usage(format!("more than {ITEMS_MAX} files: copy them in parts")));
                }
                listed.items.push((path, item));
            }
        }
        Ok(listed)
    }

    /// What is left to be told: index of each, so that news of the other end can be understood.
    pub fn left(&self) -> Vec<usize> {
        (0..self.items.len()).filter(|index| !self.done.contains(index)).collect()
    }

    /// These were finished; numbers are of the list that was told.
    pub fn finished(&mut self, left: &[usize], numbers: &[u32]) {
        self.done.extend(numbers.iter().filter_map(|number| left.get(*number as usize)));
    }

    /// Files that were finished.
    pub fn done(&self) -> u64 {
        self.done.len() as u64
    }

    /// What is told, and opened when it is asked for.
    pub fn parts(&self, left: &[usize]) -> Vec<(PathBuf, pb::CopyItem)> {
        left.iter().filter_map(|index| self.items.get(*index)).cloned().collect()
    }
}

/// Tells the list and answers what is wanted, until nobody wants anything any more. On a thread of its own.
pub fn serve(
    items: Vec<(PathBuf, pb::CopyItem)>,
    mut wants: mpsc::Receiver<pb::CopyWant>,
    out: &mut dyn FnMut(Body) -> bool,
) {
    let mut paths = Vec::with_capacity(items.len());
    for (path, item) in items {
        if !out(Body::Item(item)) {
            return;
        }
        paths.push(path);
    }
    if !out(Body::Listed(pb::CopyListed {})) {
        return;
    }
    while let Some(want) = wants.blocking_recv() {
        let opened = match paths.get(want.item as usize) {
            Some(path) => LocalFile::open(path).map(|file| Box::new(file) as Box<dyn Readable>),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let opened = opened.map_err(|error| error.to_string());
        if !send_file(&want, opened, &mut |frame| out(Body::Frame(frame))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Listed;

    #[test]
    fn folders_come_before_what_they_hold_and_links_below_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("b/c")).expect("mkdir");
        fs::write(top.join("b/c/file"), "x").expect("written");
        fs::write(top.join("a"), "y").expect("written");
        std::os::unix::fs::symlink("/etc", top.join("link")).expect("linked");
        assert!(Listed::list(std::slice::from_ref(&top), false).is_err());
        let mut listed = Listed::list(std::slice::from_ref(&top), true).expect("listed");
        let path = |item: &super::pb::CopyItem| {
            let names = item.node.clone().expect("a node").path;
            names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>().join("/")
        };
        let all = listed.left();
        let paths: Vec<_> = listed.parts(&all).iter().map(|(_, item)| path(item)).collect();
        assert_eq!(paths, ["top", "top/a", "top/b", "top/b/c", "top/b/c/file", "top/link"]);
        listed.finished(&all, &[1]);
        let left = listed.left();
        listed.finished(&left, &[3]);
        assert_eq!((listed.left(), listed.done()), (vec![0, 2, 3, 5], 2));
    }
}
