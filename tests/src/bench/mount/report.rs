//! The table: medians of the ratios to native of the same repetition, with their spread; as text and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    rows::{Bounded, EQUAL_RATE_MIN, GIB, Measure, ROWS, Row, name},
    work::Took,
};

/// One kind of place that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `native`, `paused`, `live`, `lagging`, `absent`, a peer, [`BARE`] or [`MEMORY`].
    pub state: String,
    /// Options of the mount.
    pub options: String,
}

impl Kind {
    /// As a heading.
    pub fn title(&self) -> String {
        if self.options.is_empty() { self.state.clone() } else { format!("{} {}", self.state, self.options) }
    }
}

/// The state of a file system in memory behind FUSE.
pub const BARE: &str = "bare";
/// The state of one in the kernel.
pub const MEMORY: &str = "memory";

/// Seconds by repetition, of rows and kinds.
#[derive(Debug, Default)]
pub struct Samples {
    seconds: BTreeMap<(&'static str, usize), Vec<f64>>,
    requests: BTreeMap<(&'static str, usize), Vec<f64>>,
    /// Of one request to a file system in memory.
    request_seconds: Vec<f64>,
    /// Length of the sequential write after which replicas become equal.
    burst_bytes: u64,
}

/// Median, least and greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let median = *values.get(values.len() / 2)?;
    Some(Spread { median, least: values[0], greatest: values[values.len() - 1] })
}

impl Samples {
    /// None yet; of sequential writes of so many bytes.
    pub fn of_bursts(burst_bytes: u64) -> Samples {
        Samples { burst_bytes, ..Samples::default() }
    }

    /// Adds what one repetition of a row took.
    pub fn add(&mut self, row: &'static str, kind: usize, took: Took) {
        self.seconds.entry((row, kind)).or_default().push(took.seconds);
        let requests = took.requests.map(|requests| requests as f64);
        self.requests.entry((row, kind)).or_default().extend(requests);
    }

    /// Adds what a request to a file system in memory took.
    pub fn add_request(&mut self, seconds: f64) {
        self.request_seconds.push(seconds);
    }

    /// About what no file system behind FUSE does better: it takes the way there, and does the work.
    pub fn floor(&self, row: &Row, kinds: &[Kind], at: usize) -> Option<Floor> {
        let of = |state| {
            let found = kinds.iter().position(|kind| kind.state == state);
            found.and_then(|at| self.seconds.get(&(row.name, at)))
        };
        let (native, bare) = (self.seconds.get(&(row.name, 0))?, of(BARE));
        let ratio = |seconds: Vec<f64>| {
            spread(native.iter().zip(seconds).map(|(native, seconds)| row.ratio(*native, seconds)).collect())
        };
        match row.bounded(&kinds[at].options) {
            Bounded::ByCalls => match bare.zip(of(MEMORY)) {
                Some((bare, memory)) => {
                    // What the caller does by itself is in all three.
                    let ways = bare.iter().zip(memory).map(|(bare, memory)| (bare - memory).max(0.0));
                    let ratio = ratio(ways.zip(native).map(|(way, native)| native + way).collect())?;
                    let why = "the way to a file system in memory, beside the work itself,".to_owned();
                    Some(Floor { ratio: ratio.median, why })
                }
                None => {
                    let native = self.seconds(row, 0)?.median;
                    let (seconds, why) = self.trips(row, native, at)?;
                    Some(Floor { ratio: row.ratio(native, seconds), why })
                }
            },
            Bounded::ByPageCache => {
                let why = "the kernel's cache of files behind FUSE alone".to_owned();
                Some(Floor { ratio: ratio(bare?.clone())?.median, why })
            }
            Bounded::ByNothing => None,
        }
    }

