//! The index's file format on top of sled; the only file that imports it.
//!
//! One tree, keys told apart by their first byte, so that a batch is atomic over all of it:
//!
//! | key | value |
//! |---|---|
//! | `s` | [`Summary`]: position and counts |
//! | `f` id length, id | [`Header`] of a file's recipe |
//! | `p` id length, id, part (big endian) | chunks of one part of the file |
//! | `d` digest | places that hold it, at most [`PLACES_MAX`] |
//!
//! sled's flush is not durable on Linux, a power cut may leave an older state or an empty database, and it may panic on
//! damaged pages. So nothing here is ever the only copy of anything: a failure or panic is an error that switches the index
//! off, and its owner begins an empty one.

use std::{
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use tandem_proto::{Digest, InodeId, Position};

use super::{
    IndexError,
    recipe::{
        Chunk, Header, PART_BYTES, PLACES_MAX, Recipe, Summary, decode_part, decode_places, encode_part, encode_places,
    },
};
use crate::apply::Place;

const SUMMARY_KEY: &[u8] = b"s";
/// An edit is applied in pieces of at most this many keys, so that forgetting a huge file needs no huge batch.
const BATCH_MAX_KEYS: usize = 8192;

/// What an index holds, apart from its position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Each file's recipe.
    pub files: BTreeMap<InodeId, Recipe>,
    /// Each digest's places, sorted.
    pub places: BTreeMap<Digest, Vec<Place>>,
}

/// The stored index. Any thread may read; one edits.
#[derive(Debug)]
pub struct Store {
    db: sled::Db,
}

fn guarded<T>(what: &'static str, act: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IndexError::Store { what, reason: error.to_string() }),
        Err(_) => Err(IndexError::Store { what, reason: "its store panicked; its files are damaged".to_owned() }),
    }
}

fn file_key(kind: u8, id: &InodeId) -> Vec<u8> {
    let mut key = vec![kind, id.as_bytes().len() as u8];
    key.extend_from_slice(id.as_bytes());
    key
}

fn part_key(id: &InodeId, part: u32) -> Vec<u8> {
    let mut key = file_key(b'p', id);
    key.extend_from_slice(&part.to_be_bytes());
    key
}

fn digest_key(digest: &Digest) -> [u8; 33] {
    let mut key = [b'd'; 33];
    key[1..].copy_from_slice(&digest.0);
    key
}

impl Store {
    /// Opens the database in `dir`, or makes an empty one. `None` for the summary: it is empty, or of another format.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<(Store, Option<Summary>), IndexError> {
        let config = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
        let db = guarded("open", || config.open())?;
        let summary = guarded("open", || db.get(SUMMARY_KEY))?.and_then(|bytes| Summary::decode(&bytes));
        Ok((Store { db }, summary))
    }

    /// Whether nothing was ever stored. A database with keys and without a readable summary is one of another format.
    pub fn is_blank(&self) -> Result<bool, IndexError> {
        guarded("open", || Ok(self.db.iter().next().transpose()?.is_none()))
    }

    /// The header of a file's recipe.
    pub fn header(&self, id: &InodeId) -> Result<Option<Header>, IndexError> {
        let found = guarded("look up a file", || self.db.get(file_key(b'f', id)))?;
        Ok(found.and_then(|bytes| Header::decode(&bytes)))
    }

    /// A file's recipe.
    pub fn recipe(&self, id: &InodeId) -> Result<Option<Recipe>, IndexError> {
        let Some(header) = self.header(id)? else { return Ok(None) };
        let mut chunks = Vec::new();
        for part in self.parts(id)? {
            chunks.extend(self.part(id, part)?);
        }
        Ok(Some(Recipe { stamp: header.stamp, chunks }))
    }

    /// Where a digest was seen.
    pub fn places(&self, digest: &Digest) -> Result<Vec<Place>, IndexError> {
        let found = guarded("look up a digest", || self.db.get(digest_key(digest)))?;
        Ok(found.and_then(|bytes| decode_places(&bytes)).unwrap_or_default())
    }

    /// Files with a recipe, in the order of their keys, after `after`.
    pub fn files_after(&self, after: Option<InodeId>, limit: usize) -> Result<Vec<InodeId>, IndexError> {
        let mut from = after.map_or_else(|| vec![b'f'], |id| file_key(b'f', &id));
        // The key itself is left out: the smallest key after it is the same with a zero byte.
        from.push(0);
        let range = from.as_slice()..[b'f' + 1].as_slice();
        guarded("list files", || {
            let mut ids = Vec::new();
            for item in self.db.range(range).keys().take(limit) {
                let key = item?;
                ids.extend(key.get(2..).and_then(InodeId::new));
            }
            Ok(ids)
        })
    }

    /// Everything, for comparing two indexes.
    pub fn contents(&self) -> Result<Contents, IndexError> {
        let mut contents = Contents::default();
        let mut after = None;
        loop {
            let ids = self.files_after(after, 1024)?;
            let Some(last) = ids.last() else { break };
            after = Some(*last);
            for id in ids {
                contents.files.extend(self.recipe(&id)?.map(|recipe| (id, recipe)));
            }
        }
        let mut digests = Vec::new();
        guarded("list digests", || {
            for item in self.db.scan_prefix(b"d") {
                let (key, value) = item?;
                digests.push((key, value));
            }
            Ok(())
        })?;
        for (key, value) in digests {
            let digest = key.get(1..).and_then(|bytes| bytes.try_into().ok()).map(Digest);
            let mut places = decode_places(&value).unwrap_or_default();
            places.sort_unstable_by_key(|place| (place.id, place.offset, place.len));
            contents.places.extend(digest.map(|digest| (digest, places)));
        }
        Ok(contents)
    }

    /// Hands what was stored to the kernel. That is all it means: see the module.
    pub fn flush(&self) -> Result<(), IndexError> {
        guarded("flush", || self.db.flush()).map(|_| ())
    }

    fn parts(&self, id: &InodeId) -> Result<Vec<u32>, IndexError> {
        let prefix = file_key(b'p', id);
        guarded("list the parts of a file", || {
            let mut parts = Vec::new();
            for item in self.db.scan_prefix(&prefix).keys() {
                let key = item?;
                if let Ok(part) = <[u8; 4]>::try_from(&key[prefix.len()..]) {
                    parts.push(u32::from_be_bytes(part));
                }
            }
            Ok(parts)
        })
    }

    fn part(&self, id: &InodeId, part: u32) -> Result<Vec<Chunk>, IndexError> {
        let found = guarded("look up a part", || self.db.get(part_key(id, part)))?;
        Ok(found.and_then(|bytes| decode_part(&bytes)).unwrap_or_default())
    }
}

