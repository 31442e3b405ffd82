//! The storage side: the production volume on a disk and a tree in memory, which can crash.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tandem_proto::{InodeId, Name, Uuid, pb, stage::NodeType};
use tandem_storaged::{
    apply::{ObjectIdentity, Replica},
    catalog::{Catalog, store::MemoryStore},
    ingest::{
        incoming::{AttachRequest, Incoming},
        outbox::Outbox,
    },
    log::{LogOptions, mem::MemDisk},
    tree::{Area, MemTree, ReplicaTree},
    volume::{
        core::{CheckpointRule, Core, OpenError, Parts},
        facts::{Facts, VolumeState},
        flow::Bounds,
        state::Identity,
    },
};

use crate::{rng::Rng, sim::picture::Picture};

/// One end of a connection at the storage side.
#[derive(Clone)]
pub struct Inbound {
    /// Answers.
    pub outbox: Arc<Outbox>,
    /// That the mount was attached to on it.
    pub epoch: Option<u64>,
    session: Option<u64>,
}

impl Inbound {
    /// A connection that nothing was said on yet.
    pub fn new() -> Self {
        Inbound { outbox: Arc::new(Outbox::default()), epoch: None, session: None }
    }
}

impl Inbound {
    /// Whether its claim was granted once.
    pub fn is_attached(&self) -> bool {
        self.session.is_some()
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self::new()
    }
}

/// The machine with the volume.
pub struct ReplicaHost {
    home: MemDisk,
    log_disk: MemDisk,
    tree: MemTree,
    store: MemoryStore,
    core: Option<Core<MemDisk, MemTree>>,
    clock: Instant,
}

fn log_options() -> LogOptions {
    // Small segments, so that a run rolls, recycles and cuts many of them.
    LogOptions { segment_bytes: 64 << 10, free_max: 2 }
}

fn rule() -> CheckpointRule {
    CheckpointRule { bytes: 40 << 10, age: Duration::from_secs(20), idle: Duration::from_secs(2) }
}

impl ReplicaHost {
    /// A new, empty volume, serving.
    pub fn new() -> Self {
        let mut host = ReplicaHost {
            home: MemDisk::default(),
            log_disk: MemDisk::default(),
            tree: MemTree::new(),
            store: MemoryStore::default(),
            core: None,
            clock: Instant::now(),
        };
        let identity = Identity { volume_id: Uuid([1; 16]), replica_id: Uuid([2; 16]) };
        let parts = host.parts();
        Core::create(&parts, identity, [7; 16]).expect("the disk in memory takes a new volume");
        host.start();
        host
    }

    fn parts(&self) -> Parts<MemDisk, MemTree> {
        let catalog = Catalog::in_memory(self.store.clone()).expect("the store in memory opens");
        let replica = Replica::open(self.tree.clone(), catalog).expect("tree and catalog open");
        Parts {
            home: self.home.clone(),
            log_disk: self.log_disk.clone(),
            log_options: log_options(),
            replica,
            rule: rule(),
        }
    }

