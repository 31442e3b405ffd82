//! The core on a disk and a tree in memory that crash and fail.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::{Just, Strategy, any, prop, proptest};
use tandem_proto::{
    convert,
    ids::{InodeId, Name, Uuid},
    op::{Attr, AttrPatch, Change, Changes, NodeKind, Op},
    pb::{self, server_message::Body},
    position::{Position, Seq},
    stage::{Content, NodeState, Stage, StageNode},
};

use tokio::sync::{Semaphore, oneshot};

use super::{
    core::{CheckpointRule, Core, Parts},
    facts::{Facts, VolumeState},
    flow::Bounds,
    hold::Place,
    state::Identity,
    thread::{Command, Driver},
};
use crate::{
    apply::Replica,
    catalog::{Catalog, store::MemoryStore},
    ingest::{
        incoming::{AttachRequest, CheckedBatch, Incoming},
        outbox::Outbox,
        refusal::Reason,
    },
    log::{LogOptions, disk::Disk as _, mem::MemDisk},
    tree::{Area, MemTree, ReplicaTree as _},
};

/// Content by name, all in the root.
type Picture = BTreeMap<Name, Vec<u8>>;

/// So small that nearly everything that waits for apply is read back from the log.
const BOUNDS: Bounds = Bounds { log_max_bytes: 16 << 20, backlog_bytes: 1 << 10, backlog_ops: 3 };

/// One volume and its writer.
struct Rig {
    home: MemDisk,
    log: MemDisk,
    tree: MemTree,
    store: MemoryStore,
    core: Core<MemDisk, MemTree>,
    outbox: Arc<Outbox>,
    session: u64,
    /// The sender's last op.
    sent: Position,
    /// What the folder was after each op of the epoch, by seq.
    states: BTreeMap<u64, Picture>,
    now: Instant,
    acked: pb::Ack,
    faults: Vec<String>,
}

fn parts(home: &MemDisk, log: &MemDisk, tree: &MemTree, store: &MemoryStore) -> Parts<MemDisk, MemTree> {
    let catalog = Catalog::in_memory(store.clone()).expect("in memory");
    Parts {
        home: home.clone(),
        log_disk: log.clone(),
        log_options: LogOptions { segment_bytes: 8 << 10, free_max: 2 },
        replica: Replica::open(tree.clone(), catalog).expect("opened"),
        rule: CheckpointRule::default(),
    }
}

fn name(number: u8) -> Name {
    Name::new(format!("name{number}")).expect("legal")
}

fn attach_request(sent: &Position) -> AttachRequest {
    AttachRequest {
        protocol: tandem_proto::limits::PROTOCOL_VERSION,
        client_id: Uuid([1; 16]),
        client_name: "tester".to_owned(),
        run_id: Uuid([1; 16]),
        epoch: (sent.epoch.0 != 0).then_some(sent.epoch),
        ..AttachRequest::default()
    }
}

impl Rig {
    /// A volume whose first sync of an empty folder is done.
    fn new() -> Rig {
        let (home, log, tree, store) = Default::default();
        let now = Instant::now();
        let identity = Identity { volume_id: Uuid([5; 16]), replica_id: Uuid([6; 16]) };
        Core::create(&parts(&home, &log, &tree, &store), identity, [3; 16]).expect("made");
        let (mut core, _) = Core::open(parts(&home, &log, &tree, &store), now).expect("opened");
        core.bound(BOUNDS);
        let (outbox, session, sent) = (Arc::default(), 0, Position::default());
        let (acked, faults, states) = Default::default();
        let mut rig = Rig { home, log, tree, store, core, outbox, session, sent, states, now, acked, faults };
        rig.attach();
        rig.sync_root();
        rig
    }

    fn attach(&mut self) {
        self.outbox = Arc::default();
        let request = attach_request(&self.sent);
        self.session = self.core.attach(&request, self.outbox.clone(), self.now, 0).expect("granted");
        self.acked = pb::Ack::default();
        self.sent = self.core.receiver().tip();
    }

