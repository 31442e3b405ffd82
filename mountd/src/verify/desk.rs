//! Where the verifier and the link meet: places in the stream of ops, and the answers to what is asked there.
//!
//! ```text
//!  verifier: place() ─ no op after it is sent ─► fill or leave ─► waits          link: sent == place ─► VerifyCheck ─► ops after it
//!            ▲                                                                         │
//!            └───────────────────────── answer, or "interrupted" ◄─────────────────────┘
//! ```
//! A place stands behind everything that was reserved when it was made. The link never sends past it before it is filled or left, which
//! takes microseconds; so the replica compares at exactly that op. Pure but for its lock.

use std::{
    collections::{HashMap, VecDeque},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

use parking_lot::Mutex;
use tandem_proto::{
    InodeId, Name, Seq,
    convert::{self, Invalid},
    pb,
};

/// Damaged files that wait for the verifier; a pass finds the others.
const DAMAGED_MAX: usize = 4096;

/// Why a check has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The stream ended, or a resync began: try again when it is live.
    Interrupted,
    /// The replica says why.
    Refused(String),
}

/// The answer to a check.
pub type Answer = Result<pb::VerifyResult, NoAnswer>;

struct Point {
    token: u64,
    seq: Seq,
    /// `None`: not filled yet.
    check: Option<pb::VerifyCheck>,
}

/// A file of the replica that a scrub found to be damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// A directory that has it.
    pub dir: InodeId,
    /// Its name there.
    pub name: Name,
    /// Its id.
    pub id: InodeId,
    /// Path of the directory, for messages.
    pub below: String,
}

impl TryFrom<pb::DamagedFile> for Damaged {
    type Error = Invalid;

    fn try_from(file: pb::DamagedFile) -> Result<Damaged, Invalid> {
        Ok(Damaged {
            dir: convert::inode_id("damaged.dir", &file.dir)?,
            name: convert::name("damaged.name", file.name)?,
            id: convert::inode_id("damaged.id", &file.id)?,
            below: file.below,
        })
    }
}

#[derive(Default)]
struct State {
    damaged: Vec<Damaged>,
    open: bool,
    next: u64,
    points: VecDeque<Point>,
    waiting: HashMap<u64, SyncSender<Answer>>,
}

/// See the module.
#[derive(Default)]
pub struct Desk(Mutex<State>);

/// A place in the stream. Dropped unfilled, it is no obstacle any more.
#[must_use]
pub struct Placed<'a> {
    desk: &'a Desk,
    token: u64,
    /// The last op before it.
    pub seq: Seq,
    filled: bool,
}

impl Desk {
    /// Whether checks can be asked: the link is live, and its replica compares.
    pub fn is_open(&self) -> bool {
        self.0.lock().open
    }

    /// The link came live, or is not any more. Then what waits is interrupted.
    pub fn set_open(&self, open: bool) {
        let mut state = self.0.lock();
        state.open = open;
        if !open {
            state.points.clear();
            state.waiting.clear();
        }
    }

