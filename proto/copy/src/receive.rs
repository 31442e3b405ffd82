//! The end that gets the files: from the list to the last frame. No network: messages in, questions out.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    path::PathBuf,
};

use bytes::Bytes;
use tandem_proto::{
    convert,
    pb::{CopyFrame, CopyItem, CopyProgress, CopyWant, PullNode},
};

use crate::{AHEAD, ITEMS_MAX, Partial, Readable, send::digest_of};

/// So often a file that changes while it is read is asked for.
const TRIES: u8 = 3;
/// Names in one path.
const DEPTH_MAX: usize = 4096;
/// Failures that are told; the others are counted.
const TOLD_MAX: usize = 100;

/// What could not be done.
#[derive(Debug)]
pub enum Failed {
    /// With one item; the others go on.
    Item(String),
    /// At all.
    All(String),
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is there: a directory, a link.
    Made,
    /// A regular file, whose bytes are wanted.
    File,
}

/// Where the bytes of a whole file are.
#[derive(Debug)]
pub enum Whole {
    /// They came, and are in this file.
    Arrived(PathBuf),
    /// Under the name that it shall have, and were there before.
    WasThere,
}

/// Where files are to be. Items are known by a number that is the same whenever the same path is listed.
pub trait Destination {
    /// Makes a directory or a link, or remembers a file.
    fn take(&mut self, key: u32, node: &PullNode) -> Result<Taken, Failed>;
    /// Where the bytes of a file go until it is whole.
    fn partial(&self, key: u32) -> PathBuf;
    /// What stands under the name of a file, if that is a file of this size.
    fn there(&self, key: u32, size: u64) -> Option<Box<dyn Readable>>;
    /// All bytes of a file are there.
    fn whole(&mut self, key: u32, how: Whole) -> Result<(), Failed>;
    /// A moment to give whole files their names. `last`: nothing follows. Which have them now.
    fn settle(&mut self, last: bool) -> Result<Vec<u32>, Failed>;
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Files of the list.
    pub files: u64,
    /// Their bytes, as listed.
    pub bytes: u64,
    /// Files that are whole and under their names.
    pub files_done: u64,
    /// Bytes that came.
    pub bytes_done: u64,
    /// Bytes that were there already.
    pub bytes_there: u64,
}

struct Item {
    key: u32,
    shown: Box<str>,
    size: u64,
}

enum Has {
    Partial(Box<Partial>),
    /// A file under the name itself, of this size and with this digest.
    Same(u64, Bytes),
}

struct Asked {
    item: u32,
    has: Has,
    begun: bool,
}

/// See the module.
pub struct Receiver<D> {
    destination: D,
    keys: HashMap<Vec<Bytes>, u32>,
    done: HashSet<u32>,
    tries: HashMap<u32, u8>,
    counted: Counted,
    failed: Vec<String>,
    failures: u64,
    skipped: Vec<String>,
    // Of the list that is heard now:
    items: Vec<Option<Item>>,
    numbers: HashMap<u32, u32>,
    listed: bool,
    waiting: VecDeque<u32>,
    asked: VecDeque<Asked>,
    newly_done: Vec<u32>,
}

/// A path for people.
fn shown(path: &[Bytes]) -> String {
    path.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/")
}

fn nonsense(what: &str) -> Failed {
    Failed::All(format!("the other side sends {what}: it is of another version"))
}

fn on_disk(item: &Item, error: io::Error) -> Failed {
    let text = format!("{}: {error}", item.shown);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Failed::All(format!("{text}; what has arrived is kept: make room, and run the command again"))
        }
        _ => Failed::Item(text),
    }
}

impl<D: Destination> Receiver<D> {
    /// Nothing was heard yet.
    pub fn new(destination: D) -> Receiver<D> {
        Receiver {
            destination,
            keys: HashMap::new(),
            done: HashSet::new(),
            tries: HashMap::new(),
            counted: Counted::default(),
            failed: Vec::new(),
            failures: 0,
            skipped: Vec::new(),
            items: Vec::new(),
            numbers: HashMap::new(),
            listed: false,
            waiting: VecDeque::new(),
            asked: VecDeque::new(),
            newly_done: Vec::new(),
        }
    }