    fn sync_root(&mut self) {
        self.handle(Incoming::Begin { round: 1, full: true, s0: self.sent });
        let attr = Attr { mode: 0o755, uid: 0, gid: 0, mtime: Default::default() };
        let kind = NodeKind::Directory;
        let state = NodeState { kind, attr, xattrs: Vec::new(), size: 0, content: Content::Whole };
        self.handle(Incoming::Stage(Stage::Node(StageNode { id: InodeId::ROOT, state: Some(state) })));
        self.handle(Incoming::Publish { round: 1, position: self.sent });
        self.states.insert(0, Picture::new());
        self.listen();
    }

    fn handle(&mut self, message: Incoming) {
        self.core.handle(self.session, message, self.now);
    }

    /// Sends ops, each of which may assign several cells.
    fn send(&mut self, ops: &[Todo]) {
        let mut picture = self.states[&self.sent.seq.0].clone();
        let (before, mut scratch) = (self.sent, Vec::new());
        let mut encoded = Vec::new();
        for todo in ops {
            let seq = self.sent.seq.next();
            let op = Op { seq, origin: Default::default(), changes: todo.changes(seq, &mut picture) };
            let op = pb::Op::from(&op);
            let chain = convert::chain_after(&self.sent.chain, seq, &op, &mut scratch);
            self.sent = Position { seq, chain, ..self.sent };
            self.states.insert(seq.0, picture.clone());
            encoded.push(op);
        }
        let batch = pb::Batch {
            session: self.session,
            epoch: before.epoch.0,
            first_seq: before.seq.0 + 1,
            chain_before: before.chain.0.to_vec().into(),
            chain_after: self.sent.chain.0.to_vec().into(),
            ops: encoded,
        };
        self.handle(Incoming::Batch(CheckedBatch::check(batch).expect("as it was sent")));
    }

    /// Reads the answers; a refusal ends the test.
    fn listen(&mut self) -> Vec<Body> {
        if let Some(due) = self.core.ack_due {
            self.now = self.now.max(due);
            self.core.tick(self.now);
        }
        let answers: Vec<Body> = self.outbox.drain().into_iter().filter_map(|message| message.body).collect();
        for answer in &answers {
            match answer {
                Body::Ack(ack) => {
                    assert!(ack.received >= ack.durable && ack.durable >= ack.applied, "{ack:?}");
                    assert!(ack.durable >= self.acked.durable && ack.applied >= self.acked.applied, "{ack:?}");
                    self.acked = *ack;
                }
                Body::Fault(fault) => self.faults.push(fault.message.clone()),
                Body::Refused(refused) => panic!("{refused:?}"),
                _ => {}
            }
        }
        answers
    }

    fn later(&mut self) {
        self.now += Duration::from_secs(1);
        self.core.tick(self.now);
        self.core.take_held(self.now);
    }

    /// Power loss on the storage side, and the start after it.
    fn crash(&mut self, seed: u64) {
        self.home.crash(seed);
        self.log.crash(seed);
        let kept = seed as usize % (self.tree.unsynced() + 1);
        self.tree.crash(kept, |at| (seed >> (at % 60)) & 1 == 1);
        self.store = self.store.after_crash();
        let parts = parts(&self.home, &self.log, &self.tree, &self.store);
        self.core = Core::open(parts, self.now).expect("nothing acknowledged is damaged").0;
        self.core.bound(BOUNDS);
    }

    fn picture(&self) -> Picture {
        let reader = self.core.replica().reader();
        let names = reader.entries(&InodeId::ROOT, None, 10_000).expect("read");
        names
            .into_iter()
            .map(|(name, id)| {
                let file = reader.open(&id).expect("read").expect("regular");
                let mut bytes = vec![0; file.size().expect("size") as usize];
                assert_eq!(file.read_at(0, &mut bytes).expect("read"), bytes.len());
                (name, bytes)
            })
            .collect()
    }

    fn facts(&self) -> Facts {
        self.core.facts(&Facts::default())
    }

