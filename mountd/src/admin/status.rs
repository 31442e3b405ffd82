//! Status and Watch.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tandem_proto::pb::{self, admin_server::Admin};
use tandem_runtime::settings::Setting;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{admin::Shared, commit::CommitFacts};

/// Least time between two messages of a Watch.
const WATCH_MIN: Duration = Duration::from_millis(50);
/// Time between two looks if nobody says otherwise.
const WATCH_DEFAULT: Duration = Duration::from_millis(500);

pub(crate) struct Service(pub(crate) Arc<Shared>);

pub(crate) fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Ops that the replica does not have in its tree.
pub(crate) fn ops_behind(facts: &CommitFacts) -> u64 {
    let applied = facts.watermarks.applied.map_or(0, |applied| applied.0);
    facts.reserved.0.saturating_sub(applied)
}

fn setting(of: Setting) -> pb::Setting {
    pb::Setting { key: of.key, value: of.value, origin: of.origin, next: of.next }
}

impl Shared {
    pub(crate) fn mount_status(&self) -> pb::MountStatus {
        let replication = &self.replication;
        let mount = self.ops.facts();
        let facts = replication.commit.facts();
        let shadow = replication.commit.shadow_facts();
        let link = replication.link().facts.lock().clone();
        let traffic = &replication.link().traffic;
        let behind = ops_behind(&facts);
        let lag = match facts.oldest_time_ns {
            Some(time) if behind > 0 => (now_ns() - time).max(0) as f64 / 1e9,
            _ => 0.0,
        };
        let durable = facts.watermarks.durable.unwrap_or_default();
        let worker = |name: &str, state: String| pb::Worker { name: name.into(), state };
        let (verify, verifying) = replication
            .verifier()
            .map(|verifier| verifier.status())
            .map_or((None, None), |(status, running)| (Some(status), running));
        let compares = verify.as_ref().map_or("off", |status| status.state.as_str()).to_owned();
        let resync = link.progress.map_or("idle".to_owned(), |(what, _, _)| what.to_owned());
        pb::MountStatus {
            volume: replication.volume.to_string(),
            server: replication.server.to_string(),
            mountpoint: mount.mountpoint,
            backing: mount.backing,
            state: link.state.to_owned(),
            reason: link.reason.clone(),
            epoch: facts.epoch,
            seq: facts.reserved.0,
            durable: facts.watermarks.durable.map_or(0, |seq| seq.0),
            applied: facts.watermarks.applied.map_or(0, |seq| seq.0),
            ops_behind: behind,
            bytes_behind: facts.window_bytes as u64,
            lag_seconds: lag,
            window_bytes: facts.window_bytes as u64,
            window_limit_bytes: facts.window_limit_bytes as u64,
            dirty_cells: facts.dirty_cells as u64,
            dirty_bytes: facts.dirty_bytes as u64,
            marks_hot: facts.marks as u64,
            mark_writes: facts.mark_writes,
            resync_rounds: link.rounds,
            progress: link
                .progress
                .map(|(what, progress, seconds)| pb::Progress {
                    what: what.into(),
                    files_done: progress.nodes_done,
                    files_total: progress.nodes_total.max(progress.nodes_done),
                    bytes_done: progress.bytes_done,
                    // Only a first sync sends all that it lists.
                    bytes_total: match progress.bytes_expected {
                        _ if what == "first sync" => progress.bytes_listed.max(progress.bytes_done),
                        expected => expected.unwrap_or(0),
                    },
                    seconds,
                })
                .or(verifying),
            sent_bytes: traffic.sent_bytes.load(Ordering::Relaxed),
            received_bytes: traffic.received_bytes.load(Ordering::Relaxed),
            workers: vec![
                worker("link", link.state.to_owned()),
                worker("resync-reader", resync),
                worker("mark-keeper", "running".into()),
                worker("verify", compares),
            ],
            not_crossed: mount.not_crossed,
            bypass: mount.bypass,
            cache_mode: mount.cache_mode.to_string(),
            order: mount.cache_mode.order().to_owned(),
            flush_seconds: mount.flush_interval.as_secs_f64(),
            fsync_mode: mount.fsync_mode,
            congestion: facts.congestion.as_str().to_owned(),
            held_writes: mount.held_writes as u64,
            waiting_fsyncs: facts.waiting as u64,
            last_error: link.last_error.clone(),
            security: replication.security().into(),
            identity_expires_s: replication.identity_expires_s(),
            listed_dirs: link.listed,
            stat_nodes: link.nodes,
            fenced_ns: replication.fenced_since_ns(),
            state_dir: replication.state_dir().to_string_lossy().into_owned(),
            shadow_bytes: shadow.bytes as u64,
            shadow_missing: shadow.missing,
            dirty_limit_bytes: facts.dirty_limit_bytes as u64,
            suspect_cells: facts.suspects,
            link_rate: replication.link().gauge.rate().unwrap_or(0),
            bandwidth_limit: replication.link().gauge.limit().unwrap_or(0),
            offered_rounds: link.early_rounds,
            holding: link.gated,
            compression: replication.link().packer.describe(),
            resync_round: link.round,
            resync_round_cells: link.round_cells as u64,
            resumed_from: replication.resumed_from().into(),
            ops: mount.ops,
            read_bytes: mount.bytes.0,
            written_bytes: mount.bytes.1,
            busy: mount.busy,
            unreplicated_fsync_seconds: self.ops.oldest_unreplicated_fsync(durable),
            own_inside: mount.own_inside,
            waiting: mount.waiting,
            state_since_ns: replication.link().state_since_ns.load(Ordering::Relaxed),
            verify,
            excludes: mount.excludes,
            known_inodes: mount.known_inodes as u64,
            open_files: mount.open_files as u64,
            files_read_ahead: mount.files_read_ahead as u64,
            unreadable_count: mount.unreadable.0 as u64,
            unreadable: mount.unreadable.1,
        }
    }

