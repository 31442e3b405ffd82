//! Memory that is not needed any more, given back to the system.

/// Gives freed memory back to the system. After a large piece of work the allocator keeps what it used: of a first sync of a million
/// files, 1.1 of 1.4 GiB. Takes some 100 ms then.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call takes no pointer, and may be made by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
