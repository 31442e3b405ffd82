//! Where daemons keep sockets, secrets and state when nobody says otherwise.

use std::{env, path::PathBuf};

/// Environment variable that overrides [`runtime_dir`].
pub const RUNTIME_ENV: &str = "TANDEM_RUNTIME_DIR";
/// Environment variable that overrides [`state_dir`].
pub const STATE_ENV: &str = "TANDEM_STATE_DIR";

fn from_env(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Sockets and secrets of running daemons: `$TANDEM_RUNTIME_DIR`, else `/run/tandem` for root, else
/// `$XDG_RUNTIME_DIR/tandem`, else `/tmp/tandem-UID`. Not created here.
pub fn runtime_dir() -> PathBuf {
    from_env(RUNTIME_ENV).unwrap_or_else(|| {
        if is_root() {
            return PathBuf::from("/run/tandem");
        }
        match from_env("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("tandem"),
            None => PathBuf::from(format!("/tmp/tandem-{}", rustix::process::geteuid().as_raw())),
        }
    })
}

/// The same for a storage daemon that root starts and that gives its privileges away: [`runtime_dir`] is root's alone.
pub fn storaged_runtime_dir() -> PathBuf {
    from_env(RUNTIME_ENV).unwrap_or_else(|| PathBuf::from("/run/tandem-storaged"))
}

/// State of mounts that must last: `$TANDEM_STATE_DIR`, else `/var/lib/tandem` for root, else `$XDG_STATE_HOME/tandem`, else
/// `$HOME/.local/state/tandem`. Not created here.
pub fn state_dir() -> PathBuf {
    from_env(STATE_ENV).unwrap_or_else(|| {
        if is_root() {
            return PathBuf::from("/var/lib/tandem");
        }
        match (from_env("XDG_STATE_HOME"), from_env("HOME")) {
            (Some(dir), _) => dir.join("tandem"),
            (None, Some(home)) => home.join(".local/state/tandem"),
            (None, None) => PathBuf::from(format!("/tmp/tandem-state-{}", rustix::process::geteuid().as_raw())),
        }
    })
}
