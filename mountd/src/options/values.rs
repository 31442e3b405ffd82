//! What the values of the keys mean, and how they are written.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    time::Duration,
};

use tandem_runtime::settings::size as size_text;

use super::{
    BANDWIDTH_MIN, FLUSH_INTERVAL_MAX, SHADOW_MIN_BYTES, Settings, UsageError, WINDOW_MIN_BYTES,
    keys::{IGNORED, KEYS, hint},
    usage,
};
use crate::{
    commit::throttle::Congestion,
    link::start::Init,
    vfs::{CacheMode, FsyncMode, FsyncRules, Reads},
};

impl Settings {
    /// Sets one key.
    pub fn set(&mut self, key: &str, value: Option<OsString>) -> Result<(), UsageError> {
        match (key, value) {
            ("backing", Some(dir)) => self.backing = Some(absolute(key, dir)?),
            ("state", Some(dir)) => self.state = absolute(key, dir)?,
            ("runtime", Some(dir)) => self.runtime = absolute(key, dir)?,
            ("init", Some(value)) => {
                self.init = Some(one_of(key, &value, &[("pull", Init::Pull), ("push", Init::Push)])?)
            }
            ("fsync", Some(value)) => fsync_rule(&mut self.fsync, &value)?,
            ("fsync_timeout", Some(value)) => self.fsync_timeout = seconds(key, &value)?,
            ("takeover", value) => self.takeover = flag(key, value)?,
            ("keepalive", Some(value)) => self.keepalive = seconds(key, &value)?,
            ("reconnect_max", Some(value)) => match seconds(key, &value)? {
                Some(longest) => self.reconnect_max = longest,
                None => return usage("option reconnect_max=0: write seconds, for example 2"),
            },
            ("busy_poll", Some(value)) => self.busy_poll = busy_poll(&value)?,
            ("read_ahead", Some(value)) => self.read_ahead_bytes = size("read_ahead", &value, 4 << 10, "4K")?,
            ("bwlimit", Some(value)) => self.bandwidth_limit = bandwidth(&value)?,
            ("resync", Some(value)) => self.resync_full = one_of(key, &value, &[("gentle", false), ("full", true)])?,
            ("window", Some(value)) => self.window_bytes = window(&value)?,
            ("dirty_max", Some(value)) => self.dirty_bytes = size(key, &value, 1 << 20, "1M")?,
            ("shadow_max", Some(value)) => self.shadow_bytes = shadow_size(&value)?,
            ("marks_hot", Some(value)) => self.marks_hot = marks(&value)?,
            ("exclude", Some(value)) => {
                let text = value.to_str().ok_or_else(|| UsageError("option exclude: a pattern is UTF-8".to_owned()))?;
                self.exclude.add(text).map_err(|why| UsageError(format!("option exclude: {why}")))?;
            }
            ("passthrough", Some(path)) => {
                self.passthrough.set_below(path.as_bytes(), Reads::Passthrough).map_err(|why| {
                    UsageError(format!("option passthrough={}: {why}; for example passthrough=/media", path.display()))
                })?;
            }
            ("verify_every", Some(value)) => self.verify.every = seconds(key, &value)?,
            ("verify_rate", Some(value)) => self.verify.rate_bytes = size(key, &value, 64 << 10, "64K")? as u64,
            ("congestion", Some(value)) => {
                let modes = [("lag", Congestion::Lag), ("throttle", Congestion::Throttle)];
                self.congestion = one_of(key, &value, &modes)?;
            }
            ("cache", Some(value)) => {
                let modes = [("strict", CacheMode::Strict), ("writeback", CacheMode::Writeback)];
                self.cache_mode = one_of(key, &value, &modes)?;
            }
            ("flush_interval", Some(value)) => match seconds(key, &value)? {
                Some(interval) if interval <= FLUSH_INTERVAL_MAX => self.flush_interval = interval,
                _ => return usage("option flush_interval: write seconds, more than 0 and at most 30, for example 0.2"),
            },
            ("dirty_budget", Some(value)) => match value.to_string_lossy().trim_end_matches('%').parse() {
                Ok(percent @ 1..=100) => self.dirty_percent = percent,
                _ => return usage("option dirty_budget: write a number from 1 to 100, for example 60"),
            },
            ("web", Some(value)) => self.web = value.to_string_lossy().parse().map_err(UsageError)?,
            ("log_level", Some(value)) => self.log.level = Some(value.to_string_lossy().into_owned()),
            ("log_json", value) => self.log.json = flag(key, value)?,
            ("weak_ids", value) => self.weak_ids = flag(key, value)?,
            ("allow_other", value) => self.allow_other = Some(flag(key, value)?),
            ("identity", Some(file)) => self.identity = Some(absolute(key, file)?),
            ("ca", Some(file)) => self.own.ca = Some(absolute(key, file)?),
            ("cert", Some(file)) => self.own.cert = Some(absolute(key, file)?),
            ("key", Some(file)) => self.own.key = Some(absolute(key, file)?),
            ("insecure", value) => self.insecure = flag(key, value)?,
            ("foreground", value) => self.foreground = flag(key, value)?,
            ("ro", value) => self.read_only = flag(key, value)?,
            ("rw", None) => self.read_only = false,
            ("suid", value) => self.suid = flag(key, value)?,
            ("nosuid", None) => self.suid = false,
            ("dev", value) => self.dev = flag(key, value)?,
            ("nodev", None) => self.dev = false,
            ("exec", value) => self.exec = flag(key, value)?,
            ("noexec", None) => self.exec = false,
            (key, _) if IGNORED.contains(&key) || key.starts_with("x_") || key == "comment" => {}
            (key, None) if KEYS.iter().any(|(name, argument, _)| *name == key && argument.is_some()) => {
                return usage(format!("option {key} needs a value: {key}=..."));
            }
            (key, _) => return usage(format!("unknown option {key:?}; {}", hint(key))),
        }
        Ok(())
    }

