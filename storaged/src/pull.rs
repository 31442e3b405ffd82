//! `Pull`: the whole state of a volume at one position, for a folder that is filled from its replica.
//!
//! Apply stands still while it runs, logging goes on. Names are walked in the catalog's order, so that directories come before
//! what they hold; each inode is sent at its first name and linked at the others. A client that stops reading is given up, so
//! that it cannot hold apply for ever.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tandem_proto::{
    convert,
    ids::{InodeId, Name},
    op::{Attr, AttrPatch, NodeKind},
    pb::{self, pull_message::Body},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    apply::ApplyError,
    ingest::service::status,
    reader::ReplicaReader,
    tree::FsTree,
    volume::{
        facts::Facts,
        thread::{Command, Commands},
        volumes::Volume,
    },
};

/// Messages on their way to the client: 4 MiB of data.
const AHEAD: usize = 16;
/// Bytes in one message.
const DATA_BYTES: usize = 256 << 10;
/// Names that are read from the catalog at once.
const PAGE: usize = 1024;
/// A client that takes nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

type Out = mpsc::Sender<Result<pb::PullMessage, Status>>;

/// Stops apply at a position and streams the state there.
pub async fn start(volume: Arc<Volume>) -> Result<ReceiverStream<Result<pb::PullMessage, Status>>, Status> {
    let (facts, resume) = pause(volume.commands()).await?;
    let (out, stream) = mpsc::channel(AHEAD);
    let runtime = tokio::runtime::Handle::current();
    let spawned = std::thread::Builder::new().name("pull".to_owned()).spawn(move || {
        let _resume = resume;
        let sender = Sender { out, runtime };
        match send_all(&volume, &facts, &sender) {
            Ok((nodes, bytes)) => tracing::info!(directory = %volume.directory.display(), nodes, bytes, "pulled"),
            Err(Stop::Gone) => tracing::info!(directory = %volume.directory.display(), "the client of a pull left"),
            Err(Stop::Failed(error)) => {
                tracing::warn!(directory = %volume.directory.display(), error = error.message(), "pull failed");
                // Nobody to tell if the client left at the same time.
                let _ = sender.put(Err(error));
            }
        }
    });
    spawned.map_err(|error| Status::unavailable(format!("no thread for a pull: {error}")))?;
    Ok(ReceiverStream::new(stream))
}

/// Stops apply, and says where.
async fn pause(commands: Commands) -> Result<(Facts, Resume), Status> {
    let stopped = || Status::unavailable("the volume has stopped");
    let (reply, paused) = oneshot::channel();
    commands.send(Command::Pause(reply)).map_err(|_| stopped())?;
    // A task of its own: a client that leaves now drops this future, and with it an answer that is there already. Nobody would
    // end that pause.
    let waiting = tokio::spawn(async move {
        let facts = paused.await.map_err(|_| stopped())?.map_err(|refusal| status(&refusal))?;
        Ok((facts, Resume(commands)))
    });
    waiting.await.map_err(|_| stopped())?
}

/// Lets apply go on, however the pull ends.
#[derive(Debug)]
struct Resume(Commands);

impl Drop for Resume {
    fn drop(&mut self) {
        // A volume that has stopped needs no resuming.
        let _ = self.0.send(Command::Resume);
    }
}

enum Stop {
    /// Nobody listens any more.
    Gone,
    /// The replica could not be read.
    Failed(Status),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Stop::Failed(Status::internal(error.to_string()))
    }
}

struct Sender {
    out: Out,
    runtime: tokio::runtime::Handle,
}

impl Sender {
    fn put(&self, message: Result<pb::PullMessage, Status>) -> Result<(), Stop> {
        match self.out.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Stop::Gone),
            Err(mpsc::error::TrySendError::Full(message)) => {
                self.runtime.block_on(self.out.send_timeout(message, STALLED)).map_err(|_| Stop::Gone)
            }
        }
    }

    fn send(&self, body: Body) -> Result<(), Stop> {
        self.put(Ok(pb::PullMessage { body: Some(body) }))
    }
}

fn wire_path(path: &[Name]) -> Vec<Bytes> {
    path.iter().map(Name::to_bytes).collect()
}

fn attr_message(attr: Attr) -> pb::Attr {
    convert::attr_message(&InodeId::ROOT, &AttrPatch::from(attr))
}

