//! Tells the record of ops to people: one line of it is one item, and writes that follow each other are one.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    path::Path,
};

use serde::Deserialize;
use tandem_proto::pb;

use super::{PREFIX, SUFFIX};

/// Writes of one file by one process within this time are one item.
const MERGE_WITHIN_NS: i64 = 2_000_000_000;
/// So many items back another write of the same file is looked for.
const MERGE_BACK: usize = 32;
/// Items that are told if nobody says otherwise.
const LIMIT_DEFAULT: usize = 200;
/// At most so many; some 30 MB.
pub const LIMIT_MAX: usize = 100_000;

#[derive(Deserialize, Default)]
struct Object {
    #[serde(default)]
    id: String,
    path: Option<String>,
}

impl Object {
    fn shown(&self) -> String {
        self.path.clone().unwrap_or_else(|| format!("[{}]", self.id))
    }
}

#[derive(Deserialize)]
struct Did {
    #[serde(rename = "do")]
    what: String,
    id: Option<String>,
    of: Option<Object>,
    dir: Option<Object>,
    name: Option<String>,
    was: Option<String>,
    is: Option<String>,
    #[serde(default)]
    mtime_only: bool,
    #[serde(default)]
    len: u64,
}

impl Did {
    fn path(&self) -> String {
        let Some(dir) = &self.dir else { return self.of.as_ref().map_or_else(String::new, Object::shown) };
        let (dir, name) = (dir.shown(), self.name.as_deref().unwrap_or_default());
        if dir == "/" { format!("/{name}") } else { format!("{dir}/{name}") }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    time_ns: i64,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    client: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    pid: u32,
    #[serde(default)]
    process: String,
    #[serde(default)]
    changes: Vec<Did>,
    ops: Option<u64>,
    #[serde(rename = "do")]
    what: Option<String>,
    #[serde(default)]
    changed: u64,
    #[serde(default)]
    removed: u64,
    #[serde(default)]
    paths: Vec<String>,
    not_recorded: Option<u64>,
}

/// What a line says; `None`: nothing that people ask for.
pub fn item(line: &[u8]) -> Option<pb::HistoryItem> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let mut item = pb::HistoryItem {
        time_ns: line.time_ns,
        epoch: line.epoch,
        seq: line.seq,
        client: line.client,
        uid: line.uid,
        pid: line.pid,
        process: line.process,
        ops: line.ops.unwrap_or(1),
        ..Default::default()
    };
    if let Some(missing) = line.not_recorded {
        (item.what, item.ops) = ("not recorded".to_owned(), missing);
        return Some(item);
    }
    if line.what.is_some() {
        item.what = "resynced".to_owned();
        let more = line.changed.saturating_sub(line.paths.len() as u64);
        item.path = line.paths.join(" ");
        if more > 0 {
            item.path.push_str(&format!(" and {more} more"));
        }
        item.ops = line.changed + line.removed;
        return Some(item);
    }
    let (what, path, to) = names(&line.changes).or_else(|| contents(&line.changes))?;
    (item.what, item.path, item.to) = (what.to_owned(), path, to);
    item.bytes = line.changes.iter().filter(|did| did.what == "write").map(|did| did.len).sum();
    Some(item)
}

/// What an op did to names.
fn names(changes: &[Did]) -> Option<(&'static str, String, String)> {
    let entries: Vec<&Did> = changes.iter().filter(|did| did.what == "name").collect();
    match entries[..] {
        [] => None,
        [one] => {
            let born = changes.iter().any(|did| did.what == "create" && did.id == one.is);
            let what = match (&one.was, &one.is) {
                (_, None) => "deleted",
                (Some(_), Some(_)) => "replaced",
                (None, Some(_)) if born => "created",
                (None, Some(_)) => "linked",
            };
            Some((what, one.path(), String::new()))
        }
        [one, other, ..] => {
            let (from, to) = if one.is.is_none() { (one, other) } else { (other, one) };
            let what = if from.is.is_none() { "renamed" } else { "exchanged" };
            Some((what, from.path(), to.path()))
        }
    }
}

/// What an op without names did.
fn contents(changes: &[Did]) -> Option<(&'static str, String, String)> {
    let rank = |did: &Did| match did.what.as_str() {
        "write" | "hole" => 3,
        "size" => 2,
        "xattr" => 1,
        "attr" if !did.mtime_only => 1,
        _ => 0,
    };
    let main = changes.iter().max_by_key(|did| rank(did))?;
    let what = match rank(main) {
        3 => "written",
        2 => "truncated",
        1 => "attributes",
        _ => return None,
    };
    Some((what, main.path(), String::new()))
}

