//! The metrics for Prometheus, in its text format. [`FAMILIES`] is the one list of them: `docs/METRICS.md` is made from it, and a test
//! compares the two. Names and units follow the conventions of Prometheus: base units, `_total` for what only rises.

use std::fmt::Write as _;

use tandem_proto::{figures::BUCKETS_SECONDS, pb};

/// One family: name, type, what it means, and whose it is.
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// `gauge`, `counter` or `histogram`.
    pub kind: &'static str,
    /// In a sentence.
    pub help: &'static str,
    /// Labels beside `volume` (and `mountpoint` of a mount).
    pub labels: &'static str,
}

const fn family(name: &'static str, kind: &'static str, labels: &'static str, help: &'static str) -> Family {
    Family { name, kind, help, labels }
}

/// States of a link, for `tandem_link_state`.
const LINK_STATES: [&str; 7] = ["initial", "live", "lagging", "catching-up", "paused", "offline", "fenced"];
/// States of a volume, for `tandem_volume_state`.
const VOLUME_STATES: [&str; 6] = ["settled", "applying", "staging", "unproven", "faulted", "damaged"];

/// All families, in the order in which they are told.
pub const FAMILIES: &[Family] = &[
    family("tandem_build_info", "gauge", "daemon, version", "Always 1; says what runs."),
    family("tandem_start_time_seconds", "gauge", "daemon", "Unix time at which the daemon began to serve."),
    family("tandem_link_state", "gauge", "state", "1 for the state of the link to the replica, 0 for the others."),
    family("tandem_link_up", "gauge", "", "1 while the replica follows: live, lagging, catching-up or initial."),
    family("tandem_link_lag_seconds", "gauge", "", "Age of the oldest operation that the replica has not applied."),
    family("tandem_link_lag_operations", "gauge", "", "Operations that the replica has not applied."),
    family("tandem_link_lag_bytes", "gauge", "", "Bytes that wait to be sent or acknowledged."),
    family("tandem_link_sent_bytes_total", "counter", "", "Bytes of messages sent to the replica."),
    family("tandem_link_received_bytes_total", "counter", "", "Bytes of messages received from the replica."),
    family("tandem_operations_total", "counter", "", "Operations of this epoch that change the volume."),
    family("tandem_epoch", "gauge", "", "Fencing token of the run that writes."),
    family("tandem_window_bytes", "gauge", "", "Memory of operations that the replica may still need."),
    family("tandem_window_limit_bytes", "gauge", "", "Bound of the window."),
    family("tandem_dirty_cells", "gauge", "", "Cells that may differ from the replica."),
    family("tandem_dirty_bytes", "gauge", "", "Memory of the dirty set."),
    family("tandem_dirty_limit_bytes", "gauge", "", "Bound of the dirty set, beyond which it gets coarser."),
    family("tandem_suspect_cells_total", "counter", "", "Cells that the backing directory failed to make durable."),
    family("tandem_mark_writes_total", "counter", "", "Writes to the activity log."),
    family("tandem_resync_rounds_total", "counter", "", "Rounds of resyncs."),
    family("tandem_resync_files_done", "gauge", "", "Inodes that the resync under way has sent."),
    family("tandem_resync_files_expected", "gauge", "", "Inodes that it will send, as far as is known."),
    family("tandem_fsync_waiting", "gauge", "", "Calls that wait for the replica."),
    family(
        "tandem_fsync_unreplicated_age_seconds",
        "gauge",
        "",
        "Age of the oldest local fsync that the replica lacks.",
    ),
    family("tandem_writes_held", "gauge", "", "Writes that are held back because the link is slower."),
    family("tandem_fuse_inodes", "gauge", "", "Inodes that the kernel remembers, and the mount with it."),
    family("tandem_fuse_open_files", "gauge", "", "Open files."),
    family(
        "tandem_fuse_files_read_ahead",
        "gauge",
        "",
        "Files that are read from the disk ahead of who reads them in order.",
    ),
    family("tandem_fuse_read_bytes_total", "counter", "", "Bytes that programs read through the daemon."),
    family("tandem_fuse_written_bytes_total", "counter", "", "Bytes that programs wrote."),
    family(
        "tandem_fuse_op_duration_seconds",
        "histogram",
        "op",
        "Time to answer a request of the kernel, without waiting for the replica.",
    ),
    family("tandem_volume_state", "gauge", "state", "1 for the state of the volume, 0 for the others."),
    family("tandem_volume_connected", "gauge", "", "1 while a writer is attached."),
    family("tandem_volume_durable_operations_total", "counter", "", "Highest operation of the epoch that is durable."),
    family("tandem_volume_backlog_operations", "gauge", "", "Operations that are durable and not yet applied."),
    family("tandem_volume_backlog_bytes", "gauge", "", "Bytes of them."),
    family("tandem_volume_log_bytes", "gauge", "", "Size of the log."),
    family("tandem_volume_log_limit_bytes", "gauge", "", "Bound of the log, at which the writer is held back."),
    family("tandem_volume_logged_bytes_total", "counter", "", "Bytes appended to the log."),
    family("tandem_volume_inodes", "gauge", "", "Inodes of the replica."),
    family("tandem_volume_index_files", "gauge", "", "Files in the content index."),
    family("tandem_volume_index_chunks", "gauge", "", "Chunks in the content index."),
    family("tandem_volume_index_waiting_files", "gauge", "", "Files that wait to be indexed."),
    family("tandem_volume_history_bytes", "gauge", "", "Size of deleted and replaced files that are kept."),
    family("tandem_volume_history_limit_bytes", "gauge", "", "Their bound; 0: none."),
];

