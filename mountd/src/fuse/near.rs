//! Where a thread that takes requests runs: on the processor of the program that asks, if it is one program.
//!
//! Who asks sleeps until it is answered, so two processors gain nothing by sharing that work, and pay for it: to wake a thread on another
//! processor takes an interrupt, there and back, which costs many times the request itself where a hypervisor has to deliver it
//! (`docs/decisions/0043`). Once both run on one processor the kernel mostly leaves them there. It places a thread that it wakes where that
//! thread ran last, as long as nothing says otherwise; so it is enough to move there once and to look now and then.
//!
//! ```text
//!  one thread asked so often in a row ──► where does it run? ──► elsewhere: move there, look again soon
//!                                              │                  (moved, and apart again: the kernel wants it so; rest longer)
//!                                              └──► here: rest
//! ```
//! When to look is pure: time and places are arguments. What cannot be found out, or is not allowed, is left as it is.

use std::{
    fs::File,
    io::Read as _,
    mem,
    time::{Duration, Instant},
};

/// So many requests in a row of one thread: it works alone.
const ROW: u32 = 8;
/// Between two looks, each of which costs some 10 µs: least and most.
const REST: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(256)];
/// `/proc/TID/stat` up to the field that is wanted: a name, and numbers.
const STAT_BYTES: usize = 512;
/// Place of the processor among the fields after the name.
const PROCESSOR_FIELD: usize = 36;

/// When to look where the program runs, and whether to go there.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    caller: u32,
    row: u32,
    /// Not before.
    next: Option<Instant>,
    rest: Duration,
    moved: bool,
}

impl Default for Near {
    fn default() -> Near {
        Near { caller: 0, row: 0, next: None, rest: REST[0], moved: false }
    }
}

impl Near {
    /// A thread asked something and waits; 0: nobody waits (RELEASE, FORGET, reading ahead), or one of another pid namespace, which says
    /// nothing of where to be. It may have moved meanwhile: then follows it.
    pub fn follow(&mut self, caller: u32, now: Instant) {
        if self.is_time(caller, now)
            && let (Some(his), Some(ours)) = (processor_of(caller), our_processor())
            && self.handle_places(his, ours, now)
        {
            move_to(his);
        }
    }

    fn is_time(&mut self, caller: u32, now: Instant) -> bool {
        if caller == 0 {
            return false;
        }
        if caller != self.caller {
            (self.caller, self.row) = (caller, 0);
            return false;
        }
        self.row = self.row.saturating_add(1);
        self.row >= ROW && self.next.is_none_or(|next| next <= now)
    }

    /// Whether to move.
    fn handle_places(&mut self, his: usize, ours: usize, now: Instant) -> bool {
        let apart = his != ours;
        self.rest = if apart && self.moved { (self.rest * 2).min(REST[1]) } else { REST[0] };
        (self.moved, self.row, self.next) = (apart, 0, Some(now + self.rest));
        apart
    }
}

fn processor_of(thread: u32) -> Option<usize> {
    let mut stat = [0; STAT_BYTES];
    // One read gives all of it.
    let len = File::open(format!("/proc/{thread}/stat")).ok()?.read(&mut stat).ok()?;
    last_processor(&stat[..len])
}

/// The name may hold anything, also brackets and spaces.
fn last_processor(stat: &[u8]) -> Option<usize> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(PROCESSOR_FIELD)?.parse().ok()
}

fn our_processor() -> Option<usize> {
    // SAFETY: it takes nothing.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Moves this thread to a processor where it may run, and lets it run everywhere again.
fn move_to(processor: usize) {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of bits, for which zero is a value.
    let mut allowed: libc::cpu_set_t = unsafe { mem::zeroed() };
    let mut one = allowed;
    // SAFETY: the kernel writes at most `size` bytes, all of which are ours. 0: this thread.
    let known = unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } == 0;
    // SAFETY: both macros refuse what lies beyond the set.
    if !known || processor >= 8 * size || !unsafe { libc::CPU_ISSET(processor, &allowed) } {
        return;
    }
    // SAFETY: within the set, as was just seen.
    unsafe { libc::CPU_SET(processor, &mut one) };
    // SAFETY: the kernel reads `size` bytes of each. 0: this thread.
    unsafe {
        if libc::sched_setaffinity(0, size, &raw const one) == 0 {
            libc::sched_setaffinity(0, size, &raw const allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Near, REST, ROW, last_processor, move_to, our_processor, processor_of};

    fn asks(near: &mut Near, caller: u32, times: u32, now: Instant) -> bool {
        (0..times).fold(false, |_, _| near.is_time(caller, now))
    }

    #[test]
    fn who_asks_alone_is_looked_at_once_and_again_after_a_rest() {
        let (mut near, now) = (Near::default(), Instant::now());
        assert!(!asks(&mut near, 7, ROW, now), "the first one only says who it is");
        assert!(asks(&mut near, 7, 1, now));
        assert!(near.handle_places(1, 0, now), "it is elsewhere");
        assert!(!asks(&mut near, 7, 10 * ROW, now));
        assert!(asks(&mut near, 7, 1, now + REST[0]));
        assert!(!near.handle_places(1, 1, now), "it is here");
    }

    #[test]
    fn several_who_ask_in_turns_and_those_of_another_namespace_are_not_followed() {
        let (mut near, now) = (Near::default(), Instant::now());
        for _ in 0..10 * ROW {
            assert!(!asks(&mut near, 7, ROW / 2, now) && !asks(&mut near, 8, ROW / 2, now));
        }
        assert!(!asks(&mut near, 0, 10 * ROW, now));
    }

    #[test]
    fn requests_that_nobody_waits_for_do_not_end_a_row() {
        let (mut near, now) = (Near::default(), Instant::now());
        let looks = (0..2 * ROW).any(|at| near.is_time(if at % 2 == 0 { 7 } else { 0 }, now));
        assert!(!looks, "the first of its own says who it is, and seven are too few");
        assert!(near.is_time(7, now));
    }

    #[test]
    fn where_the_kernel_parts_them_again_it_is_tried_less_and_less_often() {
        let (mut near, now) = (Near::default(), Instant::now());
        let rests: Vec<Duration> = (0..12)
            .map(|_| {
                near.handle_places(1, 0, now);
                near.rest
            })
            .collect();
        assert_eq!((rests[0], rests[1], rests[11]), (REST[0], 2 * REST[0], REST[1]));
        near.handle_places(1, 1, now);
        assert_eq!(near.rest, REST[0]);
    }

    #[test]
    fn the_processor_is_found_behind_any_name() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        let stat = format!("17 (a) b ) S {}", fields.join(" "));
        // The state is field 3 in the manual, which counts from one.
        assert_eq!(last_processor(stat.replacen("S 3 ", "S ", 1).as_bytes()), Some(39));
        assert_eq!(last_processor(b"17 (short) S 1 2"), None);
        assert_eq!(last_processor(b""), None);
        assert_eq!(processor_of(u32::MAX), None);
    }

    #[test]
    fn a_thread_that_moved_may_run_everywhere_again() {
        let allowed = std::thread::available_parallelism().expect("it is known");
        let (Some(before), Some(seen)) = (our_processor(), processor_of(std::process::id())) else {
            panic!("the kernel tells")
        };
        move_to(before);
        move_to(seen);
        // There is no such processor.
        move_to(usize::MAX);
        assert_eq!(std::thread::available_parallelism().expect("it is known"), allowed);
    }
}
