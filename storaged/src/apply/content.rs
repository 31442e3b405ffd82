//! Content of staged files: where bytes come from before publish, and how they get into the tree's objects at publish.
//!
//! A new file's content goes straight into `staging/files/<id>`, the object that publish moves into the tree. For a file that has
//! an object, what differs goes to the same offsets of `staging/files/<id>.ranges` and is copied at publish; what is equal stays.

use tandem_proto::{
    chunk::Digest,
    ids::InodeId,
    op::NodeKind,
    stage::{Content, NodeType, Piece, StageData, StageNode, StageRecipe},
};

use super::{
    StageReply,
    error::{ApplyError, OnObject as _},
    fresh::SIZED_LATE_MAX,
    objects::{Objects, area_name},
    record::{ChunkSource, ExtentSource, ObjectIdentity, Record},
    staging::{Extent, RoundContent, Staging},
};
use crate::tree::{Area, ReplicaTree};

/// Longest piece that is looked for by digest: what a recipe may ask us to hold in memory.
const PIECE_MAX: u64 = 16 << 20;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// Staged bytes that are copied before the memory that they had is given up.
const MOVED_AT_ONCE: u64 = 4 << 20;
/// Staged bytes are on their way to the disk as soon as they are so many, so that the sync before the publish finds little to do.
pub(crate) const STAGED_WRITE_BACK: u64 = 1 << 20;
/// Places of a chunk that are tried.
const PLACES_MAX: usize = 4;

pub(super) fn ranges_name(id: &InodeId) -> Vec<u8> {
    let mut name = area_name(id);
    name.extend_from_slice(b".ranges");
    name
}

/// Where staged bytes of a file go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Into its new object.
    Object,
    /// Beside its object.
    Ranges,
}

impl<T: ReplicaTree> Objects<T> {
    /// The staging file with this name, made if it is missing.
    pub(super) fn staging_file(&mut self, name: &[u8]) -> Result<T::Node, ApplyError> {
        let staging = self.tree.area(Area::Staging);
        match self.tree.open(&staging, name, NodeType::Regular) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.tree.create(&staging, name, &NodeKind::Regular).on("make a staging file", "")?;
                self.tree.open(&staging, name, NodeType::Regular).on("open a staging file", "")
            }
            answer => answer.on("open a staging file", String::from_utf8_lossy(name)),
        }
    }

    fn drop_staging_file(&mut self, name: &[u8]) -> Result<(), ApplyError> {
        match self.tree.unlink(&self.tree.area(Area::Staging), name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(ApplyError::from_io("remove a staging file", String::from_utf8_lossy(name), error))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of a file of the tree, if it has so many there.
    pub(super) fn read_exactly(&mut self, id: &InodeId, offset: u64, len: u64) -> Result<Option<Vec<u8>>, ApplyError> {
        let node = self.open(id)?;
        let mut bytes = vec![0; len as usize];
        let read = self.tree.read_at(&node, offset, &mut bytes).on("read", id)?;
        Ok((read as u64 == len).then_some(bytes))
    }

    fn copy(&self, id: &InodeId, from: &T::Node, to: &T::Node, offset: u64, len: u64) -> Result<(), ApplyError> {
        // Shared extents where the file system has them, else at least no way through here.
        let mut done = self.tree.copy_range(from, to, offset, len).on("copy staged bytes of", id)?;
        if done == len {
            return Ok(());
        }
        let mut buffer = vec![0; COPY_BYTES.min((len - done) as usize)];
        while done < len {
            let part = (len - done).min(buffer.len() as u64) as usize;
            let read = self.tree.read_at(from, offset + done, &mut buffer[..part]).on("read staged bytes of", id)?;
            if read == 0 {
                return Err(ApplyError::damaged(id, format!("staged bytes at {} are missing", offset + done)));
            }
            self.tree.write_at(to, offset + done, &buffer[..read]).on("write", id)?;
            done += read as u64;
        }
        Ok(())
    }

    /// Zeroes a range unless it is a hole already.
    fn clear(&self, id: &InodeId, node: &T::Node, offset: u64, len: u64) -> Result<(), ApplyError> {
        match self.tree.next_data(node, offset).on("look for data in", id)? {
            Some((start, _)) if start < offset.saturating_add(len) => {
                self.tree.punch(node, offset, len).on("punch a hole into", id)
            }
            _ => Ok(()),
        }
    }

    /// Gives a file of the tree the content that a round staged beside it. May be repeated.
    pub fn apply_round(&mut self, id: &InodeId, content: &RoundContent) -> Result<(), ApplyError> {
        let node = self.open(id)?;
        if self.tree.stat(&node).on("read", id)?.size != content.size {
            self.tree.set_size(&node, content.size).on("change the size of", id)?;
        }
        if content.whole {
            for (start, end) in gaps(&content.extents, content.size) {
                self.clear(id, &node, start, end - start)?;
            }
        }
        let mut ranges = None;
        for extent in &content.extents {
            match extent.source {
                ExtentSource::InPlace => {}
                ExtentSource::Hole => self.clear(id, &node, extent.offset, extent.len)?,
                ExtentSource::Staged => {
                    let from = match &ranges {
                        Some(open) => open,
                        None => ranges.insert(self.staging_file(&ranges_name(id))?),
                    };
                    self.move_bytes(id, from, &node, extent.offset, extent.len)?;
                }
            }
        }
        Ok(())
    }

    /// Copies what lies in a staging file and is not needed there any more. So the memory that it has goes to what is written, instead of as
    /// much once more; and most of that is on the disk when the publish syncs it.
    fn move_bytes(&self, id: &InodeId, from: &T::Node, to: &T::Node, offset: u64, len: u64) -> Result<(), ApplyError> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            // Whole multiples, which a file system that shares extents asks for.
            let until = ((at / MOVED_AT_ONCE + 1) * MOVED_AT_ONCE).min(end);
            self.copy(id, from, to, at, until - at)?;
            if until - at == MOVED_AT_ONCE {
                self.tree.write_back(to, at, until - at);
            }
            self.tree.forget_cached(from, at, until - at);
            at = until;
        }
        Ok(())
    }
}

