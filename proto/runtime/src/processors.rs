//! Processors, and who wants them.

use std::{fs::File, os::unix::fs::FileExt as _, sync::OnceLock, thread};

/// Processors that this program may use; looked up once.
pub fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Whether more threads of the machine want to run than there are processors for this program. Where the kernel does not tell, they do.
pub fn are_wanted() -> bool {
    runnable().is_none_or(|runnable| runnable > count())
}

/// Whether somebody else of the machine runs, and one processor at most is idle: whoever is answered by somebody else on it then finds it busy
/// or not, as this thread works or rests. Where the kernel does not tell, nobody does.
pub fn are_in_use() -> bool {
    runnable().is_some_and(|runnable| are_in_use_by(runnable, count()))
}

fn are_in_use_by(runnable: usize, processors: usize) -> bool {
    runnable > 1 && runnable + 1 > processors
}

/// Threads that run or could, the asking one among them. Fourth of `/proc/loadavg`; some 2 µs.
fn runnable() -> Option<usize> {
    static LOAD: OnceLock<Option<File>> = OnceLock::new();
    let file = LOAD.get_or_init(|| File::open("/proc/loadavg").ok()).as_ref()?;
    let mut text = [0; 64];
    let len = file.read_at(&mut text, 0).ok()?;
    let fourth = text[..len].split(|byte| *byte == b' ').nth(3)?;
    let runnable = fourth.split(|byte| *byte == b'/').next()?;
    std::str::from_utf8(runnable).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{are_in_use_by, runnable};

    #[test]
    fn the_asking_thread_is_one_of_those_that_run() {
        assert!(runnable().expect("this system tells") >= 1);
    }

    #[test]
    fn two_who_take_turns_want_two_processors_beside_whoever_asks() {
        assert!(!are_in_use_by(1, 1) && !are_in_use_by(1, 2), "nobody else");
        assert!(are_in_use_by(2, 1) && are_in_use_by(2, 2));
        assert!(!are_in_use_by(2, 3) && are_in_use_by(3, 3));
    }
}
