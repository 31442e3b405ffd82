//! What people and tools ask storaged: `Admin`.

mod archive;
mod copying;
pub mod volumes;

pub use archive::ArchiveService;

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tandem_proto::{
    ids::Uuid,
    pb::{self, admin_server::Admin},
    volume::VolumeName,
};
use tandem_runtime::settings::{Effective, Setting};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    history::Kept,
    index::WorkerState,
    trust::{
        Trust,
        caller::{Caller, Role},
        service,
    },
    volume::volumes::{Broken, Entry, Volume, Volumes},
};

/// Watchers look at most this often.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
const INTERVAL_DEFAULT: Duration = Duration::from_millis(500);

/// The service.
pub struct AdminService {
    source: Arc<Source>,
}

struct Source {
    volumes: Arc<Volumes>,
    trust: Arc<Trust>,
    started_ns: i64,
    web: OnceLock<String>,
    /// What the daemon was told to be.
    settings: Effective,
}

impl tandem_web::Source for Source {
    fn status(&self) -> pb::StatusReply {
        // Of all volumes, which is never wrong.
        Source::status(self, &Caller::Local, None).unwrap_or_default()
    }

    fn recent(&self, volume: &str) -> Vec<pb::HistoryItem> {
        let found = volume.parse().ok().and_then(|name| self.volumes.get(&name));
        match found {
            Some(Entry::Open(volume)) => volume.history.as_ref().map_or_else(Vec::new, |history| history.recent()),
            _ => Vec::new(),
        }
    }

    fn clients(&self) -> Vec<pb::ClientEntry> {
        service::everybody(&self.trust)
    }
}

impl AdminService {
    /// Reports on these volumes.
    pub fn new(volumes: Arc<Volumes>, trust: Arc<Trust>, settings: Effective) -> Self {
        let started_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64);
        AdminService { source: Arc::new(Source { volumes, trust, started_ns, web: OnceLock::new(), settings }) }
    }

    /// For the page, which is at this address.
    pub fn page(&self, url: String) -> Arc<dyn tandem_web::Source> {
        let _ = self.source.web.set(url);
        self.source.clone()
    }
}

fn id(id: &Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&id.0)
}

fn setting(of: &Setting) -> pb::Setting {
    pb::Setting { key: of.key.clone(), value: of.value.clone(), origin: of.origin.clone(), next: of.next.clone() }
}

fn worker(name: &str, state: impl Into<String>) -> pb::Worker {
    pb::Worker { name: name.to_owned(), state: state.into() }
}

fn volume_status(name: &VolumeName, volume: &Volume) -> pb::VolumeStatus {
    let facts = volume.facts.lock().clone();
    let index = volume.index.as_ref().map(|index| index.status());
    let applied_here = facts.applied.epoch == facts.durable.epoch;
    let walk = index.as_ref().map(|index| &index.worker);
    let (walked, to_walk) = match walk {
        Some(WorkerState::Rebuilding { done, total }) => (*done, *total),
        _ => (0, 0),
    };
    let kept = volume.surplus.as_ref().map_or_else(Kept::default, |surplus| surplus.kept());
    let keep = volume.surplus.as_ref().map(|surplus| surplus.rule());
    let index_worker = index.as_ref().map_or("not available".to_owned(), |index| index.worker.describe());
    let hooks = volume.hooks.as_ref().map_or_else(Default::default, |hooks| hooks.facts());
    let mut workers = vec![worker("apply", facts.state.as_str()), worker("index", index_worker)];
    workers.extend(volume.readers.describe().into_iter().map(|(name, state)| worker(&name, state)));
    pb::VolumeStatus {
        volume: name.to_string(),
        directory: volume.directory.display().to_string(),
        state: facts.state.as_str().to_owned(),
        reason: facts.reason.map_or_else(String::new, |reason| reason.to_string()),
        epoch: facts.durable.epoch.0,
        received: facts.received,
        durable: facts.durable.seq.0,
        applied: if applied_here { facts.applied.seq.0 } else { 0 },
        client: facts.holder.filter(|_| facts.connected).map_or_else(String::new, |(name, _)| name.to_string()),
        attached_ns: if facts.connected { facts.attached_ns } else { 0 },
        log_bytes: facts.log_bytes,
        log_limit_bytes: facts.log_max_bytes,
        logged_bytes: facts.logged_bytes,
        hooks_done: hooks.done,
        hooks_failed: hooks.failed,
        hooks_waiting: hooks.waiting,
        hooks_last_error: hooks.last_error,
        backlog_ops: facts.backlog_ops,
        backlog_bytes: facts.backlog_bytes,
        inodes: volume.reader.inodes(),
        index_files: index.as_ref().map_or(0, |index| index.files),
        index_chunks: index.as_ref().map_or(0, |index| index.chunks),
        index_behind: index.as_ref().map_or(0, |index| index.files_behind),
        workers,
        index_walked: walked,
        index_to_walk: to_walk,
        history_bytes: kept.bytes,
        history_positions: kept.positions,
        history_limit_bytes: keep.and_then(|keep| keep.bytes).unwrap_or(0),
        history_limit_ns: keep
            .and_then(|keep| keep.age)
            .map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)),
        history_deleted: kept.deleted,
        progress: (to_walk > 0).then(|| pb::Progress {
            what: "reindex".to_owned(),
            files_done: walked,
            files_total: to_walk,
            ..Default::default()
        }),
        mismatches: facts.mismatches,
        quota_bytes: facts.quota_bytes.unwrap_or(0),
        used_bytes: facts.used_bytes,
        special: if facts.denies_special { "deny" } else { "keep" }.to_owned(),
        volume_id: id(&volume.identity.volume_id),
        replica_id: id(&volume.identity.replica_id),
        position: Some((&facts.published).into()),
        empty: facts.empty,
        last_error: facts.last_error.to_string(),
        salvaged_files: facts.salvaged_files,
    }
}

