//! When something is complete: a file when it was closed and all that was written is applied, or, as a directory, when nothing happened to
//! it for a while. Pure: time is an argument.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use tandem_proto::{
    ids::InodeId,
    position::{Epoch, Seq},
};

use super::Event;

/// Files and directories that were changed and are not quiet yet. More are not followed, and counted.
const FOLLOWED_MAX: usize = 65_536;

/// Closed files whose ops are not applied yet. More are forgotten: they become quiet.
const CLOSED_MAX: usize = 4096;

/// A file that was closed.
struct Closed {
    id: InodeId,
    /// What was written is applied then.
    at: (Epoch, Seq),
    /// It is waited for no longer.
    until: Instant,
}

/// What waits to become quiet, by when.
#[derive(Default)]
pub struct Quiet {
    closed: VecDeque<Closed>,
    due: BTreeSet<(Instant, Event, InodeId)>,
    at: HashMap<(Event, InodeId), Instant>,
    missed: u64,
}

impl Quiet {
    /// Something happened to it: it is quiet if nothing more does before `until`.
    pub fn touched(&mut self, event: Event, id: InodeId, until: Instant) {
        if let Some(before) = self.at.get(&(event, id)).copied() {
            self.due.remove(&(before, event, id));
        } else if self.at.len() >= FOLLOWED_MAX {
            self.missed += 1;
            return;
        }
        self.at.insert((event, id), until);
        self.due.insert((until, event, id));
    }

    /// A file was closed; what was written is in ops up to a position.
    pub fn closed(&mut self, id: InodeId, at: (Epoch, Seq), until: Instant) {
        if self.closed.len() < CLOSED_MAX {
            self.closed.push_back(Closed { id, at, until });
        }
    }

    /// Whether closed files wait for apply.
    pub fn waits_for_apply(&self) -> bool {
        !self.closed.is_empty()
    }

    /// Apply is at a position. Closed files that were changed, and are applied, are complete now; one that was not changed is not told.
    pub fn reached(&mut self, applied: (Epoch, Seq), now: Instant) {
        for closed in std::mem::take(&mut self.closed) {
            let is_applied = applied >= closed.at;
            if is_applied && self.at.contains_key(&(Event::File, closed.id)) {
                self.touched(Event::File, closed.id, now);
            } else if now < closed.until {
                // That it was changed may be heard in a moment.
                self.closed.push_back(closed);
            }
        }
    }

    /// One that is quiet now.
    pub fn pop(&mut self, now: Instant) -> Option<(Event, InodeId)> {
        let (at, event, id) = self.due.first().copied().filter(|(at, ..)| *at <= now)?;
        self.due.remove(&(at, event, id));
        self.at.remove(&(event, id));
        Some((event, id))
    }

    /// How long nothing becomes quiet.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        self.due.first().map(|(at, ..)| at.saturating_duration_since(now))
    }

    /// How many were not followed since the last call.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tandem_proto::{
        ids::InodeId,
        position::{Epoch, Seq},
    };

    use super::{Event, Quiet};

    #[test]
    fn a_closed_file_is_complete_when_it_is_applied_and_one_that_was_not_changed_is_not_told() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let (id, other) = (InodeId::new(b"f").expect("short"), InodeId::new(b"g").expect("short"));
        let position = |seq| (Epoch(2), Seq(seq));
        quiet.touched(Event::File, id, at(60));
        quiet.closed(id, position(7), at(9));
        quiet.closed(other, position(7), at(9));
        quiet.reached(position(6), at(1));
        assert_eq!(quiet.pop(at(1)), None, "not applied");
        quiet.reached(position(8), at(2));
        assert_eq!(quiet.pop(at(2)), Some((Event::File, id)));
        assert!(quiet.waits_for_apply());
        quiet.reached(position(8), at(9));
        assert!(!quiet.waits_for_apply() && quiet.pop(at(9)).is_none());
    }

    #[test]
    fn what_is_touched_again_waits_anew() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let id = InodeId::new(b"f").expect("short");
        quiet.touched(Event::File, id, at(1));
        quiet.touched(Event::File, id, at(3));
        quiet.touched(Event::Directory, InodeId::ROOT, at(2));
        assert_eq!(quiet.pop(at(1)), None);
        assert_eq!(quiet.wait(at(1)), Some(Duration::from_secs(1)));
        assert_eq!(quiet.pop(at(3)), Some((Event::Directory, InodeId::ROOT)));
        assert_eq!(quiet.pop(at(3)), Some((Event::File, id)));
        assert_eq!((quiet.pop(at(9)), quiet.wait(at(9))), (None, None));
    }
}
