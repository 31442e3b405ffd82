//! Who takes requests from the kernel: as few threads as are needed, so that no request wakes a thread for nothing, and none waits
//! behind a call that blocks.
//!
//! ```text
//!            a place is free                    took a request
//!  standby ─────────────────► taker: taking ─────────────────► taker: handling ─┐
//!     ▲                          │   ▲                               │          │ done (if it took long, its place may be gone)
//!     │  nothing came, and       │   └───────────────────────────────┼──────────┘
//!     └──there are other takers──┘   a kind of request that lately took long: hands its place over first,
//!     ▲                                                              │ handles it as no taker
//!     └──────────────────────────────────────────────────────────────┘
//! ```
//! The kernel wakes one of the threads that wait, in turn. With several waiting, each request wakes another one, on a processor that may
//! sleep: 10 µs, against 7 with one that waits and 4 with one that polls (`docs/decisions/0019`). So one thread takes, and answers what
//! is quick by itself. More places are made when requests are there already when it comes back, several times in a row. One who stands by looks
//! after the takers, and takes the place of one whose call takes long. The counting is pure: time is an argument.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    awake::Awake,
    preempted,
    processors::{self, Spare},
};

/// So many requests in a row that nobody had to wait for mean that one more thread has work.
const BACKLOG: u32 = 16;
/// A kind of request that takes so long on average is answered by a thread that gave its place away. That wakes two or three threads, at the
/// moment when an fsync has something to send; who waits for the taker meanwhile waits no longer than this.
const SLOW: Duration = Duration::from_micros(400);
/// A taker whose call takes so long has its place given away by who looks after them.
const STUCK: Duration = Duration::from_millis(2);
/// How often they are looked after while requests come, and while none come.
const LOOK: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
/// After so many looks without a request, what is kept for requests is let go of.
const IDLE_LOOKS: u32 = 50;
/// Stands in the place of the time at which a call began when its thread lost its place.
const DISPLACED: u64 = u64::MAX;
/// Kinds of requests whose times are kept.
const KINDS: usize = 64;
/// Requests that came quickly weigh up to so many that did not: polling goes on over a pause or two.
const QUICK_MAX: u32 = 8;

/// See the module.
#[derive(Debug)]
pub struct Crew {
    inner: Mutex<Inner>,
    wake: Condvar,
    begun: Instant,
    threads: usize,
    /// See [`STUCK`].
    stuck: Duration,
    /// By thread: since when it is in a call as a taker, in nanoseconds since `begun`; 0: it is not; or [`DISPLACED`].
    calls: Vec<AtomicU64>,
    /// By kind of request: about how long it takes, in nanoseconds.
    kinds: [AtomicU64; KINDS],
    /// Requests taken; for who looks after the takers.
    taken: AtomicU32,
    awake: Awake,
}

#[derive(Debug, Default)]
struct Inner {
    /// Threads that take.
    takers: usize,
    /// Places for them.
    places: usize,
    /// Threads that wait for a place.
    standby: usize,
    /// One of those looks after the takers.
    looked_after: bool,
    stopping: bool,
}

impl Crew {
    /// Of so many threads. `slow`: kinds of requests that are taken for slow until they are known. `awake`: for who polls.
    pub fn new(threads: usize, slow: &[u32], awake: Awake) -> Crew {
        let crew = Crew {
            inner: Mutex::new(Inner { places: 1, ..Inner::default() }),
            wake: Condvar::new(),
            begun: Instant::now(),
            threads,
            stuck: STUCK,
            calls: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            kinds: [const { AtomicU64::new(0) }; KINDS],
            taken: AtomicU32::new(0),
            awake,
        };
        slow.iter().for_each(|kind| crew.kind(*kind).store(4 * SLOW.as_nanos() as u64, Ordering::Relaxed));
        crew
    }

