//! The keys of a mount: one table for the command line, `-o`, the environment and the configuration file.

use std::fmt::Write as _;

use tandem_runtime::settings;

/// A key, what its value is (`None`: it is a flag), and what it says in the help. One line each, in the order of the help.
pub const KEYS: &[(&str, Option<&str>, &str)] = &[
    ("backing", Some("DIR"), "keep the files in DIR instead of in the mountpoint itself"),
    ("init", Some("pull|push"), "fill an empty folder from the replica, or make the replica like the folder"),
    (
        "takeover",
        None,
        "fence another mount that holds the volume; with init, or if the folder holds the replica's state",
    ),
    (
        "fsync",
        Some("MODE[:PATH]"),
        "what fsync waits for: local (the disk here) or durable (also the replica's log); for all, or below PATH",
    ),
    ("fsync_timeout", Some("SECONDS"), "fail a durable fsync with EIO after this time (0: wait)"),
    ("keepalive", Some("SECONDS"), "how soon a connection that swallows everything is given up (2; 0: never)"),
    ("reconnect_max", Some("SECONDS"), "longest pause between attempts to connect (2)"),
    ("bwlimit", Some("SIZE"), "bytes a second that may be sent; 0: as fast as the link goes (0)"),
    (
        "resync",
        Some("gentle|full"),
        "how a resync reads and hashes: behind whoever else wants the processor, or like any other program (gentle)",
    ),
    ("window", Some("SIZE"), "memory for changes that wait to be sent (64M)"),
    (
        "dirty_max",
        Some("SIZE"),
        "memory for what differs, name by name and range by range, before it is told coarsely (64M)",
    ),
    (
        "shadow_max",
        Some("SIZE"),
        "memory in the runtime directory that keeps it if the daemon is killed (64M; 0: none)",
    ),
    ("marks_hot", Some("COUNT"), "cells that may be changed without a write to the activity log, the last used (1024)"),
    (
        "busy_poll",
        Some("MICROSECONDS"),
        "how long to look for the kernel's next request without sleeping, while they come quickly (40; 0: never)",
    ),
    ("read_ahead", Some("SIZE"), "how far the kernel reads ahead; needs root (1020K)"),
    ("state", Some("DIR"), "where what must outlive the daemon is kept"),
    ("runtime", Some("DIR"), "where the daemon's socket is"),
    (
        "web",
        Some("ADDR:PORT|off"),
        "where the daemon's page and metrics are (127.0.0.1, port 7450 or the next free one)",
    ),
    ("log_level", Some("LEVEL"), "error, warn, info, debug or trace, or a filter"),
    ("log_json", None, "log one JSON object a line"),
    (
        "cache",
        Some("strict|writeback"),
        "strict: every write arrives in order; writeback: small writes are faster, order at fsync and close only",
    ),
    (
        "passthrough",
        Some("PATH"),
        "let the kernel read what is at or below PATH (/: everything) by itself, at native speed; needs root; see SEMANTICS.md; repeatable",
    ),
    ("flush_interval", Some("SECONDS"), "with cache=writeback: how long written data may wait in the kernel (0.2)"),
    ("dirty_budget", Some("PERCENT"), "with cache=writeback: share of the kernel's dirty memory for this mount (60)"),
    (
        "congestion",
        Some("lag|throttle"),
        "when the link is slower than the writer: fall behind, or slow the writer (lag)",
    ),
    (
        "verify_every",
        Some("SECONDS"),
        "time between two comparisons of the folder with the replica in the background (86400; 0: none)",
    ),
    ("verify_rate", Some("SIZE"), "bytes that such a comparison reads a second (32M)"),
    (
        "exclude",
        Some("GLOB"),
        "keep what matches local: *.o by name, /build or a/**/b from the root of the mount, NAME/ only directories; repeatable",
    ),
    ("weak_ids", None, "accept a file system whose files have no lasting identity"),
    ("allow_other", None, "let other users in, as permissions say (the default for root)"),
    (
        "identity",
        Some("FILE"),
        "the certificate to connect with; default: the one that `tandem join` got for this server",
    ),
    (
        "ca",
        Some("FILE"),
        "certificates of your own: the authorities (PEM) that may vouch for the storage daemon's host name",
    ),
    ("cert", Some("FILE"), "with ca: the certificate of this client, and its chain (PEM)"),
    ("key", Some("FILE"), "with ca: the private key of cert (PEM), which nobody else may read"),
    ("insecure", None, "plaintext also to another machine: whoever is on the way reads and changes everything"),
    ("ro", None, "nothing can be changed through the mount"),
    ("suid", None, "set-user-id bits count (nosuid is the default)"),
    ("dev", None, "devices are devices (nodev is the default)"),
    ("exec", None, "programs can be run (the default; noexec forbids it)"),
    ("foreground", None, "stay in the foreground and log to standard error (also -f)"),
];
/// Keys that may have several values.
pub const LISTS: &[&str] = &["fsync", "passthrough", "exclude"];
/// Beginning of the names of environment variables.
pub const PREFIX: &str = "TANDEM_MOUNTD_";
/// The configuration file that is read if none is named, and if it is there.
pub const DEFAULT_FILE: &str = "/etc/tandem/mountd.toml";
/// Names the configuration file. No key of a file.
pub const CONFIG: &str = "config";
/// Keys that a running mount takes from its file again at SIGHUP.
pub const CHANGEABLE: &[&str] = &["bwlimit", "congestion", "log_level", "resync", "verify_every", "verify_rate"];

