//! Networks that misbehave, for daemons of a lab: a namespace of its own with rules that lose packets, and a proxy that harms bytes.
//!
//! [`in_namespace`] runs a piece of work, and every daemon that it starts, in a network namespace where nothing but a loopback device
//! is; [`Rules`] are that namespace's packet filter. The kernel does the rest: retransmission, back-off, time-outs are the real ones.
//! [`proxy::Proxy`] stands between a mount and its storage daemon and does to the stream what no packet filter can. [`wiretap`] has two
//! namespaces with a wire between them, and listens in.

pub mod proxy;
pub mod wiretap;

use std::{panic, thread};

use rustix::thread::UnshareFlags;

use crate::harness::system;

/// Runs `work` in a thread with a network namespace of its own; processes and threads that it starts are in it too. The error says why
/// there can be none here. A panic of the work goes on.
pub fn in_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let inner = move || {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        // SAFETY: only the network is unshared, and no other thread relies on this one being in the same namespace.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| format!("no network namespace: {error}"))?;
        system("ip", &["link", "set", "lo", "up"])?;
        Ok(work())
    };
    match thread::spawn(inner).join() {
        Ok(result) => result,
        Err(panicked) => panic::resume_unwind(panicked),
    }
}

/// The packet filter of the namespace that this thread is in, for one TCP port in both directions. Dropping it lets everything through.
#[derive(Debug)]
pub struct Rules {
    port: u16,
}

const TABLE: &str = "inet trial";

impl Rules {
    /// Lets everything through at first. The error says why there can be no filter here.
    pub fn new(port: u16) -> Result<Rules, String> {
        let rules = Rules { port };
        rules.set("")?;
        Ok(rules)
    }

    fn set(&self, verdict: &str) -> Result<(), String> {
        let mut script = format!("add table {TABLE}; delete table {TABLE}; add table {TABLE}; ");
        script.push_str(&format!("add chain {TABLE} in {{ type filter hook input priority 0; }}"));
        if !verdict.is_empty() {
            for direction in ["dport", "sport"] {
                script.push_str(&format!("; add rule {TABLE} in tcp {direction} {} {verdict}", self.port));
            }
        }
        system("nft", &[&script]).map(|_| ())
    }

    /// Loses this many of 100 packets, by chance.
    pub fn lose(&self, percent: u32) {
        self.set(&format!("numgen random mod 100 < {percent} drop")).expect("the filter was there a moment ago");
    }

    /// Loses all packets: nobody hears that anything ended.
    pub fn swallow(&self) {
        self.set("drop").expect("the filter was there a moment ago");
    }

    /// Answers all packets with a reset.
    pub fn refuse(&self) {
        self.set("reject with tcp reset").expect("the filter was there a moment ago");
    }

    /// Lets everything through.
    pub fn heal(&self) {
        self.set("").expect("the filter was there a moment ago");
    }
}