    /// Waits for a place. `false`: it is over. `rest`: what to do now and then while no requests come.
    pub fn enter(&self, rest: impl Fn()) -> bool {
        let mut inner = self.inner.lock();
        let mut taken = self.taken.load(Ordering::Relaxed);
        let (mut look, mut idle) = (LOOK[0], 0);
        while !inner.stopping && inner.takers >= inner.places {
            inner.standby += 1;
            if inner.looked_after {
                self.wake.wait(&mut inner);
            } else {
                inner.looked_after = true;
                let waited = self.wake.wait_for(&mut inner, look);
                inner.looked_after = false;
                if waited.timed_out() {
                    let now = self.taken.load(Ordering::Relaxed);
                    let quiet = now == taken;
                    taken = now;
                    let displaced = self.displace();
                    inner.takers -= displaced;
                    if quiet || displaced > 0 {
                        // Who polled is in a call that takes long.
                        self.awake.release();
                    }
                    look = if quiet && displaced == 0 { LOOK[1] } else { LOOK[0] };
                    idle = if quiet { idle + 1 } else { 0 };
                    if idle == IDLE_LOOKS {
                        MutexGuard::unlocked(&mut inner, &rest);
                    }
                }
            }
            inner.standby -= 1;
        }
        if inner.stopping {
            return false;
        }
        inner.takers += 1;
        if inner.standby > 0 && !inner.looked_after {
            // It looked after the others until now.
            self.wake.notify_one();
        }
        true
    }

    /// What keeps processors awake while one of them polls.
    pub fn awake(&self) -> &Awake {
        &self.awake
    }

    /// Gives the place away, to come back with [`Crew::enter`].
    pub fn leave(&self) {
        let mut inner = self.inner.lock();
        inner.takers -= 1;
        if inner.standby > 0 {
            self.wake.notify_one();
        }
    }

    /// Gives the place up if there are other takers. Whether it did.
    pub fn retire(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.takers <= 1 {
            return false;
        }
        inner.takers -= 1;
        inner.places = inner.takers;
        true
    }

    /// The connection is gone.
    pub fn stop(&self) {
        self.inner.lock().stopping = true;
        self.wake.notify_all();
    }

    /// Whether requests of this kind lately took long.
    pub fn is_slow(&self, kind: u32) -> bool {
        self.kind(kind).load(Ordering::Relaxed) > SLOW.as_nanos() as u64
    }

    /// Thread `number` is in a call, as a taker, from now on. What to give to [`Crew::done`].
    pub fn begin(&self, number: usize, backlog: &mut u32, at_once: bool) -> u64 {
        self.taken.fetch_add(1, Ordering::Relaxed);
        *backlog = if at_once { *backlog + 1 } else { 0 };
        if *backlog >= BACKLOG {
            *backlog = 0;
            self.widen();
        }
        let now = (self.begun.elapsed().as_nanos() as u64).max(1);
        if let Some(call) = self.calls.get(number) {
            call.store(now, Ordering::Relaxed);
        }
        now
    }

    /// The call of this kind that began then is over. Whether the thread still has its place.
    #[must_use]
    pub fn done(&self, number: usize, kind: u32, begun: u64) -> bool {
        let call = self.calls.get(number).map_or(0, |call| call.swap(0, Ordering::Relaxed));
        self.note(kind, self.begun.elapsed().saturating_sub(Duration::from_nanos(begun)));
        call != DISPLACED
    }

    /// A request of this kind took so long. That says nothing of the kind if the thread meanwhile had to give its processor away: where
    /// others want it too, everything took long, and each request was handed from thread to thread.
    pub fn note(&self, kind: u32, took: Duration) {
        if took > SLOW && preempted::since_last_call() {
            return;
        }
        let average = self.kind(kind);
        let took = took.as_nanos() as u64;
        average.store(averaged(average.load(Ordering::Relaxed), took), Ordering::Relaxed);
    }

    fn kind(&self, kind: u32) -> &AtomicU64 {
        &self.kinds[kind as usize % KINDS]
    }

    fn widen(&self) {
        let mut inner = self.inner.lock();
        if inner.places < self.threads && inner.standby > 0 {
            inner.places += 1;
            self.wake.notify_one();
        }
    }