/// Sends everything; returns how many inodes and bytes that were.
fn send_all(volume: &Volume, facts: &Facts, sender: &Sender) -> Result<(u64, u64), Stop> {
    let id = |id: &tandem_proto::Uuid| Bytes::copy_from_slice(&id.0);
    sender.send(Body::Header(pb::PullHeader {
        volume_id: id(&volume.identity.volume_id),
        replica_id: id(&volume.identity.replica_id),
        position: Some((&facts.published).into()),
    }))?;
    let mut walk = Walk { reader: &volume.reader, sender, linked: HashMap::new(), nodes: 0, bytes: 0 };
    walk.run()?;
    sender.send(Body::End(pb::PullEnd { nodes: walk.nodes, bytes: walk.bytes }))?;
    Ok((walk.nodes, walk.bytes))
}

/// A directory whose names are being sent.
struct Open {
    id: InodeId,
    path: Vec<Name>,
    page: std::vec::IntoIter<(Name, InodeId)>,
    after: Option<Name>,
}

struct Walk<'a> {
    reader: &'a ReplicaReader<FsTree>,
    sender: &'a Sender,
    /// First paths of inodes that have several names.
    linked: HashMap<InodeId, Vec<Name>>,
    nodes: u64,
    bytes: u64,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        let mut open = Vec::new();
        if self.node(&InodeId::ROOT, &[])? {
            open.push(Open { id: InodeId::ROOT, path: Vec::new(), page: Vec::new().into_iter(), after: None });
        }
        while let Some(dir) = open.last_mut() {
            let Some((name, id)) = next(self.reader, dir)? else {
                open.pop();
                continue;
            };
            let mut path = dir.path.clone();
            path.push(name);
            if let Some(first) = self.linked.get(&id) {
                self.sender.send(Body::Link(pb::PullLink { path: wire_path(&path), target: wire_path(first) }))?;
                continue;
            }
            if self.node(&id, &path)? {
                open.push(Open { id, path, page: Vec::new().into_iter(), after: None });
            }
        }
        Ok(())
    }

    /// Sends an inode with its data; whether it is a directory.
    fn node(&mut self, id: &InodeId, path: &[Name]) -> Result<bool, Stop> {
        let gone = || Stop::Failed(Status::data_loss(format!("inode {id} has a name and is missing in the catalog")));
        let node = self.reader.node(id)?.ok_or_else(gone)?;
        let xattrs = self.reader.xattrs(id)?.ok_or_else(gone)?;
        self.sender.send(Body::Node(pb::PullNode {
            path: wire_path(path),
            kind: Some((&node.kind).into()),
            attr: Some(attr_message(node.attr)),
            xattrs: convert::xattr_messages(&xattrs),
            size: node.size,
        }))?;
        self.nodes += 1;
        if node.kind.is_regular() {
            self.data(id)?;
        }
        let directory = node.kind == NodeKind::Directory;
        if !directory && self.reader.names(id)?.len() > 1 {
            self.linked.insert(*id, path.to_vec());
        }
        Ok(directory)
    }

    fn data(&mut self, id: &InodeId) -> Result<(), Stop> {
        let failed = |error: std::io::Error| Stop::Failed(Status::internal(format!("reading inode {id}: {error}")));
        let Some(file) = self.reader.open(id)? else { return Ok(()) };
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
                self.sender.send(Body::Data(pb::PullData { offset: at, data: bytes.into(), crc32c }))?;
                at += read as u64;
                self.bytes += read as u64;
            }
            from = end;
        }
        Ok(())
    }
}

/// The next name of a directory.
fn next(reader: &ReplicaReader<FsTree>, dir: &mut Open) -> Result<Option<(Name, InodeId)>, Stop> {
    if let Some(entry) = dir.page.next() {
        return Ok(Some(entry));
    }
    let page = reader.entries(&dir.id, dir.after.as_ref(), PAGE)?;
    dir.after = page.last().map(|(name, _)| name.clone()).or(dir.after.take());
    dir.page = page.into_iter();
    Ok(dir.page.next())
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        task::{Context, Waker},
        time::Duration,
    };

    use super::pause;
    use crate::volume::{facts::Facts, thread::Command};

    #[test]
    fn a_client_that_leaves_when_apply_has_just_stopped_lets_it_go_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (commands, received) = std::sync::mpsc::channel();
        runtime.block_on(async {
            let mut waiting = Box::pin(pause(commands));
            assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let Ok(Command::Pause(reply)) = received.try_recv() else { panic!("it asks for a pause") };
            assert!(reply.send(Ok(Facts::default())).is_ok(), "somebody waits for the answer");
            drop(waiting);
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        });
        assert!(
            matches!(received.recv_timeout(Duration::ZERO), Ok(Command::Resume)),
            "apply would stand still for ever"
        );
    }
}