    /// Where there is no file system in memory: the work itself, and the round trips that were counted, each of the shortest kind.
    fn trips(&self, row: &Row, native: f64, at: usize) -> Option<(f64, String)> {
        let requests = spread(self.requests.get(&(row.name, at))?.clone())?.median;
        let each = spread(self.request_seconds.clone())?.median;
        Some((native + requests * each, format!("{requests:.0} round trips of {:.1} µs alone", each * 1e6)))
    }

    /// The spread of the seconds.
    pub fn seconds(&self, row: &Row, kind: usize) -> Option<Spread> {
        spread(self.seconds.get(&(row.name, kind))?.clone())
    }

    /// How long a live replica took to be equal after the sequential write, from the end of its last call.
    pub fn equal(&self, kind: usize) -> Option<Spread> {
        spread(self.seconds.get(&(name::EQUAL, kind))?.clone())
    }

    /// The spread of the ratios to kind 0 of the same repetition.
    pub fn ratios(&self, row: &Row, kind: usize) -> Option<Spread> {
        let (native, other) = (self.seconds.get(&(row.name, 0))?, self.seconds.get(&(row.name, kind))?);
        spread(native.iter().zip(other).map(|(native, other)| row.ratio(*native, *other)).collect())
    }
}

/// What a file system would have whose own work costs nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    /// Its ratio to native.
    pub ratio: f64,
    /// What makes it.
    pub why: String,
}

/// One cell of the table that is out of its bound.
#[derive(Clone, Debug)]
pub struct Missed {
    /// Which.
    pub what: String,
    /// The median.
    pub ratio: f64,
    /// The bound.
    pub bound: f64,
    /// One whose own work costs nothing is out of the bound: none behind FUSE keeps it on this machine.
    pub forbidden: Option<Floor>,
}

/// Prints the table; what is out of its bound. `before`: the JSON of an earlier run.
pub fn print(samples: &Samples, kinds: &[Kind], before: Option<&Value>) -> Vec<Missed> {
    let mut missed = Vec::new();
    // With room for the figure before.
    let width = if before.is_some() { 36 } else { 26 };
    let titles: Vec<String> = kinds[1..].iter().map(|kind| format!("{:>width$}", kind.title())).collect();
    println!("{:<30}{:>11}{}", "ratio to native (least..greatest)", "native s", titles.join(""));
    for row in &ROWS {
        let Some(native) = samples.seconds(row, 0) else { continue };
        let mut line = format!("{:<32}{:>9.4}", row.name, native.median);
        for (at, kind) in kinds.iter().enumerate().skip(1) {
            let Some(ratio) = samples.ratios(row, at) else {
                line += &format!("{:>width$}", "-");
                continue;
            };
            let bound = row.bound(&kind.options, &kind.state);
            let out = bound.is_some_and(|bound| !row.within(ratio.median, bound));
            if let Some(bound) = bound.filter(|_| out) {
                let forbidden = samples.floor(row, kinds, at).filter(|floor| !row.within(floor.ratio, bound));
                let what = format!("{}, {}", row.name, kind.title());
                missed.push(Missed { what, ratio: ratio.median, bound, forbidden });
            }
            let was = before.and_then(|before| before["rows"][row.name][kind.title()]["ratio"].as_f64());
            let was = was.map(|was| format!(" was {was:.2}")).unwrap_or_default();
            let mark = match missed.last() {
                Some(missed) if out && missed.forbidden.is_some() => "~",
                _ if out => "!",
                _ => "",
            };
            let cell = format!("{mark}{:.2} ({:.2}..{:.2}){was}", ratio.median, ratio.least, ratio.greatest);
            line += &format!("{cell:>width$}");
        }
        println!("{line}");
    }
    missed.extend((0..kinds.len()).filter_map(|at| print_equal(samples, kinds, at, before)));
    for Missed { what, ratio, bound, forbidden } in &missed {
        let why = forbidden
            .as_ref()
            .map_or_else(String::new, |floor| format!("; {} would have {:.2}", floor.why, floor.ratio));
        println!("out of its bound: {what}: {ratio:.2}, bound {bound}{why}");
    }
    missed
}

