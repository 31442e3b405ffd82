//! A volume as the place where a copy goes: which inode a path is, what is there already, and steps that are published whole.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_copy::{Destination, Failed, Readable, Taken, Whole};
use tandem_proto::{
    VolumeName, convert,
    ids::{InodeId, Name},
    op::{Attr, AttrPatch, NodeKind, Timestamp},
    pb::{self, copy_up::Body as Up},
    stage::{Content, NodeState, NodeType, StageEntry, StageNode},
};
use tokio::runtime::Handle;
use tonic::Status;

use super::{
    receiving::{Out, up},
    sending::Opened,
    writer::{Step, Writer, new_id},
};
use crate::{
    apply::ApplyError,
    ingest::{
        refusal::{Reason, Refusal},
        service::status,
    },
    reader::ReplicaReader,
    tree::Area,
    volume::volumes::Volume,
};

/// Files that are published at once.
const STEP_FILES: usize = 4096;
/// A whole file waits for its name at most so long, if others follow.
const STEP_AGE: Duration = Duration::from_secs(3);
/// How long a step may take after who asked for the copy has left.
const LEFT_WITHIN: Duration = Duration::from_secs(5);
/// Parts of files that nobody went on with are deleted.
const PARTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where a file goes.
struct Place {
    dir: InodeId,
    name: Name,
    attr: Attr,
    xattrs: Vec<(Bytes, Bytes)>,
    /// Of its part, in the incoming area.
    part: String,
}

/// See the module.
pub struct VolumeDestination {
    reader: ReplicaReader,
    writer: Writer,
    handle: Handle,
    incoming: PathBuf,
    /// The directory that it goes into, and its path.
    into: InodeId,
    path: Vec<Bytes>,
    /// What the one source shall be called.
    rename: Option<Bytes>,
    preserve: bool,
    owner: (u32, u32),
    dirs: HashMap<Vec<Bytes>, InodeId>,
    /// The inodes of these.
    copied: HashSet<InodeId>,
    files: HashMap<u32, Place>,
    step: Step,
    /// Whole files of the step, and those that only had to be looked at.
    whole: Vec<u32>,
    since: Option<Instant>,
    /// What held the last step up.
    pub waits_for: String,
    /// Who asked for the copy, and what was told last.
    told: Option<(Out, Arc<Mutex<pb::CopyProgress>>)>,
}

fn refused(volume: &VolumeName, refusal: Refusal) -> Status {
    if refusal.reason != Reason::Held {
        return status(&refusal);
    }
    // What is expected is the holder's name, as it was told to the attach.
    let holder = &refusal.expected;
    Status::failed_precondition(format!(
        "volume {volume} is written by {holder}, and a volume has one writer: copy into that mount, on its host; or into a volume that is \
         not mounted"
    ))
}

fn failed(error: ApplyError) -> Failed {
    Failed::All(error.to_string())
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
}