/// Whether the value of a key is a path.
pub fn is_path(key: &str) -> bool {
    let kind = KEYS.iter().find(|(name, ..)| *name == key).and_then(|(_, kind, _)| *kind);
    key == CONFIG || matches!(kind, Some("DIR" | "FILE"))
}

/// All keys that a file may hold.
pub fn names() -> Vec<&'static str> {
    KEYS.iter().map(|(name, ..)| *name).collect()
}

/// Options of mount(8) that a file system has to accept, and that mean nothing here.
pub const IGNORED: &[&str] = &[
    "rw",
    "auto",
    "noauto",
    "_netdev",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "defaults",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "diratime",
    "nodiratime",
    "async",
    "default_permissions",
    "nosuid",
    "nodev",
    "remount",
];

/// What helps whoever wrote an unknown option.
pub fn hint(key: &str) -> String {
    let known: Vec<&str> = names().into_iter().chain(IGNORED.iter().copied()).chain([CONFIG, "noexec"]).collect();
    match settings::hint(key, &known) {
        near if near.starts_with("did") => near,
        _ => "`tandem-mountd --help` lists them".to_owned(),
    }
}

/// The help.
pub fn help() -> String {
    let mut text = String::from(
        "Mounts a folder and keeps a replica of it in step on a storage daemon.\n\n\
         usage: tandem-mountd HOST[:PORT]:/VOLUME DIR [-f] [-o OPTION,...] [--OPTION[=VALUE]]\n\
         \x20      mount -t tandem HOST[:PORT]:/VOLUME DIR [-o OPTION,...]\n\
         \x20      tandem-mountd --check-config [-o OPTION,...] [--OPTION[=VALUE]]\n\n\
         \noptions, for -o, as --flags, as keys of the configuration file, and as environment variables (TANDEM_MOUNTD_OPTION):\n",
    );
    for (name, value, what) in KEYS {
        let shown = value.map_or_else(|| (*name).to_owned(), |value| format!("{name}={value}"));
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {shown:<22} {what}");
    }
    let _ = writeln!(text, "  {:<22} read this TOML file instead of {DEFAULT_FILE}", "config=FILE");
    let _ = writeln!(text, "  {:<22} print what holds and where it was written, and end", "check-config");
    text.push_str(
        "\nExamples:\n  \
         tandem-mountd localhost:/work /home/u/work                                over the folder itself, which stays where it is\n  \
         tandem-mountd storage.example:/work /home/u/work -o fsync=durable         after tandem join\n  \
         tandem-mountd storage.example:/work /home/u/work -o init=pull             fills an empty folder from the replica\n",
    );
    text
}