/// Changes to the store, applied with the position that they reach.
///
/// Between two batches of one edit the store may hold a recipe whose header is still the old one; its stamp then differs from
/// the file's, so after a crash the file is read again.
pub struct Edit<'a> {
    store: &'a Store,
    summary: Summary,
    places: HashMap<Digest, Vec<Place>>,
    /// Digests that had no place in the store when they were first met.
    fresh: HashMap<Digest, bool>,
    batch: sled::Batch,
    keys: usize,
}

impl<'a> Edit<'a> {
    /// Begins with what is stored.
    pub fn new(store: &'a Store, summary: Summary) -> Edit<'a> {
        Edit { store, summary, places: HashMap::new(), fresh: HashMap::new(), batch: sled::Batch::default(), keys: 0 }
    }

    /// Replaces the chunks that begin in one part of a file.
    pub fn replace_part(&mut self, id: &InodeId, part: u32, chunks: &[Chunk]) -> Result<(), IndexError> {
        let old = self.store.part(id, part)?;
        if old == chunks {
            return Ok(());
        }
        for chunk in &old {
            let place = Place { id: *id, offset: chunk.offset, len: chunk.len };
            self.places_of(&chunk.digest)?.retain(|known| *known != place);
        }
        for chunk in chunks {
            let place = Place { id: *id, offset: chunk.offset, len: chunk.len };
            let places = self.places_of(&chunk.digest)?;
            if places.len() < PLACES_MAX && !places.contains(&place) {
                places.push(place);
            }
        }
        if chunks.is_empty() {
            self.batch.remove(part_key(id, part));
        } else {
            self.batch.insert(part_key(id, part), encode_part(chunks));
        }
        self.keys += 1;
        self.apply_if_large()
    }

    /// Drops these parts, as far as there are any.
    pub fn cut_parts(&mut self, id: &InodeId, parts: RangeInclusive<u32>) -> Result<(), IndexError> {
        for part in self.store.parts(id)?.into_iter().filter(|part| parts.contains(part)) {
            self.replace_part(id, part, &[])?;
        }
        Ok(())
    }

    /// Makes the recipe that was put together the file's.
    pub fn finish_file(&mut self, id: &InodeId, header: Header) -> Result<(), IndexError> {
        if self.store.header(id)?.is_none() {
            self.summary.files += 1;
        }
        self.batch.insert(file_key(b'f', id), header.encode());
        self.keys += 1;
        Ok(())
    }

    /// Forgets a file.
    pub fn remove_file(&mut self, id: &InodeId) -> Result<(), IndexError> {
        self.cut_parts(id, 0..=u32::MAX)?;
        if self.store.header(id)?.is_some() {
            self.summary.files = self.summary.files.saturating_sub(1);
            self.batch.remove(file_key(b'f', id));
            self.keys += 1;
        }
        Ok(())
    }

    /// Whether nothing changed so far.
    pub fn is_empty(&self) -> bool {
        self.keys == 0 && self.places.is_empty()
    }

    /// Stores what changed together with `position`: everything up to there is indexed. `None`: not known yet.
    pub fn commit(mut self, position: Option<Position>) -> Result<Summary, IndexError> {
        if let Some(position) = position {
            self.summary.position = position;
            self.summary.complete = true;
        }
        self.apply()?;
        Ok(self.summary)
    }

    fn places_of(&mut self, digest: &Digest) -> Result<&mut Vec<Place>, IndexError> {
        if !self.places.contains_key(digest) {
            let places = self.store.places(digest)?;
            self.fresh.insert(*digest, places.is_empty());
            self.places.insert(*digest, places);
        }
        Ok(self.places.get_mut(digest).expect("was just inserted"))
    }

    fn apply_if_large(&mut self) -> Result<(), IndexError> {
        if self.keys + self.places.len() >= BATCH_MAX_KEYS { self.apply() } else { Ok(()) }
    }

    fn apply(&mut self) -> Result<(), IndexError> {
        let mut batch = std::mem::take(&mut self.batch);
        let fresh = std::mem::take(&mut self.fresh);
        for (digest, places) in self.places.drain() {
            let was_empty = fresh.get(&digest).copied().unwrap_or(false);
            match (was_empty, places.is_empty()) {
                (true, true) => continue,
                (true, false) => self.summary.digests += 1,
                (false, true) => self.summary.digests = self.summary.digests.saturating_sub(1),
                (false, false) => {}
            }
            if places.is_empty() {
                batch.remove(&digest_key(&digest)[..]);
            } else {
                batch.insert(&digest_key(&digest)[..], encode_places(&places));
            }
        }
        batch.insert(SUMMARY_KEY, self.summary.encode());
        self.keys = 0;
        guarded("store", || self.store.db.apply_batch(batch))
    }
}

/// The part that a chunk at `offset` belongs to.
pub fn part_of(offset: u64) -> u32 {
    u32::try_from(offset / PART_BYTES).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tandem_proto::{Digest, InodeId, Position};

    use super::{Edit, Place, Store};
    use crate::index::recipe::{Chunk, FileStamp, Header, PART_BYTES, Summary};

    fn chunk(offset: u64, digest: u8) -> Chunk {
        Chunk { offset, len: 10, digest: Digest([digest; 32]) }
    }

    fn id(name: &str) -> InodeId {
        InodeId::new(name.as_bytes()).expect("short")
    }

    fn put(store: &Store, summary: Summary, name: &str, chunks: &[Chunk]) -> Summary {
        let mut edit = Edit::new(store, summary);
        edit.replace_part(&id(name), 0, chunks).expect("part");
        edit.cut_parts(&id(name), 1..=u32::MAX).expect("cut");
        let header = Header { stamp: FileStamp::default(), chunks: chunks.len() as u64 };
        edit.finish_file(&id(name), header).expect("header");
        edit.commit(Some(Position::default())).expect("commit")
    }

    #[test]
    fn a_file_that_is_forgotten_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, summary) = Store::open(dir.path(), 1 << 20).expect("open");
        assert_eq!(summary, None);
        assert!(store.is_blank().expect("readable"));
        let summary = put(&store, Summary::default(), "a", &[chunk(0, 1), chunk(10, 2), chunk(20, 1)]);
        let summary = put(&store, summary, "b", &[chunk(0, 2)]);
        assert_eq!((summary.files, summary.digests), (2, 2));
        assert_eq!(store.places(&Digest([2; 32])).expect("places").len(), 2);
        assert_eq!(store.files_after(None, 9).expect("files"), [id("a"), id("b")]);
        assert_eq!(store.files_after(Some(id("a")), 9).expect("files"), [id("b")]);