/// Prints how soon a kind's replica was equal after the sequential write, if it has one that is live; told as missed if that was too late.
fn print_equal(samples: &Samples, kinds: &[Kind], at: usize, before: Option<&Value>) -> Option<Missed> {
    let (equal, bytes, title) = (samples.equal(at)?, samples.burst_bytes as f64, kinds[at].title());
    let (rate, bound) = (bytes / equal.median, EQUAL_RATE_MIN / GIB);
    let out = rate < EQUAL_RATE_MIN;
    let before = before.map(|before| &before["equal"][&title]).filter(|before| before["bytes"] == samples.burst_bytes);
    let was = before.and_then(|before| before["seconds"].as_f64());
    let was = was.map(|was| format!(" was {was:.3} s")).unwrap_or_default();
    println!(
        "{}, {title}: {}{:.3} s ({:.3}..{:.3}){was} for {} MiB, {:.2} GiB/s (bound: within data / {bound} GiB/s, {:.3} s)",
        name::EQUAL,
        if out { "!" } else { "" },
        equal.median,
        equal.least,
        equal.greatest,
        samples.burst_bytes >> 20,
        rate / GIB,
        bytes / EQUAL_RATE_MIN,
    );
    let what = format!("{}, {title}, GiB/s", name::EQUAL);
    out.then(|| Missed { what, ratio: rate / GIB, bound, forbidden: None })
}

