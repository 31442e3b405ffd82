//! Status as people read it: one line a volume, details on demand.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tandem_proto::pb::{MountStatus, Progress, Setting, VerifyStatus, VolumeStatus, WaitingCall, Worker};

use crate::{
    bar,
    exit::Exit,
    mounts::{Daemon, Mount, Silent},
};

/// Bytes with a unit.
pub fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = units[0];
    for next in &units[1..] {
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

/// A span of time with a unit.
pub fn seconds(span: f64) -> String {
    match span {
        _ if !span.is_finite() || span <= 0.0 => "0 ms".to_owned(),
        _ if span < 1.0 => format!("{:.0} ms", (span * 1000.0).max(1.0)),
        _ if span < 60.0 => format!("{span:.1} s"),
        _ if span < 3600.0 => format!("{:.0} min", span / 60.0),
        _ if span < 172_800.0 => format!("{:.1} h", span / 3600.0),
        _ => format!("{:.1} d", span / 86_400.0),
    }
}

/// A number and its noun.
fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Progress in a few words.
pub fn progress(progress: &Progress) -> String {
    format!("{}: {}; {} so far", progress.what, bar::figures(progress), seconds(progress.seconds))
}

/// The cells of a mount's line.
pub fn mount_row(status: &MountStatus) -> Vec<String> {
    let mut behind = format!("{} behind", count(status.ops_behind, "op", "ops"));
    if status.bytes_behind > 0 {
        let _ = write!(behind, " ({})", bytes(status.bytes_behind));
    }
    let fsync = format!("fsync={}", status.fsync_mode);
    let verified = match &status.verify {
        Some(verify) if verify.time_ns > 0 => format!("verified {} ago", age(verify.time_ns)),
        Some(_) => "not verified yet".to_owned(),
        None => String::new(),
    };
    vec![
        status.volume.clone(),
        status.mountpoint.clone(),
        status.state.clone(),
        behind,
        seconds(status.lag_seconds),
        fsync,
        verified,
    ]
}

/// The cells of the line of a storage daemon's volume.
pub fn volume_row(status: &VolumeStatus) -> Vec<String> {
    let writer = if status.client.is_empty() { "no writer".to_owned() } else { format!("from {}", status.client) };
    let behind = status.durable.saturating_sub(status.applied);
    let holds = match status.used_bytes {
        0 => count(status.inodes, "inode", "inodes"),
        used => format!("{}, {}", count(status.inodes, "inode", "inodes"), bytes(used)),
    };
    vec![
        status.volume.clone(),
        status.directory.clone(),
        status.state.clone(),
        format!("{} to apply", count(behind, "op", "ops")),
        holds,
        writer,
    ]
}

/// Rows as lines whose columns stand below each other.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// The line with its state in colour: green in sync, yellow behind, red else; on a terminal, unless `NO_COLOR` is set.
pub fn coloured(line: &str, state: &str, exit: Exit) -> String {
    let wanted = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let colour = match exit {
        Exit::InSync => 32,
        Exit::Behind => 33,
        _ => 31,
    };
    // Columns are two spaces apart, and the state is never the first.
    match line.split_once(&format!("  {state} ")) {
        Some((before, after)) if wanted => format!("{before}  \x1b[{colour}m{state}\x1b[0m {after}"),
        _ => line.to_owned(),
    }
}

/// A call that waits is worth a line of its own after so many seconds.
const WAITING_NOTED: f64 = 1.0;

/// A call that waits, in a few words.
fn waiting(call: &WaitingCall) -> String {
    let path = if call.path.is_empty() { "a file without a name" } else { &call.path };
    let who = match (call.process.as_str(), call.pid) {
        ("", 0) => String::new(),
        ("", pid) => format!(" by process {pid}"),
        (process, pid) => format!(" by {process} ({pid})"),
    };
    format!("{} of {path}{who}, for {}", call.what, seconds(call.seconds))
}

/// What the daemon may not read, one line each.
fn unreadable(status: &MountStatus) -> impl Iterator<Item = String> {
    let more = status.unreadable_count.saturating_sub(status.unreadable.len() as u64);
    let told = "chmod u+r (a directory: u+rx) lets the mount replicate what is in it";
    let listed = status.unreadable.iter().map(move |path| format!("{path}: {told}"));
    listed.chain((more > 0).then(|| format!("and {more} more")))
}

/// What every reader must see below a mount's line: why it is not in order.
pub fn mount_notes(status: &MountStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(running) = &status.progress {
        notes.push(progress(running));
    }
    let stands = !matches!(status.state.as_str(), "live" | "initial" | "catching-up");
    match status.reason.as_str() {
        // Since when matters as much as why.
        reason if stands && status.state_since_ns > 0 => {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            notes.push(format!("{} for {}{why}", status.state, age(status.state_since_ns)));
        }
        "" => {}
        reason => notes.push(reason.to_owned()),
    }
    if status.state == "offline" {
        notes.push("work goes on here, and it connects again by itself; if it does not: tandem doctor".to_owned());
    }
    let long = status.waiting.iter().filter(|call| call.seconds >= WAITING_NOTED);
    notes.extend(long.take(3).map(|call| format!("waits for the replica: {}", waiting(call))));
    if status.security == "plaintext" {
        notes.push(
            "WARNING: plaintext over a network, as `insecure` asks: whoever is on the way reads and changes everything"
                .to_owned(),
        );
    }
    notes
}

/// The same for a volume.
pub fn volume_notes(status: &VolumeStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if status.empty {
        notes.push("nothing was published yet: the first sync is not complete".to_owned());
    }
    if let Some(running) = &status.progress {
        notes.push(progress(running));
    }
    if !status.reason.is_empty() {
        notes.push(status.reason.clone());
    }
    notes
}

/// What the replica keeps the order of.
fn order(status: &MountStatus) -> String {
    match status.flush_seconds {
        0.0 => status.order.clone(),
        span => format!("{}; written data waits in the kernel up to {}", status.order, seconds(span)),
    }
}

/// One line about what does not answer.
pub fn silent_line(silent: &Silent) -> String {
    format!("{}  does not answer: {}", silent.place.display(), silent.reason)
}

/// The details of a mount, a label and a text each.
pub fn mount_details(mount: &Mount) -> Vec<(&'static str, String)> {
    let status = &mount.status;
    let mut details = vec![
        ("server", status.server.clone()),
        ("role", role(status)),
        ("backing", status.backing.clone()),
        (
            "position",
            format!("{}:{}, durable {}, applied {}", status.epoch, status.seq, status.durable, status.applied),
        ),
        ("window", format!("{} of {}", bytes(status.window_bytes), bytes(status.window_limit_bytes))),
        (
            "dirty set",
            format!(
                "{}, {} of {}",
                count(status.dirty_cells, "cell", "cells"),
                bytes(status.dirty_bytes),
                bytes(status.dirty_limit_bytes)
            ),
        ),
        (
            "shadow",
            match status.shadow_missing.as_str() {
                "" => bytes(status.shadow_bytes),
                why => format!("none: {why}; if the daemon is killed, all marked cells are compared"),
            },
        ),
        ("marks", format!("{} hot, {} written", status.marks_hot, status.mark_writes)),
        (
            "resyncs",
            format!(
                "{}, {} listed, {} read",
                count(status.resync_rounds, "round", "rounds"),
                count(status.listed_dirs, "directory", "directories"),
                count(status.stat_nodes, "inode", "inodes")
            ),
        ),
        ("wire", format!("{} sent, {} received", bytes(status.sent_bytes), bytes(status.received_bytes))),
        ("link", link(status)),
        ("modes", format!("cache={} fsync={} congestion={}", status.cache_mode, status.fsync_mode, status.congestion)),
        ("order", order(status)),
        (
            "waiting",
            format!(
                "{} for the replica, {} held back",
                count(status.waiting_fsyncs, "fsync", "fsyncs"),
                count(status.held_writes, "write", "writes")
            ),
        ),
        (
            "fsync",
            match status.unreplicated_fsync_seconds {
                0.0 => String::new(),
                age => format!("the replica lacks what was synced {} ago", seconds(age)),
            },
        ),
        ("state", status.state_dir.clone()),
        ("daemon", daemon(&mount.daemon)),
    ];
    if let Some(verify) = &status.verify {
        details.push(("verified", verified(verify)));
        details.extend(verify.recent.iter().map(|mismatch| ("mismatch", mismatch.clone())));
    }
    details.extend(status.waiting.iter().map(|call| ("waits", waiting(call))));
    if status.fenced_ns > 0 {
        details.push(("fenced", format!("{} ago", age(status.fenced_ns))));
    }
    if status.own_inside {
        details.push((".tandem", "the folder has one of its own, so the mount shows that".to_owned()));
    }
    details.extend(status.excludes.iter().map(|pattern| ("excluded", pattern.clone())));
    details.extend(status.not_crossed.iter().map(|path| ("not crossed", path.clone())));
    details.extend(unreadable(status).map(|text| ("not readable", text)));
    details.extend(status.bypass.iter().map(|process| ("bypassed by", process.clone())));
    details.extend(workers(&status.workers));
    if !status.last_error.is_empty() {
        details.push(("last error", status.last_error.clone()));
    }
    if !status.security.is_empty() {
        details.push(("connection", status.security.clone()));
    }
    details.extend(settings(&mount.daemon));
    details
}

/// What this mount is to the volume, and since when its link is as it is.
fn role(status: &MountStatus) -> String {
    let role = if status.state == "fenced" { "read-only: another client writes" } else { "writer" };
    let since = match status.state_since_ns {
        0 => String::new(),
        since => format!(", {} for {}", status.state, age(since)),
    };
    format!("{role}, epoch {}{since}", status.epoch)
}

/// What the last comparison said, in a few words.
fn verified(verify: &VerifyStatus) -> String {
    let mut out = match verify.time_ns {
        0 => "never yet".to_owned(),
        time => format!(
            "equal at {}, {} ago: {}, {}",
            verify.position,
            age(time),
            count(verify.files, "file", "files"),
            bytes(verify.bytes)
        ),
    };
    if verify.unchecked > 0 {
        let _ = write!(out, ", {} not comparable", verify.unchecked);
    }
    if verify.mismatches > 0 {
        let mismatches = count(verify.mismatches, "mismatch", "mismatches");
        let _ = write!(out, "; {mismatches} so far, {} repaired", verify.repaired);
    }
    if !verify.next.is_empty() {
        let _ = write!(out, "; next {}", verify.next);
    }
    out
}

fn link(status: &MountStatus) -> String {
    let rate = match status.link_rate {
        0 => "never the bottleneck".to_owned(),
        rate => format!("{}/s", bytes(rate)),
    };
    let limit = match status.bandwidth_limit {
        0 => String::new(),
        limit => format!(", limited to {}/s", bytes(limit)),
    };
    let held = if status.holding { ", bulk data held back to be offered by digest" } else { "" };
    let offered = count(status.offered_rounds, "backlog", "backlogs");
    format!("{rate}{limit}{held}; {offered} offered by digest; compression {}", status.compression)
}

/// What a volume may hold, and what becomes of special files in its tree.
fn volume_quota(status: &VolumeStatus) -> String {
    let quota = match status.quota_bytes {
        0 => "none".to_owned(),
        limit => format!("{} of {}", bytes(status.used_bytes), bytes(limit)),
    };
    let special = if status.special == "deny" { "; devices and set-user-id bits in the catalog only" } else { "" };
    format!("{quota}{special}")
}

/// The details of a storage daemon's volume.
pub fn volume_details(status: &VolumeStatus) -> Vec<(&'static str, String)> {
    let mut details = vec![
        (
            "position",
            format!(
                "epoch {}, received {}, durable {}, applied {}",
                status.epoch, status.received, status.durable, status.applied
            ),
        ),
        ("inodes", status.inodes.to_string()),
        ("log", format!("{} of {}", bytes(status.log_bytes), bytes(status.log_limit_bytes))),
        ("quota", volume_quota(status)),
        (
            "index",
            format!(
                "{}, {}, {} waiting",
                count(status.index_files, "file", "files"),
                count(status.index_chunks, "chunk", "chunks"),
                status.index_behind
            ),
        ),
    ];
    if let Some(percent) = status.index_walked.saturating_mul(100).checked_div(status.index_to_walk) {
        let (done, all) = (status.index_walked, status.index_to_walk);
        details.push(("index rebuilt", format!("{percent} %, {done} of {all} inodes compared")));
    }
    if status.history_positions + status.history_deleted > 0 {
        let limit = match status.history_limit_bytes {
            0 => String::new(),
            limit => format!(" of {}", bytes(limit)),
        };
        let positions = count(status.history_positions, "position", "positions");
        let deleted = match status.history_deleted {
            0 => String::new(),
            deleted => format!("; {} deleted since the start", count(deleted, "position", "positions")),
        };
        details.push(("history", format!("{}{limit}, replaced at {positions}{deleted}", bytes(status.history_bytes))));
    }
    if status.hooks_done + status.hooks_failed + status.hooks_waiting > 0 {
        let last = match status.hooks_last_error.as_str() {
            "" => String::new(),
            error => format!("; the last failure: {error}"),
        };
        let (done, failed, waiting) = (status.hooks_done, status.hooks_failed, status.hooks_waiting);
        details.push(("hooks", format!("{done} run, {failed} failed, {waiting} waiting{last}")));
    }
    if status.mismatches > 0 {
        let found = count(status.mismatches, "mismatch", "mismatches");
        details.push(("verify", format!("{found} since the start; see history/mismatches.jsonl in its directory")));
    }
    if status.backlog_ops > 0 {
        let ops = count(status.backlog_ops, "op", "ops");
        details.push(("waits for apply", format!("{ops}, {}", bytes(status.backlog_bytes))));
    }
    if status.salvaged_files > 0 {
        let files = count(status.salvaged_files, "file", "files");
        details.push(("salvage", format!("{files} of a resync that was not finished, for the next one")));
    }
    if status.attached_ns > 0 {
        details.push(("attached", format!("{} ago", age(status.attached_ns))));
    }
    details.extend(workers(&status.workers));
    if !status.last_error.is_empty() {
        details.push(("last error", status.last_error.clone()));
    }
    details
}

/// What a daemon was told to be; of what is as by default only how much that is, as the JSON has all of it.
pub fn settings(daemon: &Daemon) -> Vec<(&'static str, String)> {
    let line = |setting: &Setting| {
        let value = if setting.value.is_empty() { "not set" } else { &setting.value };
        let next = match setting.next.as_deref() {
            None => String::new(),
            Some("") => "; not set from the next start on".to_owned(),
            Some(next) => format!("; {next} from the next start on"),
        };
        ("setting", format!("{} = {value} ({}){next}", setting.key, setting.origin))
    };
    let (defaults, written): (Vec<_>, Vec<_>) =
        daemon.settings.iter().partition(|setting| setting.origin == "default" && setting.next.is_none());
    let mut lines: Vec<_> = written.into_iter().map(line).collect();
    if !defaults.is_empty() {
        lines.push(("settings", format!("{} as by default; --json lists them", defaults.len())));
    }
    lines
}

/// A daemon in a few words.
pub fn daemon(daemon: &Daemon) -> String {
    let page = if daemon.web.is_empty() { String::new() } else { format!(", page {}", daemon.web) };
    format!("pid {}, version {}, started {} ago{page}", daemon.pid, daemon.version, age(daemon.started_ns))
}

/// Details and notes as indented lines.
pub fn indented(notes: &[String], details: &[(&'static str, String)]) -> String {
    let mut out = String::new();
    for note in notes {
        let _ = writeln!(out, "    {note}");
    }
    for (label, text) in details.iter().filter(|(_, text)| !text.is_empty()) {
        let _ = writeln!(out, "    {label:<12}{text}");
    }
    out
}

fn workers(workers: &[Worker]) -> impl Iterator<Item = (&'static str, String)> + '_ {
    workers.iter().map(|worker| ("worker", format!("{}: {}", worker.name, worker.state)))
}

fn age(since_ns: i64) -> String {
    let since = UNIX_EPOCH + Duration::from_nanos(u64::try_from(since_ns).unwrap_or(0));
    seconds(SystemTime::now().duration_since(since).unwrap_or_default().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{MountStatus, WaitingCall};

    use super::{bytes, mount_notes, mount_row, seconds, table};

    #[test]
    fn numbers_have_units_that_people_read() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(seconds(0.0), "0 ms");
        assert_eq!(seconds(0.0042), "4 ms");
        assert_eq!(seconds(1e-9), "1 ms");
        assert_eq!(seconds(90.0), "2 min");
        assert_eq!(seconds(f64::NAN), "0 ms");
    }

    #[test]
    fn a_mount_is_one_line() {
        let status = MountStatus {
            volume: "work".to_owned(),
            mountpoint: "/home/u/work".to_owned(),
            state: "live".to_owned(),
            lag_seconds: 0.004,
            fsync_mode: "local".to_owned(),
            ..Default::default()
        };
        assert_eq!(table(&[mount_row(&status)]), ["work  /home/u/work  live  0 ops behind  4 ms  fsync=local"]);
    }

    #[test]
    fn who_waits_and_since_when_it_is_offline_is_said() {
        let mut status = MountStatus { state: "offline".to_owned(), state_since_ns: 1, ..Default::default() };
        status.reason = "connection refused".to_owned();
        let call = |seconds| WaitingCall {
            what: "fsync".to_owned(),
            path: "/db/wal".to_owned(),
            seconds,
            pid: 7,
            process: "postgres".to_owned(),
        };
        status.waiting = vec![call(12.3), call(0.01)];
        let notes = mount_notes(&status);
        assert!(notes[0].starts_with("offline for ") && notes[0].ends_with(": connection refused"), "{notes:?}");
        assert!(notes[1].contains("tandem doctor"), "what to do: {notes:?}");
        assert_eq!(notes[2..], ["waits for the replica: fsync of /db/wal by postgres (7), for 12.3 s"]);
        status.state = "live".to_owned();
        assert_eq!(mount_notes(&status)[0], "connection refused");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), ["a     b", "long  c"]);
    }
}
