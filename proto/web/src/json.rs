//! A status as the page reads it. Not a contract: the page and the daemon are one program. Scripts use `tandem status --json`.

use serde_json::{Value, json};
use tandem_proto::{figures, pb};

use crate::sample::{Sampler, now_ms};

/// Tells what was done lately on a volume.
pub type Recent<'a> = dyn Fn(&str) -> Vec<pb::HistoryItem> + 'a;

/// Everything that the page shows.
pub fn snapshot(status: &pb::StatusReply, sampler: &Sampler, recent: &Recent<'_>, with_series: bool) -> Value {
    let plots = |volume: &str| match with_series {
        true => json!({ "series": sampler.series(volume) }),
        false => json!({ "newest": sampler.newest(volume) }),
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    json!({
        "now": now_ms(),
        "daemon": status.daemon,
        "version": status.version,
        "pid": status.pid,
        "started": status.started_ns / 1_000_000,
        "host": host.trim(),
        "volumes": status.mounts.iter().map(|of| mount(of, plots(&of.volume), &recent(&of.volume)))
            .chain(status.volumes.iter().map(|of| volume(of, plots(&of.volume), &recent(&of.volume))))
            .collect::<Vec<_>>(),
        "events": sampler.events(),
    })
}

fn progress(progress: Option<&pb::Progress>) -> Value {
    progress.map_or(Value::Null, |progress| {
        json!({
            "what": progress.what, "files_done": progress.files_done, "files_total": progress.files_total,
            "bytes_done": progress.bytes_done, "bytes_total": progress.bytes_total, "seconds": progress.seconds,
        })
    })
}

fn workers(workers: &[pb::Worker]) -> Value {
    workers.iter().map(|worker| json!({ "name": worker.name, "state": worker.state })).collect()
}

/// A row of the table of details.
fn row(label: &str, text: impl Into<Value>, unit: &str) -> Value {
    json!({ "label": label, "value": text.into(), "unit": unit })
}

fn mount(of: &pb::MountStatus, plots: Value, recent: &[pb::HistoryItem]) -> Value {
    let operation = |op: &pb::OpFigures| {
        let (half, most) = (figures::quantile(&op.buckets, 0.5), figures::quantile(&op.buckets, 0.99));
        json!({ "op": op.op, "count": op.count, "p50": half, "p99": most })
    };
    let operations: Vec<_> = of.ops.iter().map(operation).collect();
    json!({
        "kind": "mount", "volume": of.volume, "place": of.mountpoint, "state": of.state, "reason": of.reason,
        "since": of.state_since_ns / 1_000_000, "error": of.last_error, "behind": of.ops_behind, "lag": of.lag_seconds, "fsync": of.fsync_mode,
        "peer": of.server, "progress": progress(of.progress.as_ref()), "workers": workers(&of.workers),
        "plots": plots, "operations": operations,
        "busy": of.busy.iter().map(|file| json!({ "path": file.path, "bytes": file.bytes })).collect::<Vec<_>>(),
        "recent": told(recent),
        "waiting": of.waiting.iter().map(waiting).collect::<Vec<_>>(),
        "details": [
            row("epoch", of.epoch, ""), row("last operation", of.seq, ""), row("durable on the replica", of.durable, ""),
            row("applied on the replica", of.applied, ""), row("bytes behind", of.bytes_behind, "B"),
            row("oldest fsync that the replica lacks", of.unreplicated_fsync_seconds, "s"),
            row("window", of.window_bytes, "B"), row("bound of the window", of.window_limit_bytes, "B"),
            row("dirty cells", of.dirty_cells, ""), row("dirty set", of.dirty_bytes, "B"),
            row("suspect cells", of.suspect_cells, ""), row("fsyncs that wait", of.waiting_fsyncs, ""),
            row("writes held back", of.held_writes, ""), row("sent", of.sent_bytes, "B"),
            row("resync rounds", of.resync_rounds, ""), row("cache", of.cache_mode.as_str(), ""),
            row("when the link is slower", of.congestion.as_str(), ""), row("backing directory", of.backing.as_str(), ""),
            row("not part of the volume", of.not_crossed.join(" "), ""), row("bypassed by", of.bypass.join(" "), ""),
        ],
    })
}

/// What was done, the newest first.
fn told(recent: &[pb::HistoryItem]) -> Value {
    let item = |item: &pb::HistoryItem| {
        json!({
            "t": item.time_ns / 1_000_000, "what": item.what, "path": item.path, "to": item.to, "bytes": item.bytes,
            "process": item.process,
        })
    };
    recent.iter().rev().map(item).collect()
}

/// Somebody who has joined.
pub fn client(of: &pb::ClientEntry) -> Value {
    let role = |grant: &pb::Grant| {
        let role = grant.role().as_str_name().trim_start_matches("ROLE_").to_lowercase();
        format!("{} ({role})", grant.volume)
    };
    let grants: Vec<_> = of.grants.iter().map(role).collect();
    json!({ "name": of.name, "grants": grants.join(", "), "connections": of.connections, "seen": of.seen_s * 1000, "expires": of.expires_s * 1000 })
}

fn waiting(call: &pb::WaitingCall) -> Value {
    json!({ "what": call.what, "path": call.path, "seconds": call.seconds, "process": call.process })
}

fn volume(of: &pb::VolumeStatus, plots: Value, recent: &[pb::HistoryItem]) -> Value {
    let behind = of.durable.saturating_sub(of.applied);
    json!({
        "kind": "volume", "volume": of.volume, "place": of.directory, "state": of.state, "reason": of.reason,
        "error": of.last_error, "behind": behind, "lag": 0.0, "fsync": "",
        "peer": if of.client.is_empty() { "no writer" } else { of.client.as_str() },
        "progress": progress(of.progress.as_ref()), "workers": workers(&of.workers), "plots": plots, "operations": [],
        "busy": [], "recent": told(recent),
        "details": [
            row("epoch", of.epoch, ""), row("durable", of.durable, ""), row("applied", of.applied, ""),
            row("inodes", of.inodes, ""), row("log", of.log_bytes, "B"), row("bound of the log", of.log_limit_bytes, "B"),
            row("waits for apply", of.backlog_bytes, "B"), row("indexed files", of.index_files, ""),
            row("indexed chunks", of.index_chunks, ""), row("files to be indexed", of.index_behind, ""),
            row("kept in history", of.history_bytes, "B"), row("bound of the history", of.history_limit_bytes, "B"),
        ],
    })
}
