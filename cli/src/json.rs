//! The JSON of `status` and `watch`: a stable contract, described in `docs/status-json.md`.
//!
//! The structs here are the contract, not the protobuf messages, so that the wire may change without breaking scripts. Fields
//! are added, never renamed, removed or given another meaning without a higher [`VERSION`].

use serde::Serialize;
use tandem_proto::{figures::quantile, ids::hex, pb};

use crate::{
    bar,
    exit::Exit,
    mounts::{Daemon, Found, Mount, Silent},
};

/// Version of the contract.
pub const VERSION: u32 = 1;

/// The whole answer.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    exit_code: u8,
    mounts: Vec<MountReport>,
    volumes: Vec<VolumeReport>,
    unanswered: Vec<Unanswered>,
}

#[derive(Debug, Serialize)]
struct DaemonReport {
    version: String,
    pid: u32,
    started_ns: i64,
    web: String,
    settings: Vec<SettingReport>,
}

#[derive(Debug, Serialize)]
struct SettingReport {
    key: String,
    value: String,
    origin: String,
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct CallsReport {
    op: String,
    count: u64,
    seconds: f64,
    p50_seconds: f64,
    p99_seconds: f64,
}

#[derive(Debug, Serialize)]
struct WaitingReport {
    what: String,
    path: String,
    seconds: f64,
    pid: u32,
    process: String,
}

#[derive(Debug, Serialize)]
struct PositionReport {
    epoch: u64,
    seq: u64,
}

#[derive(Debug, Serialize)]
struct ProgressReport {
    what: String,
    files_done: u64,
    files_total: u64,
    bytes_done: u64,
    bytes_total: u64,
    seconds: f64,
    bytes_per_second: f64,
    files_per_second: f64,
    seconds_left: Option<f64>,
}

#[derive(Debug, Serialize)]
struct VerifyReport {
    state: String,
    position: String,
    time_ns: i64,
    files: u64,
    bytes: u64,
    unchecked: u64,
    mismatches: u64,
    repaired: u64,
    recent: Vec<String>,
}

#[derive(Debug, Serialize)]
struct WorkerReport {
    name: String,
    state: String,
}

#[derive(Debug, Serialize)]
struct Unanswered {
    place: String,
    reason: String,
    dead_mount: bool,
}

#[derive(Debug, Serialize)]
struct MountReport {
    volume: String,
    server: String,
    mountpoint: String,
    backing: String,
    in_sync: bool,
    state: String,
    reason: String,
    position: PositionReport,
    durable: u64,
    applied: u64,
    ops_behind: u64,
    bytes_behind: u64,
    lag_seconds: f64,
    window_bytes: u64,
    window_limit_bytes: u64,
    dirty_cells: u64,
    dirty_bytes: u64,
    dirty_limit_bytes: u64,
    suspect_cells: u64,
    shadow_bytes: u64,
    shadow_missing: String,
    link_rate: u64,
    bandwidth_limit: u64,
    compression: String,
    holding: bool,
    offered_rounds: u64,
    resumed_from: String,
    marks_hot: u64,
    mark_writes: u64,
    resync_rounds: u64,
    resync_round: u64,
    resync_round_cells: u64,
    listed_dirs: u64,
    stat_nodes: u64,
    sent_bytes: u64,
    received_bytes: u64,
    progress: Option<ProgressReport>,
    workers: Vec<WorkerReport>,
    not_crossed: Vec<String>,
    bypass: Vec<String>,
    cache_mode: String,
    order: String,
    flush_seconds: f64,
    fsync_mode: String,
    congestion: String,
    held_writes: u64,
    waiting_fsyncs: u64,
    waiting: Vec<WaitingReport>,
    state_since_ns: i64,
    unreplicated_fsync_seconds: f64,
    read_bytes: u64,
    written_bytes: u64,
    known_inodes: u64,
    open_files: u64,
    files_read_ahead: u64,
    unreadable: Vec<String>,
    unreadable_count: u64,
    calls: Vec<CallsReport>,
    own_inside: bool,
    state_dir: String,
    last_error: String,
    security: String,
    identity_expires_s: i64,
    fenced_ns: i64,
    verify: Option<VerifyReport>,
    excludes: Vec<String>,
    daemon: DaemonReport,
}

#[derive(Debug, Serialize)]
struct VolumeReport {
    volume: String,
    directory: String,
    in_sync: bool,
    state: String,
    reason: String,
    empty: bool,
    position: PositionReport,
    received: u64,
    durable: u64,
    applied: u64,
    client: String,
    attached_ns: i64,
    log_bytes: u64,
    log_limit_bytes: u64,
    quota_bytes: u64,
    used_bytes: u64,
    special: String,
    logged_bytes: u64,
    hooks_done: u64,
    hooks_failed: u64,
    hooks_waiting: u64,
    hooks_last_error: String,
    backlog_ops: u64,
    backlog_bytes: u64,
    salvaged_files: u64,
    inodes: u64,
    index_files: u64,
    index_chunks: u64,
    index_behind: u64,
    index_walked: u64,
    index_to_walk: u64,
    history_bytes: u64,
    history_positions: u64,
    history_limit_bytes: u64,
    history_limit_ns: u64,
    history_deleted: u64,
    mismatches: u64,
    progress: Option<ProgressReport>,
    workers: Vec<WorkerReport>,
    volume_id: String,
    replica_id: String,
    last_error: String,
    daemon: DaemonReport,
}

impl Report {
    /// Of the mounts of this host.
    pub fn of_mounts(found: &Found, exit: Exit) -> Report {
        Report {
            version: VERSION,
            exit_code: exit.code(),
            mounts: found.mounts.iter().map(mount).collect(),
            volumes: Vec::new(),
            unanswered: found.silent.iter().map(unanswered).collect(),
        }
    }

