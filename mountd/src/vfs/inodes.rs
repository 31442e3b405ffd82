//! The inodes that the kernel remembers: the table, their locks, and the descriptors that pin what has no name any more.
//!
//! A node id is the inode number of the backing file (the root is 1). An inode number may be used again while the kernel still
//! holds the old inode; its lookups are counted per number, as the kernel counts them, and the generation tells the two apart.
//!
//! ```text
//! one thread:      attributes ─► expect ─► answer ─► id ─► Expected::is        the caller runs on meanwhile
//! any other one:                             get ──── waits ───────┘          nobody has an inode without its id
//! ```

use std::{
    collections::hash_map,
    ops::Deref,
    os::fd::OwnedFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use smallvec::SmallVec;
use tandem_proto::{InodeId, Timestamp, stage::NodeType};
use tandem_runtime::map::QuickMap;

use crate::backing::sys::Stat;

/// Node id of the root.
pub const ROOT_NODE: u64 = 1;

/// Whether a file has suid, sgid or file capabilities that a write must clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Privileges {
    /// Not looked at since they may have been set.
    #[default]
    Unknown,
    /// None.
    Absent,
    /// Some.
    Present,
}

/// What the lock of an inode protects: the order of ops on its cells, and this.
#[derive(Debug, Default)]
pub struct InodeState {
    /// Its last name is gone: it is no longer part of the replicated state, and what is written to it makes no ops.
    pub unnamed: bool,
    /// The last write whose mtime was not replicated yet.
    pub written: Option<Instant>,
    /// When the kernel last wrote back what was stored through a mapping, see `note_stored`.
    pub stored: Option<Instant>,
    /// The next write says the mtime itself: the file was fsynced, and who does so after each write would wait for two ops each time.
    pub says_mtime: bool,
    /// When the mtime was said last, to who does not wait for it.
    pub mtime_said: Option<Instant>,
    /// The mtime that the kernel knows, with `cache=writeback`, once something was written: its own, whatever the writes make of it.
    pub told_mtime: Option<Timestamp>,
    /// It may take more blocks than the kernel knows, with `cache=writeback`.
    pub blocks_untold: bool,
    /// How many it took when the kernel was made to ask last.
    pub blocks_told: Option<u64>,
    /// Whether the settler has it in its queue.
    pub queued: bool,
    /// See [`Privileges`].
    pub privileges: Privileges,
    /// It has no ACL that says who may access it: looked at, and none was set since.
    pub lacks_acl: bool,
}

impl InodeState {
    /// It was just born with this mode, and these xattrs said so.
    pub fn born(&mut self, mode: u32, has_xattrs: bool) {
        if mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
            // Nobody gives capabilities at birth; so the first write need not look.
            self.privileges = Privileges::Absent;
        }
        self.lacks_acl = !has_xattrs;
    }

    /// Its xattrs may be others.
    pub fn forget_xattrs(&mut self) {
        self.privileges = Privileges::Unknown;
        self.lacks_acl = false;
    }
}

/// One inode that the kernel, or a call under way, knows.
#[derive(Debug)]
pub struct Inode {
    /// Node id.
    pub node: u64,
    /// Identity.
    pub id: InodeId,
    /// Type.
    pub node_type: NodeType,
    /// Tells inodes of one number apart, for the kernel.
    pub generation: u64,
    /// Time of birth, which with the number tells a new object from an old one.
    pub born: Option<Timestamp>,
    state: Mutex<InodeState>,
    /// How often the state was locked.
    turns: AtomicU64,
    pin: Mutex<Option<Arc<OwnedFd>>>,
    /// The last descriptor that was opened for a handle, as long as that lives.
    open: Mutex<Weak<OwnedFd>>,
    /// See [`Inode::was_opened`].
    was_opened: AtomicBool,
    /// See [`Inode::failures`].
    failures: AtomicU64,
    /// It is excluded: no part of the volume. Then its state says `unnamed` as well.
    outside: AtomicBool,
    /// Who was told its attributes.
    pub(super) asked: super::asked::Asked,
    /// See [`super::passthrough`].
    pub(super) opens: Mutex<super::passthrough::Opens>,
    /// See [`super::rules`].
    pub(super) names: Mutex<super::rules::Names>,
}

