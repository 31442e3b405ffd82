//! Whether a processor is to spare. Who polls for a request keeps one busy that does nothing: worth it while nobody else wants it, and a
//! loss for everybody as soon as somebody does.

use std::{
    mem,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
pub use tandem_runtime::processors::{are_wanted, count};

use super::preempted::Preempted;

/// How often it is looked whether others want a processor, while they do not.
const LOOK: Duration = Duration::from_millis(2);
/// So many looks in a row have to find that they do. A thread of the kernel that writes something back is gone before that, and it is a loss
/// for whoever waits for answers to be taken from then on by a thread that sleeps.
const LOOKS: u32 = 3;
/// How long one is left to them once they do, at first and at most.
const LEFT: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Who loses its processor at least so often between two looks, and with three of four answers, shares it with those who wait for its answers: each
/// answer wakes one, who takes it. Others, who have work of their own, take it at other times.
const SHARED: u64 = 16;

/// Follows whether a processor is to spare, for one thread.
#[derive(Debug)]
pub struct Spare {
    is_there: bool,
    /// Looks in a row that found that others want one.
    wanted: u32,
    /// When to look again; `None`: it never looked.
    again: Option<Instant>,
    /// How long to leave it to others the next time.
    left: Duration,
    /// So often in a row it moved over and shares its processor again.
    moved: u32,
    /// Answers since the last look.
    answers: u64,
    preempted: Preempted,
}

impl Default for Spare {
    fn default() -> Spare {
        Spare {
            is_there: false,
            wanted: 0,
            again: None,
            left: LEFT[0],
            moved: 0,
            answers: 0,
            preempted: Preempted::default(),
        }
    }
}

impl Spare {
    /// Whether one is to spare now; to be asked after each answer. `are_wanted`: whether more threads want to run than there are processors. `move_over`: goes to another one.
    pub fn is_there(&mut self, now: Instant, are_wanted: impl FnOnce() -> bool, move_over: impl FnOnce()) -> bool {
        self.answers += 1;
        if self.again.is_none_or(|again| now >= again) {
            let lost = self.preempted.since_last_time();
            self.look(now, lost, are_wanted(), move_over);
        }
        self.is_there
    }

    /// The thread lost its processor so often since the last look.
    fn look(&mut self, now: Instant, lost: u64, are_wanted: bool, move_over: impl FnOnce()) {
        // Nobody but those who ask wants one, so there is one that does nothing: not this one.
        let answers = mem::take(&mut self.answers);
        let by_answers = lost >= SHARED && lost.saturating_mul(4) >= answers.saturating_mul(3);
        let shares = by_answers && self.is_there && !are_wanted;
        let moves = shares && self.moved < LOOKS;
        self.moved = if shares { (self.moved + 1).min(LOOKS) } else { 0 };
        if moves {
            move_over();
        }
        // Who lost its processor while it polled was in somebody's way.
        self.looked(now, are_wanted || self.is_there && lost > 0 && !moves);
    }

    fn looked(&mut self, now: Instant, wanted: bool) {
        self.wanted = if wanted { self.wanted + 1 } else { 0 };
        // Who left it once leaves it again at the first sight of others.
        let given_up = wanted && (self.wanted >= LOOKS || !self.is_there);
        self.is_there = !given_up;
        let rest = if given_up { self.left } else { LOOK };
        self.again = Some(now + rest);
        self.left = if given_up { self.left * 2 } else { self.left * 7 / 8 }.clamp(LEFT[0], LEFT[1]);
    }
}

/// Processors of the machine, whoever may use them.
pub fn online() -> i64 {
    // SAFETY: it asks for a number.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }
}

/// Takes this thread to another processor than the one it is on. The scheduler puts who answers beside who asks, and leaves them there for a while
/// also where the processor beside them is idle. Whoever may not run on all processors of the machine stays: what it is allowed is somebody
/// else's to say, and can be taken back later only if nobody here set it.
pub fn move_over() {
    let Ok(mut others) = sched_getaffinity(None) else { return };
    if i64::from(others.count()) != online() {
        return;
    }
    others.unset(sched_getcpu());
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // It stays where it is now until the scheduler has a reason. Also those that are not there yet.
        let mut every = CpuSet::new();
        (0..CpuSet::MAX_CPU).for_each(|processor| every.set(processor));
        if let Err(error) = sched_setaffinity(None, &every) {
            tracing::debug!(%error, "this thread may not run on all processors any more");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::thread::{sched_getaffinity, sched_getcpu};

    use super::{LEFT, LOOK, LOOKS, SHARED, Spare, move_over, online};

    fn stay() {}

    /// One that was there all the time is given up; when.
    fn given_up(spare: &mut Spare, mut now: Instant) -> Instant {
        for _ in 1..LOOKS {
            now += LOOK;
            assert!(spare.is_there(now, || true, stay), "they may be gone soon");
        }
        now += LOOK;
        assert!(!spare.is_there(now, || true, stay));
        now
    }

    #[test]
    fn a_processor_is_left_to_others_for_longer_each_time_and_they_are_forgotten_slowly() {
        let (mut spare, mut now) = (Spare::default(), Instant::now());
        assert!(spare.is_there(now, || false, stay));
        assert!(spare.is_there(now + LOOK / 2, || true, stay), "it does not look that often");
        let mut left = LEFT[0];
        now = given_up(&mut spare, now);
        for _ in 0..10 {
            assert!(!spare.is_there(now + left - Duration::from_micros(1), || false, stay));
            left = (left * 2).min(LEFT[1]);
            now += LEFT[1];
            assert!(!spare.is_there(now, || true, stay), "who left it leaves it again at the first sight of others");
        }
        now += LEFT[1];
        for _ in 0..100 {
            assert!(spare.is_there(now, || false, stay));
            now += LOOK;
        }
        now = given_up(&mut spare, now);
        assert!(spare.is_there(now + LEFT[0], || false, stay));
    }

    #[test]
    fn who_wants_a_processor_for_a_moment_now_and_then_does_not_get_it_for_longer() {
        let (mut spare, mut now) = (Spare::default(), Instant::now());
        for look in 0..100 {
            spare.looked(now, look % LOOKS != 0);
            assert!(spare.is_there, "look {look}");
            now += LOOK;
        }
    }

    #[test]
    fn who_shares_a_processor_with_those_who_ask_moves_over_and_polls_on() {
        let (mut spare, now, mut moved) = (Spare::default(), Instant::now(), 0);
        assert!(spare.is_there(now, || false, stay));
        for look in 1..30 {
            // Now and then it has the processor for itself.
            spare.look(now + look * LOOK, if look % 3 == 0 { 0 } else { SHARED }, false, || moved += 1);
            assert!(spare.is_there);
        }
        assert_eq!(moved, 20);
        // Where that is in vain, it gives up.
        let gives_up = (30..30 + 3 * LOOKS).any(|look| {
            spare.look(now + look * LOOK, SHARED, false, || moved += 1);
            !spare.is_there
        });
        assert!(gives_up && moved <= 20 + LOOKS, "{moved}");
        // There is none to move to; or it was somebody else, for a moment, or again and again.
        for (lost, are_wanted, answers) in
            [(SHARED, true, SHARED), (SHARED - 1, false, SHARED), (3 * SHARED, false, 5 * SHARED)]
        {
            let mut spare = Spare { is_there: true, ..Spare::default() };
            for look in 0..LOOKS {
                spare.answers = answers;
                spare.look(now + look * LOOK, lost, are_wanted, || panic!("moved"));
            }
            assert!(!spare.is_there);
        }
        // Who does not poll is in nobody's way.
        Spare::default().look(now, SHARED, false, || panic!("moved"));
    }

    #[test]
    fn who_moves_over_may_run_where_it_could() {
        let all = sched_getaffinity(None).expect("told");
        move_over();
        assert!(sched_getaffinity(None).expect("told") == all);
        // The scheduler may take it back at once, so it is tried a few times.
        let moved = (0..100).any(|_| {
            let before = sched_getcpu();
            move_over();
            sched_getcpu() != before
        });
        let restricted = i64::from(all.count()) != online();
        assert!(moved || restricted || all.count() == 1, "it stays where it is");
    }
}