/// Deletes parts that are old. What cannot be deleted is for the next one.
fn tidy(incoming: &std::path::Path) {
    let Ok(listed) = fs::read_dir(incoming) else { return };
    for entry in listed.flatten() {
        let age = entry.metadata().ok().and_then(|is| is.modified().ok()).and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > PARTS_KEPT) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Finds the directory that is meant; else the one above it and the new name.
fn target(reader: &ReplicaReader, into: &pb::CopyInto) -> Result<(InodeId, Vec<Bytes>, Option<Bytes>), Status> {
    let mut path = into.path.clone().unwrap_or_default().names;
    let shown =
        |path: &[Bytes]| path.iter().map(|name| format!("/{}", String::from_utf8_lossy(name))).collect::<String>();
    let error = |error: ApplyError| Status::internal(error.to_string());
    let (mut at, mut depth) = (InodeId::ROOT, 0);
    for name in &path {
        let name = Name::new(name.clone()).ok_or_else(|| Status::invalid_argument("no file name"))?;
        match reader.entry(&at, &name).map_err(error)? {
            Some(next) if is_directory(reader, &next).map_err(error)? => (at, depth) = (next, depth + 1),
            _ => break,
        }
    }
    match path.len() - depth {
        0 => Ok((at, path, None)),
        1 if !into.directory => {
            let name = path.pop();
            Ok((at, path, name))
        }
        _ => {
            let missing = shown(&path[..depth + 1]);
            Err(Status::not_found(format!("there is no folder {missing} in volume {}: make it first", into.volume)))
        }
    }
}

fn is_directory(reader: &ReplicaReader, id: &InodeId) -> Result<bool, ApplyError> {
    Ok(reader.node(id)?.is_some_and(|node| node.kind.is_directory()))
}

impl VolumeDestination {
    /// Claims the volume, and finds where in it the copy goes. Blocks.
    pub fn open(
        handle: Handle,
        volume: Arc<Volume>,
        name: &VolumeName,
        into: &pb::CopyInto,
    ) -> Result<VolumeDestination, Status> {
        let reader = volume.reader.clone();
        let (dir, path, rename) = target(&reader, into)?;
        let incoming = volume.directory.join(Area::Incoming.path());
        tidy(&incoming);
        let client: String = into.client.chars().filter(|c| !c.is_control()).take(200).collect();
        let writer = handle.block_on(Writer::attach(volume, &client)).map_err(|refusal| refused(name, refusal))?;
        let (mut step, mut owner) = (Step::default(), (0, 0));
        if writer.empty {
            // The root of a volume that nobody has mounted yet is whatever the storage daemon made.
            owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let attr = Attr { mode: 0o755, uid: owner.0, gid: owner.1, mtime: now() };
            let state =
                NodeState { kind: NodeKind::Directory, attr, xattrs: Vec::new(), size: 0, content: Content::Unchanged };
            step.nodes.push(StageNode { id: InodeId::ROOT, state: Some(state) });
        } else if let Some(node) = reader.node(&dir).map_err(|error| Status::internal(error.to_string()))? {
            owner = (node.attr.uid, node.attr.gid);
        }
        Ok(VolumeDestination {
            reader,
            writer,
            handle,
            incoming,
            into: dir,
            path,
            rename,
            preserve: into.preserve,
            owner,
            dirs: HashMap::new(),
            copied: HashSet::new(),
            files: HashMap::new(),
            step,
            whole: Vec::new(),
            since: None,
            waits_for: String::new(),
            told: None,
        })
    }

    /// Who hears what a step waits for, while it waits; and what was told last.
    pub(super) fn told_to(&mut self, out: Out, last: Arc<Mutex<pb::CopyProgress>>) {
        self.told = Some((out, last));
    }

    /// Publishes a step; one that is held up (a full disk) waits, and says so, as long as somebody listens.
    fn publish(&mut self, step: Step) -> Result<(), Refusal> {
        let (told, waits_for) = (&self.told, &mut self.waits_for);
        let mut waits = |why: &str| {
            waits_for.replace_range(.., why);
            if let Some((out, last)) = told {
                let news = pb::CopyProgress { waits_for: why.to_owned(), ..last.lock().clone() };
                // Who is slow to listen hears the next one.
                let _ = out.try_send(Ok(up(Up::Progress(news))));
            }
        };
        let left = async {
            match told {
                Some((out, _)) => out.closed().await,
                None => std::future::pending().await,
            }
            tokio::time::sleep(LEFT_WITHIN).await;
        };
        self.handle.block_on(async {
            tokio::select! {
                published = self.writer.publish(step, &mut waits) => published,
                () = left => Err(Refusal::unavailable("nobody waits for the copy any more")),
            }
        })
    }

    fn attr(&self, node: &pb::PullNode) -> Result<Attr, Failed> {
        let attr = convert::attr_complete(&node.attr).map_err(|error| Failed::All(error.to_string()))?;
        Ok(match self.preserve {
            true => attr,
            false => Attr { mode: attr.mode & 0o777, uid: self.owner.0, gid: self.owner.1, mtime: now() },
        })
    }

    /// The directory that holds an item, and its name there.
    fn at(&self, node: &pb::PullNode) -> Result<(InodeId, Name), Failed> {
        let (name, above) = node.path.split_last().ok_or_else(|| Failed::All("an item without a path".into()))?;
        let dir = match above {
            [] => Some(self.into),
            above => self.dirs.get(above).copied(),
        };
        let name = match (&self.rename, above) {
            (Some(rename), []) => rename,
            _ => name,
        };
        let name = Name::new(name.clone()).ok_or_else(|| Failed::All("no file name".into()))?;
        let dir = dir.ok_or_else(|| Failed::Item(format!("{name}: its folder could not be made")))?;
        Ok((dir, name))
    }

    fn add(&mut self, dir: InodeId, name: Name, id: InodeId, node_type: NodeType) {
        self.since.get_or_insert_with(Instant::now);
        self.step.entries.entry(dir).or_default().push(StageEntry { name, node: Some((id, node_type)), stamp: None });
        // What is copied with its times keeps those of its directories, too.
        if !(self.preserve && self.copied.contains(&dir)) {
            self.step.attrs.entry(dir).or_default().mtime = Some(now());
        }
    }

    fn make(&mut self, dir: InodeId, name: Name, kind: NodeKind, node: &pb::PullNode) -> Result<InodeId, Failed> {
        let id = new_id().map_err(|refusal| Failed::All(refusal.message))?;
        let (attr, xattrs) = (self.attr(node)?, self.xattrs(node)?);
        let node_type = kind.node_type();
        let state = NodeState { kind, attr, xattrs, size: 0, content: Content::Unchanged };
        self.step.nodes.push(StageNode { id, state: Some(state) });
        self.add(dir, name, id, node_type);
        Ok(id)
    }

    fn xattrs(&self, node: &pb::PullNode) -> Result<Vec<(Bytes, Bytes)>, Failed> {
        if !self.preserve {
            return Ok(Vec::new());
        }
        convert::xattr_set(node.xattrs.clone()).map_err(|error| Failed::All(error.to_string()))
    }

    fn directory(&mut self, dir: InodeId, name: Name, node: &pb::PullNode) -> Result<Taken, Failed> {
        if self.dirs.contains_key(&node.path) {
            return Ok(Taken::Made);
        }
        let id = match self.reader.entry(&dir, &name).map_err(failed)? {
            Some(there) if is_directory(&self.reader, &there).map_err(failed)? => {
                if self.preserve {
                    let patch = AttrPatch::from(self.attr(node)?);
                    self.step.attrs.insert(there, patch);
                }
                there
            }
            Some(_) => return Err(Failed::Item(format!("{name}: something that is no folder is there"))),
            None => self.make(dir, name, NodeKind::Directory, node)?,
        };
        self.dirs.insert(node.path.clone(), id);
        self.copied.insert(id);
        Ok(Taken::Made)
    }

    fn symlink(&mut self, dir: InodeId, name: Name, kind: NodeKind, node: &pb::PullNode) -> Result<Taken, Failed> {
        if let Some(there) = self.reader.entry(&dir, &name).map_err(failed)?
            && let Some(found) = self.reader.node(&there).map_err(failed)?
        {
            if found.kind == kind {
                return Ok(Taken::Made);
            }
            if found.kind.is_directory() {
                return Err(Failed::Item(format!("{name}: a folder is there")));
            }
        }
        self.make(dir, name, kind, node)?;
        Ok(Taken::Made)
    }

    fn regular(&mut self, key: u32, dir: InodeId, name: Name, node: &pb::PullNode) -> Result<Taken, Failed> {
        if let Some(there) = self.reader.entry(&dir, &name).map_err(failed)?
            && is_directory(&self.reader, &there).map_err(failed)?
        {
            return Err(Failed::Item(format!("{name}: a folder is there")));
        }
        // By its path, so that the next copy finds it whatever ids there are then.
        let mut hasher = blake3::Hasher::new();
        for name in self.path.iter().chain(self.rename.iter()).chain(&node.path[usize::from(self.rename.is_some())..]) {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        }
        let part = format!("{}.part", &hasher.finalize().to_hex()[..32]);
        let (attr, xattrs) = (self.attr(node)?, self.xattrs(node)?);
        self.files.insert(key, Place { dir, name, attr, xattrs, part });
        Ok(Taken::File)
    }

    fn arrived(&mut self, key: u32, part: &std::path::Path) -> Result<(), Failed> {
        let Some(place) = self.files.get(&key) else { return Ok(()) };
        let size = fs::metadata(part).map_err(|error| Failed::Item(format!("{}: {error}", place.name)))?.len();
        let id = new_id().map_err(|refusal| Failed::All(refusal.message))?;
        let (dir, name, attr, part) = (place.dir, place.name.clone(), place.attr, place.part.clone());
        let (kind, content, xattrs) = (NodeKind::Regular, Content::Whole, place.xattrs.clone());
        let state = NodeState { kind, attr, xattrs, size, content };
        self.step.brought.push((StageNode { id, state: Some(state) }, part));
        self.add(dir, name, id, NodeType::Regular);
        Ok(())
    }

    fn was_there(&mut self, key: u32) -> Result<(), Failed> {
        let Some(place) = self.files.get(&key).filter(|_| self.preserve) else { return Ok(()) };
        if let Some(id) = self.reader.entry(&place.dir, &place.name).map_err(failed)? {
            self.step.attrs.insert(id, AttrPatch::from(place.attr));
        }
        Ok(())
    }
}

impl Destination for VolumeDestination {
    fn take(&mut self, key: u32, node: &pb::PullNode) -> Result<Taken, Failed> {
        let (dir, name) = self.at(node)?;
        let kind = NodeKind::try_from(node.kind.clone().unwrap_or_default());
        match kind.map_err(|error| Failed::All(error.to_string()))? {
            NodeKind::Directory => self.directory(dir, name, node),
            kind @ NodeKind::Symlink(_) => self.symlink(dir, name, kind, node),
            NodeKind::Regular => self.regular(key, dir, name, node),
            _ => Err(Failed::Item(format!("{name}: devices, pipes and sockets are not copied"))),
        }
    }

    fn partial(&self, key: u32) -> PathBuf {
        self.files.get(&key).map_or_else(|| self.incoming.join("none"), |place| self.incoming.join(&place.part))
    }

    fn there(&self, key: u32, size: u64) -> Option<Box<dyn Readable>> {
        let place = self.files.get(&key)?;
        let id = self.reader.entry(&place.dir, &place.name).ok()??;
        let file = Opened::open(&self.reader, &id).ok()?;
        (file.size() == size).then(|| Box::new(file) as Box<dyn Readable>)
    }

    fn whole(&mut self, key: u32, how: Whole) -> Result<(), Failed> {
        match how {
            Whole::Arrived(part) => self.arrived(key, &part)?,
            Whole::WasThere => self.was_there(key)?,
        }
        self.whole.push(key);
        Ok(())
    }

    fn settle(&mut self, last: bool) -> Result<Vec<u32>, Failed> {
        let due = self.whole.len() >= STEP_FILES || self.since.is_some_and(|since| since.elapsed() >= STEP_AGE);
        if !last && !due {
            return Ok(Vec::new());
        }
        self.since = None;
        let step = std::mem::take(&mut self.step);
        if !step.is_empty() {
            let parts: Vec<_> = step.brought.iter().map(|(_, part)| self.incoming.join(part)).collect();
            self.publish(step).map_err(|refusal| Failed::All(refusal.message))?;
            for part in parts {
                // It has its other name; one that stays is recognised by that.
                let _ = fs::remove_file(part);
            }
        }
        Ok(std::mem::take(&mut self.whole))
    }
}
