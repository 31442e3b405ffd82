//! When something is quiet: nothing happened to it for a while. Pure: time is an argument.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tandem_proto::ids::InodeId;

use super::Event;

/// Files and directories that were changed and are not quiet yet. More are not followed, and counted.
const FOLLOWED_MAX: usize = 65_536;

/// What waits to become quiet, by when.
#[derive(Default)]
pub struct Quiet {
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

    use tandem_proto::ids::InodeId;

    use super::{Event, Quiet};

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