    /// Starts the volume and lets it recover.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|error| panic!("the volume does not open: {error}"));
    }

    /// The same where the disk may fail.
    pub fn try_start(&mut self) -> Result<(), OpenError> {
        let (mut core, _recovered) = Core::open(self.parts(), self.clock)?;
        // So few in memory that most of what waits for apply is read back from the log.
        core.bound(Bounds { backlog_ops: 20, ..Bounds::default() });
        core.keep_deleted(true);
        self.core = Some(core);
        Ok(())
    }

    /// The volume, if it runs.
    pub fn core(&self) -> Option<&Core<MemDisk, MemTree>> {
        self.core.as_ref()
    }

    /// The process dies; what it wrote stands.
    pub fn kill(&mut self) {
        self.core = None;
        self.heal();
        self.tree.set_budget(None);
        self.log_disk.kill();
        self.home.kill();
        self.store = self.store.after_crash();
    }

    /// The machine loses power.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        self.core = None;
        self.heal();
        self.log_disk.crash(rng.bits());
        self.home.crash(rng.bits());
        let keep = rng.index(self.tree.unsynced() + 1);
        let salt = rng.bits();
        self.tree.crash(keep, |at| Rng::new(salt ^ at as u64).chance(40));
        self.store = self.store.after_crash();
    }

    /// Stops the process after this many more changes of the tree, wherever that is; `None`: no limit.
    pub fn set_budget(&self, changes: Option<u64>) {
        self.tree.set_budget(changes);
    }

    /// The disk is full after so many more writes.
    pub fn fill(&self, room: u64) {
        self.tree.set_room(Some(room));
        let writes = i32::try_from(room).unwrap_or(i32::MAX);
        self.log_disk.fail_writes_after(Some(writes));
        self.home.fail_writes_after(Some(writes));
    }

    /// One of the next syncs fails: of the tree or of the log.
    pub fn fail_sync(&self, rng: &mut Rng) {
        if rng.chance(50) {
            let salt = rng.bits();
            self.tree.fail_syncs(0, 1, salt);
        } else {
            self.log_disk.fail_syncs_after(Some(rng.below(3) as i32));
        }
    }

    /// The disk is well again.
    pub fn heal(&self) {
        self.tree.set_room(None);
        self.tree.fail_syncs(0, 0, 0);
        for disk in [&self.log_disk, &self.home] {
            disk.fail_writes_after(None);
            disk.fail_syncs_after(None);
        }
    }

    /// Whether the tree is at its position: nothing that began on it was left in the middle.
    pub fn is_settled(&self) -> bool {
        self.core.as_ref().is_some_and(|core| {
            !matches!(core.facts(&Facts::default()).state, VolumeState::Faulted | VolumeState::Damaged)
                && !core.is_publishing()
        })
    }

    /// Whether this connection has the session.
    pub fn streams(&self, inbound: &Inbound) -> bool {
        let session = self.core.as_ref().and_then(|core| core.receiver().session());
        session.is_some() && session == inbound.session
    }

    /// Whether a message can be taken now.
    pub fn accepts(&self) -> bool {
        self.core.as_ref().is_some_and(Core::accepts)
    }

    /// Takes one message of a connection.
    pub fn deliver(&mut self, from: &mut Inbound, message: pb::ClientMessage) {
        let Some(core) = &mut self.core else { return };
        let refuse =
            |outbox: &Outbox, refusal: tandem_storaged::ingest::refusal::Refusal| outbox.close(Some(refusal.into()));
        let Some(session) = from.session else {
            let Some(pb::client_message::Body::Attach(attach)) = message.body else {
                panic!("the first message of a connection is no Attach: {message:?}")
            };
            match AttachRequest::check(attach)
                .and_then(|(_volume, _create, request)| core.attach(&request, Arc::clone(&from.outbox), self.clock, 0))
            {
                Ok(session) => from.session = Some(session),
                Err(refusal) => refuse(&from.outbox, refusal),
            }
            return;
        };
        match Incoming::check(message) {
            Ok((named, incoming)) if named == session => core.handle(session, incoming, self.clock),
            Ok((named, _)) => panic!("session {named} is named on the connection of session {session}"),
            Err(refusal) => panic!("the client sent what is no message: {refusal}"),
        }
    }

    /// The connection broke.
    pub fn closed(&mut self, from: &Inbound) {
        if let (Some(core), Some(session)) = (&mut self.core, from.session) {
            core.closed(session);
        }
    }

    /// Makes durable what waits.
    pub fn flush(&mut self) {
        if let Some(core) = &mut self.core {
            core.flush(self.clock);
        }
    }

    /// Applies up to `limit` ops.
    pub fn apply(&mut self, limit: usize) {
        if let Some(core) = &mut self.core {
            core.apply_some(self.clock, limit);
            core.take_held(self.clock);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, passed: Duration) {
        self.clock += passed;
        if let Some(core) = &mut self.core {
            core.tick(self.clock);
            if core.checkpoint_is_due() {
                core.checkpoint_now(self.clock);
            }
        }
    }

    /// The tree as it is now, with the ids and link texts of the catalog.
    pub fn picture(&self) -> Picture {
        let mut picture = Picture::default();
        let Some(core) = &self.core else { return picture };
        let reader = core.replica().reader();
        let mut drawing = Drawing { tree: &self.tree, reader: &reader, seen: HashMap::new(), picture: &mut picture };
        drawing.node(&self.tree.area(Area::Tree), NodeType::Directory, InodeId::ROOT, "");
        picture
    }
}

impl Default for ReplicaHost {
    fn default() -> Self {
        Self::new()
    }
}

struct Drawing<'a> {
    tree: &'a MemTree,
    reader: &'a tandem_storaged::reader::ReplicaReader<MemTree>,
    seen: HashMap<ObjectIdentity, String>,
    picture: &'a mut Picture,
}

impl Drawing<'_> {
    fn node(&mut self, node: &<MemTree as ReplicaTree>::Node, node_type: NodeType, id: InodeId, path: &str) {
        let stat = self.tree.stat(node).expect("what was opened can be looked at");
        let identity = self.tree.identity(node).expect("what was opened has an identity");
        let first = self.seen.entry(identity).or_insert_with(|| path.to_owned()).clone();
        let mut data = Vec::new();
        if node_type == NodeType::Regular {
            data.resize(stat.size as usize, 0);
            let read = self.tree.read_at(node, 0, &mut data).expect("readable");
            assert_eq!(read, data.len(), "{path}: the file is as long as it says");
        }
        let mut xattrs = BTreeMap::new();
        for name in self.tree.list_xattrs(node).expect("readable") {
            let value = self.tree.xattr(node, &name).expect("readable").expect("listed");
            xattrs.insert(name.to_vec(), value.to_vec());
        }
        let known = self.reader.node(&id).expect("the catalog can be read");
        let Some(known) = known else { panic!("{path}: the catalog does not know {id}") };
        assert_eq!(known.kind.node_type(), node_type, "{path}: the catalog has another type");
        let size = if node_type == NodeType::Regular { stat.size as usize } else { 0 };
        self.picture.add(path, &first, &known.kind, &stat.attr, size, &data, &xattrs);
        self.picture.ids.insert(path.to_owned(), id);
        if node_type != NodeType::Directory {
            return;
        }
        for (name, child_type) in self.tree.list(node).expect("a directory can be listed") {
            let child = self.tree.open(node, &name, child_type).expect("listed");
            let name = Name::new(name).expect("a legal name");
            let path = format!("{path}/{name}");
            let id = self.reader.entry(&id, &name).expect("the catalog can be read");
            let Some(id) = id else { panic!("{path}: the catalog does not know the name") };
            self.node(&child, child_type, id, &path);
        }
    }
}