    /// The value of a key as it could be written; empty: nothing is set.
    pub fn show(&self, key: &str) -> String {
        let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(String::new, |path| path.display().to_string());
        match key {
            "backing" => path(&self.backing),
            "init" => self.init.map_or("", |init| if init == Init::Pull { "pull" } else { "push" }).to_owned(),
            "takeover" => self.takeover.to_string(),
            "fsync" => self.fsync.to_string(),
            "passthrough" => self.passthrough.passing().join(","),
            "fsync_timeout" => shown_seconds(self.fsync_timeout),
            "keepalive" => shown_seconds(self.keepalive),
            "reconnect_max" => shown_seconds(Some(self.reconnect_max)),
            "bwlimit" => size_text(self.bandwidth_limit.unwrap_or(0)),
            "resync" => if self.resync_full { "full" } else { "gentle" }.to_owned(),
            "window" => size_text(self.window_bytes as u64),
            "dirty_max" => size_text(self.dirty_bytes as u64),
            "shadow_max" => size_text(self.shadow_bytes as u64),
            "marks_hot" => self.marks_hot.to_string(),
            "busy_poll" => self.busy_poll.as_micros().to_string(),
            "read_ahead" => size_text(self.read_ahead_bytes as u64),
            "state" => self.state.display().to_string(),
            "runtime" => self.runtime.display().to_string(),
            "web" => self.web.to_string(),
            "log_level" => self.log.effective_level(),
            "log_json" => self.log.json.to_string(),
            "cache" => self.cache_mode.to_string(),
            "flush_interval" => shown_seconds(Some(self.flush_interval)),
            "dirty_budget" => self.dirty_percent.to_string(),
            "congestion" => self.congestion.as_str().to_owned(),
            "verify_every" => shown_seconds(self.verify.every),
            "verify_rate" => size_text(self.verify.rate_bytes),
            "exclude" => self.exclude.texts().join(","),
            "weak_ids" => self.weak_ids.to_string(),
            "allow_other" => self.allow_other.map_or_else(String::new, |allow| allow.to_string()),
            "identity" => path(&self.identity),
            "ca" => path(&self.own.ca),
            "cert" => path(&self.own.cert),
            "key" => path(&self.own.key),
            "insecure" => self.insecure.to_string(),
            "ro" => self.read_only.to_string(),
            "suid" => self.suid.to_string(),
            "dev" => self.dev.to_string(),
            "exec" => self.exec.to_string(),
            "foreground" => self.foreground.to_string(),
            // A test walks the table.
            _ => String::new(),
        }
    }
}

fn shown_seconds(span: Option<Duration>) -> String {
    span.map_or_else(|| "0".to_owned(), |span| span.as_secs_f64().to_string())
}

