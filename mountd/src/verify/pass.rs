//! One pass: walks what is below a path and compares it; what differs is for [`super::suspect`].

use std::time::{Duration, Instant};

use tandem_proto::{
    Digest, InodeId, Name, pb,
    stage::NodeType,
    verify::{Compared, EXTENT_MAX, GROUP_NAMES, Item, NamesDigest},
};
use tokio::sync::mpsc::error::TrySendError;

use super::{
    Updates, Worker,
    desk::Damaged,
    look::{Listed, NodeRead, Stop, Watch, names_digest},
    record::unix_ns,
    suspect::{Suspect, below, place_in},
};
use crate::{commit::Commit, vfs::Vfs};

/// A directory that changes under its reader is begun again so often; then its inodes are compared one by one.
const CALM_TRIES: usize = 3;
/// A directory that changes all the time is listed under its lock up to so many names; one with more cannot be compared as a whole then.
const LOCKED_LIST_MAX: usize = 4096;
/// Extents that are read for one question.
const EXTENTS: usize = 8;
/// Small data that is read for one group: bounds memory, and how long apply stands still there.
const GROUP_BYTES: u64 = 8 << 20;
/// What a file costs in the background beside its bytes: 2,000 files a second at the default rate.
const FILE_COST: u64 = 16 << 10;
/// Mismatches that are repaired together.
const REPAIR_MAX: usize = 1000;
/// How long a pass that somebody waits for waits for the link.
const LINK_PATIENCE: Duration = Duration::from_secs(30);
/// The same in the background.
const BACKGROUND_PATIENCE: Duration = Duration::from_secs(5);
/// Time between two messages about how it goes.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// See the module.
pub struct Pass<'a> {
    pub(super) worker: &'a mut Worker,
    pub(super) background: bool,
    pub(super) full_speed: bool,
    pub(super) updates: Option<Updates>,
    pub(super) begun: Instant,
    pub(super) told: Instant,
    /// Cost in bytes, for the rate.
    pub(super) spent: u64,
    pub(super) files: u64,
    pub(super) files_total: u64,
    pub(super) bytes: u64,
    pub(super) bytes_total: u64,
    pub(super) unchecked: u64,
    pub(super) mismatches: u64,
    pub(super) repaired: u64,
    pub(super) found: Vec<String>,
    pub(super) wrong: Vec<(Suspect, String)>,
    pub(super) path: String,
    pub(super) refused: Option<Instant>,
}