fn broken_status(name: &VolumeName, broken: &Broken) -> pb::VolumeStatus {
    pb::VolumeStatus {
        volume: name.to_string(),
        directory: broken.directory.display().to_string(),
        state: if broken.refusal.retry { "faulted" } else { "damaged" }.to_owned(),
        reason: broken.refusal.message.clone(),
        last_error: broken.refusal.message.clone(),
        ..Default::default()
    }
}

impl Source {
    /// The status of one volume, or of all that the caller may see.
    fn status(&self, caller: &Caller, only: Option<&VolumeName>) -> Result<pb::StatusReply, Status> {
        if let Some(only) = only {
            caller.may(only, Role::Reader)?;
        }
        let volumes: Vec<_> = self
            .volumes
            .all()
            .into_iter()
            .filter(|(name, _)| only.is_none_or(|only| only == name) && caller.sees(name))
            .map(|(name, entry)| match entry {
                Entry::Open(volume) => volume_status(&name, &volume),
                Entry::Broken(broken) => broken_status(&name, &broken),
            })
            .map(
                |status| {
                    if caller.is_local() { status } else { pb::VolumeStatus { directory: String::new(), ..status } }
                },
            )
            .collect();
        if let (Some(only), true) = (only, volumes.is_empty()) {
            return Err(Status::not_found(format!("there is no volume {only} here")));
        }
        Ok(pb::StatusReply {
            daemon: "storaged".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ns: self.started_ns,
            mounts: Vec::new(),
            volumes,
            web: self.web.get().cloned().unwrap_or_default(),
            now_ns: tandem_runtime::when::now_ns(),
            // Paths of this host are not the client's business.
            settings: if caller.is_local() { self.settings.lock().iter().map(setting).collect() } else { Vec::new() },
        })
    }
}

fn wanted(volume: &str) -> Result<Option<VolumeName>, Status> {
    if volume.is_empty() {
        return Ok(None);
    }
    volume
        .parse()
        .map(Some)
        .map_err(|error: tandem_proto::volume::InvalidVolumeName| Status::invalid_argument(error.to_string()))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        let caller = Caller::of(&request);
        let only = wanted(&request.into_inner().volume)?;
        Ok(Response::new(self.source.status(&caller, only.as_ref())?))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::StatusReply, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let only = wanted(&request.volume)?;
        let interval = match request.interval_ms {
            0 => INTERVAL_DEFAULT,
            milliseconds => Duration::from_millis(milliseconds.into()).max(INTERVAL_MIN),
        };
        let first = self.source.status(&caller, only.as_ref())?;
        let source = self.source.clone();
        let (out, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut shown = HashMap::new();
            let mut next = Ok(first);
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                let changed = match &next {
                    Ok(reply) => {
                        let now: HashMap<_, _> =
                            reply.volumes.iter().map(|volume| (volume.volume.clone(), volume.clone())).collect();
                        let changed = shown != now || shown.is_empty();
                        shown = now;
                        changed
                    }
                    Err(_) => true,
                };
                let last = next.is_err();
                if changed && (out.send(next).await.is_err() || last) {
                    return;
                }
                if out.is_closed() {
                    return;
                }
                next = source.status(&caller, only.as_ref());
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
