//! Who may still hear of attributes that are not true any more.
//!
//! ```text
//! one thread:     GETATTR ─► looked at ────────────── answered ─► the kernel keeps them
//! another one:                           the call ─► the kernel asks again from now on; what is on its way it takes for new
//! ```
//! After most calls the kernel makes all older answers void by itself (`attr_version` in fs/fuse); after some it only notes that it must ask
//! again, and has to be told. That is a system call, and it forgets ACLs with the attributes, so it is told only if somebody else has asked
//! since it was last: who makes the call has heard all that he asked for.

use std::sync::atomic::{AtomicU32, Ordering};

/// Which threads were answered with attributes of an inode since older answers to others were last made void.
#[derive(Debug, Default)]
pub struct Asked(AtomicU32);

const NOBODY: u32 = 0;
/// No thread has this number: the kernel's end at 2^22.
const SEVERAL: u32 = u32::MAX;

impl Asked {
    /// A thread (0: one of another pid namespace) will be answered. To be called before the attributes are looked at.
    pub fn note(&self, thread: u32) {
        let thread = if thread == 0 { SEVERAL } else { thread };
        let noted = self.0.compare_exchange(NOBODY, thread, Ordering::SeqCst, Ordering::SeqCst);
        if noted.is_err_and(|before| before != thread) {
            self.0.store(SEVERAL, Ordering::SeqCst);
        }
    }

    /// Whether anybody but this thread (0: none) was answered. From now on nobody was. To be called after a change, before it is answered.
    pub fn take_others(&self, thread: u32) -> bool {
        let before = self.0.swap(NOBODY, Ordering::SeqCst);
        before != NOBODY && before != thread
    }
}

#[cfg(test)]
mod tests {
    use super::Asked;

    #[test]
    fn only_who_asked_himself_need_not_be_told_and_each_is_told_once() {
        let asked = Asked::default();
        assert!(!asked.take_others(1), "nobody asked");
        asked.note(1);
        asked.note(1);
        assert!(!asked.take_others(1));
        asked.note(1);
        assert!(asked.take_others(2));
        assert!(!asked.take_others(2), "told");
        asked.note(1);
        asked.note(2);
        assert!(asked.take_others(1));
        asked.note(7);
        assert!(asked.take_others(0), "what nobody called for");
    }

    #[test]
    fn threads_of_other_namespaces_are_never_taken_for_one() {
        let asked = Asked::default();
        asked.note(0);
        assert!(asked.take_others(0));
        asked.note(0);
        assert!(asked.take_others(3));
        asked.note(3);
        asked.note(0);
        assert!(asked.take_others(3));
    }
}
