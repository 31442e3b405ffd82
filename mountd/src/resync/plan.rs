//! The plan of a resync: what to read next, until the replica asks for nothing more. Pure.
//!
//! ```text
//!   listing ──(queues empty, barrier answered)──► moves ──(nothing moved meanwhile)──► files ──(…barrier answered)──► done
//!      ▲                                            │
//!      └──────────── names that were moved ─────────┘
//! ```
//! Directories come first, so that every inode the replica lacks is asked for before ranges of known files are sent. Objects that are
//! moved while directories are still being listed could be missed by both listings; their new names are sent as well (`moves`).
//! A further round ([`Plan::merge`]) goes on with what is queued.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use tandem_proto::{InodeId, Name, Position, limits::STAGE_ENTRIES_MAX, stage::Piece};

use super::expected::Expected;
use crate::commit::{
    Moved,
    dirty::{DirtyData, DirtyNames, DirtySet, Scope},
    intervals::Intervals,
};

/// Steps that are handed out and not done: keeps the reading thread busy, also while it gathers what small files are, and little lost when
/// a round ends early.
const STEPS_MAX: usize = 32;
/// Names listed between two barriers: bounds what the replica may ask for at once.
const NAMES_BETWEEN_BARRIERS: usize = 16_384;
/// Barriers that may be unanswered before listing pauses.
const BARRIERS_OPEN_MAX: u64 = 2;

/// Which data of an inode is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None.
    Attributes,
    /// These extents.
    Ranges(Intervals),
    /// All; what is a hole is a hole.
    Whole,
}

/// One piece of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A directory's attributes and all its names.
    List(InodeId),
    /// These names of a directory.
    Names(InodeId, Vec<Name>),
    /// An inode.
    Node(InodeId, Wanted),
    /// Bytes that the replica asked for.
    Pieces(InodeId, Vec<Piece>),
    /// A question whose answer tells that all before it was answered.
    Barrier(u64),
}

/// How steps of a round are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Manner {
    /// The replica has nothing: send data without asking.
    pub direct: bool,
    /// It has bytes of a resync that was not finished: ask for all but the smallest.
    pub ask: bool,
    /// The link is slow, and the replica understands groups: name as much as possible by as few digests as possible.
    pub thrifty: bool,
    /// See [`Scope`].
    pub scope: Scope,
    /// See [`DirtySet::born_since`].
    pub born_since: Option<Position>,
}

/// What came of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepDone {
    /// Directories that a walk goes on with, or that were sent as an inode and need their names sent.
    pub directories: Vec<InodeId>,
    /// Inodes that must be compared whole.
    pub changed: Vec<InodeId>,
    /// Names sent.
    pub names: u64,
    /// Inodes sent.
    pub nodes: u64,
    /// Bytes of data sent or compared.
    pub bytes: u64,
    /// Bytes of files whose names were sent.
    pub bytes_listed: u64,
    /// Bytes of data sent.
    pub sent: u64,
    /// Inodes that were asked for whole: how long they are was not known before.
    pub wholes: u64,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read this.
    Step(Step),
    /// Something is under way.
    Wait,
    /// All directories are listed: look for moves, then call [`Plan::handle_moves`] or [`Plan::no_moves`].
    CheckMoves,
    /// The replica has everything up to now.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Listing,
    Files,
    Done,
}

/// Figures for status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanProgress {
    /// Directories listed.
    pub listed: u64,
    /// Inodes sent.
    pub nodes_done: u64,
    /// Inodes known to be sent.
    pub nodes_total: u64,
    /// Bytes sent or compared.
    pub bytes_done: u64,
    /// Bytes of all files that were listed; of a first sync that is what has to be sent, as far as it is known.
    pub bytes_listed: u64,
    /// Bytes sent.
    pub bytes_sent: u64,
    /// Bytes of all that is to be sent or compared, once that is known: not while directories are listed or whole files wait.
    pub bytes_expected: Option<u64>,
}