/// The result for later runs.
pub fn as_json(samples: &Samples, kinds: &[Kind]) -> Value {
    let cell = |row: &Row, at: usize| {
        let (seconds, ratio) = (samples.seconds(row, at)?, samples.ratios(row, at)?);
        let bound = row.bound(&kinds[at].options, &kinds[at].state);
        Some(json!({
            "seconds": seconds.median, "ratio": ratio.median, "least": ratio.least, "greatest": ratio.greatest,
            "bound": bound, "floor": samples.floor(row, kinds, at).map(|floor| floor.ratio),
            "better": if row.measure == Measure::Rate { "more" } else { "less" },
        }))
    };
    let rows = ROWS.iter().map(|row| {
        let cells = kinds.iter().enumerate().filter_map(|(at, kind)| Some((kind.title(), cell(row, at)?)));
        (row.name.to_owned(), Value::Object(cells.collect()))
    });
    let equal = kinds.iter().enumerate().filter_map(|(at, kind)| {
        let (equal, bytes) = (samples.equal(at)?, samples.burst_bytes);
        let figures = json!({
            "seconds": equal.median, "least": equal.least, "greatest": equal.greatest, "bytes": bytes,
            "bound": bytes as f64 / EQUAL_RATE_MIN, "better": "less",
        });
        Some((kind.title(), figures))
    });
    json!({ "rows": Value::Object(rows.collect()), "equal": Value::Object(equal.collect()) })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{BARE, Kind, MEMORY, Samples, as_json, print};
    use crate::bench::mount::{
        rows::{ROWS, name},
        work::Took,
    };

    #[test]
    fn ratios_are_of_one_repetition_and_show_what_is_out_of_its_bound() {
        let kinds = ["native", "paused"].map(|state| Kind { state: state.into(), options: String::new() });
        let mut samples = Samples::default();
        for (native, mount) in [(1.0, 4.0), (2.0, 8.0), (1.0, 2.0)] {
            samples.add(ROWS[0].name, 0, Took { seconds: native, requests: None });
            samples.add(ROWS[0].name, 1, Took { seconds: mount, requests: Some(1000) });
        }
        samples.add_request(0.000_5);
        let ratios = samples.ratios(&ROWS[0], 1).expect("measured");
        assert_eq!((ratios.median, ratios.least, ratios.greatest), (0.25, 0.25, 0.5));
        let json = as_json(&samples, &kinds);
        assert_eq!(json["rows"][ROWS[0].name]["paused"]["ratio"], 0.25);
        let missed = print(&samples, &kinds, Some(&json));
        assert_eq!((missed.len(), missed[0].forbidden.is_some()), (1, false), "1.5 s are within the bound");
        samples.add_request(0.003);
        samples.add_request(0.003);
        let forbidden = print(&samples, &kinds, None)[0].forbidden.clone().expect("4 s are not");
        assert_eq!((forbidden.ratio, forbidden.why.as_str()), (0.25, "1000 round trips of 3000.0 µs alone"));
    }

    #[test]
    fn a_replica_that_is_equal_too_late_is_out_of_its_bound() {
        let kinds = ["native", "paused", "live"].map(|state| Kind { state: state.into(), options: String::new() });
        for (seconds, out) in [(3.3, None), (4.0, Some(0.25))] {
            let mut samples = Samples::of_bursts(1 << 30);
            samples.add(name::EQUAL, 2, Took { seconds, requests: None });
            let json = as_json(&samples, &kinds);
            assert_eq!((&json["equal"]["live"]["seconds"], &json["equal"]["paused"]), (&seconds.into(), &Value::Null));
            let missed = print(&samples, &kinds, Some(&json));
            assert_eq!(missed.first().map(|missed| missed.ratio), out, "1 GiB takes 3.33 s at 0.3 GiB/s");
        }
    }

    #[test]
    fn what_is_only_compared_is_in_no_bound() {
        let states = ["native", "lagging", "absent", "bindfs", "sshfs", "gluster"];
        let kinds = states.map(|state| Kind { state: state.into(), options: String::new() });
        let mut samples = Samples::default();
        for (row, at) in ROWS.iter().flat_map(|row| (0..kinds.len()).map(move |at| (row, at))) {
            let far = if at == 0 { 1.0 } else { 1e6 };
            samples.add(row.name, at, Took { seconds: far, requests: None });
        }
        assert_eq!(print(&samples, &kinds, None).len(), 0);
    }

    #[test]
    fn the_way_behind_fuse_is_added_to_the_work_itself_without_what_the_caller_does_by_himself() {
        let kinds = ["native", "live", BARE, MEMORY].map(|state| Kind { state: state.into(), options: String::new() });
        let row = ROWS.iter().find(|row| row.name == name::GIT_ADD).expect("a row");
        for (bare, forbidden) in [(1.8, None), (2.2, Some(2.3))] {
            let mut samples = Samples::default();
            for (at, seconds) in [1.0, 3.0, bare, 0.9].into_iter().enumerate() {
                samples.add(row.name, at, Took { seconds, requests: None });
            }
            let missed = print(&samples, &kinds, None);
            let floors: Vec<_> = missed.iter().map(|missed| missed.forbidden.as_ref()).collect();
            let ratios: Vec<_> = floors.iter().map(|floor| floor.map(|floor| (floor.ratio * 10.0).round())).collect();
            assert_eq!(ratios, [forbidden.map(|ratio: f64| ratio * 10.0)], "bound 2");
        }
    }

    #[test]
    fn what_the_kernel_keeps_is_no_faster_than_behind_a_file_system_that_does_nothing() {
        let kinds = ["native", "live", BARE].map(|state| Kind { state: state.into(), options: String::new() });
        let row = ROWS.iter().find(|row| row.name == name::READ_WARM).expect("a row");
        for (bare, forbidden) in [(1.05, None), (1.3, Some(1.0 / 1.3))] {
            let mut samples = Samples::default();
            for (at, seconds) in [1.0, 1.25, bare].into_iter().enumerate() {
                samples.add(row.name, at, Took { seconds, requests: None });
            }
            let missed = print(&samples, &kinds, None);
            let floors: Vec<_> =
                missed.iter().map(|missed| missed.forbidden.as_ref().map(|floor| floor.ratio)).collect();
            assert_eq!(floors, [forbidden]);
        }
    }
}
