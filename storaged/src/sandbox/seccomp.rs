//! System calls that a daemon which keeps files never makes: from here on they fail with EPERM (seccomp).
//!
//! A list of what is forbidden, not of what is allowed: what tokio, the C library and the databases call changes with their versions, and
//! a call that is missing in a list of allowed ones is a daemon that stops years later. What is forbidden is what code that an
//! attacker brought in would want, and what has no use here: other processes' memory, namespaces and mounts, kernel modules, eBPF, keys,
//! clocks, and io_uring, which would make calls past this filter. Hooks inherit it.

use std::io;

/// See the module.
const FORBIDDEN: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// The architecture that numbers calls as this program does.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Option<u32> = Some(0xc000_00b7);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: Option<u32> = None;
/// On x86-64 the same calls have second numbers from here on (x32), which no program of a distribution uses.
const SECOND_NUMBERS: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

fn load(offset: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Goes `yes` or `no` instructions further.
fn jump(compare: u32, with: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | compare | libc::BPF_K) as u16, jt: yes, jf: no, k: with }
}

fn answer(with: u32) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: with }
}

fn filter(architecture: u32) -> Vec<libc::sock_filter> {
    let mut filter = vec![
        load(OFFSET_ARCHITECTURE),
        jump(libc::BPF_JEQ, architecture, 1, 0),
        answer(REFUSE),
        load(OFFSET_NUMBER),
        jump(libc::BPF_JGE, SECOND_NUMBERS, 0, 1),
        answer(REFUSE),
    ];
    for number in FORBIDDEN {
        filter.extend([jump(libc::BPF_JEQ, *number as u32, 0, 1), answer(REFUSE)]);
    }
    filter.push(answer(ALLOW));
    filter
}

/// Forbids the calls to this thread and those that it makes later. They can gain no privileges from then on either.
pub fn forbid() -> io::Result<()> {
    let architecture = ARCHITECTURE.ok_or(io::ErrorKind::Unsupported)?;
    rustix::thread::set_no_new_privs(true)?;
    let mut filter = filter(architecture);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions live through the call, and its length is theirs; the kernel copies and checks them.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{fs, io, thread};

    use super::forbid;

    #[test]
    fn a_thread_works_on_files_and_can_neither_mount_nor_look_into_others() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let own = dir.path().to_owned();
        let confined = thread::spawn(move || {
            if let Err(error) = forbid() {
                eprintln!("SKIPPED: no seccomp here: {error}");
                return;
            }
            let refused = |answer: libc::c_long| {
                assert_eq!((answer, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
            };
            // SAFETY: plain calls that take no pointers, and fail before they do anything.
            unsafe {
                refused(libc::syscall(libc::SYS_unshare, 0));
                refused(libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0));
                refused(libc::syscall(libc::SYS_bpf, 0, 0, 0));
                refused(libc::syscall(libc::SYS_io_uring_setup, 0, 0));
            }
            fs::write(own.join("file"), "x")
                .and_then(|()| fs::rename(own.join("file"), own.join("new")))
                .expect("files");
            assert_eq!(thread::spawn(|| 1 + 1).join().expect("threads"), 2);
            let said = std::process::Command::new("/bin/sh").args(["-c", "echo hooks run"]).output().expect("commands");
            assert_eq!(said.stdout, b"hooks run\n");
        });
        confined.join().expect("as it should be");
    }
}