    /// Files of the log that wait to become segments.
    fn spares(&self) -> usize {
        self.log.list().expect("listed").iter().filter(|name| name.starts_with("free-")).count()
    }

    /// The tree is what the folder was at the applied position.
    fn check_tree(&self) {
        let applied = self.core.replica().applied();
        assert_eq!(&self.picture(), &self.states[&applied.seq.0], "at {applied}");
    }
}

/// What a program does.
#[derive(Clone, Debug)]
enum Todo {
    /// A name gets a new file.
    Create(u8, Vec<u8>),
    /// Replaces what the second name meant.
    Rename(u8, u8),
    Remove(u8),
    Append(u8, Vec<u8>),
    /// What the first file holds comes behind the second's, as a copy.
    Copy(u8, u8),
    Nothing,
}

impl Todo {
    /// What happened, as mountd would tell; the file behind a name is numbered by content's first two bytes.
    fn changes(&self, seq: Seq, picture: &mut Picture) -> Changes {
        let id_of = |content: &Vec<u8>| InodeId::new(&content[..8]).expect("short");
        let root = InodeId::ROOT;
        match self {
            Todo::Create(number, data) => {
                let content = [&seq.0.to_be_bytes(), data.as_slice()].concat();
                let (id, name) = (id_of(&content), name(*number));
                let old = picture.insert(name.clone(), content.clone());
                let patch =
                    AttrPatch { mode: Some(0o644), uid: Some(0), gid: Some(0), mtime: Some(Default::default()) };
                let mut changes = Changes::new();
                changes.push(Change::Birth { id, kind: NodeKind::Regular });
                changes.push(Change::Attr { id, patch });
                changes.push(Change::Entry { dir: root, name, old: old.as_ref().map(id_of), new: Some(id) });
                changes.push(Change::Data { id, offset: 0, data: content.into() });
                changes
            }
            Todo::Rename(from, to) if from != to => {
                let (from, to) = (name(*from), name(*to));
                let Some(content) = picture.remove(&from) else { return Changes::new() };
                let old = picture.insert(to.clone(), content.clone());
                let id = id_of(&content);
                let away = Change::Entry { dir: root, name: from, old: Some(id), new: None };
                let here = Change::Entry { dir: root, name: to, old: old.as_ref().map(id_of), new: Some(id) };
                Changes::from_iter([away, here])
            }
            Todo::Remove(number) => match picture.remove(&name(*number)) {
                Some(content) => {
                    let old = Some(id_of(&content));
                    Changes::from_iter([Change::Entry { dir: root, name: name(*number), old, new: None }])
                }
                None => Changes::new(),
            },
            Todo::Append(number, data) => match picture.get_mut(&name(*number)) {
                Some(content) => {
                    let (id, offset) = (id_of(content), content.len() as u64);
                    content.extend_from_slice(data);
                    Changes::from_iter([Change::Data { id, offset, data: data.clone().into() }])
                }
                None => Changes::new(),
            },
            Todo::Copy(from, to) => {
                let (source, id_from) = match picture.get(&name(*from)) {
                    Some(source) => (source.clone(), id_of(source)),
                    None => return Changes::new(),
                };
                let Some(content) = picture.get_mut(&name(*to)) else { return Changes::new() };
                let (id, offset, len) = (id_of(content), content.len() as u64, source.len() as u64);
                content.extend_from_slice(&source);
                Changes::from_iter([Change::Copy { id, offset, from: id_from, from_offset: 0, len, data: None }])
            }
            Todo::Rename(..) | Todo::Nothing => Changes::new(),
        }
    }
}

fn create(number: u8) -> Todo {
    Todo::Create(number, vec![number; 100])
}

