//! Which threads the processor serves first: what somebody waits for, before what nobody waits for.
//!
//! A durable fsync wakes a dozen threads of three programs, one after the other. On a machine whose processors are all busy with a first sync
//! each of them waits for a slice of somebody who copies or hashes; 1.4 to 3 ms each. So a thread says what it does:
//!
//! ```text
//!  Prompt    asks for short slices: when it is woken it runs at once, before whoever has long ones, and gets no larger share (Linux 6.12)
//!  Usual     as it was started
//!  Patient   nicer: beside anything else that wants the processor it gets a third
//!  Spare     the nicest there is: beside anything else that wants the processor it gets next to nothing
//! ```
//! Nobody runs at SCHED_IDLE, which would be nicer still: who is sent away from a processor there while it holds a lock gets it back when
//! nobody else wants one, and others wait for the lock.
//!
//! It is a hint. What the system refuses stays as it was, and a thread that could not come back from [`Priority::Patient`] is not sent there:
//! without privileges that takes a limit (`LimitNICE=+0` of systemd's units, `ulimit -e 20`).

use std::{cell::Cell, sync::LazyLock};

use rustix::process::{Resource, Rlimit};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for what it does.
    Prompt,
    /// Nothing is known.
    Usual,
    /// It has much to do, and nobody waits.
    Patient,
    /// What it does can be done at any time.
    Spare,
}

/// How much nicer than the program: a weight of a third. Among others who want the processor it goes on, and they hardly feel it.
const NICER: i32 = 5;
/// Slice of a thread that is woken for little: the least that Linux takes. Hand-overs are 20 to 60 us of work.
const SHORT_SLICE_NS: u64 = 100_000;
/// The nicest there is.
const NICE_MAX: i32 = 19;

/// `struct sched_attr`, first version.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

fn get() -> Option<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>() as libc::c_uint;
    // SAFETY: the structure is live, and no more than its size is written. 0: this thread.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    (answer == 0).then_some(attr)
}

/// Only what is an ordinary thread is changed: somebody may have given the program another policy.
fn set(nice: i32, slice_ns: u64) -> bool {
    let Some(is) = get().filter(|is| is.policy == libc::SCHED_OTHER as u32) else { return false };
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, nice, runtime: slice_ns, ..SchedAttr::default() };
    let attr = SchedAttr { policy: is.policy, ..attr };
    // SAFETY: the structure is live, and its size is in it. 0: this thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) == 0 }
}

/// How nice the program was started. Asked for first by a thread that is as nice.
static STARTED: LazyLock<i32> = LazyLock::new(|| get().map_or(0, |attr| attr.nice));

/// Whether a thread that was made nicer may be made less so again. Tried once, by a thread that ends.
static RETURNS: LazyLock<bool> = LazyLock::new(|| {
    let started = *STARTED;
    let tried = std::thread::spawn(move || set((started + 1).min(NICE_MAX), 0) && set(started, 0));
    tried.join().unwrap_or(false)
});

thread_local! {
    static NOW: Cell<Priority> = const { Cell::new(Priority::Usual) };
}

/// Call it before privileges are given up: threads may come back without them, if they are there now.
pub fn keep_the_way_back() {
    let limit = rustix::process::getrlimit(Resource::Nice);
    // The limit counts from 20 downwards: 20 is nice 0.
    let wanted = u64::try_from(20 - *STARTED).unwrap_or(0);
    if limit.current.is_some_and(|current| current < wanted) {
        // Who may not has no privileges that could be given up.
        let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        let _ = rustix::process::setrlimit(Resource::Nice, Rlimit { current: Some(wanted), maximum });
    }
}

/// Call it in `main`, when privileges are what they will be: what threads are started with is remembered.
pub fn begin() {
    let _ = (*STARTED, *RETURNS);
}

/// From now on this thread runs so, until it says otherwise. Costs a system call only when it changes. Threads that it starts begin as nice as
/// it is.
pub fn take(priority: Priority) {
    change(priority, *RETURNS);
}

/// The same for a thread that nobody waits for anyway: it becomes so also where that is for good.
pub fn settle(priority: Priority) {
    change(priority, true);
}

fn change(priority: Priority, nicer: bool) {
    if NOW.replace(priority) == priority {
        return;
    }
    let nice = if nicer { (*STARTED + NICER).min(NICE_MAX) } else { *STARTED };
    match priority {
        Priority::Prompt => _ = set(*STARTED, SHORT_SLICE_NS),
        Priority::Usual => _ = set(*STARTED, 0),
        Priority::Patient => _ = set(nice, 0),
        Priority::Spare => _ = set(if nicer { NICE_MAX } else { *STARTED }, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::{NICER, Priority, RETURNS, begin, get, settle, take};

    fn nice() -> i32 {
        get().expect("what this thread is").nice
    }

    #[test]
    fn a_thread_is_nicer_while_nobody_waits_and_comes_back() {
        begin();
        let seen = std::thread::spawn(|| {
            let before = nice();
            take(Priority::Patient);
            let patient = nice();
            take(Priority::Prompt);
            let prompt = nice();
            take(Priority::Usual);
            (before, patient, prompt, nice())
        });
        let (before, patient, prompt, usual) = seen.join().expect("a thread");
        let nicer = if *RETURNS { (before + NICER).min(19) } else { before };
        assert_eq!((patient, prompt, usual), (nicer, before, before));
    }

    #[test]
    fn a_thread_that_nobody_waits_for_needs_no_privileges_to_be_patient() {
        begin();
        let before = nice();
        let seen = std::thread::spawn(|| {
            settle(Priority::Patient);
            nice()
        });
        assert_eq!(seen.join().expect("a thread"), (before + NICER).min(19));
    }
    #[test]
    fn a_thread_takes_what_is_to_spare_and_so_do_those_that_it_starts() {
        let seen = std::thread::spawn(|| {
            settle(Priority::Spare);
            [nice(), std::thread::spawn(nice).join().expect("a thread")]
        });
        assert_eq!(seen.join().expect("a thread"), [19, 19]);
    }
}
