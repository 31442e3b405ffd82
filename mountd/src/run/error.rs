//! Why there is no mount.

use std::{io, path::PathBuf};

use crate::{
    backing::BackingError, link::start::StartRefused, mount::MountError, replication::ReplicationError, resync::pull,
    state::StateError,
};

/// Why there is no mount. Its text is what the user sees.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The mountpoint, or mounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The backing directory.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The mount may not start like this.
    #[error(transparent)]
    Refused(#[from] StartRefused),
    /// An option that only root may use.
    #[error("option {0} needs root: leave it out, or mount as root")]
    NeedsRoot(&'static str),
    /// Filling the folder.
    #[error(transparent)]
    Pull(#[from] pull::PullError),
    /// Replication.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// FUSE.
    #[error("cannot mount over {dir}: {source}; {}", way_on(source))]
    Fuse {
        /// The mountpoint.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Anything else of the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The daemon's own files would lie in what it mounts.
    #[error("option {key}={path}: it lies inside {dir}, which is to be mounted; choose a place outside")]
    Inside {
        /// The option.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// The mountpoint.
        dir: PathBuf,
    },
    /// What a pull did not bring yet would be taken for deleted.
    #[error(
        "{0} was being filled from its replica, and that did not come to its end: mount again with -o init=pull to go on, or with \
         -o init=push if what it holds now is meant to be all (what the replica has is kept in its history)"
    )]
    HalfPulled(PathBuf),
    /// Fencing the other writer before a pull.
    #[error("taking the volume over: {0}")]
    Claim(String),
    /// A copy or a snapshot of the backing directory lies in its place.
    #[error(
        "{0} is older than it was when it was mounted last: it was restored from a snapshot or a copy. If what it holds now is meant to \
         be the truth, mount with -o init=push (what the replica has more is kept in its history); else empty it and mount with -o \
         init=pull"
    )]
    WentBack(PathBuf),
    /// The debug log.
    #[error("{0}")]
    Log(String),
}

pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// What to do about a mount that FUSE refused.
fn way_on(source: &io::Error) -> &'static str {
    if source.to_string().contains("/dev/fuse: Permission denied") {
        "this user may not use /dev/fuse: mount as root, or give it to everybody as udev does (chmod 666 /dev/fuse)"
    } else {
        "is the fuse module loaded, and fuse3 installed?"
    }
}