        let mut edit = Edit::new(&store, summary);
        edit.remove_file(&id("a")).expect("remove");
        edit.remove_file(&id("b")).expect("remove");
        let summary = edit.commit(None).expect("commit");
        assert_eq!((summary.files, summary.digests), (0, 0));
        assert_eq!(store.places(&Digest([1; 32])).expect("places"), []);
        assert_eq!(store.db.len(), 1, "only the summary is left");
    }

    #[test]
    fn places_of_one_digest_are_bounded() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = Store::open(dir.path(), 1 << 20).expect("open");
        let many: Vec<Chunk> = (0..100).map(|at| chunk(at * 10, 7)).collect();
        put(&store, Summary::default(), "a", &many);
        assert_eq!(store.places(&Digest([7; 32])).expect("places").len(), super::PLACES_MAX);
        assert_eq!(store.recipe(&id("a")).expect("recipe").expect("known").chunks, many);
    }

    #[test]
    fn a_file_that_shrank_loses_its_last_parts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, _) = Store::open(dir.path(), 1 << 20).expect("open");
        let mut edit = Edit::new(&store, Summary::default());
        edit.replace_part(&id("a"), 0, &[chunk(0, 1)]).expect("part");
        edit.replace_part(&id("a"), 300, &[chunk(300 * PART_BYTES, 2)]).expect("part");
        let summary = edit.commit(None).expect("commit");
        put(&store, summary, "a", &[chunk(0, 1)]);
        assert_eq!(store.places(&Digest([2; 32])).expect("places"), []);
        assert_eq!(store.places(&Digest([1; 32])).expect("places"), [Place { id: id("a"), offset: 0, len: 10 }]);
    }
}