    /// Takes their places from takers whose calls take long; how many there were. They notice when they are done.
    fn displace(&self) -> usize {
        let now = self.begun.elapsed().as_nanos() as u64;
        let stuck = |call: &&AtomicU64| {
            let begun = call.load(Ordering::Relaxed);
            let long = begun != 0 && begun != DISPLACED && now.saturating_sub(begun) > self.stuck.as_nanos() as u64;
            // It may just be done, or in its next call.
            long && call.compare_exchange(begun, DISPLACED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        self.calls.iter().filter(stuck).count()
    }
}

/// A running average that follows in some eight steps. One that took very long counts as moderately long, so that a single one is
/// forgotten soon.
fn averaged(average: u64, took: u64) -> u64 {
    let took = took.min(8 * SLOW.as_nanos() as u64);
    average - average / 8 + took / 8
}

/// Whether polling pays for a thread: only if requests come so soon after each other that it would have found the last ones, and nobody else
/// wants its processor.
#[derive(Debug, Default)]
pub struct Poll {
    quick: u32,
    spare: Spare,
}

impl Poll {
    /// Whether the last requests came soon after each other.
    pub fn is_quick(&self) -> bool {
        self.quick > 1
    }

    /// How long to poll before sleeping, of at most `limit`.
    pub fn patience(&mut self, limit: Duration, now: Instant) -> Duration {
        let is_spare = self.is_quick() && self.spare.is_there(now, processors::are_wanted, processors::move_over);
        if is_spare { limit } else { Duration::ZERO }
    }

    /// A request came after this time.
    pub fn handle_waited(&mut self, waited: Duration, limit: Duration) {
        self.quick = if waited <= limit { (self.quick + 1).min(QUICK_MAX) } else { self.quick.saturating_sub(3) };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        thread,
        time::{Duration, Instant},
    };

    use super::{
        super::awake::testing::{WHENEVER, Wishes},
        Awake, BACKLOG, Crew, Poll, SLOW, averaged,
    };

    impl Crew {
        /// The same that takes nobody's place however long he is not scheduled.
        fn patient(threads: usize) -> Crew {
            Crew { stuck: Duration::from_secs(600), ..Crew::new(threads, &[], Awake::default()) }
        }
    }

    #[test]
    fn one_takes_until_there_is_a_backlog_and_the_last_never_retires() {
        let crew = Arc::new(Crew::patient(2));
        assert!(crew.enter(|| {}));
        let other = thread::spawn({
            let crew = crew.clone();
            move || crew.enter(|| {})
        });
        while crew.inner.lock().standby == 0 {
            thread::yield_now();
        }
        assert!(!crew.retire(), "there is no other");
        let mut backlog = 0;
        for _ in 0..BACKLOG {
            assert!(!other.is_finished());
            let begun = crew.begin(0, &mut backlog, true);
            assert!(crew.done(0, 1, begun));
        }
        assert!(other.join().expect("no panic"));
        assert!(crew.retire());
        assert!(!crew.retire());
        crew.stop();
        assert!(!crew.enter(|| {}));
    }

    #[test]
    fn who_is_stuck_in_a_call_is_replaced() {
        let crew = Arc::new(Crew::new(2, &[], Awake::default()));
        assert!(crew.enter(|| {}));
        let mut backlog = 0;
        let begun = crew.begin(0, &mut backlog, false);
        // The other one looks after the first, and takes its place.
        assert!(crew.enter(|| {}));
        assert!(!crew.done(0, 1, begun));
        assert!(!crew.retire(), "the other one is the only taker");
    }

    #[test]
    fn who_looks_after_the_others_lets_processors_sleep_once_nothing_comes() {
        let wishes = Wishes::new();
        let crew = Arc::new(Crew { awake: wishes.awake(), ..Crew::patient(2) });
        assert!(crew.enter(|| {}));
        crew.awake().hold();
        let other = thread::spawn({
            let crew = crew.clone();
            move || crew.enter(|| {})
        });
        let begun = Instant::now();
        while wishes.last() != Some(WHENEVER) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", wishes.all());
            thread::sleep(Duration::from_millis(1));
        }
        crew.stop();
        assert!(!other.join().expect("no panic"));
    }

    #[test]
    fn a_kind_that_takes_long_is_known_and_forgotten_again() {
        let slow = SLOW.as_nanos() as u64;
        let mut average = 0;
        for _ in 0..20 {
            average = averaged(average, 10 * slow);
        }
        assert!(average > slow);
        for _ in 0..40 {
            average = averaged(average, slow / 20);
        }
        assert!(average < slow);
    }

    #[test]
    fn polling_begins_when_it_would_have_paid_and_ends_when_it_does_not() {
        let (limit, mut poll, now) = (Duration::from_micros(40), Poll::default(), Instant::now());
        assert!(poll.spare.is_there(now, || false, || {}));
        assert_eq!(poll.patience(limit, now), Duration::ZERO);
        poll.handle_waited(limit / 2, limit);
        poll.handle_waited(limit / 2, limit);
        assert_eq!(poll.patience(limit, now), limit);
        for _ in 0..3 {
            poll.handle_waited(limit * 2, limit);
        }
        assert_eq!(poll.patience(limit, now), Duration::ZERO);
    }
}