    /// Of the volumes of a storage daemon.
    pub fn of_volumes(daemon: &Daemon, volumes: &[pb::VolumeStatus], exit: Exit) -> Report {
        Report {
            version: VERSION,
            exit_code: exit.code(),
            mounts: Vec::new(),
            volumes: volumes.iter().map(|status| volume(daemon, status)).collect(),
            unanswered: Vec::new(),
        }
    }

    /// As one line.
    pub fn line(&self) -> String {
        let mut text = serde_json::to_string(self).expect("the report has string keys only");
        text.push('\n');
        text
    }

    /// As people read it.
    pub fn pretty(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("the report has string keys only");
        text.push('\n');
        text
    }
}

fn daemon(daemon: &Daemon) -> DaemonReport {
    DaemonReport {
        version: daemon.version.clone(),
        pid: daemon.pid,
        started_ns: daemon.started_ns,
        web: daemon.web.clone(),
        settings: daemon.settings.iter().cloned().map(setting).collect(),
    }
}

fn setting(of: pb::Setting) -> SettingReport {
    SettingReport { key: of.key, value: of.value, origin: of.origin, next: of.next }
}

fn calls(op: &pb::OpFigures) -> CallsReport {
    CallsReport {
        op: op.op.clone(),
        count: op.count,
        seconds: finite(op.seconds),
        p50_seconds: quantile(&op.buckets, 0.5),
        p99_seconds: quantile(&op.buckets, 0.99),
    }
}

fn waiting(call: &pb::WaitingCall) -> WaitingReport {
    WaitingReport {
        what: call.what.clone(),
        path: call.path.clone(),
        seconds: finite(call.seconds),
        pid: call.pid,
        process: call.process.clone(),
    }
}

fn progress(progress: &pb::Progress) -> ProgressReport {
    ProgressReport {
        what: progress.what.clone(),
        files_done: progress.files_done,
        files_total: progress.files_total,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        seconds: finite(progress.seconds),
        bytes_per_second: finite(progress.bytes_done as f64 / progress.seconds.max(1e-3)),
        files_per_second: finite(progress.files_done as f64 / progress.seconds.max(1e-3)),
        seconds_left: bar::seconds_left(progress),
    }
}

fn verify(verify: &pb::VerifyStatus) -> VerifyReport {
    VerifyReport {
        state: verify.state.clone(),
        position: verify.position.clone(),
        time_ns: verify.time_ns,
        files: verify.files,
        bytes: verify.bytes,
        unchecked: verify.unchecked,
        mismatches: verify.mismatches,
        repaired: verify.repaired,
        recent: verify.recent.clone(),
    }
}

/// JSON has no other numbers.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

fn workers(workers: &[pb::Worker]) -> Vec<WorkerReport> {
    workers.iter().map(|worker| WorkerReport { name: worker.name.clone(), state: worker.state.clone() }).collect()
}

fn unanswered(silent: &Silent) -> Unanswered {
    Unanswered {
        place: silent.place.to_string_lossy().into_owned(),
        reason: silent.reason.clone(),
        dead_mount: silent.dead_mount,
    }
}

fn mount(mount: &Mount) -> MountReport {
    let status = mount.status.clone();
    MountReport {
        in_sync: Exit::of_mount(&status) == Exit::InSync,
        position: PositionReport { epoch: status.epoch, seq: status.seq },
        progress: status.progress.as_ref().map(progress),
        workers: workers(&status.workers),
        daemon: daemon(&mount.daemon),
        volume: status.volume,
        server: status.server,
        mountpoint: status.mountpoint,
        backing: status.backing,
        state: status.state,
        reason: status.reason,
        durable: status.durable,
        applied: status.applied,
        ops_behind: status.ops_behind,
        bytes_behind: status.bytes_behind,
        lag_seconds: finite(status.lag_seconds),
        window_bytes: status.window_bytes,
        window_limit_bytes: status.window_limit_bytes,
        dirty_cells: status.dirty_cells,
        dirty_bytes: status.dirty_bytes,
        dirty_limit_bytes: status.dirty_limit_bytes,
        suspect_cells: status.suspect_cells,
        shadow_bytes: status.shadow_bytes,
        shadow_missing: status.shadow_missing.clone(),
        resumed_from: status.resumed_from.clone(),
        marks_hot: status.marks_hot,
        mark_writes: status.mark_writes,
        resync_rounds: status.resync_rounds,
        resync_round: status.resync_round,
        resync_round_cells: status.resync_round_cells,
        listed_dirs: status.listed_dirs,
        stat_nodes: status.stat_nodes,
        sent_bytes: status.sent_bytes,
        received_bytes: status.received_bytes,
        not_crossed: status.not_crossed,
        bypass: status.bypass,
        cache_mode: status.cache_mode,
        order: status.order,
        flush_seconds: status.flush_seconds,
        fsync_mode: status.fsync_mode,
        congestion: status.congestion,
        link_rate: status.link_rate,
        bandwidth_limit: status.bandwidth_limit,
        compression: status.compression,
        holding: status.holding,
        offered_rounds: status.offered_rounds,
        held_writes: status.held_writes,
        waiting_fsyncs: status.waiting_fsyncs,
        waiting: status.waiting.iter().map(waiting).collect(),
        state_since_ns: status.state_since_ns,
        unreplicated_fsync_seconds: finite(status.unreplicated_fsync_seconds),
        read_bytes: status.read_bytes,
        written_bytes: status.written_bytes,
        known_inodes: status.known_inodes,
        open_files: status.open_files,
        files_read_ahead: status.files_read_ahead,
        unreadable: status.unreadable,
        unreadable_count: status.unreadable_count,
        calls: status.ops.iter().map(calls).collect(),
        own_inside: status.own_inside,
        state_dir: status.state_dir,
        last_error: status.last_error,
        security: status.security,
        identity_expires_s: status.identity_expires_s,
        fenced_ns: status.fenced_ns,
        verify: status.verify.as_ref().map(verify),
        excludes: status.excludes.clone(),
    }
}

fn volume(of: &Daemon, status: &pb::VolumeStatus) -> VolumeReport {
    let position = status.position.clone().unwrap_or_default();
    let status = status.clone();
    VolumeReport {
        in_sync: Exit::of_volume(&status) == Exit::InSync,
        position: PositionReport { epoch: position.epoch, seq: position.seq },
        progress: status.progress.as_ref().map(progress),
        workers: workers(&status.workers),
        volume_id: hex(&status.volume_id),
        replica_id: hex(&status.replica_id),
        daemon: daemon(of),
        volume: status.volume,
        directory: status.directory,
        state: status.state,
        reason: status.reason,
        empty: status.empty,
        received: status.received,
        durable: status.durable,
        applied: status.applied,
        client: status.client,
        attached_ns: status.attached_ns,
        log_bytes: status.log_bytes,
        log_limit_bytes: status.log_limit_bytes,
        quota_bytes: status.quota_bytes,
        used_bytes: status.used_bytes,
        special: status.special,
        logged_bytes: status.logged_bytes,
        hooks_done: status.hooks_done,
        hooks_failed: status.hooks_failed,
        hooks_waiting: status.hooks_waiting,
        hooks_last_error: status.hooks_last_error,
        backlog_ops: status.backlog_ops,
        backlog_bytes: status.backlog_bytes,
        salvaged_files: status.salvaged_files,
        inodes: status.inodes,
        index_files: status.index_files,
        index_chunks: status.index_chunks,
        index_behind: status.index_behind,
        index_walked: status.index_walked,
        index_to_walk: status.index_to_walk,
        history_bytes: status.history_bytes,
        history_positions: status.history_positions,
        history_limit_bytes: status.history_limit_bytes,
        history_limit_ns: status.history_limit_ns,
        history_deleted: status.history_deleted,
        mismatches: status.mismatches,
        last_error: status.last_error,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tandem_proto::pb;

    use super::{Report, VERSION, calls};
    use crate::{
        exit::Exit,
        mounts::{Daemon, Found},
    };

    /// Whether a value is what a schema says; the first place where it is not. Knows what the contract uses of JSON Schema.
    fn mismatch(value: &Value, schema: &Value, root: &Value, place: &str) -> Option<String> {
        if let Some(name) = schema["$ref"].as_str() {
            let definition = &root["$defs"][name.trim_start_matches("#/$defs/")];
            return mismatch(value, definition, root, place);
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            let wrong: Vec<_> = choices.iter().map(|choice| mismatch(value, choice, root, place)).collect();
            return if wrong.iter().any(Option::is_none) { None } else { wrong.into_iter().next().flatten() };
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("null") => value.is_null(),
            _ => false,
        };
        if !fits {
            return Some(format!("{place} is {value}, not {}", schema["type"]));
        }
        let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in names {
            let found = value.get(name).ok_or_else(|| format!("{place}.{name} is missing"));
            let wrong = found.map_or_else(Some, |found| {
                mismatch(found, &schema["properties"][name], root, &format!("{place}.{name}"))
            });
            if wrong.is_some() {
                return wrong;
            }
        }
        value.as_array().into_iter().flatten().find_map(|item| mismatch(item, &schema["items"], root, place))
    }

    #[test]
    fn the_json_is_what_the_published_schema_says() {
        let schema: Value = serde_json::from_str(include_str!("../../docs/status-schema.json")).expect("JSON");
        let setting = pb::Setting { key: "window".to_owned(), ..Default::default() };
        let daemon =
            Daemon { version: "1".to_owned(), pid: 1, started_ns: 1, web: String::new(), settings: vec![setting] };
        let status = pb::VolumeStatus {
            progress: Some(pb::Progress::default()),
            workers: vec![pb::Worker::default()],
            ..Default::default()
        };
        let report = Report::of_volumes(&daemon, &[status], Exit::InSync);
        let shown: Value = serde_json::from_str(&report.line()).expect("JSON");
        assert_eq!(mismatch(&shown, &schema, &schema, "report"), None);
        assert_eq!(shown["version"], VERSION);
        let empty: Value =
            serde_json::from_str(&Report::of_mounts(&Found::default(), Exit::NoAnswer).line()).expect("JSON");
        assert_eq!(mismatch(&empty, &schema, &schema, "report"), None);
        let call = serde_json::to_value(calls(&pb::OpFigures::default())).expect("JSON");
        assert_eq!(mismatch(&call, &schema["$defs"]["Calls"], &schema, "call"), None);
    }
}
