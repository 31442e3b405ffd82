//! Tickets: who may copy files of a volume lends that to another storage daemon, for a time. In memory only, and never for writing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tandem_proto::VolumeName;

/// How long a ticket is good: a copy of many terabytes over a slow link asks for another one.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Tickets at a time. Beyond it the one that ends first goes.
const TICKETS_MAX: usize = 1024;
const TICKET_BYTES: usize = 32;

/// See the module.
#[derive(Default)]
pub struct Tickets {
    // By its hash: a lookup then tells nothing about how much of a guess was right.
    known: Mutex<HashMap<blake3::Hash, (VolumeName, Instant)>>,
}

impl Tickets {
    /// A new one; `None`: the system has no random numbers.
    pub fn issue(&self, volume: VolumeName) -> Option<Bytes> {
        let mut ticket = [0; TICKET_BYTES];
        getrandom::fill(&mut ticket).ok()?;
        self.add(&ticket, volume, Instant::now());
        Some(Bytes::copy_from_slice(&ticket))
    }

    fn add(&self, ticket: &[u8], volume: VolumeName, now: Instant) {
        let mut known = self.known.lock();
        known.retain(|_, (_, until)| *until > now);
        if known.len() >= TICKETS_MAX
            && let Some(first) = known.iter().min_by_key(|(_, (_, until))| *until).map(|(hash, _)| *hash)
        {
            known.remove(&first);
        }
        known.insert(blake3::hash(ticket), (volume, now + LIFE));
    }

    /// Whether whoever has it may copy files of the volume.
    pub fn admit(&self, ticket: &[u8], volume: &VolumeName) -> bool {
        self.admit_at(ticket, volume, Instant::now())
    }

    fn admit_at(&self, ticket: &[u8], volume: &VolumeName, now: Instant) -> bool {
        let known = self.known.lock();
        let found = known.get(&blake3::hash(ticket));
        ticket.len() == TICKET_BYTES && found.is_some_and(|(of, until)| of == volume && *until > now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{LIFE, TICKETS_MAX, Tickets};

    #[test]
    fn a_ticket_is_good_for_its_volume_and_its_time_and_their_number_is_bounded() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let (mine, other) = ("mine".parse().expect("a name"), "other".parse().expect("a name"));
        let ticket = [7; 32];
        assert!(!tickets.admit_at(&ticket, &mine, now) && !tickets.admit_at(b"", &mine, now));
        tickets.add(&ticket, mine.clone(), now);
        assert!(tickets.admit_at(&ticket, &mine, now));
        assert!(!tickets.admit_at(&ticket, &other, now) && !tickets.admit_at(&[8; 32], &mine, now));
        assert!(!tickets.admit_at(&ticket, &mine, now + LIFE));
        (0..2 * TICKETS_MAX).for_each(|_| assert!(tickets.issue(mine.clone()).is_some()));
        assert_eq!(tickets.known.lock().len(), TICKETS_MAX);
    }
}
