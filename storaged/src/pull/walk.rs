//! Walks a replica that stands still, in the catalog's order: directories before what they hold, each inode at its first name, and
//! linked at the others.

use std::collections::HashMap;

use bytes::Bytes;
use tandem_proto::{
    convert,
    ids::{InodeId, Name},
    op::{AttrPatch, NodeKind},
    pb::{self, pull_message::Body},
};
use tonic::Status;

use super::Stop;
use crate::{
    reader::{ReplicaFile, ReplicaReader},
    tree::FsTree,
};

/// Names that are read from the catalog at once.
const PAGE: usize = 1024;
/// Bytes in one message.
pub const DATA_BYTES: usize = 256 << 10;

/// Where a walk leads.
pub trait Sink {
    /// An inode or a link.
    fn put(&mut self, body: Body) -> Result<(), Stop>;
    /// The data of the regular file that was put last.
    fn data(&mut self, file: &dyn Extents, size: u64) -> Result<(), Stop>;
    /// Whether the walk must end.
    fn check(&self) -> Result<(), Stop>;
}

/// Data of a file, wherever it lies.
pub trait Extents {
    /// Reads at an offset until `buffer` is full or the file ends.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize>;
    /// The next range at or after `from` that is not a hole.
    fn next_data(&self, from: u64) -> std::io::Result<Option<(u64, u64)>>;
    /// Makes an empty file share the data.
    fn share_with(&self, file: &std::fs::File) -> std::io::Result<()>;
}

impl Extents for ReplicaFile<FsTree> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        ReplicaFile::read_at(self, offset, buffer)
    }

    fn next_data(&self, from: u64) -> std::io::Result<Option<(u64, u64)>> {
        ReplicaFile::next_data(self, from)
    }

    fn share_with(&self, file: &std::fs::File) -> std::io::Result<()> {
        ReplicaFile::share_with(self, file)
    }
}

/// Reads a file's data in messages.
pub fn each_data(file: &dyn Extents, mut put: impl FnMut(pb::PullData) -> Result<(), Stop>) -> Result<(), Stop> {
    let failed = |error: std::io::Error| Stop::Failed(Status::internal(format!("reading a file: {error}")));
    let mut from = 0;
    while let Some((start, end)) = file.next_data(from).map_err(failed)? {
        let mut at = start;
        while at < end {
            let mut bytes = vec![0; DATA_BYTES.min((end - at) as usize)];
            let read = file.read_at(at, &mut bytes).map_err(failed)?;
            bytes.truncate(read);
            if read == 0 {
                break;
            }
            let crc32c = crc32c::crc32c(&bytes);
            put(pb::PullData { offset: at, data: bytes.into(), crc32c })?;
            at += read as u64;
        }
        from = end;
    }
    Ok(())
}

/// A directory whose names are being sent.
struct Open {
    id: InodeId,
    path: Vec<Name>,
    page: std::vec::IntoIter<(Name, InodeId)>,
    after: Option<Name>,
}

impl Open {
    fn new(id: InodeId, path: Vec<Name>) -> Self {
        Open { id, path, page: Vec::new().into_iter(), after: None }
    }

    /// The next name.
    fn next(&mut self, reader: &ReplicaReader<FsTree>) -> Result<Option<(Name, InodeId)>, Stop> {
        if let Some(entry) = self.page.next() {
            return Ok(Some(entry));
        }
        let page = reader.entries(&self.id, self.after.as_ref(), PAGE)?;
        self.after = page.last().map(|(name, _)| name.clone()).or(self.after.take());
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}

fn wire_path(path: &[Name]) -> Vec<Bytes> {
    path.iter().map(Name::to_bytes).collect()
}

/// Walks everything.
pub fn walk(reader: &ReplicaReader<FsTree>, sink: &mut dyn Sink) -> Result<(), Stop> {
    // First paths of inodes that have several names.
    let mut linked: HashMap<InodeId, Vec<Name>> = HashMap::new();
    let mut open = Vec::new();
    if node(reader, sink, &InodeId::ROOT, &[], &mut linked)? {
        open.push(Open::new(InodeId::ROOT, Vec::new()));
    }
    while let Some(dir) = open.last_mut() {
        sink.check()?;
        let Some((name, id)) = dir.next(reader)? else {
            open.pop();
            continue;
        };
        let mut path = dir.path.clone();
        path.push(name);
        if let Some(first) = linked.get(&id) {
            sink.put(Body::Link(pb::PullLink { path: wire_path(&path), target: wire_path(first) }))?;
        } else if node(reader, sink, &id, &path, &mut linked)? {
            open.push(Open::new(id, path));
        }
    }
    Ok(())
}

/// Puts an inode with its data; whether it is a directory.
fn node(
    reader: &ReplicaReader<FsTree>,
    sink: &mut dyn Sink,
    id: &InodeId,
    path: &[Name],
    linked: &mut HashMap<InodeId, Vec<Name>>,
) -> Result<bool, Stop> {
    let gone = || Stop::Failed(Status::data_loss(format!("inode {id} has a name and is missing in the catalog")));
    let whole = reader.whole(id)?.ok_or_else(gone)?;
    let node = whole.node;
    let directory = node.kind == NodeKind::Directory;
    sink.put(Body::Node(pb::PullNode {
        path: wire_path(path),
        kind: Some((&node.kind).into()),
        attr: Some(convert::attr_message(&InodeId::ROOT, &AttrPatch::from(node.attr))),
        xattrs: convert::xattr_messages(&whole.xattrs),
        size: node.size,
    }))?;
    if let Some(file) = whole.file.filter(|_| node.size > 0) {
        sink.data(&file, node.size)?;
    }
    if !directory && reader.names(id)?.len() > 1 {
        linked.insert(*id, path.to_vec());
    }
    Ok(directory)
}
