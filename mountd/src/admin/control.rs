//! MountControl: wait, pause, resume, unmount, divergence.

use std::{io, sync::Arc, time::Duration};

use tandem_proto::{
    Name, Seq, convert,
    pb::{self, divergence_reply::Body, mount_control_server::MountControl},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    admin::{Shared, status::ops_behind},
    commit::dirty::Scope,
    divergence::items::Item,
    link::LinkState,
};

pub(crate) struct Service(pub(crate) Arc<Shared>);

/// The bound of a wait without one, so that a client that vanished is not waited for without end.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// Messages about a verify that wait for who asked; more are left out.
const VERIFY_AHEAD: usize = 64;

/// Items of a divergence that wait for who asked.
const DIVERGENCE_AHEAD: usize = 256;

impl Service {
    async fn on_mount<T: Send + 'static>(
        &self,
        what: &'static str,
        act: impl FnOnce(&Shared) -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let shared = self.0.clone();
        match tokio::task::spawn_blocking(move || act(&shared)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(format!("{what}: {error}")),
            Err(_) => Err(format!("{what}: a thread panicked; see the log")),
        }
    }

    /// Flushes the mount and waits until everything done before is applied. `Err`: why not.
    async fn drain(&self, timeout_ms: u32) -> (Seq, Result<(), String>) {
        let timeout = if timeout_ms == 0 { WAIT_MAX } else { Duration::from_millis(timeout_ms.into()) };
        let deadline = tokio::time::Instant::now() + timeout;
        let flush = self.on_mount("flushing the mount", |shared| shared.ops.flush());
        match tokio::time::timeout_at(deadline, flush).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return (self.0.replication.commit.last_reserved(), Err(why)),
            Err(_) => {
                return (self.0.replication.commit.last_reserved(), Err("flushing the mount took too long".into()));
            }
        }
        let seq = self.0.replication.commit.last_reserved();
        if tokio::time::timeout_at(deadline, self.0.replication.wait_applied(seq)).await.is_ok() {
            return (seq, Ok(()));
        }
        (seq, Err(self.why_behind()))
    }

    fn why_behind(&self) -> String {
        let link = self.0.replication.link().facts.lock().clone();
        if link.state == LinkState::Live.as_str() {
            return "the replica is behind".into();
        }
        format!("{}: {}", link.state, link.reason)
    }
}

#[tonic::async_trait]
impl MountControl for Service {
    async fn wait(&self, request: Request<pb::WaitRequest>) -> Result<Response<pb::WaitReply>, Status> {
        let (seq, result) = self.drain(request.into_inner().timeout_ms).await;
        let applied = self.0.replication.commit.facts().watermarks.applied.map_or(0, |applied| applied.0);
        Ok(Response::new(pb::WaitReply {
            reached: result.is_ok(),
            seq: seq.0,
            applied,
            reason: result.err().unwrap_or_default(),
        }))
    }

    async fn pause(&self, _: Request<pb::PauseRequest>) -> Result<Response<pb::PauseReply>, Status> {
        self.0.replication.pause().await;
        Ok(Response::new(pb::PauseReply {}))
    }

    async fn resume(&self, _: Request<pb::ResumeRequest>) -> Result<Response<pb::ResumeReply>, Status> {
        self.0.replication.resume();
        Ok(Response::new(pb::ResumeReply {}))
    }

    type DivergenceStream = ReceiverStream<Result<pb::DivergenceReply, Status>>;

    async fn divergence(&self, _: Request<pb::DivergenceRequest>) -> Result<Response<Self::DivergenceStream>, Status> {
        let (replies, stream) = tokio::sync::mpsc::channel(DIVERGENCE_AHEAD);
        let shared = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let send = |body| {
                let reply = pb::DivergenceReply { body: Some(body) };
                replies.blocking_send(Ok(reply)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
            };
            let listed = send(Body::Header(divergence_header(&shared)))
                .and_then(|()| shared.replication.list_divergence(&mut |item| send(Body::Item(divergence_item(item)))));
            if let Err(error) = listed {
                // Who has gone does not hear it.
                let _ = replies.blocking_send(Err(Status::internal(format!("walking the folder: {error}"))));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type VerifyStream = ReceiverStream<Result<pb::VerifyReply, Status>>;

    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let request = request.into_inner();
        let names = request.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        let path: Option<Vec<Name>> = names.map(|name| Name::new(name.to_vec())).collect();
        let path = path.ok_or_else(|| Status::invalid_argument("the path is not one below the root of the mount"))?;
        let verifier = self.0.replication.verifier();
        let verifier = verifier.ok_or_else(|| Status::unavailable("this mount does not serve yet: try again"))?;
        // What programs wrote through mappings is part of what is compared.
        if let Err(why) = self.on_mount("flushing the mount", |shared| shared.ops.flush()).await {
            return Err(Status::internal(why));
        }
        let (replies, stream) = tokio::sync::mpsc::channel(VERIFY_AHEAD);
        verifier.ask(path, request.now, replies).map_err(Status::unavailable)?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn unmount(&self, request: Request<pb::UnmountRequest>) -> Result<Response<pb::UnmountReply>, Status> {
        let request = request.into_inner();
        if request.drain {
            if let (_, Err(why)) = self.drain(request.timeout_ms).await {
                return Ok(Response::new(self.unmount_reply(false, why)));
            }
        } else if let Err(why) = self.on_mount("flushing the mount", |shared| shared.ops.flush()).await {
            // Not flushed is no reason to stay: unmounting flushes as well, and says so if it cannot.
            tracing::warn!(why, "before unmounting");
        }
        // Before the mount goes: afterwards the daemon ends, and the answer with it.
        let behind = self.unmount_reply(true, String::new());
        let force = request.force;
        Ok(Response::new(match self.on_mount("unmounting", move |shared| shared.ops.unmount(force)).await {
            Ok(()) => behind,
            Err(why) => self.unmount_reply(false, why),
        }))
    }
}

fn divergence_header(shared: &Shared) -> pb::DivergenceHeader {
    let link = shared.replication.link().facts.lock().clone();
    let floor = shared.replication.commit.header().floor;
    let replicated = shared.replication.commit.durable().unwrap_or(floor);
    pb::DivergenceHeader {
        state: link.state.to_owned(),
        reason: link.reason,
        replicated: if replicated.epoch.0 == 0 { String::new() } else { replicated.to_string() },
        everything: shared.replication.commit.unreplicated().scope() == Scope::Everything,
    }
}

fn divergence_item(item: Item) -> pb::DivergenceItem {
    pb::DivergenceItem {
        path: item.path.iter().map(|name| bytes::Bytes::copy_from_slice(name.as_bytes())).collect(),
        r#type: item.node_type.map_or(pb::FileType::Unspecified, convert::file_type).into(),
        size: item.size,
        removed: item.removed,
        named: item.named,
        created: item.created,
        data: item.data,
        attributes: item.attributes,
        coarse: item.coarse,
        changed_bytes: item.changed_bytes,
    }
}

impl Service {
    fn unmount_reply(&self, unmounted: bool, reason: String) -> pb::UnmountReply {
        let facts = self.0.replication.commit.facts();
        pb::UnmountReply {
            unmounted,
            ops_behind: ops_behind(&facts),
            bytes_behind: facts.window_bytes as u64,
            dirty_cells: (facts.dirty_cells + self.0.replication.commit.taken_cells()) as u64,
            reason,
        }
    }
}
