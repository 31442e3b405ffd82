//! Files of a volume for a copy: the list, then the bytes of what is asked for, one file after the other. On a thread of its own.

use bytes::Bytes;
use tandem_copy::{ITEMS_MAX, Readable, pattern, piece_of, send_file};
use tandem_proto::{
    VolumeName, convert,
    ids::{InodeId, Name},
    op::{AttrPatch, NodeKind},
    pb::{self, copy_down::Body},
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{
    apply::ApplyError,
    reader::{ReplicaFile, ReplicaReader},
};

/// Names that are read from the catalog at once.
const PAGE: usize = 1024;
/// Sources of one copy.
const PATHS_MAX: usize = 10_000;

type Out = mpsc::Sender<Result<pb::CopyDown, Status>>;

fn failed(error: ApplyError) -> Status {
    Status::internal(error.to_string())
}

fn down(body: Body) -> Result<pb::CopyDown, Status> {
    Ok(pb::CopyDown { body: Some(body) })
}

/// What a file is known by while it is read.
#[derive(PartialEq, Eq)]
struct Stamp(u64, i64, u32);

fn stamp(reader: &ReplicaReader, id: &InodeId) -> Option<Stamp> {
    let node = reader.node(id).ok().flatten()?;
    Some(Stamp(node.size, node.attr.mtime.seconds, node.attr.mtime.nanos))
}

/// A regular file of the replica, read while apply goes on.
pub(super) struct Opened {
    reader: ReplicaReader,
    id: InodeId,
    file: ReplicaFile,
    stamp: Stamp,
}

impl Opened {
    pub(super) fn open(reader: &ReplicaReader, id: &InodeId) -> Result<Opened, String> {
        let gone = || "it is not there any more".to_owned();
        let stamp = stamp(reader, id).ok_or_else(gone)?;
        let file = reader.open(id).map_err(|error| error.to_string())?.ok_or_else(gone)?;
        Ok(Opened { reader: reader.clone(), id: *id, file, stamp })
    }
}

impl Readable for Opened {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.file.read_at(offset, buffer)
    }

    fn piece(&self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        piece_of(self.file.descriptor(), offset, len)
    }

    fn size(&self) -> u64 {
        self.stamp.0
    }

    fn is_unchanged(&self) -> bool {
        stamp(&self.reader, &self.id).as_ref() == Some(&self.stamp)
    }
}

/// Lists what is to be copied, then answers what is wanted until nobody wants anything any more.
pub fn send(
    reader: ReplicaReader,
    volume: &VolumeName,
    open: &pb::CopyOpen,
    mut wants: mpsc::Receiver<pb::CopyWant>,
    out: &Out,
) {
    let mut listing = Listing { reader, volume, recursive: open.recursive, out, items: Vec::new() };
    match listing.list(&open.paths) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            // Who left does not hear it.
            let _ = out.blocking_send(Err(error));
            return;
        }
    }
    let Listing { reader, items, .. } = listing;
    while let Some(want) = wants.blocking_recv() {
        let opened = match items.get(want.item as usize).copied().flatten() {
            Some(id) => Opened::open(&reader, &id).map(|file| Box::new(file) as Box<dyn Readable>),
            None => Err("it is no regular file".to_owned()),
        };
        if !send_file(&want, opened, &mut |frame| out.blocking_send(down(Body::Frame(frame))).is_ok()) {
            return;
        }
    }
}

struct Listing<'a> {
    reader: ReplicaReader,
    volume: &'a VolumeName,
    recursive: bool,
    out: &'a Out,
    /// Of each item, the regular file that it is.
    items: Vec<Option<InodeId>>,
}