/// What no extent covers below `size`.
fn gaps(extents: &[Extent], size: u64) -> Vec<(u64, u64)> {
    uncovered(extents.iter().map(|extent| (extent.offset, extent.offset.saturating_add(extent.len))).collect(), size)
}

/// The same for ranges from start to end.
fn uncovered(mut covered: Vec<(u64, u64)>, size: u64) -> Vec<(u64, u64)> {
    covered.sort_unstable();
    let (mut gaps, mut at) = (Vec::new(), 0);
    for (start, end) in covered {
        if start > at {
            gaps.push((at, start.min(size)));
        }
        at = at.max(end);
    }
    if at < size {
        gaps.push((at, size));
    }
    gaps.retain(|(start, end)| start < end);
    gaps
}

impl Staging {
    /// Makes the object of a new file, or goes on with the one that an unfinished staging left.
    pub(super) fn begin_object<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        size: u64,
        round: u64,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let listed = self.expected_at(id);
        self.leave_nest(objects, id)?;
        let is_new = self.files.get(id).is_none_or(|file| file.object.is_none());
        let salvaged = if is_new { objects.salvaged_object(id, size, listed.as_ref())? } else { None };
        let file = self.files.entry(*id).or_default();
        // Until something of it is confirmed, all of it counts as a gap.
        if salvaged.is_some() || file.salvage().confirmed.is_some() {
            file.salvage_mut().confirmed = salvaged.is_some().then(Vec::new);
        }
        let identity = match salvaged {
            Some(identity) => identity,
            None => {
                let listed = listed.filter(|_| is_new && size <= SIZED_LATE_MAX);
                let nested = match &listed {
                    Some(cell) => self.make_in_nest(objects, id, cell)?,
                    None => None,
                };
                let (identity, node) = match nested {
                    Some(made) => made,
                    None => Self::make_object(objects, id)?,
                };
                objects.begin_fresh(id, node, size)?;
                identity
            }
        };
        reply.log.push(Record::StagedFile { id: *id, identity: identity.clone(), round });
        self.note_object(id, identity, round);
        Ok(())
    }

    /// Stages a new file that stands at a name of the incoming ones: the same object gets its name here as well, so no byte is written
    /// again, and if this staging comes to nothing, it is still there.
    pub(super) fn stage_brought<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        node: &StageNode,
        name: &[u8],
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let id = &node.id;
        let size = node.state.as_ref().filter(|state| state.kind.is_regular() && state.content == Content::Whole);
        let size =
            size.map(|state| state.size).ok_or_else(|| ApplyError::protocol(id, "only whole files are brought"))?;
        if self.files.contains_key(id) || objects.catalog.has_node(id)? {
            return Err(ApplyError::protocol(id, "a file that is brought is a new one"));
        }
        let (incoming, staging) = (objects.tree.area(Area::Incoming), objects.tree.area(Area::Staging));
        objects.drop_staging_file(&area_name(id))?;
        objects.tree.link(&incoming, name, &staging, &area_name(id)).on("stage", id)?;
        let object = objects.staging_file(&area_name(id))?;
        if objects.tree.stat(&object).on("look at", id)?.size != size {
            return Err(ApplyError::protocol(id, "what was brought has another size"));
        }
        let identity = objects.tree.identity(&object).on("identify", id)?;
        self.assign_brought(node);
        reply.log.push(Record::StagedFile { id: *id, identity: identity.clone(), round: self.round });
        self.note_object(id, identity, self.round);
        Ok(())
    }

    fn make_object<T: ReplicaTree>(
        objects: &mut Objects<T>,
        id: &InodeId,
    ) -> Result<(ObjectIdentity, T::Node), ApplyError> {
        let name = area_name(id);
        let staging = objects.tree.area(Area::Staging);
        let created = match objects.tree.create(&staging, &name, &NodeKind::Regular) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                objects.drop_staging_file(&name)?;
                objects.tree.create(&staging, &name, &NodeKind::Regular)
            }
            answer => answer,
        };
        let (identity, node) = created.on("stage", id)?;
        let node = match node {
            Some(node) => node,
            None => objects.staging_file(&name)?,
        };
        Ok((identity, node))
    }

    fn target(&self, id: &InodeId) -> Result<Target, ApplyError> {
        let file = self.files.get(id);
        let in_ranges = file.is_some_and(|file| file.rounds().iter().any(|content| content.round == self.round));
        let in_object = file.is_some_and(|file| file.object.as_ref().is_some_and(|(_, round)| *round == self.round));
        match (in_ranges, in_object) {
            (true, _) => Ok(Target::Ranges),
            (false, true) => Ok(Target::Object),
            (false, false) => Err(ApplyError::protocol(id, "content was staged without its inode")),
        }
    }

    fn note(&mut self, id: &InodeId, extent: Extent, reply: &mut StageReply) -> Result<(), ApplyError> {
        let Extent { offset, len, source } = extent;
        self.note_extent(id, extent)?;
        match reply.log.last_mut() {
            Some(Record::StagedExtent { id: last, offset: start, len: length, source: same })
                if last == id && *same == source && *start + *length == offset =>
            {
                *length += len;
            }
            _ => reply.log.push(Record::StagedExtent { id: *id, offset, len, source }),
        }
        Ok(())
    }

    /// Stages bytes that were sent, or found.
    fn put<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        offset: u64,
        bytes: &[u8],
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let target = self.target(id)?;
        let fresh = objects.fresh_node(id).filter(|_| target == Target::Object);
        let node = match fresh {
            Some(node) => node,
            None if target == Target::Object => {
                self.set_dressed(id, false);
                self.leave_nest(objects, id)?;
                objects.staging_file(&area_name(id))?
            }
            None => objects.staging_file(&ranges_name(id))?,
        };
        objects.tree.write_at(&node, offset, bytes).on("stage bytes of", id)?;
        objects.fresh_reaches(id, offset + bytes.len() as u64);
        let (from, to) = (offset / STAGED_WRITE_BACK, (offset + bytes.len() as u64) / STAGED_WRITE_BACK);
        if from < to {
            objects.tree.write_back(&node, from * STAGED_WRITE_BACK, (to - from) * STAGED_WRITE_BACK);
        }
        self.staged(id, target, offset, bytes.len() as u64, reply)
    }

    /// Bytes are where they belong.
    fn staged(
        &mut self,
        id: &InodeId,
        target: Target,
        offset: u64,
        len: u64,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        match target {
            Target::Ranges => self.note(id, Extent { offset, len, source: ExtentSource::Staged }, reply)?,
            Target::Object => {
                if let Some(file) = self.files.get_mut(id) {
                    file.confirm(offset, len);
                }
            }
        }
        Ok(())
    }

    /// Stages bytes.
    pub fn stage_data<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        data: &StageData,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        self.put(objects, &data.id, data.offset, &data.data, reply)
    }

    /// Stages what extents hold, from what the replica has. The reply asks for the rest.
    pub fn stage_recipe<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        recipe: &StageRecipe,
        chunks: &dyn ChunkSource,
        reply: &mut StageReply,
    ) -> Result<(), ApplyError> {
        let id = &recipe.id;
        let target = self.target(id)?;
        let object = if target == Target::Ranges { self.object_of(objects, id)? } else { None };
        for piece in &recipe.pieces {
            let Piece { offset, len, digest, first } = *piece;
            let Some(digest) = digest else {
                if target == Target::Ranges {
                    self.note(id, Extent { offset, len, source: ExtentSource::Hole }, reply)?;
                } else {
                    self.set_dressed(id, false);
                    self.leave_nest(objects, id)?;
                    let node = objects.staging_file(&area_name(id))?;
                    objects.clear(id, &node, offset, len)?;
                }
                continue;
            };
            if self.take_own(objects, id, object.as_ref(), piece, &digest, reply)?
                || self.take_salvaged(objects, id, target, piece, &digest, reply)?
            {
                continue;
            }
            match Self::find_bytes(objects, chunks, len, first.as_ref(), &digest)? {
                Some(bytes) => self.put(objects, id, offset, &bytes, reply)?,
                None => reply.need_pieces.push(Piece::chunk(offset, len, None)),
            }
        }
        Ok(())
    }

    /// The file itself may have the piece in its place.
    fn take_own<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        object: Option<&InodeId>,
        piece: &Piece,
        digest: &Digest,
        reply: &mut StageReply,
    ) -> Result<bool, ApplyError> {
        let Some(object) = object.filter(|_| piece.len <= PIECE_MAX) else { return Ok(false) };
        let Some(bytes) = objects.read_exactly(object, piece.offset, piece.len)? else { return Ok(false) };
        if Digest::of(&bytes) != *digest {
            return Ok(false);
        }
        // What earlier rounds or earlier extents put there at publish must be put right by a copy.
        let overlaps = self.files.get(id).is_some_and(|file| {
            let mut current = file.rounds().iter().filter(|content| content.round == self.round);
            current.any(|content| content.overlaps(piece.offset, piece.len))
        });
        if self.has_earlier_data(id) || overlaps {
            self.put(objects, id, piece.offset, &bytes, reply)?;
        } else {
            self.note(id, Extent { offset: piece.offset, len: piece.len, source: ExtentSource::InPlace }, reply)?;
        }
        Ok(true)
    }

    /// A staging that was not finished may have brought it already.
    fn take_salvaged<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        target: Target,
        piece: &Piece,
        digest: &Digest,
        reply: &mut StageReply,
    ) -> Result<bool, ApplyError> {
        let Piece { offset, len, .. } = *piece;
        let salvage = self.files.get(id).map(|file| file.salvage());
        let has = salvage.is_some_and(|salvage| match target {
            Target::Object => salvage.confirmed.is_some(),
            Target::Ranges => salvage.beside,
        });
        if !has || len > PIECE_MAX {
            return Ok(false);
        }
        let name = if target == Target::Object { area_name(id) } else { ranges_name(id) };
        let node = objects.staging_file(&name)?;
        let mut bytes = vec![0; len as usize];
        // A hint, like a chunk: what cannot be read is sent.
        if objects.tree.read_at(&node, offset, &mut bytes).ok() != Some(bytes.len()) || Digest::of(&bytes) != *digest {
            return Ok(false);
        }
        self.staged(id, target, offset, len, reply)?;
        Ok(true)
    }

    /// What an unfinished staging left in an object, and this one did not confirm, is not part of it. Called before the staging is
    /// synced.
    pub(super) fn finish_content<T: ReplicaTree>(&mut self, objects: &mut Objects<T>) -> Result<(), ApplyError> {
        for (id, file) in &self.files {
            let Some(confirmed) = file.salvage().confirmed.as_ref().filter(|_| file.object.is_some()) else { continue };
            let node = objects.staging_file(&area_name(id))?;
            let size = objects.tree.stat(&node).on("look at the staged", id)?.size;
            for (start, end) in uncovered(confirmed.clone(), size) {
                objects.clear(id, &node, start, end - start)?;
            }
        }
        Ok(())
    }

    /// Bytes with a digest, from where the index says that they, or the chunk `first` that they begin with, lie. What begins with a chunk
    /// is there if the file that has that one goes on in the same way.
    fn find_bytes<T: ReplicaTree>(
        objects: &mut Objects<T>,
        chunks: &dyn ChunkSource,
        len: u64,
        first: Option<&Digest>,
        digest: &Digest,
    ) -> Result<Option<Vec<u8>>, ApplyError> {
        for place in chunks.find(first.unwrap_or(digest)).into_iter().take(PLACES_MAX) {
            let is_file = objects.catalog.node(&place.id)?.is_some_and(|node| node.kind.is_regular());
            let is_so_long = first.is_some() || u64::from(place.len) == len;
            if !is_file || !is_so_long || len > PIECE_MAX || place.offset.checked_add(len).is_none() {
                continue;
            }
            // A hint may be stale in any way, so a failure to read is no failure.
            if let Ok(Some(bytes)) = objects.read_exactly(&place.id, place.offset, len)
                && Digest::of(&bytes) == *digest
            {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The object that a file adopted goes back to its own inode: the first round's content, which may lie in that object, is
    /// copied to an object of the file's own.
    pub(super) fn detach_content<T: ReplicaTree>(
        &mut self,
        objects: &mut Objects<T>,
        id: &InodeId,
        old: &InodeId,
        replay: bool,
    ) -> Result<(), ApplyError> {
        let Some(content) = self.files.get(id).and_then(|file| file.rounds().first()).cloned() else { return Ok(()) };
        if replay {
            // The record of the object follows.
            return Ok(());
        }
        let (identity, to) = Self::make_object(objects, id)?;
        objects.tree.set_size(&to, content.size).on("stage", id)?;
        for extent in &content.extents {
            match extent.source {
                ExtentSource::Hole => objects.clear(id, &to, extent.offset, extent.len)?,
                ExtentSource::InPlace => {
                    let from = objects.open(old)?;
                    objects.copy(id, &from, &to, extent.offset, extent.len)?;
                }
                ExtentSource::Staged => {
                    let from = objects.staging_file(&ranges_name(id))?;
                    objects.copy(id, &from, &to, extent.offset, extent.len)?;
                }
            }
        }
        // Only what is whole is the file's object: a copy that a full disk broke off is made anew.
        self.unlogged.push(Record::StagedFile { id: *id, identity: identity.clone(), round: content.round });
        self.note_object(id, identity, content.round);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, ExtentSource, gaps};

    #[test]
    fn gaps_are_what_no_extent_covers() {
        let at = |offset, len| Extent { offset, len, source: ExtentSource::Staged };
        assert_eq!(gaps(&[], 10), [(0, 10)]);
        assert_eq!(gaps(&[at(4, 2), at(0, 2), at(5, 9)], 20), [(2, 4), (14, 20)]);
        assert_eq!(gaps(&[at(0, 30)], 20), []);
        assert_eq!(gaps(&[at(25, 5)], 20), [(0, 20)]);
    }
}