#[test]
fn ops_are_durable_before_they_are_applied_and_applied_in_order() {
    let mut rig = Rig::new();
    rig.send(&[create(1), create(2), Todo::Rename(1, 2)]);
    rig.listen();
    assert_eq!(rig.acked.durable, 0, "nothing is acknowledged before it is flushed");
    rig.core.flush(rig.now);
    rig.listen();
    assert_eq!((rig.acked.durable, rig.acked.applied), (3, 0));
    assert!(rig.picture().is_empty());
    assert_eq!(rig.core.apply_some(rig.now, 2), 2);
    rig.check_tree();
    assert_eq!(rig.core.apply_some(rig.now, 9), 1);
    rig.listen();
    assert_eq!((rig.acked.durable, rig.acked.applied), (3, 3));
    rig.check_tree();
}

#[test]
fn a_full_disk_stops_the_log_tells_why_and_goes_on_by_itself() {
    let mut rig = Rig::new();
    rig.log.fail_writes_after(Some(0));
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    rig.listen();
    assert_eq!(rig.acked.durable, 0);
    assert!(rig.faults[0].contains("No space left"), "{:?}", rig.faults);
    assert_eq!(rig.facts().state, VolumeState::Faulted);
    assert!(!rig.core.accepts());
    rig.later();
    rig.listen();
    assert!(!rig.faults.iter().any(String::is_empty), "not over yet: {:?}", rig.faults);
    rig.log.fail_writes_after(None);
    rig.later();
    rig.core.apply_some(rig.now, 9);
    rig.listen();
    assert_eq!((rig.acked.durable, rig.acked.applied), (1, 1));
    assert_eq!(rig.faults.last().map(String::as_str), Some(""), "told that it is over");
    assert!(rig.core.accepts());
    rig.check_tree();
}

#[test]
fn deleted_files_give_way_to_the_log_on_a_full_disk_also_those_of_an_earlier_run() {
    for restarted in [false, true] {
        let mut rig = Rig::new();
        rig.core.keep_deleted(true);
        rig.send(&[create(1), Todo::Remove(1)]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 9);
        let kept = |rig: &mut Rig| {
            let history = rig.tree.area(Area::History);
            ["open", "deleted-1-2"].map(|place| rig.tree.find(&history, place.as_bytes()).expect("looked").is_some())
        };
        assert_eq!(kept(&mut rig), [true, false], "{restarted}");
        if restarted {
            rig.core.checkpoint(rig.now);
            rig.crash(0);
            rig.attach();
            rig.core.keep_deleted(true);
        }
        rig.log.fail_writes_after(Some(0));
        rig.send(&[create(2)]);
        rig.core.flush(rig.now);
        rig.listen();
        assert!(rig.faults.iter().any(|fault| fault.contains("free space there")), "{:?}", rig.faults);
        assert_eq!(kept(&mut rig), [false, true], "closed, so that the oldest can be deleted; {restarted}");
    }
}

#[test]
fn a_publish_that_the_tree_cannot_follow_is_tried_until_it_works_also_over_a_crash() {
    for crash in [false, true] {
        let mut rig = Rig::new();
        rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
        rig.send(&[create(1), create(2)]);
        rig.core.flush(rig.now);
        rig.listen();
        assert_eq!((rig.acked.durable, rig.acked.staged), (0, 2), "staged is not durable");
        assert!(rig.picture().is_empty());
        rig.tree.set_budget(Some(1));
        rig.handle(Incoming::Publish { round: 1, position: rig.sent });
        let answers = rig.listen();
        assert!(answers.iter().any(|answer| matches!(answer, Body::Published(_))), "{answers:?}");
        assert!(rig.core.is_publishing());
        // What is durable is acknowledged, whatever the tree does.
        rig.send(&[create(3), Todo::Rename(3, 1)]);
        rig.core.flush(rig.now);
        rig.listen();
        assert_eq!((rig.acked.durable, rig.acked.applied), (4, 0));
        assert_eq!(rig.core.apply_some(rig.now, 9), 0);
        if crash {
            rig.crash(12345);
        } else {
            rig.tree.set_budget(None);
            rig.later();
            rig.core.apply_some(rig.now, 9);
        }
        assert_eq!(rig.core.receiver().tip(), rig.sent);
        assert_eq!(rig.core.replica().applied(), rig.sent);
        rig.check_tree();
    }
}

