//! Which files wait to be indexed. Pure: time is an argument.
//!
//! A file that is written over and over is one entry, and it becomes due when it was left alone for a while, so a busy file
//! costs a map look-up per announcement and no reading. The queue knows up to which position everything is indexed: below the
//! oldest position at which a waiting file was first touched.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    time::{Duration, Instant},
};

use tandem_proto::{Epoch, InodeId, Position, Seq};

/// What is to be done about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Read it and store its recipe.
    Index,
    /// Forget it if it is gone.
    Check,
    /// Forget it.
    Forget,
}

#[derive(Debug)]
struct Pending {
    task: Task,
    /// Where it stands in `order`; the touches since then only move `last`.
    filed: Instant,
    last: Instant,
    /// How long it must be left alone.
    idle: Duration,
    /// Everything up to here was done before the first touch.
    since: Position,
}

/// The waiting files.
#[derive(Debug)]
pub struct Queue {
    idle: Duration,
    limit: usize,
    pending: HashMap<InodeId, Pending>,
    order: BTreeSet<(Instant, InodeId)>,
    touched: Touched,
}

/// Positions at which waiting files were first touched: asked for the oldest after each file.
#[derive(Debug, Default)]
struct Touched(BTreeMap<(Epoch, Seq), (Position, usize)>);

impl Touched {
    fn add(&mut self, position: Position) {
        self.0.entry((position.epoch, position.seq)).or_insert((position, 0)).1 += 1;
    }

    fn remove(&mut self, position: Position) {
        if let Entry::Occupied(mut entry) = self.0.entry((position.epoch, position.seq)) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }

    fn oldest(&self) -> Option<Position> {
        self.0.first_key_value().map(|(_, (position, _))| *position)
    }
}

/// A file whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The file.
    pub id: InodeId,
    /// What to do about it.
    pub task: Task,
    /// Everything up to here was done before it was first touched.
    pub since: Position,
    /// When it was last touched.
    pub last: Instant,
}