impl Inode {
    fn new(node: u64, id: InodeId, stat: &Stat) -> Inode {
        Inode {
            node,
            id,
            node_type: stat.node_type(),
            generation: stat.btime.map_or_else(|| hash(id.as_bytes()), generation_of),
            born: stat.btime,
            state: Mutex::default(),
            turns: AtomicU64::new(0),
            pin: Mutex::default(),
            open: Mutex::default(),
            was_opened: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            outside: AtomicBool::new(false),
            asked: super::asked::Asked::default(),
            opens: Mutex::default(),
            names: Mutex::default(),
        }
    }

    /// Whether it is excluded from the volume.
    pub fn is_outside(&self) -> bool {
        self.outside.load(Ordering::Relaxed)
    }

    /// It became, or is no longer, excluded. Under its lock.
    pub fn set_outside(&self, outside: bool, state: &mut InodeState) {
        if self.outside.swap(outside, Ordering::Relaxed) != outside {
            // Of one that lost its last name and is not excluded, `unnamed` stays.
            state.unnamed = outside;
            state.written = None;
        }
    }

    /// Locks its cells.
    pub fn lock(&self) -> MutexGuard<'_, InodeState> {
        let guard = self.state.lock();
        // Under the lock, so before whatever its holder reserves.
        self.turns.fetch_add(1, Ordering::Release);
        guard
    }

    /// Locks its cells, if nobody has locked them.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, InodeState>> {
        let guard = self.state.try_lock()?;
        self.turns.fetch_add(1, Ordering::Release);
        Some(guard)
    }

    /// How often its cells were locked, see [`super::still`].
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    /// Keeps the object reachable when its last name goes: a handle dies with it.
    pub fn pin(&self, fd: Option<Arc<OwnedFd>>) {
        let old = std::mem::replace(&mut *self.pin.lock(), fd);
        drop(old);
    }

    /// It was opened: if it is pinned, this will do for both.
    pub fn pin_instead(&self, fd: &Arc<OwnedFd>) {
        let mut pin = self.pin.lock();
        let old = pin.as_mut().map(|pin| std::mem::replace(pin, fd.clone()));
        drop(pin);
        drop(old);
    }

    /// It was opened: as long as it is, it is reached without being opened again.
    pub fn note_open(&self, fd: &Arc<OwnedFd>) {
        *self.open.lock() = Arc::downgrade(fd);
    }

    /// It was opened so that it can be read.
    pub fn note_readable(&self) {
        self.was_opened.store(true, Ordering::Relaxed);
    }

    /// It could not be opened when it was to be read: who opens it next is told, not who reads.
    pub fn note_unreadable(&self) {
        self.was_opened.store(false, Ordering::Relaxed);
    }

    /// Its fsync failed, with this error.
    pub fn note_failure(&self, errno: i32) {
        let failed = |failures: u64| Some((failures >> 32).wrapping_add(1) << 32 | u64::from(errno.cast_unsigned()));
        let _ = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, failed);
    }

    /// How often its fsync failed (in the upper half), and the last error.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Whether it has been opened for reading since the kernel knows it: then it can be again. (A key may be missing, a server may
    /// refuse, a disk may fail: an open is where a program expects that.)
    pub fn was_opened(&self) -> bool {
        self.was_opened.load(Ordering::Relaxed)
    }

    /// A descriptor of it that is open.
    pub fn open(&self) -> Option<Arc<OwnedFd>> {
        self.open.lock().upgrade()
    }

    /// The descriptor that pins it.
    pub fn pinned(&self) -> Option<Arc<OwnedFd>> {
        self.pin.lock().clone()
    }
}

/// FNV-1a: what is hashed is short, and differs in a few bytes only.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Of an object that was born then. No number is given to another object in the tick in which it was born, while the kernel has it: what the
/// mount removes stays until the kernel forgets it.
fn generation_of(born: Timestamp) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&born.seconds.to_le_bytes());
    bytes[8..].copy_from_slice(&born.nanos.to_le_bytes());
    hash(&bytes)
}