/// Paths are absolute: the daemon leaves its working directory.
pub fn absolute(key: &str, dir: OsString) -> Result<PathBuf, UsageError> {
    std::path::absolute(PathBuf::from(dir)).map_err(|error| UsageError(format!("option {key}: {error}")))
}

fn one_of<T: Copy>(key: &str, value: &OsString, choices: &[(&str, T)]) -> Result<T, UsageError> {
    let chosen = choices.iter().find(|(name, _)| value.as_os_str() == *name);
    chosen.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        UsageError(format!("option {key}={}: use {}", value.to_string_lossy(), names.join(" or ")))
    })
}

fn flag(key: &str, value: Option<OsString>) -> Result<bool, UsageError> {
    match value {
        None => Ok(true),
        Some(value) => one_of(key, &value, &[("true", true), ("false", false), ("yes", true), ("no", false)]),
    }
}

/// `MODE` for the mount, `MODE:/PATH` for what lies at or below a path of it.
fn fsync_rule(rules: &mut FsyncRules, value: &OsString) -> Result<(), UsageError> {
    const MODES: &[(&str, FsyncMode)] = &[("local", FsyncMode::Local), ("durable", FsyncMode::Durable)];
    let bytes = value.as_bytes();
    let Some(at) = bytes.iter().position(|byte| *byte == b':') else {
        rules.set_mount(one_of("fsync", value, MODES)?);
        return Ok(());
    };
    let mode = one_of("fsync", &OsString::from_vec(bytes[..at].to_vec()), MODES)?;
    rules.set_below(&bytes[at + 1..], mode).map_err(|why| {
        UsageError(format!("option fsync={}: {why}; for example fsync=durable:/db", value.to_string_lossy()))
    })
}

fn seconds(key: &str, value: &OsString) -> Result<Option<Duration>, UsageError> {
    let text = value.to_string_lossy();
    match text.strip_suffix('s').unwrap_or(&text).parse::<f64>() {
        Ok(0.0) => Ok(None),
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 * 365.0 => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => usage(format!("option {key}={text}: write seconds, for example 30; 0 waits for ever")),
    }
}

fn window(value: &OsString) -> Result<usize, UsageError> {
    size("window", value, WINDOW_MIN_BYTES, "4M")
}

/// Bytes a second; 0: no limit.
fn bandwidth(value: &OsString) -> Result<Option<u64>, UsageError> {
    if value == "0" {
        return Ok(None);
    }
    size("bwlimit", value, BANDWIDTH_MIN, "16K").map(|bytes| Some(bytes as u64))
}

/// A number of bytes, with K, M or G behind it.
fn size(key: &str, value: &OsString, least: usize, least_text: &str) -> Result<usize, UsageError> {
    let text = value.to_string_lossy();
    let (digits, shift) = match text.trim_end_matches(['B', 'b', 'i']).as_bytes() {
        [digits @ .., b'K' | b'k'] => (digits.len(), 10),
        [digits @ .., b'M' | b'm'] => (digits.len(), 20),
        [digits @ .., b'G' | b'g'] => (digits.len(), 30),
        digits => (digits.len(), 0),
    };
    match text[..digits].parse::<usize>().ok().and_then(|number| number.checked_mul(1 << shift)) {
        Some(bytes) if bytes >= least => Ok(bytes),
        _ => usage(format!("option {key}={text}: write a size of at least {least_text}, for example 64M")),
    }
}

/// 0 switches the shadow off.
fn shadow_size(value: &OsString) -> Result<usize, UsageError> {
    if value == "0" { Ok(0) } else { size("shadow_max", value, SHADOW_MIN_BYTES, "4M (0: none)") }
}

fn busy_poll(value: &OsString) -> Result<Duration, UsageError> {
    match value.to_string_lossy().parse() {
        Ok(micros @ 0..=10_000) => Ok(Duration::from_micros(micros)),
        _ => usage(format!("option busy_poll={}: write microseconds, up to 10000", value.to_string_lossy())),
    }
}

fn marks(value: &OsString) -> Result<usize, UsageError> {
    match value.to_string_lossy().parse() {
        Ok(count @ 16..=100_000) => Ok(count),
        _ => usage(format!("option marks_hot={}: write a number from 16 to 100000", value.to_string_lossy())),
    }
}