    /// What a file of `.tandem` says.
    pub(crate) fn inside(&self, name: &str) -> String {
        let status = self.mount_status();
        match name {
            "lag" => format!("{:.3}\n", status.lag_seconds),
            "position" => format!("{}:{}\n", status.epoch, status.seq),
            _ => {
                let mut text = format!(
                    "volume: {}\nserver: {}\nstate: {}\nbehind: {} ops, {} bytes\nlag: {:.3} s\ndurable: {}\napplied: {}\n\
                     fsync: {}\n",
                    status.volume,
                    status.server,
                    status.state,
                    status.ops_behind,
                    status.bytes_behind,
                    status.lag_seconds,
                    status.durable,
                    status.applied,
                    status.fsync_mode,
                );
                for (label, value) in [("reason", &status.reason), ("last error", &status.last_error)] {
                    if !value.is_empty() {
                        text.push_str(&format!("{label}: {value}\n"));
                    }
                }
                text
            }
        }
    }

    pub(crate) fn reply(&self, volume: &str) -> pb::StatusReply {
        let matches = volume.is_empty() || volume == self.replication.volume.as_str();
        pb::StatusReply {
            daemon: "mountd".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_ns: self.started_ns,
            mounts: if matches { vec![self.mount_status()] } else { Vec::new() },
            volumes: Vec::new(),
            web: self.web.get().cloned().unwrap_or_default(),
            now_ns: now_ns(),
            settings: self.ops.settings().into_iter().map(setting).collect(),
        }
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusReply>, Status> {
        Ok(Response::new(self.0.reply(&request.into_inner().volume)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::StatusReply, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let interval = match request.interval_ms {
            0 => WATCH_DEFAULT,
            interval => Duration::from_millis(interval.into()).max(WATCH_MIN),
        };
        let shared = self.0.clone();
        let (replies, stream) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                // That time passes is no change.
                let reply = pb::StatusReply { now_ns: 0, ..shared.reply(&request.volume) };
                if last.as_ref() != Some(&reply) {
                    if replies.send(Ok(reply.clone())).await.is_err() {
                        return;
                    }
                    last = Some(reply);
                }
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = replies.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