/// Collects samples by family, because the format wants them together.
struct Text {
    lines: Vec<Vec<String>>,
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", pairs.join(","))
}

impl Text {
    fn add(&mut self, name: &str, suffix: &str, pairs: &[(&str, &str)], value: f64) {
        let at = FAMILIES.iter().position(|family| family.name == name);
        debug_assert!(at.is_some(), "{name} is not in the list");
        if let Some(at) = at {
            self.lines[at].push(format!("{name}{suffix}{} {value}", labels(pairs)));
        }
    }

    fn one(&mut self, name: &str, pairs: &[(&str, &str)], value: impl Number) {
        self.add(name, "", pairs, value.number());
    }

    fn states(&mut self, name: &str, all: &[&str], pairs: &[(&str, &str)], state: &str) {
        for possible in all {
            let mut pairs = pairs.to_vec();
            pairs.push(("state", possible));
            self.one(name, &pairs, u64::from(*possible == state));
        }
    }
}

/// What a sample can be.
trait Number {
    fn number(self) -> f64;
}

impl Number for u64 {
    fn number(self) -> f64 {
        self as f64
    }
}

impl Number for f64 {
    fn number(self) -> f64 {
        if self.is_finite() { self } else { 0.0 }
    }
}

/// The text that Prometheus reads.
pub fn render(status: &pb::StatusReply) -> String {
    let mut text = Text { lines: FAMILIES.iter().map(|_| Vec::new()).collect() };
    let daemon = ("daemon", status.daemon.as_str());
    text.one("tandem_build_info", &[daemon, ("version", &status.version)], 1);
    text.one("tandem_start_time_seconds", &[daemon], status.started_ns as f64 / 1e9);
    status.mounts.iter().for_each(|of| mount(&mut text, of));
    status.volumes.iter().for_each(|of| volume(&mut text, of));
    let mut out = String::new();
    for (family, lines) in FAMILIES.iter().zip(text.lines).filter(|(_, lines)| !lines.is_empty()) {
        let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {}", family.name, family.help, family.name, family.kind);
        for line in lines {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

fn mount(text: &mut Text, of: &pb::MountStatus) {
    let pairs = [("volume", of.volume.as_str()), ("mountpoint", of.mountpoint.as_str())];
    let up = matches!(of.state.as_str(), "initial" | "live" | "lagging" | "catching-up");
    text.states("tandem_link_state", &LINK_STATES, &pairs, &of.state);
    text.one("tandem_link_lag_seconds", &pairs, of.lag_seconds);
    text.one("tandem_fsync_unreplicated_age_seconds", &pairs, of.unreplicated_fsync_seconds);
    let progress = of.progress.clone().unwrap_or_default();
    for (name, value) in [
        ("tandem_link_up", u64::from(up)),
        ("tandem_link_lag_operations", of.ops_behind),
        ("tandem_link_lag_bytes", of.bytes_behind),
        ("tandem_link_sent_bytes_total", of.sent_bytes),
        ("tandem_link_received_bytes_total", of.received_bytes),
        ("tandem_operations_total", of.seq),
        ("tandem_epoch", of.epoch),
        ("tandem_window_bytes", of.window_bytes),
        ("tandem_window_limit_bytes", of.window_limit_bytes),
        ("tandem_dirty_cells", of.dirty_cells),
        ("tandem_dirty_bytes", of.dirty_bytes),
        ("tandem_dirty_limit_bytes", of.dirty_limit_bytes),
        ("tandem_suspect_cells_total", of.suspect_cells),
        ("tandem_mark_writes_total", of.mark_writes),
        ("tandem_resync_rounds_total", of.resync_rounds),
        ("tandem_resync_files_done", progress.files_done),
        ("tandem_resync_files_expected", progress.files_total),
        ("tandem_fsync_waiting", of.waiting_fsyncs),
        ("tandem_writes_held", of.held_writes),
        ("tandem_fuse_inodes", of.known_inodes),
        ("tandem_fuse_open_files", of.open_files),
        ("tandem_fuse_files_read_ahead", of.files_read_ahead),
        ("tandem_fuse_read_bytes_total", of.read_bytes),
        ("tandem_fuse_written_bytes_total", of.written_bytes),
    ] {
        text.one(name, &pairs, value);
    }
    for op in &of.ops {
        histogram(text, &pairs, op);
    }
}

fn histogram(text: &mut Text, pairs: &[(&str, &str); 2], op: &pb::OpFigures) {
    const NAME: &str = "tandem_fuse_op_duration_seconds";
    let [volume, mountpoint] = *pairs;
    let mut seen = 0;
    for (bound, count) in BUCKETS_SECONDS.iter().zip(&op.buckets) {
        seen += count;
        text.add(NAME, "_bucket", &[volume, mountpoint, ("op", &op.op), ("le", &bound.to_string())], seen as f64);
    }
    let pairs = [volume, mountpoint, ("op", op.op.as_str())];
    // Counters are read one after the other while they rise: all of them are at least what the buckets say.
    let all = op.buckets.iter().sum::<u64>() as f64;
    text.add(NAME, "_bucket", &[pairs[0], pairs[1], pairs[2], ("le", "+Inf")], all);
    text.add(NAME, "_sum", &pairs, op.seconds);
    text.add(NAME, "_count", &pairs, all);
}

fn volume(text: &mut Text, of: &pb::VolumeStatus) {
    let pairs = [("volume", of.volume.as_str())];
    text.states("tandem_volume_state", &VOLUME_STATES, &pairs, &of.state);
    for (name, value) in [
        ("tandem_volume_connected", u64::from(!of.client.is_empty())),
        ("tandem_volume_durable_operations_total", of.durable),
        ("tandem_volume_backlog_operations", of.backlog_ops),
        ("tandem_volume_backlog_bytes", of.backlog_bytes),
        ("tandem_volume_log_bytes", of.log_bytes),
        ("tandem_volume_log_limit_bytes", of.log_limit_bytes),
        ("tandem_volume_logged_bytes_total", of.logged_bytes),
        ("tandem_volume_inodes", of.inodes),
        ("tandem_volume_index_files", of.index_files),
        ("tandem_volume_index_chunks", of.index_chunks),
        ("tandem_volume_index_waiting_files", of.index_behind),
        ("tandem_volume_history_bytes", of.history_bytes),
        ("tandem_volume_history_limit_bytes", of.history_limit_bytes),
    ] {
        text.one(name, &pairs, value);
    }
}

/// The table of `docs/METRICS.md`.
pub fn table() -> String {
    let mut out = String::from("| name | type | labels | meaning |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", family.name, family.kind, family.labels, family.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{MountStatus, OpFigures, StatusReply, VolumeStatus};

    use super::{FAMILIES, render, table};

    #[test]
    fn the_documented_table_is_the_list_in_the_code() {
        let documented = include_str!("../../../docs/METRICS.md");
        let missing: Vec<_> = table().lines().filter(|line| !documented.contains(*line)).map(str::to_owned).collect();
        assert!(missing.is_empty(), "docs/METRICS.md lacks these lines:\n{}", missing.join("\n"));
    }

    #[test]
    fn every_family_is_told_by_one_of_the_daemons_with_help_and_type() {
        let op = OpFigures { op: "write".into(), count: 3, seconds: 0.5, buckets: vec![1; 15] };
        let status = StatusReply {
            daemon: "mountd".into(),
            mounts: vec![MountStatus {
                volume: "a\"b".into(),
                state: "live".into(),
                ops: vec![op],
                ..Default::default()
            }],
            volumes: vec![VolumeStatus { volume: "v".into(), state: "settled".into(), ..Default::default() }],
            ..Default::default()
        };
        let text = render(&status);
        for family in FAMILIES {
            assert!(text.contains(&format!("# TYPE {} {}\n", family.name, family.kind)), "{}", family.name);
        }
        assert!(text.contains(r#"tandem_link_state{volume="a\"b",mountpoint="",state="live"} 1"#), "{text}");
        assert!(text.contains(r#"op="write",le="+Inf"} 15"#), "{text}");
        assert!(text.contains(r#"le="0.000005"} 1"#), "{text}");
    }
}