/// The queue is full: what was announced is not remembered, so the tree must be walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Queue {
    /// An empty queue of at most `limit` files, each due when it was not touched for `idle`.
    pub fn new(idle: Duration, limit: usize) -> Queue {
        Queue { idle, limit, pending: HashMap::new(), order: BTreeSet::new(), touched: Touched::default() }
    }

    /// How many files wait.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether this file waits.
    pub fn contains(&self, id: &InodeId) -> bool {
        self.pending.contains_key(id)
    }

    /// A file was changed or removed by an op after `applied`.
    pub fn touch(&mut self, id: InodeId, task: Task, now: Instant, applied: Position) -> Result<(), Full> {
        if let Some(pending) = self.pending.get_mut(&id) {
            // A look whether it is gone is part of reading it.
            if task != Task::Check {
                pending.task = task;
            }
            pending.last = now;
            return Ok(());
        }
        if self.pending.len() >= self.limit {
            return Err(Full);
        }
        // Forgetting reads no data, so it need not wait until the file is left alone.
        let filed = if task == Task::Forget { now } else { now + self.idle };
        self.pending.insert(id, Pending { task, filed, last: now, idle: self.idle, since: applied });
        self.order.insert((filed, id));
        self.touched.add(applied);
        Ok(())
    }

    /// The next file that was left alone long enough. It no longer waits.
    pub fn pop_due(&mut self, now: Instant) -> Option<Due> {
        let since = self.due_since(now)?;
        let (_, id) = self.order.pop_first().filter(|(filed, _)| *filed == since)?;
        let pending = self.pending.remove(&id).expect("what is in order is pending");
        self.touched.remove(pending.since);
        Some(Due { id, task: pending.task, since: pending.since, last: pending.last })
    }

    /// Since when a file was left alone long enough that waits on.
    pub fn due_since(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (filed, id) = *self.order.first()?;
            if filed > now {
                return None;
            }
            let pending = self.pending.get_mut(&id).expect("what is in order is pending");
            let due = pending.last + pending.idle;
            if pending.task == Task::Forget || due <= now {
                return Some(filed);
            }
            // It was touched since it was filed.
            self.order.pop_first();
            pending.filed = due;
            self.order.insert((due, id));
        }
    }

    /// Lets a file that was popped wait until it was left alone for `idle`. Never refused: its place was free a moment ago.
    pub fn put_back(&mut self, due: Due, idle: Duration) {
        let idle = idle.max(self.idle);
        if let Some(pending) = self.pending.get_mut(&due.id) {
            // It was touched again in the meantime. What was to be done before that is part of what is to be done now.
            if due.since.is_before(&pending.since) {
                self.touched.remove(pending.since);
                self.touched.add(due.since);
                pending.since = due.since;
            }
            pending.idle = pending.idle.max(idle);
            return;
        }
        let filed = due.last + idle;
        self.pending.insert(due.id, Pending { task: due.task, filed, last: due.last, idle, since: due.since });
        self.order.insert((filed, due.id));
        self.touched.add(due.since);
    }

    /// When the next file may be due.
    pub fn next_due(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Up to where everything is indexed, if everything up to `applied` has been announced.
    pub fn indexed(&self, applied: Position) -> Position {
        self.touched.oldest().filter(|oldest| oldest.is_before(&applied)).unwrap_or(applied)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tandem_proto::{Chain, Epoch, InodeId, Position, Seq};

    use super::{Due, Full, Queue, Task};

    const IDLE: Duration = Duration::from_secs(1);

    fn id(name: &str) -> InodeId {
        InodeId::new(name.as_bytes()).expect("short")
    }

    fn at(seq: u64) -> Position {
        Position { epoch: Epoch(1), seq: Seq(seq), chain: Chain([seq as u8; 16]) }
    }

    #[test]
    fn a_busy_file_is_due_only_when_it_is_left_alone() {
        let start = Instant::now();
        let mut queue = Queue::new(IDLE, 10);
        for tenth in 0..30 {
            let now = start + Duration::from_millis(100 * tenth);
            queue.touch(id("busy"), Task::Index, now, at(tenth)).expect("room");
            assert_eq!(queue.pop_due(now), None);
        }
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.pop_due(start + Duration::from_millis(3899)), None);
        let due = queue.pop_due(start + Duration::from_millis(3900)).expect("due");
        assert_eq!((due.id, due.task, due.since), (id("busy"), Task::Index, at(0)));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn the_indexed_position_stays_below_the_oldest_waiting_touch() {
        let start = Instant::now();
        let mut queue = Queue::new(IDLE, 10);
        assert_eq!(queue.indexed(at(9)), at(9));
        queue.touch(id("a"), Task::Index, start, at(3)).expect("room");
        queue.touch(id("b"), Task::Index, start, at(5)).expect("room");
        queue.touch(id("a"), Task::Index, start, at(8)).expect("room");
        assert_eq!(queue.indexed(at(9)), at(3));
        let later = start + IDLE;
        assert!(queue.pop_due(later).is_some());
        assert_eq!(queue.indexed(at(9)), at(5));
    }

    #[test]
    fn a_full_queue_refuses_new_files_and_merges_known_ones() {
        let now = Instant::now();
        let mut queue = Queue::new(IDLE, 1);
        queue.touch(id("a"), Task::Index, now, at(1)).expect("room");
        assert_eq!(queue.touch(id("b"), Task::Index, now, at(1)), Err(Full));
        assert_eq!(queue.touch(id("a"), Task::Forget, now, at(1)), Ok(()));
    }

    #[test]
    fn a_file_that_was_put_back_keeps_its_oldest_position_and_its_delay() {
        let now = Instant::now();
        let mut queue = Queue::new(IDLE, 10);
        queue.put_back(Due { id: id("big"), task: Task::Index, since: at(2), last: now }, 5 * IDLE);
        assert_eq!(queue.pop_due(now + 4 * IDLE), None);
        assert_eq!(queue.indexed(at(7)), at(2));
        let due = queue.pop_due(now + 5 * IDLE).expect("due");
        queue.touch(id("big"), Task::Index, now + 5 * IDLE, at(6)).expect("room");
        queue.put_back(due, 5 * IDLE);
        assert_eq!(queue.indexed(at(7)), at(2));
        assert_eq!(queue.pop_due(now + 9 * IDLE), None);
        assert!(queue.pop_due(now + 10 * IDLE).is_some());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_file_that_may_be_gone_is_still_read_if_it_was_touched() {
        let now = Instant::now();
        let mut queue = Queue::new(IDLE, 10);
        queue.touch(id("renamed"), Task::Check, now, at(1)).expect("room");
        queue.touch(id("renamed"), Task::Index, now, at(2)).expect("room");
        queue.touch(id("renamed"), Task::Check, now, at(3)).expect("room");
        let due = queue.pop_due(now + IDLE).expect("due");
        assert_eq!((due.task, due.since), (Task::Index, at(1)));
    }

    #[test]
    fn a_removed_file_is_forgotten_at_once() {
        let now = Instant::now();
        let mut queue = Queue::new(IDLE, 10);
        queue.touch(id("gone"), Task::Forget, now, at(1)).expect("room");
        assert_eq!(queue.pop_due(now).map(|due| due.task), Some(Task::Forget));
    }
}
