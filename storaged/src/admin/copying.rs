//! Reading files of a replica by path, for copies: what is there, and the bytes of one file from where a copy stopped.
//!
//! Each file is read while apply goes on. One that changed meanwhile is refused at its end, so that nobody takes a mixture for it.

use bytes::Bytes;
use tandem_proto::{
    convert,
    ids::{InodeId, Name},
    op::{AttrPatch, NodeKind},
    pb::{self, pull_message::Body},
};
use tonic::Status;

use super::archive::{Out, shown};
use crate::{
    apply::ApplyError,
    reader::{ReplicaFile, ReplicaReader},
};

/// Names that are read from the catalog at once.
const PAGE: usize = 1024;
/// Bytes in one message.
const DATA_BYTES: usize = 256 << 10;

fn failed(error: ApplyError) -> Status {
    Status::internal(error.to_string())
}

/// The inode at a path.
fn find(reader: &ReplicaReader, path: &[Bytes]) -> Result<InodeId, Status> {
    let mut at = InodeId::ROOT;
    for name in path {
        let name = Name::new(name.clone()).ok_or_else(|| Status::invalid_argument("no file name"))?;
        let found = reader.entry(&at, &name).map_err(failed)?;
        at = found.ok_or_else(|| Status::not_found(format!("{} is not in the volume", shown(path))))?;
    }
    Ok(at)
}

/// Tells what is at a path and, down to a depth, below it. Directories come before what they hold.
pub fn tree(reader: &ReplicaReader, request: &pb::TreeRequest, out: &Out<pb::TreeItem>) -> Result<(), Status> {
    let mut open = vec![(find(reader, &request.path)?, request.path.clone(), request.depth)];
    while let Some((id, path, depth)) = open.pop() {
        // What is gone since it was listed is not there.
        let Some(whole) = reader.whole(&id).map_err(failed)? else { continue };
        let node = pb::PullNode {
            path: path.clone(),
            kind: Some((&whole.node.kind).into()),
            attr: Some(convert::attr_message(&InodeId::ROOT, &AttrPatch::from(whole.node.attr))),
            xattrs: convert::xattr_messages(&whole.xattrs),
            size: whole.node.size,
        };
        if out.blocking_send(Ok(pb::TreeItem { node: Some(node) })).is_err() {
            return Ok(());
        }
        if depth == 0 || whole.node.kind != NodeKind::Directory {
            continue;
        }
        let mut after: Option<Name> = None;
        loop {
            let page = reader.entries(&id, after.as_ref(), PAGE).map_err(failed)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (name, child) in page {
                let mut path = path.clone();
                path.push(name.to_bytes());
                open.push((child, path, depth - 1));
            }
        }
    }
    Ok(())
}

/// What a file is known by while it is read.
fn stamp(reader: &ReplicaReader, id: &InodeId) -> Result<(u64, i64, u32), Status> {
    let node = reader.node(id).map_err(failed)?.ok_or_else(|| Status::aborted("it was deleted while it was read"))?;
    Ok((node.size, node.attr.mtime.seconds, node.attr.mtime.nanos))
}

/// Hashes the first bytes; whether they have this digest.
fn begins_with(file: &ReplicaFile, hasher: &mut blake3::Hasher, len: u64, digest: &[u8]) -> std::io::Result<bool> {
    let (mut at, mut buffer) = (0, vec![0; DATA_BYTES]);
    while at < len {
        let part = DATA_BYTES.min(usize::try_from(len - at).unwrap_or(usize::MAX));
        let read = file.read_at(at, &mut buffer[..part])?;
        if read == 0 {
            return Ok(false);
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    Ok(hasher.finalize().as_bytes()[..] == *digest)
}

/// Sends the bytes of a file from where a copy stopped.
pub fn read(reader: &ReplicaReader, request: &pb::ReadRequest, out: &Out<pb::PullMessage>) -> Result<(), Status> {
    let what = shown(&request.path);
    let io = |error: std::io::Error| Status::internal(format!("reading {what}: {error}"));
    let id = find(reader, &request.path)?;
    let before = stamp(reader, &id)?;
    let no_file = || Status::failed_precondition(format!("{what} is no regular file"));
    let file = reader.open(&id).map_err(failed)?.ok_or_else(no_file)?;
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    if request.offset > 0 && request.offset <= before.0 {
        if begins_with(&file, &mut hasher, request.offset, &request.prefix_digest).map_err(io)? {
            at = request.offset;
        } else {
            hasher.reset();
        }
    }
    let begin = at;
    let mut first = true;
    while at < before.0 || first {
        let mut data = vec![0; DATA_BYTES.min(usize::try_from(before.0 - at).unwrap_or(usize::MAX))];
        let read = file.read_at(at, &mut data).map_err(io)?;
        if read == 0 && at < before.0 {
            return Err(Status::aborted(format!("{what} got shorter while it was read")));
        }
        data.truncate(read);
        hasher.update(&data);
        let crc32c = crc32c::crc32c(&data);
        // The first says where the bytes begin, also if there are none.
        let body = Body::Data(pb::PullData { offset: at, data: data.into(), crc32c });
        if out.blocking_send(Ok(pb::PullMessage { body: Some(body) })).is_err() {
            return Ok(());
        }
        at += read as u64;
        first = false;
    }
    if stamp(reader, &id)? != before {
        return Err(Status::aborted(format!("{what} was changed while it was read")));
    }
    let digest = Bytes::copy_from_slice(hasher.finalize().as_bytes());
    let end = Body::End(pb::PullEnd { nodes: 1, bytes: at - begin, digest });
    let _ = out.blocking_send(Ok(pb::PullMessage { body: Some(end) }));
    Ok(())
}
