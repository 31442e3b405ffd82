//! What the replica has of an item: its digest, or what is wrong with it.

use std::{
    collections::{BTreeMap, HashSet},
    io,
};

use bytes::Bytes;
use tandem_proto::{
    Digest, InodeId, Name,
    stage::NodeType,
    verify::{EXTENT_MAX, Item, NamesDigest, NodeFacts, extent_digest, is_small, node_digest},
};

use crate::{
    apply::{ApplyError, ObjectIdentity, error::OnObject as _},
    catalog::Cell,
    reader::{ReplicaReader, Whole},
    tree::ReplicaTree,
};

/// Names that are read from the catalog at once.
const PAGE: usize = 4096;

/// What the replica has of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its digest; of zeroes there is none.
    pub digest: Option<Digest>,
    /// What is wrong, so that the digest does not count; empty: nothing.
    pub problem: String,
    /// Names whose object is not the one that the catalog means, if they were looked for.
    pub mend: Vec<Cell>,
}

impl Seen {
    /// It cannot be had.
    pub fn problem(problem: impl Into<String>) -> Seen {
        Seen { problem: problem.into(), ..Seen::default() }
    }

    fn digest(digest: Digest) -> Seen {
        Seen { digest: Some(digest), ..Seen::default() }
    }
}

/// Looks at a replica that stands still.
pub struct Comparer<'a, T: ReplicaTree> {
    /// The replica.
    pub reader: &'a ReplicaReader<T>,
    /// Look at each object, and say which names need to be mended.
    pub thorough: bool,
}

/// Whether an answer means that an object is not where the catalog has it.
fn is_displaced(error: &ApplyError) -> bool {
    match error {
        ApplyError::Io { source, .. } => {
            source.kind() == io::ErrorKind::NotFound
                || matches!(source.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP | libc::EISDIR | libc::ENXIO))
        }
        _ => false,
    }
}