#[test]
fn nonsense_of_the_sender_is_refused_and_does_not_damage_the_volume() {
    let mut rig = Rig::new();
    rig.handle(Incoming::Begin { round: 3, full: false, s0: rig.sent });
    let refused = rig.outbox.drain().into_iter().find_map(|message| match message.body {
        Some(Body::Refused(refused)) => Some(refused.reason()),
        _ => None,
    });
    assert_eq!(refused, Some(Reason::BadRequest));
    rig.attach();
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    rig.core.apply_some(rig.now, 9);
    rig.check_tree();
}

#[test]
fn apply_stands_still_for_a_reader_and_goes_on_after_it() {
    let mut rig = Rig::new();
    rig.core.hold(1, None);
    assert!(matches!(&rig.core.take_decided()[..], [(1, Ok(held))] if held.position.seq == Seq(0)));
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    assert_eq!(rig.core.apply_some(rig.now, 9), 0);
    rig.listen();
    assert_eq!((rig.acked.durable, rig.acked.applied), (1, 0), "logging goes on");
    // A resync waits, in order.
    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
    assert!(!rig.core.accepts());
    rig.core.release(1);
    rig.core.take_held(rig.now);
    assert!(rig.core.accepts());
    rig.check_tree();
    assert_eq!(rig.facts().state, VolumeState::Staging);
}

#[test]
fn a_resync_begins_and_is_published_while_a_reader_has_the_old_position_and_the_tree_follows_after_it() {
    let mut rig = Rig::new();
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    rig.core.apply_some(rig.now, 9);
    rig.core.hold(1, None);
    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
    rig.send(&[create(2)]);
    rig.handle(Incoming::Publish { round: 1, position: rig.sent });
    let answers = rig.listen();
    assert!(answers.iter().any(|answer| matches!(answer, Body::Published(_))), "{answers:?}");
    rig.send(&[create(3)]);
    rig.core.flush(rig.now);
    rig.core.take_held(rig.now);
    assert_eq!(rig.core.apply_some(rig.now, 9), 0);
    rig.listen();
    assert_eq!((rig.acked.durable, rig.acked.applied), (3, 1), "acknowledgements go on");
    assert_eq!(rig.picture(), rig.states[&1], "the reader's position stands");
    assert!(!rig.core.has_work(), "nothing polls");
    rig.core.release(1);
    assert!(rig.core.has_work());
    rig.core.take_held(rig.now);
    rig.check_tree();
    assert_eq!(rig.core.replica().applied().seq, Seq(2));
    rig.core.apply_some(rig.now, 9);
    rig.listen();
    assert_eq!(rig.acked.applied, 3);
    rig.check_tree();
}

#[test]
fn apply_stops_exactly_where_a_reader_wants_it() {
    let mut rig = Rig::new();
    let at = |rig: &Rig, seq| Place { epoch: rig.sent.epoch, seq: Seq(seq), chain: None };
    rig.core.hold(7, Some(at(&rig, 2)));
    assert!(rig.core.take_decided().is_empty(), "it is in the future");
    rig.send(&[create(1), create(2), create(3)]);
    rig.core.flush(rig.now);
    assert_eq!(rig.core.apply_some(rig.now, 9), 2);
    assert!(matches!(&rig.core.take_decided()[..], [(7, Ok(held))] if held.position.seq == Seq(2)));
    assert_eq!(rig.core.replica().applied().seq, Seq(2));
    // One that is passed, one that is still to come, and one that gives up.
    rig.core.hold(8, Some(at(&rig, 1)));
    rig.core.hold(9, Some(at(&rig, 3)));
    rig.core.hold(10, Some(at(&rig, 3)));
    rig.core.release(10);
    let decided = rig.core.take_decided();
    let [(8, Err(refusal))] = &decided[..] else { panic!("{decided:?}") };
    assert!(refusal.message.contains("the oldest that it still has is"), "{refusal}");
    rig.core.release(7);
    assert_eq!(rig.core.apply_some(rig.now, 9), 1);
    assert!(matches!(&rig.core.take_decided()[..], [(9, Ok(held))] if held.position.seq == Seq(3)));
    rig.core.release(9);
    rig.check_tree();
}