impl Listing<'_> {
    /// Whether anybody listens to the end.
    fn list(&mut self, paths: &[pb::CopyPath]) -> Result<bool, Status> {
        if paths.is_empty() || paths.len() > PATHS_MAX {
            return Err(Status::invalid_argument(format!("1 to {PATHS_MAX} paths are copied at a time")));
        }
        for path in paths {
            let found = self.expand(&path.names)?;
            if found.is_empty() {
                return Err(Status::not_found(format!("{} is not in volume {}", shown(&path.names), self.volume)));
            }
            for (id, name) in found {
                let directory = self.reader.node(&id).map_err(failed)?.is_some_and(|node| node.kind.is_directory());
                if directory && !self.recursive && !path.names.iter().any(|name| pattern::is_pattern(name)) {
                    return Err(Status::invalid_argument(format!("{} is a folder: use -r", shown(&path.names))));
                }
                if !self.walk(id, name)? {
                    return Ok(false);
                }
            }
        }
        Ok(self.out.blocking_send(down(Body::Listed(pb::CopyListed {}))).is_ok())
    }

    /// The inodes that a path means, each with its last name.
    fn expand(&self, path: &[Bytes]) -> Result<Vec<(InodeId, Bytes)>, Status> {
        let mut at = vec![(InodeId::ROOT, Bytes::copy_from_slice(self.volume.as_str().as_bytes()))];
        for part in path {
            let mut next = Vec::new();
            for (dir, _) in at {
                if pattern::is_pattern(part) {
                    self.matching(&dir, part, &mut next)?;
                } else {
                    let name = Name::new(part.clone()).ok_or_else(|| Status::invalid_argument("no file name"))?;
                    next.extend(self.reader.entry(&dir, &name).map_err(failed)?.map(|id| (id, part.clone())));
                }
            }
            at = next;
        }
        Ok(at)
    }

    fn matching(&self, dir: &InodeId, part: &[u8], found: &mut Vec<(InodeId, Bytes)>) -> Result<(), Status> {
        let mut after = None;
        loop {
            let page = self.reader.entries(dir, after.as_ref(), PAGE).map_err(failed)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            found.extend(
                page.into_iter()
                    .filter(|(name, _)| pattern::selects(part, name.as_bytes()))
                    .map(|(name, id)| (id, name.to_bytes())),
            );
        }
    }

    /// Tells an inode and, if it is a directory, what it holds.
    fn walk(&mut self, id: InodeId, name: Bytes) -> Result<bool, Status> {
        let mut open = vec![(id, vec![name])];
        while let Some((id, path)) = open.pop() {
            // What is gone since it was listed is not there.
            let Some(whole) = self.reader.whole(&id).map_err(failed)? else { continue };
            let kind = &whole.node.kind;
            let skipped = match kind {
                NodeKind::Directory if !self.recursive => "it is a folder: use -r",
                NodeKind::Regular | NodeKind::Directory | NodeKind::Symlink(_) => "",
                _ => "devices, pipes and sockets are not copied",
            };
            if self.items.len() >= ITEMS_MAX {
                return Err(Status::resource_exhausted(format!("more than {ITEMS_MAX} files: copy them in parts")));
            }
            self.items.push(kind.is_regular().then_some(id));
            let descend = kind.is_directory() && skipped.is_empty();
            let node = pb::PullNode {
                path: path.clone(),
                kind: Some(kind.into()),
                attr: Some(convert::attr_message(&InodeId::ROOT, &AttrPatch::from(whole.node.attr))),
                xattrs: convert::xattr_messages(&whole.xattrs),
                size: whole.node.size,
            };
            let item = pb::CopyItem { node: Some(node), skipped: skipped.to_owned() };
            if self.out.blocking_send(down(Body::Item(item))).is_err() {
                return Ok(false);
            }
            if descend {
                self.children(&id, &path, &mut open)?;
            }
        }
        Ok(true)
    }

    fn children(&self, id: &InodeId, path: &[Bytes], open: &mut Vec<(InodeId, Vec<Bytes>)>) -> Result<(), Status> {
        let (first, mut after) = (open.len(), None);
        loop {
            let page = self.reader.entries(id, after.as_ref(), PAGE).map_err(failed)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (name, child) in page {
                let mut path = path.to_vec();
                path.push(name.to_bytes());
                open.push((child, path));
            }
        }
        // Popped from the end: in the order of names.
        open[first..].reverse();
        Ok(())
    }
}

fn shown(path: &[Bytes]) -> String {
    path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
}