/// Locks of several inodes, taken in the order of their numbers, so that no two calls wait for each other.
pub struct Locks<'a> {
    guards: SmallVec<[(u64, MutexGuard<'a, InodeState>); 4]>,
}

impl<'a> Locks<'a> {
    /// Locks these; one may be named twice.
    pub fn take(inodes: &[&'a Inode]) -> Locks<'a> {
        let mut order: SmallVec<[&'a Inode; 4]> = inodes.iter().copied().collect();
        order.sort_by_key(|inode| inode.node);
        order.dedup_by_key(|inode| inode.node);
        Locks { guards: order.into_iter().map(|inode| (inode.node, inode.lock())).collect() }
    }

    /// The state of one of them.
    pub fn of(&mut self, inode: &Inode) -> &mut InodeState {
        let found = self.guards.iter_mut().find(|(node, _)| *node == inode.node);
        &mut found.expect("only inodes that were locked are asked for").1
    }
}

const SHARDS: usize = 16;
/// Inodes whose room is worth giving back: some 10 MiB.
const MUCH: usize = 50_000;

/// The inodes that are known.
pub struct InodeTable {
    root_ino: u64,
    shards: [Shard; SHARDS],
    /// Tells those apart that are expected.
    tokens: AtomicU64,
    /// The most that were known when [`InodeTable::shrink`] last looked, since it last shrank.
    most: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    known: Mutex<QuickMap<u64, Known>>,
    /// One that was expected is there, or is not expected any more.
    decided: Condvar,
}

struct Known {
    slot: Slot,
    /// As the kernel counts: lookups that it has not forgotten.
    lookups: u64,
    /// Calls under way that hold it although the kernel may not know it.
    borrows: u32,
}

enum Slot {
    Is(Arc<Inode>),
    /// This thread is told of it; whose [`Expected`] it is.
    Expected {
        told: u32,
        token: u64,
    },
    /// It was told of, and not found again. The kernel still counts it.
    Gone,
}

impl Known {
    fn of(inode: Arc<Inode>) -> Known {
        Known { slot: Slot::Is(inode), lookups: 0, borrows: 0 }
    }

    fn is_expected(&self, by: u64) -> bool {
        matches!(self.slot, Slot::Expected { token, .. } if token == by)
    }

    /// It is this one.
    fn becomes(&mut self, inode: Arc<Inode>) {
        if let Slot::Expected { told, .. } = self.slot {
            inode.asked.note(told);
        }
        self.slot = Slot::Is(inode);
    }

    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.borrows == 0
    }
}

impl InodeTable {
    /// Knows the root only.
    pub fn new(root: &Stat) -> InodeTable {
        let table = InodeTable {
            root_ino: root.ino,
            shards: Default::default(),
            tokens: AtomicU64::new(0),
            most: AtomicUsize::new(0),
        };
        let inode = Arc::new(Inode::new(ROOT_NODE, InodeId::ROOT, root));
        table.shard(ROOT_NODE).known.lock().insert(ROOT_NODE, Known { lookups: 1, ..Known::of(inode) });
        table
    }

    /// Node id of an inode number.
    pub fn node_of(&self, ino: u64) -> u64 {
        if ino == self.root_ino { ROOT_NODE } else { ino }
    }

    /// The inode of a node id. Waits for one that is expected.
    pub fn get(&self, node: u64) -> Option<Arc<Inode>> {
        let shard = self.shard(node);
        let mut known = shard.known.lock();
        loop {
            match &known.get(&node)?.slot {
                Slot::Is(inode) => return Some(inode.clone()),
                Slot::Gone => return None,
                Slot::Expected { .. } => shard.decided.wait(&mut known),
            }
        }
    }

    /// The inode of an object that was just looked at, if it is surely the same: same number and same birth.
    pub fn same(&self, stat: &Stat) -> Option<Arc<Inode>> {
        stat.btime?;
        self.get(self.node_of(stat.ino)).filter(|inode| inode.born == stat.btime && inode.node_type == stat.node_type())
    }

    /// Counts a lookup that is answered to the kernel.
    pub fn remember(&self, id: InodeId, stat: &Stat) -> Arc<Inode> {
        self.enter(id, stat, |known| known.lookups += 1)
    }

    /// The inode for the time of a call.
    pub fn borrow(&self, id: InodeId, stat: &Stat) -> Borrowed<'_> {
        Borrowed { inode: self.enter(id, stat, |known| known.borrows += 1), table: self }
    }

    /// Counts a lookup of an object that the kernel does not know, if it can be told apart without its id. Then this thread may be told at once.
    /// Who asks for the inode waits until it is there; so ask for no other one before.
    pub fn expect(&self, stat: &Stat, thread: u32) -> Option<Expected<'_>> {
        let generation = generation_of(stat.btime?);
        let node = self.node_of(stat.ino);
        match self.shard(node).known.lock().entry(node) {
            hash_map::Entry::Occupied(_) => None,
            hash_map::Entry::Vacant(entry) => {
                let token = self.tokens.fetch_add(1, Ordering::Relaxed);
                entry.insert(Known { slot: Slot::Expected { told: thread, token }, lookups: 1, borrows: 0 });
                Some(Expected { table: self, node, generation, token })
            }
        }
    }

    fn enter(&self, id: InodeId, stat: &Stat, count: impl FnOnce(&mut Known)) -> Arc<Inode> {
        let node = self.node_of(stat.ino);
        let shard = self.shard(node);
        let mut known = shard.known.lock();
        let known = match known.entry(node) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => entry.insert(Known::of(Arc::new(Inode::new(node, id, stat)))),
        };
        count(known);
        match &known.slot {
            Slot::Is(inode) if inode.id == id => inode.clone(),
            // It was expected, or the number was used again; what the kernel still counts for the old one is counted on.
            _ => {
                let inode = Arc::new(Inode::new(node, id, stat));
                known.becomes(inode.clone());
                shard.decided.notify_all();
                inode
            }
        }
    }

    /// The kernel forgot so many lookups.
    pub fn forget(&self, node: u64, lookups: u64) {
        if node != ROOT_NODE {
            self.change(node, |known| known.lookups = known.lookups.saturating_sub(lookups));
        }
    }

    /// Changes what is kept of a node, if anything is, and keeps nothing of what nobody uses.
    fn change(&self, node: u64, change: impl FnOnce(&mut Known)) {
        let shard = self.shard(node);
        let mut inodes = shard.known.lock();
        let Some(known) = inodes.get_mut(&node) else { return };
        let was_expected = matches!(known.slot, Slot::Expected { .. });
        change(known);
        // Dropped after the lock: it may close a pin, which may free a large file.
        let dropped = if known.is_unused() { inodes.remove(&node) } else { None };
        if was_expected {
            shard.decided.notify_all();
        }
        drop(inodes);
        drop(dropped);
    }

    fn shard(&self, node: u64) -> &Shard {
        &self.shards[(node % SHARDS as u64) as usize]
    }

    /// Gives back the room of what the kernel forgot, if that was much; whether it did. Called now and then, by one thread.
    pub fn shrink(&self) -> bool {
        let known = self.len();
        let most = self.most.load(Ordering::Relaxed).max(known);
        let shrinks = most - known >= MUCH && known < most / 2;
        self.most.store(if shrinks { known } else { most }, Ordering::Relaxed);
        if shrinks {
            for shard in &self.shards {
                shard.known.lock().shrink_to_fit();
            }
        }
        shrinks
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.known.lock().len()).sum()
    }

    /// Never: the root is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An inode that the kernel is told of, and whose id is still to be found. If it is not, whoever has it is told that it is gone.
