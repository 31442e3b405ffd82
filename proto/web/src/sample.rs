//! What a page shows beside the status of the moment: series for the plots, and what happened lately. Fed with a status each half
//! second; bounded; kept in memory only.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tandem_proto::pb;

/// Five minutes.
const SAMPLES_MAX: usize = 600;
const EVENTS_MAX: usize = 100;
/// States that come and go with every burst of work.
const PASSING: [&str; 1] = ["applying"];

/// Counters of one volume at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counters {
    time_ms: i64,
    ops: u64,
    bytes: u64,
    sent: u64,
    calls: u64,
    call_seconds: f64,
}

/// One point of the plots.
#[derive(Clone, Debug)]
struct Sample {
    time_ms: i64,
    ops_per_s: f64,
    bytes_per_s: f64,
    sent_per_s: f64,
    lag_s: f64,
    latency_ms: f64,
}

#[derive(Clone, Debug)]
struct Event {
    time_ms: i64,
    volume: String,
    text: String,
}

#[derive(Default)]
struct Followed {
    last: Option<Counters>,
    samples: VecDeque<Sample>,
    state: String,
    last_error: String,
    running: String,
}

#[derive(Default)]
struct Seen {
    volumes: BTreeMap<String, Followed>,
    events: VecDeque<Event>,
}

/// See the module.
#[derive(Default)]
pub struct Sampler {
    seen: Mutex<Seen>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// What is followed of a mount or a volume.
struct Look<'a> {
    name: &'a str,
    state: &'a str,
    reason: &'a str,
    last_error: &'a str,
    running: String,
    lag_s: f64,
    counters: Counters,
}

fn running(progress: Option<&pb::Progress>) -> String {
    progress.map_or_else(String::new, |progress| progress.what.clone())
}

impl Sampler {
    /// Takes a status into account.
    pub fn look(&self, status: &pb::StatusReply) {
        let time_ms = now_ms();
        let mut seen = self.seen.lock();
        for mount in &status.mounts {
            let calls = mount.ops.iter().map(|op| op.count).sum();
            let call_seconds = mount.ops.iter().map(|op| op.seconds).sum();
            let bytes = mount.written_bytes;
            seen.follow(Look {
                name: &mount.volume,
                state: &mount.state,
                reason: &mount.reason,
                last_error: &mount.last_error,
                running: running(mount.progress.as_ref()),
                lag_s: mount.lag_seconds,
                counters: Counters { time_ms, ops: mount.seq, bytes, sent: mount.sent_bytes, calls, call_seconds },
            });
        }
        for volume in &status.volumes {
            let (ops, sent) = (volume.durable, volume.logged_bytes);
            seen.follow(Look {
                name: &volume.volume,
                state: &volume.state,
                reason: &volume.reason,
                last_error: &volume.last_error,
                running: running(volume.progress.as_ref()),
                lag_s: 0.0,
                counters: Counters { time_ms, ops, bytes: sent, sent, ..Default::default() },
            });
        }
    }

    /// The series of a volume, as columns.
    pub fn series(&self, volume: &str) -> Value {
        let seen = self.seen.lock();
        let Some(followed) = seen.volumes.get(volume) else { return Value::Null };
        Value::Array(followed.samples.iter().map(Sample::json).collect())
    }

    /// The newest point.
    pub fn newest(&self, volume: &str) -> Value {
        let seen = self.seen.lock();
        let newest = seen.volumes.get(volume).and_then(|followed| followed.samples.back());
        newest.map_or(Value::Null, Sample::json)
    }

    /// What happened, the newest first.
    pub fn events(&self) -> Value {
        let seen = self.seen.lock();
        let event = |event: &Event| json!({ "t": event.time_ms, "volume": event.volume, "text": event.text });
        Value::Array(seen.events.iter().rev().map(event).collect())
    }
}

impl Sample {
    fn json(&self) -> Value {
        let round = |number: f64| (number * 1000.0).round() / 1000.0;
        json!({
            "t": self.time_ms, "ops": round(self.ops_per_s), "bytes": self.bytes_per_s.round(),
            "sent": self.sent_per_s.round(), "lag": round(self.lag_s), "latency": round(self.latency_ms),
        })
    }
}

/// How much a counter rose; none if it began anew.
fn rise(now: u64, before: u64) -> f64 {
    now.saturating_sub(before) as f64
}

impl Seen {
    fn follow(&mut self, look: Look<'_>) {
        let followed = self.volumes.entry(look.name.to_owned()).or_default();
        let now = look.counters;
        let mut said = Vec::new();
        // A volume applies what it got all the time; that is no news.
        if followed.state != look.state && !PASSING.contains(&look.state) && !PASSING.contains(&followed.state.as_str())
        {
            let why = if look.reason.is_empty() { String::new() } else { format!(": {}", look.reason) };
            said.push(format!("{}{why}", look.state));
        }
        look.state.clone_into(&mut followed.state);
        if followed.last_error != look.last_error {
            if !look.last_error.is_empty() {
                said.push(format!("error: {}", look.last_error));
            }
            look.last_error.clone_into(&mut followed.last_error);
        }
        if followed.running != look.running {
            said.push(match look.running.as_str() {
                "" => format!("{} ended", followed.running),
                what => format!("{what} began"),
            });
            followed.running = look.running;
        }
        if let Some(last) = &followed.last {
            let seconds = ((now.time_ms - last.time_ms).max(1)) as f64 / 1000.0;
            let calls = rise(now.calls, last.calls);
            followed.samples.push_back(Sample {
                time_ms: now.time_ms,
                ops_per_s: rise(now.ops, last.ops) / seconds,
                bytes_per_s: rise(now.bytes, last.bytes) / seconds,
                sent_per_s: rise(now.sent, last.sent) / seconds,
                lag_s: look.lag_s,
                latency_ms: if calls > 0.0 {
                    (now.call_seconds - last.call_seconds).max(0.0) / calls * 1e3
                } else {
                    0.0
                },
            });
            if followed.samples.len() > SAMPLES_MAX {
                followed.samples.pop_front();
            }
        }
        let time_ms = now.time_ms;
        followed.last = Some(now);
        for text in said {
            self.events.push_back(Event { time_ms, volume: look.name.to_owned(), text });
        }
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{MountStatus, StatusReply};

    use super::Sampler;

    #[test]
    fn changes_of_state_are_events_and_series_are_bounded() {
        let sampler = Sampler::default();
        let status = |state: &str, seq| StatusReply {
            mounts: vec![MountStatus { volume: "v".into(), state: state.into(), seq, ..Default::default() }],
            ..Default::default()
        };
        for seq in 0..700 {
            sampler.look(&status("live", seq));
        }
        sampler.look(&status("offline", 700));
        assert_eq!(sampler.series("v").as_array().expect("a series").len(), 600);
        let events = sampler.events();
        assert_eq!((events[0]["text"].as_str(), events[1]["text"].as_str()), (Some("offline"), Some("live")));
        assert!(sampler.newest("v")["ops"].as_f64().expect("a number") > 0.0);
    }
}
