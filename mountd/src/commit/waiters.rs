//! Calls that wait until the replica is durable at their position. Pure: who is to be told what is returned, time is an argument.
//!
//! ```text
//!            ┌─ durable reaches its seq ──► Ok
//!  add ─► waiting ─ time is over ─────────► Timeout
//!            ├─ interrupted, and still waiting after the grace ─► Interrupted
//!            └─ fenced, stopping ─────────► that
//! ```
//! Several calls that wait are told by the same acknowledgement, whatever they wait for: the replica's log is one sequence.

use std::{
    collections::BTreeMap,
    fmt, mem,
    time::{Duration, Instant},
};

use tandem_proto::Seq;

use super::CommitError;

/// Told how it went.
pub type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// How long a call goes on waiting after a signal came. A replica that answers does so in milliseconds, and programs that use timers do
/// not expect EINTR of fsync; whoever still waits then waits for a replica that is away, and may be let go.
pub const INTERRUPT_GRACE: Duration = Duration::from_millis(500);

/// Names a call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    seq: Seq,
    number: u64,
}

struct Waiter {
    number: u64,
    deadline: Option<Instant>,
    /// When it is let go because of a signal.
    interrupted: Option<Instant>,
    done: Done,
}

/// See the module.
#[derive(Default)]
pub struct Waiters {
    waiting: BTreeMap<Seq, Vec<Waiter>>,
    next: u64,
}

impl fmt::Debug for Waiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiters").field("waiting", &self.len()).finish()
    }
}

impl Waiters {
    /// Adds one that waits for `seq`, until `deadline` if there is one.
    pub fn add(&mut self, seq: Seq, deadline: Option<Instant>, done: Done) -> Ticket {
        let number = self.next;
        self.next += 1;
        self.waiting.entry(seq).or_default().push(Waiter { number, deadline, interrupted: None, done });
        Ticket { seq, number }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A signal came to who waits with this ticket. Who does not wait any more is not found.
    pub fn interrupt(&mut self, ticket: Ticket, now: Instant) {
        let Some(waiters) = self.waiting.get_mut(&ticket.seq) else { return };
        if let Some(waiter) = waiters.iter_mut().find(|waiter| waiter.number == ticket.number) {
            waiter.interrupted.get_or_insert(now + INTERRUPT_GRACE);
        }
    }

    /// Takes those that wait for `durable` or less.
    #[must_use]
    pub fn satisfied(&mut self, durable: Seq) -> Vec<Done> {
        if self.waiting.first_key_value().is_none_or(|(seq, _)| *seq > durable) {
            return Vec::new();
        }
        let later = self.waiting.split_off(&durable.next());
        mem::replace(&mut self.waiting, later).into_values().flatten().map(|waiter| waiter.done).collect()
    }

    /// Takes those whose time is over: `true` by their deadline, `false` by a signal.
    #[must_use]
    pub fn expired(&mut self, now: Instant) -> Vec<(bool, Done)> {
        let mut expired = Vec::new();
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        for waiters in self.waiting.values_mut() {
            if !waiters.iter().any(|waiter| over(waiter.deadline) || over(waiter.interrupted)) {
                continue;
            }
            for waiter in mem::take(waiters) {
                match (over(waiter.interrupted), over(waiter.deadline)) {
                    (true, _) => expired.push((false, waiter.done)),
                    (false, true) => expired.push((true, waiter.done)),
                    (false, false) => waiters.push(waiter),
                }
            }
        }
        self.waiting.retain(|_, waiters| !waiters.is_empty());
        expired
    }

    /// Takes all.
    #[must_use]
    pub fn take_all(&mut self) -> Vec<Done> {
        mem::take(&mut self.waiting).into_values().flatten().map(|waiter| waiter.done).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tandem_proto::Seq;

    use super::{INTERRUPT_GRACE, Waiters};

    #[test]
    fn one_acknowledgement_tells_all_that_it_covers() {
        let mut waiters = Waiters::default();
        for seq in [5, 7, 7, 9] {
            waiters.add(Seq(seq), None, Box::new(|_| {}));
        }
        assert_eq!(waiters.satisfied(Seq(4)).len(), 0);
        assert_eq!(waiters.satisfied(Seq(8)).len(), 3);
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn who_is_interrupted_is_let_go_after_the_grace_and_nobody_else() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        let ticket = waiters.add(Seq(1), None, Box::new(|_| {}));
        waiters.add(Seq(1), None, Box::new(|_| {}));
        waiters.interrupt(ticket, now);
        assert!(waiters.expired(now).is_empty());
        // A second signal does not make the first wait longer.
        waiters.interrupt(ticket, now + INTERRUPT_GRACE / 2);
        let expired = waiters.expired(now + INTERRUPT_GRACE);
        assert_eq!(expired.iter().map(|(late, _)| *late).collect::<Vec<_>>(), [false]);
        assert_eq!(waiters.len(), 1);
        waiters.interrupt(ticket, now);
        assert!(waiters.expired(now + 2 * INTERRUPT_GRACE).is_empty());
    }

    #[test]
    fn a_deadline_lets_go_by_itself() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        waiters.add(Seq(1), Some(now + Duration::from_secs(1)), Box::new(|_| {}));
        assert!(waiters.expired(now).is_empty());
        let expired = waiters.expired(now + Duration::from_secs(1));
        assert!(expired.len() == 1 && expired[0].0);
        assert!(waiters.is_empty());
    }
}