    /// Makes a place behind everything that is reserved. `None`: the link is not live.
    pub fn place(&self, last_reserved: impl FnOnce() -> Seq) -> Option<Placed<'_>> {
        let mut state = self.0.lock();
        if !state.open {
            return None;
        }
        // Under the lock that the link holds while it takes ops: what it has taken is reserved, what comes later is not sent.
        let seq = last_reserved();
        state.next += 1;
        let token = state.next;
        state.points.push_back(Point { token, seq, check: None });
        Some(Placed { desk: self, token, seq, filled: false })
    }

    /// For the link: takes ops after `sent`, at most as many as the argument of `take` says.
    pub fn up_to_next<R>(&self, sent: Seq, take: impl FnOnce(u64) -> Option<R>) -> Option<R> {
        let state = self.0.lock();
        let room = state.points.front().map_or(u64::MAX, |point| point.seq.0.saturating_sub(sent.0));
        if room == 0 { None } else { take(room) }
    }

    /// For the link: the check that stands right behind `sent`.
    pub fn take_check(&self, sent: Seq) -> Option<pb::VerifyCheck> {
        let mut state = self.0.lock();
        let due = state.points.front().is_some_and(|point| point.seq <= sent && point.check.is_some());
        if due { state.points.pop_front().and_then(|point| point.check) } else { None }
    }

    /// For the link: what a scrub of the replica found.
    pub fn put_damaged(&self, files: Vec<Damaged>) {
        let damaged = &mut self.0.lock().damaged;
        let room = DAMAGED_MAX.saturating_sub(damaged.len());
        damaged.extend(files.into_iter().take(room));
    }

    /// What is to be looked at because of that.
    pub fn take_damaged(&self) -> Vec<Damaged> {
        std::mem::take(&mut self.0.lock().damaged)
    }

    /// For the link: what the replica found.
    pub fn answered(&self, result: pb::VerifyResult) {
        if let Some(waiting) = self.0.lock().waiting.remove(&result.token) {
            let answer =
                if result.unchecked.is_empty() { Ok(result) } else { Err(NoAnswer::Refused(result.unchecked)) };
            // Who does not wait any more does not need it.
            let _ = waiting.send(answer);
        }
    }
}

impl Placed<'_> {
    /// Asks. The receiver ends without an answer when the check is interrupted. The link must be woken afterwards.
    pub fn fill(mut self, items: Vec<pb::VerifyItem>, confirm: bool) -> Receiver<Answer> {
        let (sender, receiver) = sync_channel(1);
        self.filled = true;
        let mut state = self.desk.0.lock();
        if let Some(point) = state.points.iter_mut().find(|point| point.token == self.token) {
            let (token, seq) = (self.token, self.seq.0);
            point.check = Some(pb::VerifyCheck { session: 0, token, seq, items, confirm });
            state.waiting.insert(self.token, sender);
        }
        drop(state);
        receiver
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.desk.0.lock().points.retain(|point| point.token != self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::{Seq, pb};

    use super::{Desk, NoAnswer};

    #[test]
    fn nothing_after_a_place_is_sent_before_its_check() {
        let desk = Desk::default();
        assert!(desk.place(|| Seq(5)).is_none(), "the link is not live");
        desk.set_open(true);
        assert_eq!(desk.up_to_next(Seq(3), Some), Some(u64::MAX));
        let placed = desk.place(|| Seq(5)).expect("live");
        assert_eq!(desk.up_to_next(Seq(3), Some), Some(2));
        assert_eq!(desk.up_to_next(Seq(5), Some), None);
        assert!(desk.take_check(Seq(5)).is_none(), "it is not filled yet");
        let answer = placed.fill(vec![pb::VerifyItem::default()], false);
        assert!(desk.take_check(Seq(4)).is_none());
        let check = desk.take_check(Seq(5)).expect("due");
        assert_eq!(check.seq, 5);
        assert_eq!(desk.up_to_next(Seq(5), Some), Some(u64::MAX));
        desk.answered(pb::VerifyResult { token: check.token, inodes: 7, ..Default::default() });
        assert_eq!(answer.recv().expect("answered").expect("compared").inodes, 7);
    }

    #[test]
    fn a_place_that_is_left_and_a_link_that_ends_are_no_obstacle() {
        let desk = Desk::default();
        desk.set_open(true);
        drop(desk.place(|| Seq(1)));
        assert_eq!(desk.up_to_next(Seq(1), Some), Some(u64::MAX));
        let answer = desk.place(|| Seq(1)).expect("live").fill(Vec::new(), false);
        desk.set_open(false);
        assert!(answer.recv().is_err(), "interrupted");
        desk.set_open(true);
        assert!(desk.take_check(Seq(9)).is_none());
        let answer = desk.place(|| Seq(9)).expect("live").fill(Vec::new(), true);
        let check = desk.take_check(Seq(9)).expect("due");
        desk.answered(pb::VerifyResult { token: check.token, unchecked: "busy".into(), ..Default::default() });
        assert_eq!(answer.recv().expect("answered"), Err(NoAnswer::Refused("busy".into())));
    }
}