/// Appends an item, or adds it to an earlier one of the same file.
pub fn merge(items: &mut VecDeque<pb::HistoryItem>, item: pb::HistoryItem) {
    if item.what == "written" {
        let same = items.iter_mut().rev().take(MERGE_BACK).find(|known| known.path == item.path);
        if let Some(known) = same
            && known.what == "written"
            && known.pid == item.pid
            && item.time_ns - known.time_ns < MERGE_WITHIN_NS
        {
            known.bytes += item.bytes;
            known.ops += item.ops;
            known.seq = item.seq;
            return;
        }
    }
    items.push_back(item);
}

/// Which part of the record is asked for.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// At or below this path; empty: everything.
    pub path: String,
    /// Unix time; 0: all.
    pub since_ns: i64,
    /// The newest so many; 0: some.
    pub limit: usize,
}

fn is_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Question {
    fn wants(&self, item: &pb::HistoryItem) -> bool {
        let in_time = item.time_ns >= self.since_ns;
        let top = self.path.trim_end_matches('/');
        in_time && (top.is_empty() || is_below(&item.path, top) || is_below(&item.to, top))
    }
}

/// Reads the record in `directory`, oldest first. Lines that do not parse are passed over: the last may be half written.
pub fn read(directory: &Path, question: &Question) -> io::Result<VecDeque<pb::HistoryItem>> {
    let limit = match question.limit {
        0 => LIMIT_DEFAULT,
        limit => limit.min(LIMIT_MAX),
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        // What was written last before the time in question holds nothing of it.
        let modified = entry.metadata()?.modified()?;
        let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        if is_ours && modified as i128 >= i128::from(question.since_ns) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    let mut items = VecDeque::new();
    for path in files {
        let mut lines = BufReader::with_capacity(1 << 16, File::open(path)?);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            if let Some(item) = item(&line).filter(|item| question.wants(item)) {
                merge(&mut items, item);
                if items.len() > limit {
                    items.pop_front();
                }
            }
            line.clear();
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::{Question, item, merge, read};

    fn line(seq: u64, changes: &str) -> String {
        format!(
            r#"{{"time_ns":{seq},"epoch":1,"seq":{seq},"client":"c","uid":0,"pid":7,"process":"p","changes":[{changes}]}}"#
        )
    }

    #[test]
    fn ops_are_told_in_words() {
        let told = |changes: &str| item(line(1, changes).as_bytes()).map(|item| (item.what, item.path, item.to));
        let some = |what: &str, path: &str, to: &str| Some((what.to_owned(), path.to_owned(), to.to_owned()));
        let name = |name: &str, was: &str, is: &str| {
            let id = |key: &str, id: &str| if id.is_empty() { String::new() } else { format!(r#","{key}":"{id}""#) };
            format!(r#"{{"do":"name","dir":{{"id":"","path":"/"}},"name":"{name}"{}{}}}"#, id("was", was), id("is", is))
        };
        let born = r#"{"do":"create","id":"1","kind":"file"}"#;
        assert_eq!(told(&format!("{born},{}", name("a", "", "1"))), some("created", "/a", ""));
        assert_eq!(told(&name("a", "1", "")), some("deleted", "/a", ""));
        assert_eq!(told(&name("a", "", "1")), some("linked", "/a", ""));
        assert_eq!(told(&format!("{},{}", name("a", "1", ""), name("b", "2", "1"))), some("renamed", "/a", "/b"));
        assert_eq!(told(&format!("{},{}", name("a", "1", "2"), name("b", "2", "1"))), some("exchanged", "/b", "/a"));
        let of = r#""of":{"id":"1","path":"/d/f"}"#;
        assert_eq!(told(&format!(r#"{{"do":"write",{of},"offset":0,"len":5}}"#)), some("written", "/d/f", ""));
        assert_eq!(told(&format!(r#"{{"do":"attr",{of},"mtime_only":true}}"#)), None);
        assert_eq!(told(&format!(r#"{{"do":"attr",{of}}}"#)), some("attributes", "/d/f", ""));
    }

    #[test]
    fn writes_of_one_file_are_one_item_and_half_a_line_is_passed_over() {
        let write = |seq| line(seq, r#"{"do":"write","of":{"id":"1","path":"/d/f"},"offset":0,"len":5}"#);
        let mut items = VecDeque::new();
        for seq in 1..4 {
            merge(&mut items, item(write(seq).as_bytes()).expect("an item"));
        }
        assert_eq!((items.len(), items[0].bytes, items[0].ops), (1, 15, 3));
        let dir = tempfile::tempdir().expect("temporary directory");
        let lines = format!("{}\n{}\n{}", write(1), write(2), &write(3)[..40]);
        std::fs::write(dir.path().join("ops-00000001.jsonl"), lines).expect("written");
        let ask = |path: &str| {
            let question = Question { path: path.to_owned(), ..Default::default() };
            read(dir.path(), &question).expect("read").len()
        };
        assert_eq!([ask(""), ask("/d"), ask("/d/f"), ask("/d/"), ask("/e"), ask("/d/ff")], [1, 1, 1, 1, 0, 0]);
    }
}