#[test]
fn a_reader_gets_the_old_position_during_a_resync_and_what_it_asks_for_of_an_ended_epoch_is_refused() {
    let mut rig = Rig::new();
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    rig.core.apply_some(rig.now, 9);
    let old = rig.core.replica().applied();
    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
    rig.core.hold(1, None);
    let decided = rig.core.take_decided();
    let [(1, Ok(held))] = &decided[..] else { panic!("{decided:?}") };
    assert_eq!(held.position, old);
    rig.core.abort_holds("the log is full");
    assert_eq!(held.abort.why().as_deref(), Some("the log is full"));
    rig.core.release(1);
    let wrong = Place { chain: Some(Default::default()), ..old.into() };
    rig.core.hold(2, Some(wrong));
    let never = Place { seq: Seq(99), chain: None, ..old.into() };
    rig.core.hold(3, Some(never));
    // Another run of the writer opens the next epoch.
    let request = AttachRequest { run_id: Uuid([2; 16]), ..attach_request(&Position::default()) };
    rig.core.attach(&request, Arc::default(), rig.now, 0).expect("granted");
    rig.core.decide_holds();
    let refused: Vec<_> =
        rig.core.take_decided().into_iter().map(|(n, d)| (n, d.expect_err("refused").reason)).collect();
    assert_eq!(refused, [(2, Reason::Diverged), (3, Reason::Gap)]);
}

#[test]
fn an_attach_that_is_refused_takes_nothing_from_the_session_that_writes() {
    let Rig { core, outbox, session, .. } = Rig::new();
    let (commands, received) = std::sync::mpsc::channel();
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("one");
    let message = Box::new(Incoming::Barrier(7));
    commands.send(Command::Message { session, message, permit }).expect("queued");
    let request = Box::new(AttachRequest { client_id: Uuid([9; 16]), ..attach_request(&Position::default()) });
    let (reply, mut answer) = oneshot::channel();
    commands.send(Command::Attach { request, outbox: Arc::default(), reply }).expect("queued");
    commands.send(Command::Stop).expect("queued");
    outbox.drain();
    Driver::new(core, received, Arc::default()).run();
    let refused = answer.try_recv().expect("answered").expect_err("another client holds the volume");
    assert_eq!(refused.reason, Reason::Held);
    let barrier = Body::Barrier(pb::BarrierReached { token: 7 });
    assert!(outbox.drain().iter().any(|message| message.body.as_ref() == Some(&barrier)), "it was lost");
}

#[test]
fn a_thread_that_panics_ends_the_stream_of_its_writer() {
    let Rig { core, outbox, .. } = Rig::new();
    let (_commands, received) = std::sync::mpsc::channel();
    let driver = Driver::new(core, received, Arc::default());
    assert!(!outbox.is_closed());
    drop(driver);
    assert!(outbox.is_closed());
}

#[test]
fn a_checkpoint_after_a_pause_lets_the_log_go() {
    let mut rig = Rig::new();
    for number in 0..200 {
        rig.send(&[create(number % 7), Todo::Append(number % 5, vec![1; 500])]);
        rig.core.flush(rig.now);
        rig.core.apply_some(rig.now, 9);
    }
    let before = rig.facts().log_bytes;
    rig.now += Duration::from_secs(60);
    rig.core.tick(rig.now);
    assert!(rig.facts().log_bytes < before / 4, "{} of {before}", rig.facts().log_bytes);
    assert_eq!(rig.core.next_tick(), None, "nothing more is due");
    rig.crash(7);
    rig.check_tree();
    assert_eq!(rig.core.durable(), rig.sent);
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<Todo>),
    Flush,
    Apply(usize),
    Checkpoint,
    Crash(u64),
    Reconnect,
    FullLog,
    FailTree(u64),
    FullTree(u64),
    Resync(Vec<Todo>, bool),
}

