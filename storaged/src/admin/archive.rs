//! Archive: the record of ops, and deleted files that are still kept. Everything that touches the disk runs on blocking threads.

use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;
use tandem_proto::{
    pb::{self, archive_server::Archive, pull_message::Body},
    pull::PullDigest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{copying, wanted};
use crate::{
    history::{
        kept,
        reading::{self, Question},
    },
    ingest::service::status,
    tree::read_full_at,
    trust::caller::{Caller, Role},
    volume::volumes::{Volume, Volumes},
};

/// Items or messages on their way to who asked.
const AHEAD: usize = 64;
/// Bytes in one message.
const DATA_BYTES: usize = 256 << 10;

/// The service.
pub struct ArchiveService {
    volumes: Arc<Volumes>,
}

type Stream<T> = ReceiverStream<Result<T, Status>>;
/// Where an answer goes.
pub(super) type Out<T> = mpsc::Sender<Result<T, Status>>;

fn failed(what: &str) -> impl Fn(std::io::Error) -> Status + '_ {
    move |error| match error.kind() {
        std::io::ErrorKind::NotFound => Status::not_found(format!("{what}: it is not kept any more")),
        std::io::ErrorKind::InvalidInput => Status::invalid_argument(format!("{what}: {error}")),
        _ => Status::internal(format!("{what}: {error}")),
    }
}

/// Answers from a blocking thread; an error is the last message.
fn answer<T: Send + 'static>(act: impl FnOnce(&Out<T>) -> Result<(), Status> + Send + 'static) -> Response<Stream<T>> {
    let (out, stream) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = act(&out) {
            // Who left does not hear it.
            let _ = out.blocking_send(Err(error));
        }
    });
    Response::new(ReceiverStream::new(stream))
}

impl ArchiveService {
    /// For these volumes.
    pub fn new(volumes: Arc<Volumes>) -> Self {
        ArchiveService { volumes }
    }

    fn volume(&self, caller: &Caller, name: &str) -> Result<Arc<Volume>, Status> {
        let name = wanted(name)?.ok_or_else(|| Status::invalid_argument("name a volume"))?;
        caller.may(&name, Role::Reader)?;
        self.volumes.serving(&name).map_err(|refusal| status(&refusal))
    }
}

/// A path of a volume, for people.
pub(super) fn shown(path: &[Bytes]) -> String {
    path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect()
}

fn history_directory(volume: &Volume) -> PathBuf {
    volume.directory.join("history")
}

#[tonic::async_trait]
impl Archive for ArchiveService {
    type HistoryStream = Stream<pb::HistoryItem>;

    async fn history(&self, request: Request<pb::HistoryRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let volume = self.volume(&caller, &request.volume)?;
        let unrecorded = || Status::unavailable("the volume has no record of ops: see the log of tandem-storaged");
        let history = volume.history.clone().ok_or_else(unrecorded)?;
        // Pages ask for these again and again.
        if request.path.is_empty() && request.since_ns == 0 && request.limit > 0 {
            let recent = history.recent();
            if let Some(first) = recent.len().checked_sub(request.limit as usize) {
                let items: Vec<_> = recent.into_iter().skip(first).map(Ok).collect();
                let (out, stream) = mpsc::channel(items.len().max(1));
                for item in items {
                    let _ = out.try_send(item);
                }
                return Ok(Response::new(ReceiverStream::new(stream)));
            }
        }
        let question =
            Question { path: shown(&request.path), since_ns: request.since_ns, limit: request.limit as usize };
        Ok(answer(move |out| {
            history.flush();
            let items = reading::read(history.directory(), &question).map_err(failed("reading the record of ops"))?;
            for item in items {
                if out.blocking_send(Ok(item)).is_err() {
                    break;
                }
            }
            Ok(())
        }))
    }

    type KeptStream = Stream<pb::KeptItem>;

    async fn kept(&self, request: Request<pb::KeptRequest>) -> Result<Response<Self::KeptStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let history = history_directory(&*self.volume(&caller, &request.volume)?);
        Ok(answer(move |out| {
            let limit = request.limit as usize;
            let items = kept::list(&history, &request.path, limit).map_err(failed("looking for deleted files"))?;
            for item in items {
                if out.blocking_send(Ok(item)).is_err() {
                    break;
                }
            }
            Ok(())
        }))
    }

    type TreeStream = Stream<pb::TreeItem>;

    async fn tree(&self, request: Request<pb::TreeRequest>) -> Result<Response<Self::TreeStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let volume = self.volume(&caller, &request.volume)?;
        Ok(answer(move |out| copying::tree(&volume.reader, &request, out)))
    }

    type ReadStream = Stream<pb::PullMessage>;

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let volume = self.volume(&caller, &request.volume)?;
        Ok(answer(move |out| copying::read(&volume.reader, &request, out)))
    }

    type FetchStream = Stream<pb::PullMessage>;

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let history = history_directory(&*self.volume(&caller, &request.volume)?);
        Ok(answer(move |out| fetch(&history, &request, out)))
    }
}

fn fetch(history: &std::path::Path, request: &pb::FetchRequest, out: &Out<pb::PullMessage>) -> Result<(), Status> {
    let what = shown(&request.stored);
    let kept = kept::open(history, &request.place, &request.stored).map_err(failed(&what))?;
    let (mut digest, mut bytes, size) = (PullDigest::default(), 0, kept.node.size);
    let mut put = |body| {
        let message = pb::PullMessage { body: Some(body) };
        digest.add(&message);
        out.blocking_send(Ok(message)).is_ok()
    };
    if !put(Body::Node(kept.node)) {
        return Ok(());
    }
    if let Some(file) = kept.file {
        let mut offset = 0;
        while offset < size {
            let mut data = vec![0; DATA_BYTES.min(usize::try_from(size - offset).unwrap_or(usize::MAX))];
            let read = read_full_at(&file, offset, &mut data).map_err(failed(&what))?;
            if read == 0 {
                return Err(Status::data_loss(format!("{what}: it got shorter while it was read")));
            }
            data.truncate(read);
            let crc32c = crc32c::crc32c(&data);
            // Zeroes are what a file that was made long is full of.
            if data.iter().any(|byte| *byte != 0)
                && !put(Body::Data(pb::PullData { offset, data: data.into(), crc32c }))
            {
                return Ok(());
            }
            offset += read as u64;
            bytes += read as u64;
        }
    }
    let end = Body::End(pb::PullEnd { nodes: 1, bytes, digest: Bytes::copy_from_slice(&digest.value().0) });
    let _ = out.blocking_send(Ok(pb::PullMessage { body: Some(end) }));
    Ok(())
}
