//! Whether a processor is to spare. Who polls for a request keeps one busy that does nothing: worth it while nobody else wants it, and a
//! loss for everybody as soon as somebody does.

use std::time::{Duration, Instant};

pub use tandem_runtime::processors::{are_wanted, count};

use super::preempted::Preempted;

/// How often it is looked whether others want a processor, while they do not.
const LOOK: Duration = Duration::from_millis(2);
/// So many looks in a row have to find that they do. A thread of the kernel that writes something back is gone before that, and it is a loss
/// for whoever waits for answers to be taken from then on by a thread that sleeps.
const LOOKS: u32 = 3;
/// How long one is left to them once they do, at first and at most.
const LEFT: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

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
    preempted: Preempted,
}

impl Default for Spare {
    fn default() -> Spare {
        Spare { is_there: false, wanted: 0, again: None, left: LEFT[0], preempted: Preempted::default() }
    }
}

impl Spare {
    /// Whether one is to spare now. `are_wanted`: whether more threads want to run than there are processors.
    pub fn is_there(&mut self, now: Instant, are_wanted: impl FnOnce() -> bool) -> bool {
        if self.again.is_none_or(|again| now >= again) {
            // Who lost its processor while it polled was in somebody's way.
            let wanted = self.preempted.since_last_time() && self.is_there || are_wanted();
            self.looked(now, wanted);
        }
        self.is_there
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{LEFT, LOOK, LOOKS, Spare};

    /// One that was there all the time is given up; when.
    fn given_up(spare: &mut Spare, mut now: Instant) -> Instant {
        for _ in 1..LOOKS {
            now += LOOK;
            assert!(spare.is_there(now, || true), "they may be gone soon");
        }
        now += LOOK;
        assert!(!spare.is_there(now, || true));
        now
    }

    #[test]
    fn a_processor_is_left_to_others_for_longer_each_time_and_they_are_forgotten_slowly() {
        let (mut spare, mut now) = (Spare::default(), Instant::now());
        assert!(spare.is_there(now, || false));
        assert!(spare.is_there(now + LOOK / 2, || true), "it does not look that often");
        let mut left = LEFT[0];
        now = given_up(&mut spare, now);
        for _ in 0..10 {
            assert!(!spare.is_there(now + left - Duration::from_micros(1), || false));
            left = (left * 2).min(LEFT[1]);
            now += LEFT[1];
            assert!(!spare.is_there(now, || true), "who left it leaves it again at the first sight of others");
        }
        now += LEFT[1];
        for _ in 0..100 {
            assert!(spare.is_there(now, || false));
            now += LOOK;
        }
        now = given_up(&mut spare, now);
        assert!(spare.is_there(now + LEFT[0], || false));
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
}