    /// The connection broke: the list will be heard again. What is done stays done.
    pub fn begin_again(&mut self) {
        self.items.clear();
        self.numbers.clear();
        self.waiting.clear();
        self.asked.clear();
        self.newly_done.clear();
        self.listed = false;
        (self.counted.files, self.counted.bytes) = (0, 0);
    }

    /// What was counted so far.
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// So many could not be copied.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Where it goes.
    pub fn destination(&mut self) -> &mut D {
        &mut self.destination
    }

    /// For people, and for who has the files: what was done since the last call.
    pub fn progress(&mut self) -> CopyProgress {
        let Counted { files, bytes, files_done, bytes_done, bytes_there } = self.counted;
        let (done, failed) = (std::mem::take(&mut self.newly_done), std::mem::take(&mut self.failed));
        let skipped = std::mem::take(&mut self.skipped);
        CopyProgress { files, bytes, files_done, bytes_done, bytes_there, done, failed, skipped, ..Default::default() }
    }

    fn note(&mut self, result: Result<(), Failed>) -> Result<(), Failed> {
        match result {
            Err(Failed::Item(why)) => {
                self.failures += 1;
                if self.failures <= TOLD_MAX as u64 {
                    self.failed.push(why);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// An item of the list.
    pub fn item(&mut self, item: CopyItem) -> Result<(), Failed> {
        if self.listed || self.items.len() >= ITEMS_MAX {
            return Err(nonsense("more items than there can be"));
        }
        let taken = self.take(item);
        self.note(taken)
    }

    fn take(&mut self, item: CopyItem) -> Result<(), Failed> {
        let number = self.items.len() as u32;
        self.items.push(None);
        let node = item.node.ok_or_else(|| nonsense("an item without a node"))?;
        let named = node.path.iter().all(|name| convert::name("path", name.clone()).is_ok());
        if !named || node.path.is_empty() || node.path.len() > DEPTH_MAX {
            return Err(nonsense("a path that is none"));
        }
        let shown = shown(&node.path);
        if !item.skipped.is_empty() {
            if self.skipped.len() < TOLD_MAX {
                self.skipped.push(format!("{shown}: {}", item.skipped));
            }
            return Ok(());
        }
        let next = self.keys.len() as u32;
        let key = *self.keys.entry(node.path.clone()).or_insert(next);
        if self.numbers.insert(key, number).is_some() {
            return Err(Failed::Item(format!("{shown}: two sources have this name")));
        }
        if self.destination.take(key, &node)? == Taken::File {
            self.counted.files += 1;
            self.counted.bytes += node.size;
            self.items[number as usize] = Some(Item { key, shown: shown.into(), size: node.size });
            if !self.done.contains(&key) {
                self.waiting.push_back(number);
            }
        }
        Ok(())
    }

    /// All items were told.
    pub fn listed(&mut self) {
        self.listed = true;
    }

    /// Whether all that was listed came, or failed. Then [`Self::settle`] for the last time.
    pub fn is_complete(&self) -> bool {
        self.listed && self.waiting.is_empty() && self.asked.is_empty()
    }

    /// The next file to ask for, as long as few are asked for.
    pub fn want(&mut self) -> Result<Option<CopyWant>, Failed> {
        while self.listed && self.asked.len() < AHEAD {
            let Some(number) = self.waiting.pop_front() else { return Ok(None) };
            match self.look(number) {
                Ok(has) => {
                    let (offset, prefix_digest) = match &has {
                        Has::Partial(partial) if partial.is_empty() => (0, Bytes::new()),
                        Has::Partial(partial) => (partial.len(), partial.digest()),
                        Has::Same(size, digest) => (*size, digest.clone()),
                    };
                    self.asked.push_back(Asked { item: number, has, begun: false });
                    return Ok(Some(CopyWant { item: number, offset, prefix_digest }));
                }
                Err(error) => self.note(Err(error))?,
            }
        }
        Ok(None)
    }

    /// What is there of a file.
    fn look(&self, number: u32) -> Result<Has, Failed> {
        let Some(item) = self.items.get(number as usize).and_then(Option::as_ref) else {
            return Err(nonsense("an item that it did not list"));
        };
        let partial = Partial::open(self.destination.partial(item.key), item.size).map_err(|e| on_disk(item, e))?;
        if partial.is_empty()
            && item.size > 0
            && let Some(file) = self.destination.there(item.key, item.size)
            && let Ok(Some(digest)) = digest_of(&*file)
        {
            return Ok(Has::Same(item.size, digest));
        }
        Ok(Has::Partial(Box::new(partial)))
    }

    /// Bytes of a file.
    pub fn frame(&mut self, frame: CopyFrame) -> Result<(), Failed> {
        let asked = self.asked.pop_front().filter(|asked| asked.item == frame.item);
        let mut asked = asked.ok_or_else(|| nonsense("a file that was not asked for"))?;
        let number = asked.item;
        match self.put(&mut asked, &frame) {
            Ok(()) if !frame.last => {
                self.asked.push_front(asked);
                Ok(())
            }
            Ok(()) => {
                let ended = self.end(asked, &frame);
                self.note(ended)
            }
            Err(Failed::Item(why)) if !frame.last => {
                // The rest of it comes nevertheless, and is thrown away.
                self.note(Err(Failed::Item(why)))?;
                self.asked.push_front(Asked { item: number, has: Has::Same(u64::MAX, Bytes::new()), begun: true });
                Ok(())
            }
            Err(error) => self.note(Err(error)),
        }
    }

    fn item_of(&self, number: u32) -> Result<&Item, Failed> {
        let item = self.items.get(number as usize).and_then(Option::as_ref);
        item.ok_or_else(|| nonsense("an item that it did not list"))
    }

    /// Takes the bytes of a frame.
    fn put(&mut self, asked: &mut Asked, frame: &CopyFrame) -> Result<(), Failed> {
        let item = self.item_of(asked.item)?;
        if !frame.error.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut asked.begun, true) {
            match &mut asked.has {
                Has::Same(size, _) if frame.offset == *size => {}
                has @ Has::Same(..) => {
                    let path = self.destination.partial(item.key);
                    let partial = Partial::open(path, item.size).map_err(|error| on_disk(item, error))?;
                    *has = Has::Partial(Box::new(partial));
                }
                Has::Partial(_) => {}
            }
            if let Has::Partial(partial) = &mut asked.has
                && frame.offset == 0
                && !partial.is_empty()
            {
                partial.restart().map_err(|error| on_disk(item, error))?;
            }
            self.counted.bytes_there += frame.offset;
        }
        let Has::Partial(partial) = &mut asked.has else { return Ok(()) };
        let item = self.items.get(asked.item as usize).and_then(Option::as_ref);
        let item = item.ok_or_else(|| nonsense("an item that it did not list"))?;
        if !partial.append(frame).map_err(|error| on_disk(item, error))? {
            return Err(nonsense("bytes that were not asked for"));
        }
        self.counted.bytes_done += frame.data.len() as u64;
        Ok(())
    }

    /// The last frame of a file.
    fn end(&mut self, asked: Asked, frame: &CopyFrame) -> Result<(), Failed> {
        let number = asked.item;
        let item = self.item_of(number)?;
        let (key, shown) = (item.key, item.shown.clone());
        if !frame.error.is_empty() {
            return self.once_more(number, key, frame.again, format!("{shown}: {}", frame.error));
        }
        let how = match asked.has {
            // What failed was told.
            Has::Same(u64::MAX, _) => return Ok(()),
            Has::Same(_, digest) if digest == frame.digest => Whole::WasThere,
            Has::Same(..) => return Err(nonsense("a digest of another file")),
            Has::Partial(partial) => match partial.finish(&frame.digest).map_err(|error| on_disk(item, error))? {
                Some(path) => Whole::Arrived(path),
                None => {
                    let why = format!("{shown}: what came is not what was sent");
                    return self.once_more(number, key, true, why);
                }
            },
        };
        self.destination.whole(key, how)
    }

    fn once_more(&mut self, number: u32, key: u32, again: bool, why: String) -> Result<(), Failed> {
        let tries = self.tries.entry(key).or_insert(1);
        if !again || *tries >= TRIES {
            return Err(Failed::Item(why));
        }
        *tries += 1;
        self.waiting.push_back(number);
        Ok(())
    }

    /// Gives whole files their names, if it is time; `last`: all of them.
    pub fn settle(&mut self, last: bool) -> Result<(), Failed> {
        match self.destination.settle(last) {
            Ok(keys) => {
                for key in keys {
                    if self.done.insert(key) {
                        self.counted.files_done += 1;
                        self.newly_done.extend(self.numbers.get(&key));
                    }
                }
                Ok(())
            }
            Err(error) => self.note(Err(error)),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