fn todo() -> impl Strategy<Value = Todo> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    proptest::prop_oneof![
        3 => (0..6u8, bytes()).prop_map(|(name, data)| Todo::Create(name, data)),
        3 => (0..6u8, 0..6u8).prop_map(|(from, to)| Todo::Rename(from, to)),
        1 => (0..6u8).prop_map(Todo::Remove),
        3 => (0..6u8, bytes()).prop_map(|(name, data)| Todo::Append(name, data)),
        1 => Just(Todo::Nothing),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let todos = || prop::collection::vec(todo(), 1..5);
    proptest::prop_oneof![
        6 => todos().prop_map(Step::Send),
        4 => Just(Step::Flush),
        4 => (1..6usize).prop_map(Step::Apply),
        1 => Just(Step::Checkpoint),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Reconnect),
        1 => Just(Step::FullLog),
        1 => (0..6u64).prop_map(Step::FailTree),
        1 => (0..6u64).prop_map(Step::FullTree),
        1 => (todos(), any::<bool>()).prop_map(|(todos, publish)| Step::Resync(todos, publish)),
    ]
}

proptest! {
    /// Prefix, no lost acknowledgement, and idempotent redo: after any crash the tree is the folder at one position, which is
    /// at least the one that was acknowledged.
    #[test]
    fn every_crash_leaves_a_state_that_the_folder_had_at_or_after_what_was_acknowledged(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut rig = Rig::new();
        for step in steps {
            match step {
                Step::Send(todos) if rig.core.accepts() => rig.send(&todos),
                Step::Send(_) => {}
                Step::Flush => rig.core.flush(rig.now),
                Step::Apply(limit) => {
                    rig.core.apply_some(rig.now, limit);
                    rig.check_tree();
                }
                Step::Checkpoint => {
                    rig.now += Duration::from_secs(60);
                    rig.core.tick(rig.now);
                }
                Step::Reconnect => {
                    rig.core.closed(rig.session);
                    rig.attach();
                }
                Step::FullLog => {
                    rig.log.fail_writes_after(Some(1));
                    rig.core.flush(rig.now);
                    rig.log.fail_writes_after(None);
                    rig.later();
                }
                Step::FailTree(budget) => {
                    rig.tree.set_budget(Some(budget));
                    rig.core.flush(rig.now);
                    rig.core.apply_some(rig.now, 9);
                    rig.tree.set_budget(None);
                    rig.later();
                }
                Step::FullTree(room) => {
                    rig.tree.set_room(Some(room));
                    rig.core.flush(rig.now);
                    rig.core.apply_some(rig.now, 9);
                    // Whether or not it lets log go: nothing may depend on that.
                    rig.core.checkpoint_in_need(rig.now);
                    rig.tree.set_room(None);
                    rig.later();
                }
                Step::Resync(todos, publish) if rig.core.accepts() => {
                    rig.handle(Incoming::Begin { round: 1, full: false, s0: rig.sent });
                    rig.send(&todos);
                    if publish {
                        rig.handle(Incoming::Publish { round: 1, position: rig.sent });
                    } else {
                        rig.core.flush(rig.now);
                        rig.core.closed(rig.session);
                        rig.attach();
                    }
                }
                Step::Resync(..) => {}
                Step::Crash(seed) => {
                    rig.listen();
                    let acked = rig.acked;
                    rig.crash(seed);
                    let tip = rig.core.receiver().tip();
                    assert!(tip.seq.0 >= acked.durable, "{tip} and {acked:?}");
                    assert_eq!(rig.core.replica().applied(), tip);
                    rig.attach();
                }
            }
            rig.listen();
            rig.check_tree();
        }
        rig.core.stop(rig.now);
        assert_eq!(rig.core.replica().applied(), rig.core.durable());
        rig.check_tree();
    }
}

#[path = "copying_tests.rs"]
mod copying_tests;

#[path = "flow_tests.rs"]
mod flow;

#[path = "full_tests.rs"]
mod full;

#[path = "staging_tests.rs"]
mod staging;

#[path = "sync_tests.rs"]
mod sync;