/// Queued or sent whole.
const WHOLE: u8 = 1;
/// Sent: whole, in part, or its attributes.
const SENT: u8 = 2;

/// What is known of inodes. A first sync has millions of them, so each is kept by 16 bytes of the digest of its id, which no two share.
#[derive(Debug, Default)]
struct Seen(HashMap<[u8; 16], u8>);

impl Seen {
    fn key(id: &InodeId) -> [u8; 16] {
        let digest = blake3::hash(id.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest.as_bytes()[..16]);
        key
    }

    /// Adds a fact; whether it is new.
    fn add(&mut self, id: &InodeId, fact: u8) -> bool {
        let facts = self.0.entry(Self::key(id)).or_default();
        let new = *facts & fact == 0;
        *facts |= fact;
        new
    }

    fn is(&self, id: &InodeId, fact: u8) -> bool {
        self.0.get(&Self::key(id)).is_some_and(|facts| facts & fact != 0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Plan {
    manner: Manner,
    phase: Phase,
    pieces: VecDeque<(InodeId, Vec<Piece>)>,
    needs: VecDeque<InodeId>,
    names: VecDeque<(InodeId, Vec<Name>)>,
    dirs: Vec<InodeId>,
    /// One entry an inode: a second message about one in the same round would take the place of the first, with all its extents.
    files: BTreeMap<InodeId, Wanted>,
    /// Directories queued or listed in this round.
    listed: HashSet<InodeId>,
    /// Inodes of this round: queued or sent whole, sent at all.
    seen: Seen,
    outstanding: usize,
    names_since_barrier: usize,
    /// A step other than a barrier was handed out since the last barrier was.
    unconfirmed: bool,
    next_token: u64,
    answered: u64,
    progress: PlanProgress,
    expected: Expected,
}

impl Plan {
    /// The plan for what was frozen. `direct`: the replica has nothing.
    pub fn new(taken: &DirtySet, direct: bool) -> Self {
        let mut plan = Plan {
            manner: Manner { direct, ..Default::default() },
            phase: Phase::Listing,
            pieces: VecDeque::new(),
            needs: VecDeque::new(),
            names: VecDeque::new(),
            dirs: Vec::new(),
            files: BTreeMap::new(),
            listed: HashSet::new(),
            seen: Seen::default(),
            outstanding: 0,
            names_since_barrier: 0,
            unconfirmed: true,
            next_token: 1,
            answered: 0,
            progress: PlanProgress::default(),
            expected: Expected::default(),
        };
        plan.merge(taken);
        plan
    }

    /// The replica has bytes of a resync that was not finished: they are not sent again.
    pub fn ask_for_all(&mut self) {
        (self.manner.direct, self.manner.ask) = (false, true);
    }

    /// The link is slow, and the replica understands groups.
    pub fn save_bytes(&mut self) {
        self.manner.thrifty = true;
    }

    /// Adds what was frozen for a further round of the same staging. All steps that were handed out must be done.
    pub fn merge(&mut self, taken: &DirtySet) {
        debug_assert_eq!(self.outstanding, 0, "what was read before the freeze belongs to the round before");
        self.phase = Phase::Listing;
        self.unconfirmed = true;
        self.listed.clear();
        self.seen = Seen::default();
        for id in &self.needs {
            self.seen.add(id, WHOLE);
        }
        // What was asked for belongs to an inode as the round before sent it.
        for (id, _) in std::mem::take(&mut self.pieces) {
            self.queue_need(id);
        }
        self.listed.extend(self.dirs.iter().copied());
        self.manner.scope = match (self.manner.scope, taken.scope()) {
            (Scope::Walk(a), Scope::Walk(b)) => Scope::Walk(a.min(b)),
            (a, b) => a.max(b),
        };
        if let Some(since) = taken.born_since()
            && self.manner.born_since.is_none_or(|old| since.is_before(&old))
        {
            self.manner.born_since = Some(since);
        }
        if taken.scope() != Scope::Cells {
            self.queue_directory(InodeId::ROOT);
        }
        let mut dirs: Vec<_> = taken.dirs().iter().collect();
        dirs.sort_unstable_by_key(|(id, _)| **id);
        for (dir, names) in dirs {
            if taken.scope() != Scope::Cells {
                // Every directory is listed from the root down. Where handles do not open, that is also the only way to one that was not
                // seen yet: asked for first, it would be taken for gone.
                break;
            }
            match names {
                DirtyNames::All => self.queue_directory(*dir),
                DirtyNames::Some(names) => self.queue_names(*dir, names.iter().cloned().collect()),
            }
        }
        // In an order of their own: hash maps have another one at each run.
        let mut nodes: Vec<_> = taken.nodes().iter().collect();
        nodes.sort_unstable_by_key(|(id, _)| **id);
        for (id, node) in nodes {
            let wanted = match &node.data {
                _ if node.born => Wanted::Whole,
                DirtyData::All => Wanted::Whole,
                DirtyData::Ranges(ranges) => Wanted::Ranges(ranges.clone()),
                DirtyData::Clean => Wanted::Attributes,
            };
            if node.born {
                self.queue_need(*id);
            } else {
                self.queue_file(*id, wanted);
            }
        }
    }

    /// How steps are to be read.
    pub fn manner(&self) -> Manner {
        self.manner
    }

    /// Figures for status.
    pub fn progress(&self) -> PlanProgress {
        // Directories that nobody has listed yet may hold more.
        let walking = self.phase == Phase::Listing && (self.manner.scope != Scope::Cells || !self.dirs.is_empty());
        let bytes = self.expected.bytes().filter(|_| !walking);
        let bytes_expected = bytes.map(|bytes| bytes.max(self.progress.bytes_done));
        PlanProgress { bytes_expected, ..self.progress }
    }

    /// Whether steps are out.
    pub fn is_busy(&self) -> bool {
        self.outstanding > 0
    }

    /// What is left of what was begun, before what was frozen meanwhile is merged: bytes that the replica has asked for, and its answers to what it was
    /// sent. A file that waits for bytes would be read from its beginning by the next round, and by each one after it for as long as its
    /// writer is faster than the link.
    pub fn drain(&mut self) -> Next {
        if self.outstanding >= STEPS_MAX {
            return Next::Wait;
        }
        if let Some((id, pieces)) = self.pieces.pop_front() {
            self.outstanding += 1;
            self.unconfirmed = true;
            return Next::Step(Step::Pieces(id, pieces));
        }
        if self.is_awaited() {
            return Next::Wait;
        }
        if self.unconfirmed { self.barrier() } else { Next::Done }
    }

    /// Whether [`Plan::drain`] has nothing to do.
    pub fn is_drained(&self) -> bool {
        self.pieces.is_empty() && !self.is_awaited() && !self.unconfirmed
    }

    /// A step is not done, or a barrier not answered.
    fn is_awaited(&self) -> bool {
        self.outstanding > 0 || self.answered + 1 < self.next_token
    }

    /// Whether directories are still listed, so that moves matter.
    pub fn is_listing(&self) -> bool {
        self.phase == Phase::Listing
    }

    /// What to do now.
    pub fn poll(&mut self) -> Next {
        if self.outstanding >= STEPS_MAX {
            return Next::Wait;
        }
        if let Some(step) = self.queued() {
            self.outstanding += 1;
            if let Step::Barrier(_) = step {
                self.unconfirmed = false;
            } else {
                self.unconfirmed = true;
            }
            return Next::Step(step);
        }
        if self.is_awaited() {
            return Next::Wait;
        }
        if self.unconfirmed {
            return self.barrier();
        }
        match self.phase {
            Phase::Listing => Next::CheckMoves,
            Phase::Files => {
                self.phase = Phase::Done;
                Next::Done
            }
            Phase::Done => Next::Done,
        }
    }

    fn queued(&mut self) -> Option<Step> {
        if let Some((id, pieces)) = self.pieces.pop_front() {
            return Some(Step::Pieces(id, pieces));
        }
        if let Some(id) = self.needs.pop_front() {
            self.seen.add(&id, SENT);
            return Some(Step::Node(id, Wanted::Whole));
        }
        if self.names_since_barrier > NAMES_BETWEEN_BARRIERS {
            if self.next_token - 1 - self.answered >= BARRIERS_OPEN_MAX {
                return None;
            }
            self.names_since_barrier = 0;
            let token = self.next_token;
            self.next_token += 1;
            return Some(Step::Barrier(token));
        }
        if let Some((dir, names)) = self.names.pop_front() {
            self.names_since_barrier += names.len();
            return Some(Step::Names(dir, names));
        }
        if let Some(dir) = self.dirs.pop() {
            return Some(Step::List(dir));
        }
        if self.phase == Phase::Files {
            while let Some((id, wanted)) = self.files.pop_first() {
                if !self.seen.is(&id, WHOLE) {
                    self.seen.add(&id, SENT);
                    return Some(Step::Node(id, wanted));
                }
                self.progress.nodes_total = self.progress.nodes_total.saturating_sub(1);
                self.expected.remove(&wanted);
            }
        }
        None
    }

    fn barrier(&mut self) -> Next {
        let token = self.next_token;
        self.next_token += 1;
        self.outstanding += 1;
        self.unconfirmed = false;
        Next::Step(Step::Barrier(token))
    }

    /// A step that was handed out is done (its messages are on their way, in order).
    pub fn handle_done(&mut self, done: &StepDone) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.names_since_barrier += done.names as usize;
        self.progress.nodes_done += done.nodes;
        self.progress.bytes_done += done.bytes;
        self.expected.handle_done(done);
        self.progress.bytes_listed += done.bytes_listed;
        self.progress.bytes_sent += done.sent;
        self.progress.listed += u64::from(done.names > 0);
        for dir in &done.directories {
            if !self.listed.contains(dir) {
                self.queue_directory(*dir);
            }
        }
        for id in &done.changed {
            self.queue_need(*id);
        }
    }

    /// The replica lacks these inodes, or has others.
    pub fn handle_need_nodes(&mut self, ids: &[InodeId]) {
        for id in ids {
            self.queue_need(*id);
        }
    }

    /// The replica lacks these bytes. An answer to the round before is an inode to send again.
    pub fn handle_need_pieces(&mut self, id: InodeId, pieces: Vec<Piece>) {
        if pieces.is_empty() {
            return;
        }
        self.unconfirmed = true;
        // Only to what was sent may bytes follow.
        if self.seen.is(&id, SENT) {
            self.pieces.push_back((id, pieces));
        } else {
            self.queue_need(id);
        }
    }

    /// Everything before this barrier was answered.
    pub fn handle_barrier(&mut self, token: u64) {
        self.answered = self.answered.max(token.min(self.next_token - 1));
    }

    /// These names were given to objects while directories were listed.
    pub fn handle_moves(&mut self, moves: &[Moved]) {
        let mut by_dir: BTreeMap<InodeId, Vec<Name>> = BTreeMap::new();
        for moved in moves {
            by_dir.entry(moved.dir).or_default().push(moved.name.clone());
        }
        for (dir, mut names) in by_dir {
            names.sort();
            names.dedup();
            self.queue_names(dir, names);
        }
    }

    /// Nothing was moved since the last listing.
    pub fn no_moves(&mut self) {
        if self.phase == Phase::Listing {
            self.phase = Phase::Files;
        }
    }

    /// Names of a directory, and at the end its attributes: its mtime changed with them.
    fn queue_names(&mut self, dir: InodeId, names: Vec<Name>) {
        for group in names.chunks(STAGE_ENTRIES_MAX) {
            self.names.push_back((dir, group.to_vec()));
        }
        self.queue_file(dir, Wanted::Attributes);
        self.unconfirmed = true;
    }

    fn queue_directory(&mut self, dir: InodeId) {
        self.listed.insert(dir);
        self.dirs.push(dir);
        self.unconfirmed = true;
    }

    fn queue_file(&mut self, id: InodeId, wanted: Wanted) {
        let before = self.files.remove(&id);
        if let Some(before) = &before {
            self.expected.remove(before);
        }
        let wanted = match (before, wanted) {
            (None, wanted) => {
                self.progress.nodes_total += 1;
                wanted
            }
            (Some(Wanted::Whole), _) | (_, Wanted::Whole) => Wanted::Whole,
            (Some(Wanted::Ranges(mut before)), Wanted::Ranges(ranges)) => {
                before.union(&ranges);
                Wanted::Ranges(before)
            }
            (Some(Wanted::Ranges(ranges)), Wanted::Attributes) => Wanted::Ranges(ranges),
            (Some(Wanted::Attributes), wanted) => wanted,
        };
        self.expected.add(&wanted);
        self.files.insert(id, wanted);
    }

    fn queue_need(&mut self, id: InodeId) {
        if self.seen.add(&id, WHOLE) {
            self.progress.nodes_total += 1;
            self.expected.add(&Wanted::Whole);
            self.needs.push_back(id);
            self.unconfirmed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::{InodeId, Timestamp, stage::Piece};

    use super::{Next, Plan, Step, StepDone, Wanted};
    use crate::commit::dirty::{DirtySet, Scope};

    fn id() -> InodeId {
        InodeId::new(b"file").expect("short")
    }

    fn pieces() -> Vec<Piece> {
        vec![Piece::chunk(0, 5000, None)]
    }

    /// A plan that has sent one file whole.
    fn plan_with_a_sent_file() -> Plan {
        let mut taken = DirtySet::default();
        taken.insert_birth(id());
        let mut plan = Plan::new(&taken, false);
        assert_eq!(plan.poll(), Next::Step(Step::Node(id(), Wanted::Whole)));
        plan.handle_done(&StepDone::default());
        plan
    }

    #[test]
    fn a_walk_begins_at_the_root_and_finds_marked_directories_on_its_way() {
        let mut taken = DirtySet::default();
        taken.insert_directory(id());
        taken.insert_scope(Scope::Walk(Timestamp::default()));
        let mut plan = Plan::new(&taken, false);
        assert_eq!(plan.poll(), Next::Step(Step::List(InodeId::ROOT)));
        plan.handle_done(&StepDone { directories: vec![id()], ..Default::default() });
        assert_eq!(plan.poll(), Next::Step(Step::List(id())), "listed once its parent was");
    }

    #[test]
    fn extents_that_two_rounds_found_go_out_as_one_inode() {
        let dirty = |from, to| {
            let mut taken = DirtySet::default();
            taken.insert_range(id(), from, to);
            taken
        };
        let mut plan = Plan::new(&dirty(10, 20), false);
        plan.merge(&dirty(30, 40));
        let mut asked = Vec::new();
        for _ in 0..20 {
            match plan.poll() {
                Next::Step(Step::Barrier(token)) => {
                    plan.handle_done(&StepDone::default());
                    plan.handle_barrier(token);
                }
                Next::Step(Step::Node(_, Wanted::Ranges(ranges))) => {
                    asked.push(ranges.iter().collect::<Vec<_>>());
                    plan.handle_done(&StepDone::default());
                }
                Next::CheckMoves => plan.no_moves(),
                Next::Done => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked, [[(10, 20), (30, 40)]]);
    }

    #[test]
    fn bytes_to_come_are_known_once_no_whole_file_waits() {
        let mut taken = DirtySet::default();
        taken.insert_range(id(), 10, 30);
        let mut plan = Plan::new(&taken, false);
        assert_eq!(plan.progress().bytes_expected, Some(20));
        plan.handle_need_nodes(&[InodeId::new(b"other").expect("short")]);
        assert_eq!(plan.progress().bytes_expected, None, "how long it is nobody knows");
        assert!(matches!(plan.poll(), Next::Step(Step::Node(_, Wanted::Whole))));
        plan.handle_done(&StepDone { nodes: 1, bytes: 5, wholes: 1, ..Default::default() });
        assert_eq!(plan.progress().bytes_expected, Some(25));
        assert_eq!(plan.progress().bytes_done, 5);
    }

    #[test]
    fn inode_that_is_still_to_be_sent_whole_is_not_sent_in_part_as_well() {
        let mut plan = Plan::new(&DirtySet::default(), false);
        plan.handle_need_nodes(&[id()]);
        let mut taken = DirtySet::default();
        taken.insert_range(id(), 10, 20);
        plan.merge(&taken);
        assert_eq!(plan.poll(), Next::Step(Step::Node(id(), Wanted::Whole)));
        plan.handle_done(&StepDone::default());
        for _ in 0..20 {
            match plan.poll() {
                Next::Step(Step::Barrier(token)) => {
                    plan.handle_done(&StepDone::default());
                    plan.handle_barrier(token);
                }
                Next::CheckMoves => plan.no_moves(),
                Next::Done => return,
                other => panic!("{other:?}"),
            }
        }
        panic!("the plan ends");
    }

    #[test]
    fn bytes_that_are_asked_for_follow_in_the_same_round() {
        let mut plan = plan_with_a_sent_file();
        plan.handle_need_pieces(id(), pieces());
        assert_eq!(plan.poll(), Next::Step(Step::Pieces(id(), pieces())));
    }

    #[test]
    fn what_is_asked_for_is_sent_before_another_round_and_what_is_only_queued_is_not() {
        let mut plan = plan_with_a_sent_file();
        plan.handle_need_pieces(id(), pieces());
        plan.handle_need_nodes(&[InodeId::new(b"other").expect("short")]);
        assert!(!plan.is_drained());
        assert_eq!(plan.drain(), Next::Step(Step::Pieces(id(), pieces())));
        assert_eq!(plan.drain(), Next::Wait);
        plan.handle_done(&StepDone::default());
        let Next::Step(Step::Barrier(token)) = plan.drain() else { panic!("its answer is waited for") };
        plan.handle_done(&StepDone::default());
        assert!(!plan.is_drained(), "it may ask for more");
        plan.handle_barrier(token);
        assert_eq!((plan.drain(), plan.is_drained()), (Next::Done, true));

        let mut taken = DirtySet::default();
        taken.insert_range(id(), 10, 20);
        plan.merge(&taken);
        let mut steps = Vec::new();
        for _ in 0..20 {
            match plan.poll() {
                Next::Step(Step::Barrier(token)) => plan.handle_barrier(token),
                Next::Step(step) => steps.push(step),
                Next::CheckMoves => plan.no_moves(),
                Next::Wait | Next::Done => break,
            }
            plan.handle_done(&StepDone::default());
        }
        let whole = |step: &&Step| matches!(step, Step::Node(_, Wanted::Whole));
        assert_eq!(steps.iter().filter(whole).count(), 1, "the other one only: {steps:?}");
        let ranges = |step: &&Step| matches!(step, Step::Node(of, Wanted::Ranges(_)) if *of == id());
        assert_eq!(steps.iter().filter(ranges).count(), 1, "{steps:?}");
    }

    #[test]
    fn bytes_that_the_round_before_asked_for_are_an_inode_to_send_again() {
        let mut plan = plan_with_a_sent_file();
        plan.handle_need_pieces(id(), pieces());
        plan.merge(&DirtySet::default());
        assert_eq!(plan.poll(), Next::Step(Step::Node(id(), Wanted::Whole)), "queued before the next round began");

        let mut plan = plan_with_a_sent_file();
        plan.merge(&DirtySet::default());
        plan.handle_need_pieces(id(), pieces());
        assert_eq!(plan.poll(), Next::Step(Step::Node(id(), Wanted::Whole)), "answered after the next round began");
    }
}