#[must_use]
pub struct Expected<'a> {
    table: &'a InodeTable,
    /// Node id.
    pub node: u64,
    /// Tells inodes of one number apart.
    pub generation: u64,
    token: u64,
}

impl Expected<'_> {
    /// Its id is this. Nothing changes if somebody else has met the object meanwhile, or the kernel forgot it.
    pub fn is(self, id: InodeId, stat: &Stat) {
        let inode = Arc::new(Inode::new(self.node, id, stat));
        self.table.change(self.node, |known| {
            if known.is_expected(self.token) {
                known.becomes(inode);
            }
        });
    }

    /// The kernel was not told of it after all.
    pub fn withdraw(self) {
        // If nobody else has met it, this was the only one.
        self.table.change(self.node, |known| known.lookups = known.lookups.saturating_sub(1));
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.table.change(self.node, |known| {
            if known.is_expected(self.token) {
                known.slot = Slot::Gone;
            }
        });
    }
}

/// An inode that a call holds although the kernel may not know it.
pub struct Borrowed<'a> {
    inode: Arc<Inode>,
    table: &'a InodeTable,
}

impl Borrowed<'_> {
    /// Shared ownership, for what outlives the call.
    pub fn arc(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Deref for Borrowed<'_> {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        self.table.change(self.inode.node, |known| known.borrows = known.borrows.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        thread,
        time::Duration,
    };

    use tandem_proto::{InodeId, Timestamp};

    use super::{InodeTable, ROOT_NODE};
    use crate::backing::sys::Stat;

    const NODE: u64 = 20;
    /// In which a thread that does not wait is done.
    const MOMENT: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn seen(born: i64) -> Stat {
        Stat { btime: Some(Timestamp { seconds: born, nanos: 1 }), ..Stat::of_directory(NODE) }
    }

    fn id(number: u8) -> InodeId {
        InodeId::new(&[number; 8]).expect("short")
    }

    fn table() -> InodeTable {
        InodeTable::new(&Stat::of_directory(2))
    }

    /// What `get` says in a thread that begins while the inode is expected, and ends after `act`.
    fn got_after(table: &InodeTable, act: impl FnOnce()) -> Option<InodeId> {
        thread::scope(|scope| {
            let (told, hears) = mpsc::channel();
            scope.spawn(move || told.send(table.get(NODE).map(|inode| inode.id)));
            assert!(hears.recv_timeout(MOMENT).is_err(), "it waits");
            act();
            hears.recv_timeout(PATIENCE).expect("it waits no longer")
        })
    }

    #[test]
    fn nobody_has_an_inode_that_is_expected_before_its_id_is_known() {
        let table = table();
        let expected = table.expect(&seen(7), 1).expect("not known yet");
        assert!(table.expect(&seen(7), 1).is_none(), "once");
        let generation = expected.generation;
        assert_eq!(got_after(&table, || expected.is(id(1), &seen(7))), Some(id(1)));
        let inode = table.get(NODE).expect("known");
        assert_eq!((inode.generation, inode.born), (generation, seen(7).btime));
        assert!(!inode.asked.take_others(1), "who was told is known");
        assert!(table.expect(&seen(7), 1).is_none());
        table.forget(NODE, 1);
        assert_eq!((table.get(NODE).is_none(), table.len()), (true, 1));
    }

    #[test]
    fn what_turns_out_to_be_gone_is_told_to_who_waits_and_counts_until_the_kernel_forgets_it() {
        let table = table();
        let expected = table.expect(&seen(7), 1).expect("not known yet");
        assert_eq!(got_after(&table, || drop(expected)), None);
        // The number is used again, and the kernel forgets the one before only then.
        table.remember(id(2), &seen(8));
        table.forget(NODE, 1);
        assert_eq!(table.get(NODE).map(|inode| inode.id), Some(id(2)));
        table.forget(NODE, 1);
        assert!(table.expect(&seen(7), 1).is_some(), "nobody counts it any more");
    }

    #[test]
    fn what_the_kernel_was_not_told_of_does_not_count() {
        let table = table();
        let expected = table.expect(&seen(7), 1).expect("not known yet");
        assert_eq!(got_after(&table, || expected.withdraw()), None);
        let expected = table.expect(&seen(7), 1).expect("not known again");
        table.remember(id(1), &seen(7));
        expected.withdraw();
        assert_eq!(table.get(NODE).map(|inode| inode.id), Some(id(1)), "the kernel was told by another answer");
        table.forget(NODE, 1);
        assert!(table.get(NODE).is_none());
    }

    #[test]
    fn who_meets_an_expected_object_himself_decides_what_it_is() {
        let table = table();
        let expected = table.expect(&seen(7), 5).expect("not known yet");
        let mut held = None;
        assert_eq!(got_after(&table, || held = Some(table.borrow(id(1), &seen(7)))), Some(id(1)));
        expected.is(id(2), &seen(7));
        let inode = table.get(NODE).expect("known");
        assert_eq!(inode.id, id(1));
        assert!(inode.asked.take_others(6), "somebody else was told of it before");
        drop(held);
        assert!(table.get(NODE).is_some(), "the kernel knows it");
        table.forget(NODE, 1);
        assert!(table.get(NODE).is_none());
    }

    #[test]
    fn what_the_kernel_forgot_while_it_was_expected_does_not_come_back() {
        let table = table();
        let expected = table.expect(&seen(7), 1).expect("not known yet");
        assert_eq!(got_after(&table, || table.forget(NODE, 1)), None);
        // The number is used again.
        let other = table.expect(&seen(8), 1).expect("not known any more");
        expected.is(id(1), &seen(7));
        assert_eq!(got_after(&table, || other.is(id(2), &seen(8))), Some(id(2)));
    }

    #[test]
    fn an_object_without_a_time_of_birth_is_not_told_before_its_id_is_known() {
        let table = table();
        assert!(table.expect(&Stat { btime: None, ..seen(7) }, 1).is_none());
        let (one, other) = (Stat { btime: None, ..seen(7) }, Stat { btime: None, ..seen(7) });
        let generations = [table.remember(id(1), &one).generation, table.remember(id(2), &other).generation];
        assert_ne!(generations[0], generations[1]);
        assert_eq!(Arc::strong_count(&table.get(ROOT_NODE).expect("the root")), 2);
    }
}