impl<'a> Pass<'a> {
    fn new(worker: &'a mut Worker, background: bool, full_speed: bool, updates: Option<Updates>) -> Pass<'a> {
        Pass {
            worker,
            background,
            full_speed,
            updates,
            begun: Instant::now(),
            told: Instant::now(),
            spent: 0,
            files: 0,
            files_total: 0,
            bytes: 0,
            bytes_total: 0,
            unchecked: 0,
            mismatches: 0,
            repaired: 0,
            found: Vec::new(),
            wrong: Vec::new(),
            path: "/".to_owned(),
            refused: None,
        }
    }

    /// A pass that nobody waits for.
    pub fn in_background(worker: &'a mut Worker) -> Pass<'a> {
        Pass::new(worker, true, false, None)
    }

    /// A pass that somebody waits for.
    pub fn asked_for(worker: &'a mut Worker, full_speed: bool, updates: Updates) -> Pass<'a> {
        Pass::new(worker, false, full_speed, Some(updates))
    }

    /// A pass over files that a scrub of the replica found to be damaged.
    pub fn of_damaged(worker: &'a mut Worker) -> Pass<'a> {
        Pass::new(worker, false, true, None)
    }

    /// Runs to its end.
    pub fn run(mut self, path: &[Name]) {
        let walked = self.walk(path);
        self.finish(walked, path.is_empty());
    }

    /// The same over some files only.
    pub fn run_files(mut self, files: &[Damaged]) {
        let walked = files.iter().try_for_each(|file| self.damaged(file));
        self.finish(walked, false);
    }

    fn damaged(&mut self, file: &Damaged) -> Result<(), Stop> {
        self.worker.wait_open(self.patience())?;
        self.path = format!("{}/", file.below);
        // Renamed or removed meanwhile: then it has other names, or is no concern any more.
        match self.worker.reader.entry(&file.dir, &file.name)? {
            Some(entry) if entry.id == file.id => {
                self.one_by_one(&file.dir, &[(file.name.clone(), file.id, entry.node_type)])?;
                self.pause()
            }
            _ => Ok(()),
        }
    }

    fn finish(mut self, walked: Result<(), Stop>, whole: bool) {
        // Also what a pass found that did not come to its end.
        let repaired = self.repair();
        let result = walked.and(repaired);
        let reason = match &result {
            Ok(()) => String::new(),
            Err(Stop::Ending | Stop::Yields) => "the mount ends".to_owned(),
            Err(Stop::Failed(why)) => why.clone(),
        };
        let facts = self.worker.commit.facts();
        let position = format!("{}:{}", facts.epoch, facts.watermarks.applied.unwrap_or_default());
        {
            let mut facts = self.worker.facts.lock();
            facts.running = None;
            facts.last.mismatches += self.mismatches;
            facts.last.repaired += self.repaired;
            if result.is_ok() && whole {
                facts.last.position.clone_from(&position);
                facts.last.time_ns = unix_ns();
                (facts.last.files, facts.last.bytes, facts.last.unchecked) = (self.files, self.bytes, self.unchecked);
                facts.last.ended = Some(Instant::now());
            }
            let kept = facts.last.clone();
            drop(facts);
            self.worker.record.save(&kept);
        }
        let (files, bytes, mismatches) = (self.files, self.bytes, self.mismatches);
        match &result {
            Ok(()) => tracing::info!(files, bytes, mismatches, position, "verified"),
            Err(Stop::Ending | Stop::Yields) => {}
            Err(Stop::Failed(why)) => tracing::warn!(files, mismatches, why, "a verify did not come to its end"),
        }
        let done = pb::VerifyReply { done: true, position, reason, ..self.reply() };
        if let Some(updates) = &self.updates {
            // Who has gone does not hear it.
            for found in std::mem::take(&mut self.found) {
                let _ = updates.blocking_send(Ok(pb::VerifyReply { found, done: false, ..done.clone() }));
            }
            let _ = updates.blocking_send(Ok(done));
        }
    }

    /// How long the link is waited for. In the background it is better to begin again later.
    pub(super) fn patience(&self) -> Duration {
        if self.background { BACKGROUND_PATIENCE } else { LINK_PATIENCE }
    }

    fn reply(&self) -> pb::VerifyReply {
        pb::VerifyReply {
            files_done: self.files,
            files_total: self.files_total.max(self.files),
            bytes_done: self.bytes,
            bytes_total: self.bytes_total,
            seconds: self.begun.elapsed().as_secs_f64(),
            mismatches: self.mismatches,
            repaired: self.repaired,
            unchecked: self.unchecked,
            now: self.path.clone(),
            ..Default::default()
        }
    }

    /// Tells how it goes, keeps to the rate, and looks whether to end.
    fn pause(&mut self) -> Result<(), Stop> {
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let reply = self.reply();
            self.worker.facts.lock().running = Some(pb::Progress {
                what: "verify".to_owned(),
                files_done: reply.files_done,
                files_total: reply.files_total,
                bytes_done: reply.bytes_done,
                bytes_total: reply.bytes_total,
                seconds: reply.seconds,
            });
            if let Some(updates) = &self.updates
                && let Err(TrySendError::Closed(_)) = updates.try_send(Ok(reply))
            {
                return Err(Stop::Failed("who asked for it left".to_owned()));
            }
        }
        loop {
            if self.worker.is_ending() {
                return Err(Stop::Ending);
            }
            if self.background
                && let Ok(request) = self.worker.requests.try_recv()
            {
                self.worker.pending = Some(request);
                return Err(Stop::Yields);
            }
            let due = Duration::from_secs_f64(self.spent as f64 / self.worker.rule.lock().rate_bytes.max(1) as f64);
            match due.checked_sub(self.begun.elapsed()) {
                Some(early) if !self.full_speed => std::thread::sleep(early.min(Duration::from_millis(100))),
                _ => return Ok(()),
            }
        }
    }

    fn count(&mut self, files: u64, bytes: u64) {
        self.files += files;
        self.bytes += bytes;
        self.spent += bytes + files * FILE_COST;
    }

    fn walk(&mut self, path: &[Name]) -> Result<(), Stop> {
        self.worker.wait_open(self.patience())?;
        let (mut at, mut text, mut last) = (InodeId::ROOT, String::new(), None);
        for name in path {
            let found = self.worker.reader.entry(&at, name)?;
            let Some(entry) = found else {
                return Err(Stop::Failed(format!("{text}/{name}: there is no such file in the volume")));
            };
            last = Some((at, name.clone(), entry.node_type));
            at = entry.id;
            text = format!("{text}/{name}");
        }
        if let Some((dir, name, node_type)) = &last
            && *node_type != NodeType::Directory
        {
            self.path = path[..path.len() - 1].iter().fold(String::new(), |text, name| format!("{text}/{name}")) + "/";
            self.bytes_total = self.worker.size(&at)?;
            self.one_by_one(dir, &[(name.clone(), at, *node_type)])?;
            return self.pause();
        }
        let whole = path.is_empty();
        let mut open = vec![(last.map(|(dir, name, _)| (dir, name)), at, text)];
        while let Some((place, dir, text)) = open.pop() {
            self.path = if text.is_empty() { "/".to_owned() } else { text.clone() };
            let below = self.directory(&dir, place, whole)?;
            open.extend(
                below.into_iter().rev().map(|(name, id)| (Some((dir, name.clone())), id, format!("{text}/{name}"))),
            );
            if self.wrong.len() >= REPAIR_MAX {
                self.repair()?;
            }
        }
        Ok(())
    }

    /// Compares a directory and what it holds but directories; those are returned.
    fn directory(
        &mut self,
        dir: &InodeId,
        place: Option<(InodeId, Name)>,
        whole: bool,
    ) -> Result<Vec<(Name, InodeId)>, Stop> {
        let mut known = 0;
        for _ in 0..CALM_TRIES {
            let before = (self.files, self.bytes);
            match self.calm_directory(dir, place.clone(), whole)? {
                Some(entries) => return Ok(directories(entries)),
                None => (self.files, self.bytes) = before,
            }
            known = self.worker.list(dir)?.map_or(0, |entries| entries.len());
        }
        self.busy_directory(dir, place, known)
    }

    /// `None`: it changed meanwhile.
    fn calm_directory(
        &mut self,
        dir: &InodeId,
        place: Option<(InodeId, Name)>,
        whole: bool,
    ) -> Result<Option<Vec<Listed>>, Stop> {
        let (vfs, commit) = (self.worker.vfs.clone(), self.worker.commit.clone());
        let worker = &*self.worker;
        let Some(still) = vfs.still(dir)? else { return Ok(Some(Vec::new())) };
        let (node, turns) = still.locked(|untimed| worker.read_node(dir, untimed));
        let (Some(node), Some(entries)) = (node?, worker.list(dir)?) else { return Ok(Some(Vec::new())) };
        let items = [
            Compared { item: Item::Names(*dir), digest: Some(names_digest(&entries)) },
            Compared { item: Item::Node { id: *dir, untimed: node.untimed }, digest: Some(node.digest) },
        ];
        let Some(placed) = place_in(&commit) else {
            worker.wait_open(self.patience())?;
            return Ok(None);
        };
        if still.turns() != turns {
            return Ok(None);
        }
        let mut refused = self.refused.take();
        let Some(result) = worker.ask(placed, &items, false, &mut refused)? else {
            self.refused = refused;
            return Ok(None);
        };
        if whole {
            self.files_total = result.inodes;
        }
        if !result.findings.is_empty() {
            drop(still);
            self.suspect(Suspect::Names(*dir))?;
            self.suspect(Suspect::Node { place, id: *dir, directory: true })?;
            self.one_by_one(dir, &entries)?;
            return Ok(Some(entries));
        }
        let mut large = Vec::new();
        let mut at = 0;
        let mut after: Option<Name> = None;
        while at < entries.len() {
            let worker = &*self.worker;
            let mut watch = Watch::default();
            let read = read_group(worker, &vfs, &entries[at..], &mut watch)?;
            let group = &entries[at..at + read.names];
            let until = if at + read.names == entries.len() { None } else { group.last().map(|entry| entry.0.clone()) };
            let item = Item::Group { dir: *dir, after: after.clone(), until: until.clone() };
            let items = [Compared { item, digest: Some(read.digest) }];
            let mut differs = !read.complete;
            if read.complete {
                let Some(placed) = place_in(&commit) else { return Ok(None) };
                if still.turns() != turns {
                    return Ok(None);
                }
                if watch.is_calm() {
                    let mut refused = self.refused.take();
                    let Some(result) = worker.ask(placed, &items, false, &mut refused)? else {
                        self.refused = refused;
                        return Ok(None);
                    };
                    differs = !result.findings.is_empty();
                } else {
                    differs = true;
                }
            }
            drop(watch);
            if differs {
                self.one_by_one(dir, group)?;
            } else {
                self.count(group.len() as u64, read.bytes);
                large.extend(read.large);
            }
            self.pause()?;
            at += read.names;
            after = until;
        }
        drop(still);
        for (id, name) in large {
            self.data(&id, &name)?;
        }
        Ok(Some(entries))
    }

    /// A directory that changes all the time.
    fn busy_directory(
        &mut self,
        dir: &InodeId,
        place: Option<(InodeId, Name)>,
        known: usize,
    ) -> Result<Vec<(Name, InodeId)>, Stop> {
        self.suspect(Suspect::Node { place, id: *dir, directory: true })?;
        if known <= LOCKED_LIST_MAX {
            self.suspect(Suspect::Names(*dir))?;
        } else {
            self.unchecked += 1;
        }
        let entries = self.worker.list(dir)?.unwrap_or_default();
        self.one_by_one(dir, &entries)?;
        Ok(directories(entries))
    }

    /// Compares inodes one by one, exactly.
    fn one_by_one(&mut self, dir: &InodeId, entries: &[Listed]) -> Result<(), Stop> {
        for (name, id, node_type) in entries {
            if *node_type == NodeType::Directory {
                self.count(1, 0);
                continue;
            }
            self.suspect(Suspect::Node { place: Some((*dir, name.clone())), id: *id, directory: false })?;
            let size = if *node_type == NodeType::Regular { self.worker.size(id)? } else { 0 };
            if size > tandem_proto::verify::SMALL_FILE {
                self.count(1, 0);
                self.data(id, name)?;
            } else {
                self.count(1, size);
            }
            self.pause()?;
        }
        Ok(())
    }

    /// Compares the data of a larger file.
    fn data(&mut self, id: &InodeId, name: &Name) -> Result<(), Stop> {
        let above = self.path.clone();
        self.path = below(&above, name);
        let compared = self.extents(id);
        self.path = above;
        compared
    }

    fn extents(&mut self, id: &InodeId) -> Result<(), Stop> {
        let (mut at, mut tries) = (0, 0);
        loop {
            let (vfs, commit) = (self.worker.vfs.clone(), self.worker.commit.clone());
            let worker = &*self.worker;
            let Some(file) = worker.open(id)? else { return Ok(()) };
            let Some(still) = vfs.still(id)? else { return Ok(()) };
            let (mut items, mut next, mut turns) = (Vec::new(), at, None);
            let mut disturbed = false;
            while items.len() < EXTENTS {
                let (read, now) = still.locked(|_| worker.read_extent(id, &*file, next));
                // One turn is ours.
                disturbed |= turns.is_some_and(|before: u64| before + 1 != now);
                turns = Some(now);
                let Some(compared) = read? else { break };
                if let Item::Extent { offset, len, .. } = compared.item {
                    next = offset + len;
                }
                items.push(compared);
            }
            if items.is_empty() {
                return Ok(());
            }
            let Some(placed) = place_in(&commit) else {
                drop(still);
                self.worker.wait_open(self.patience())?;
                continue;
            };
            disturbed |= turns.is_some_and(|turns| still.turns() != turns);
            if disturbed {
                drop((placed, still));
                tries += 1;
                if tries < CALM_TRIES {
                    continue;
                }
                // It is written all the time: extent by extent, each under its lock.
                for compared in &items {
                    if let Item::Extent { offset, len, .. } = compared.item {
                        self.suspect(Suspect::Extent { id: *id, offset, len })?;
                    }
                }
            } else {
                let mut refused = self.refused.take();
                let answer = worker.ask(placed, &items, false, &mut refused)?;
                self.refused = refused;
                drop(still);
                let Some(result) = answer else {
                    self.worker.wait_open(self.patience())?;
                    continue;
                };
                for finding in result.findings {
                    let found = items.get(finding.item as usize).map(|compared| &compared.item);
                    if let Some(Item::Extent { offset, len, .. }) = found {
                        self.suspect(Suspect::Extent { id: *id, offset: *offset, len: *len })?;
                    }
                }
            }
            tries = 0;
            let bytes = items.iter().filter(|item| item.digest.is_some()).map(|item| match item.item {
                Item::Extent { len, .. } => len,
                _ => 0,
            });
            self.count(0, bytes.sum());
            at = next;
            self.pause()?;
        }
    }
}

fn directories(entries: Vec<Listed>) -> Vec<(Name, InodeId)> {
    let is_directory = |entry: &Listed| entry.2 == NodeType::Directory;
    entries.into_iter().filter(is_directory).map(|(name, id, _)| (name, id)).collect()
}

/// Part of a directory that was read.
struct GroupRead {
    digest: Digest,
    names: usize,
    bytes: u64,
    large: Vec<(InodeId, Name)>,
    /// Every inode could be read as it was told to the replica.
    complete: bool,
}

fn read_group<'v>(
    worker: &Worker,
    vfs: &'v Vfs<Commit>,
    entries: &[Listed],
    watch: &mut Watch<'v>,
) -> std::io::Result<GroupRead> {
    let mut digest = NamesDigest::default();
    let mut read = GroupRead { digest: digest.finish(), names: 0, bytes: 0, large: Vec::new(), complete: true };
    for (name, id, node_type) in entries.iter().take(GROUP_NAMES) {
        if read.bytes >= GROUP_BYTES {
            break;
        }
        read.names += 1;
        if *node_type == NodeType::Directory {
            digest.add(name, id, None);
            continue;
        }
        let Some(still) = vfs.still(id)? else {
            read.complete = false;
            continue;
        };
        let (node, turns) = still.locked(|untimed| worker.read_node(id, untimed));
        match node? {
            Some(NodeRead { digest: node, untimed: false, large, bytes }) => {
                digest.add(name, id, Some(&node));
                read.bytes += bytes;
                if large.is_some() {
                    read.large.push((*id, name.clone()));
                }
                watch.add(still, turns);
            }
            _ => read.complete = false,
        }
    }
    read.digest = digest.finish();
    Ok(read)
}

const _: () = assert!(GROUP_BYTES > EXTENT_MAX);