impl<T: ReplicaTree> Comparer<'_, T> {
    /// What the replica has of it. `zeroes`: of an extent that is expected to be all zeroes.
    pub fn look(&self, item: &Item, zeroes: bool) -> Result<Seen, ApplyError> {
        match item {
            Item::Names(dir) => self.names(dir),
            Item::Node { id, untimed } => self.node(id, *untimed),
            Item::Extent { id, offset, len } => self.extent(id, *offset, *len, zeroes),
            Item::Group { dir, after, until } => self.group(dir, after.as_ref(), until.as_ref()),
        }
    }

    /// An object that is not where it should be: its names, and those of the directories above it, are to be looked at.
    fn displaced(&self, id: &InodeId) -> Result<Seen, ApplyError> {
        let (mut mend, mut at) = (Vec::new(), *id);
        while !at.is_root() {
            let names = self.reader.names(&at)?;
            let Some((dir, _)) = names.first().cloned() else { break };
            mend.extend(names);
            at = dir;
        }
        if mend.is_empty() {
            return Ok(Seen::problem("the replica does not have it"));
        }
        // From the top: what is above it may be what is missing.
        mend.reverse();
        Ok(Seen { mend, ..Seen::problem("it is missing in the replica's tree, or another object stands there") })
    }

    fn or_displaced<R>(
        &self,
        id: &InodeId,
        found: Result<Option<R>, ApplyError>,
    ) -> Result<Result<R, Seen>, ApplyError> {
        match found {
            Ok(Some(found)) => Ok(Ok(found)),
            Ok(None) => self.displaced(id).map(Err),
            Err(error) if is_displaced(&error) => self.displaced(id).map(Err),
            Err(error) => Err(error),
        }
    }

    fn names(&self, dir: &InodeId) -> Result<Seen, ApplyError> {
        let node = match self.or_displaced(dir, self.reader.directory(dir))? {
            Ok(node) => node,
            Err(seen) => return Ok(seen),
        };
        let tree = self.reader.tree();
        let mut surplus: BTreeMap<Bytes, NodeType> = tree.list(&node).on("list", dir)?.into_iter().collect();
        let (mut digest, mut mend, mut renamed) = (NamesDigest::default(), Vec::new(), HashSet::new());
        let mut after: Option<Name> = None;
        loop {
            let entries = self.reader.entries(dir, after.as_ref(), PAGE)?;
            let Some((last, _)) = entries.last() else { break };
            after = Some(last.clone());
            for (name, id) in entries {
                digest.add(&name, &id, None);
                let listed = surplus.remove(name.as_bytes()).is_some();
                if listed && !self.thorough {
                    continue;
                }
                match self.stands(&node, &name, &id)? {
                    // It stands there under a name that the file system cut.
                    Some(identity) if !listed => _ = renamed.insert(identity),
                    Some(_) => {}
                    None => mend.push((*dir, name)),
                }
            }
        }
        let missing = mend.len();
        for name in surplus.into_keys() {
            let found = tree.find(&node, &name).on("look at", dir)?;
            if let (Some(found), Some(name)) = (found, Name::new(name))
                && !renamed.contains(&found.identity)
            {
                mend.push((*dir, name));
            }
        }
        if mend.is_empty() {
            return Ok(Seen::digest(digest.finish()));
        }
        let added = mend.len() - missing;
        let first = mend.first().map_or_else(String::new, |(_, name)| name.to_string());
        let problem =
            format!("{missing} names are missing or mean something else, {added} were added from outside: {first} …");
        Ok(Seen { mend, ..Seen::problem(problem) })
    }

    /// The object at a name, if it is the one that the catalog means.
    fn stands(&self, dir: &T::Node, name: &Name, id: &InodeId) -> Result<Option<ObjectIdentity>, ApplyError> {
        let found = self.reader.tree().find(dir, name.as_bytes()).on("look at", name)?;
        let record = self.reader.catalog().node(id)?;
        Ok(found.map(|found| found.identity).filter(|found| record.is_some_and(|record| record.identity == *found)))
    }

    fn node(&self, id: &InodeId, untimed: bool) -> Result<Seen, ApplyError> {
        match self.or_displaced(id, self.reader.whole(id))? {
            Ok(whole) => Ok(Seen::digest(whole_digest(id, &whole, untimed)?)),
            Err(seen) => Ok(seen),
        }
    }

    fn extent(&self, id: &InodeId, offset: u64, len: u64, zeroes: bool) -> Result<Seen, ApplyError> {
        let file = match self.or_displaced(id, self.reader.open(id))? {
            Ok(file) => file,
            Err(seen) => return Ok(seen),
        };
        if !zeroes {
            let mut buffer = vec![0; len.min(EXTENT_MAX) as usize];
            let read = file.read_at(offset, &mut buffer).on("read", id)?;
            return Ok(Seen { digest: extent_digest(&buffer[..read]), ..Seen::default() });
        }
        // Holes are not read.
        let (mut at, end) = (offset, offset.saturating_add(len));
        let mut buffer = Vec::new();
        while at < end {
            let Some((start, stop)) = file.next_data(at).on("read", id)? else { break };
            let (start, stop) = (start.max(at), stop.min(end));
            if start >= stop {
                break;
            }
            buffer.resize((stop - start).min(EXTENT_MAX) as usize, 0);
            let read = file.read_at(start, &mut buffer).on("read", id)?;
            let digest = extent_digest(&buffer[..read]);
            if digest.is_some() || read == 0 {
                return Ok(Seen { digest, ..Seen::default() });
            }
            at = start + read as u64;
        }
        Ok(Seen::default())
    }

    fn group(&self, dir: &InodeId, after: Option<&Name>, until: Option<&Name>) -> Result<Seen, ApplyError> {
        let node = match self.or_displaced(dir, self.reader.directory(dir))? {
            Ok(node) => node,
            Err(seen) => return Ok(seen),
        };
        let (mut digest, mut after) = (NamesDigest::default(), after.cloned());
        'pages: loop {
            let entries = self.reader.entries(dir, after.as_ref(), PAGE)?;
            let Some((last, _)) = entries.last() else { break };
            after = Some(last.clone());
            for (name, id) in entries {
                if until.is_some_and(|until| name > *until) {
                    break 'pages;
                }
                match self.reader.child(&node, &name, &id) {
                    Ok(None) => digest.add(&name, &id, None),
                    Ok(Some(whole)) => digest.add(&name, &id, Some(&whole_digest(&id, &whole, false)?)),
                    Err(error) if is_displaced(&error) => {
                        return Ok(Seen::problem(format!("{name} is not what it was")));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Seen::digest(digest.finish()))
    }
}

fn whole_digest<T: ReplicaTree>(id: &InodeId, whole: &Whole<T>, untimed: bool) -> Result<Digest, ApplyError> {
    let node = &whole.node;
    let facts = NodeFacts { kind: &node.kind, attr: &node.attr, xattrs: &whole.xattrs, size: node.size, untimed };
    let mut data = None;
    if let Some(file) = whole.file.as_ref().filter(|_| is_small(&node.kind, node.size)) {
        let mut buffer = vec![0; node.size as usize];
        let read = file.read_at(0, &mut buffer).on("read", id)?;
        buffer.truncate(read);
        data = Some(buffer);
    }
    Ok(node_digest(&facts, data.as_deref()))
}
