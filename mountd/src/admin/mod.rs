//! gRPC on the mount's Unix socket: Status, Watch, MountControl, health, reflection.
//!
//! The socket is 0600 in a private directory, so only the mount's user (and root) can connect; nothing more is asked for.
//! What touches the file system (flush, unmount) runs on blocking threads, never on the network's.

mod control;
mod status;

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdUnixListener},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::Duration,
};

use tandem_proto::pb::{self, admin_server::AdminServer as AdminService, mount_control_server::MountControlServer};
use tandem_runtime::durable;
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::replication::Replication;

/// What the admin service needs of the mount itself.
pub trait MountOps: Send + Sync {
    /// Pushes the mount's dirty pages into the daemon (`syncfs` on the mountpoint) and settles pending mtimes.
    fn flush(&self) -> io::Result<()>;
    /// Unmounts. `force`: lazily, also when busy. The daemon ends after it by itself.
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
    /// What fsync promises, for the mount and for paths.
    pub fsync_mode: String,
    /// Writes that are held back because the link is slower than the writer.
    pub held_writes: usize,
}

/// What the services share.
pub(crate) struct Shared {
    replication: Arc<Replication>,
    ops: Arc<dyn MountOps>,
    started_ns: i64,
}

/// The running admin service; ends when dropped, and its socket goes.
pub struct AdminServer {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    /// Hears when the last answer was given.
    ended: mpsc::Receiver<()>,
}

/// How long answers that are under way may take at the end: who asked for the unmount is told that it is done.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

impl Drop for AdminServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = self.ended.recv_timeout(ANSWERS_WITHIN);
        }
    }
}

/// `<runtime>/mount-<first 16 hex of key>.sock`
pub fn socket_path(runtime_dir: &Path, key: &str) -> PathBuf {
    runtime_dir.join(format!("mount-{}.sock", &key[..key.len().min(16)]))
}

/// Serves on the Unix socket at `socket` (0600), replacing a dead one: the state directory's lock says that no other mountd serves
/// this mount. Needs no tokio context.
pub fn serve(socket: &Path, replication: Arc<Replication>, ops: Arc<dyn MountOps>) -> io::Result<AdminServer> {
    if let Some(directory) = socket.parent() {
        durable::create_private_dir(directory)?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    let runtime = replication.runtime().clone();
    let _context = runtime.enter();
    let listener = UnixListener::from_std(listener)?;
    let shared = Arc::new(Shared { replication, ops, started_ns: status::now_ns() });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(io::Error::other)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (end, ended) = mpsc::channel();
    runtime.spawn(async move {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<AdminService<status::Service>>().await;
        reporter.set_serving::<MountControlServer<control::Service>>().await;
        let served = Server::builder()
            .add_service(health)
            .add_service(reflection)
            .add_service(AdminService::new(status::Service(shared.clone())))
            .add_service(MountControlServer::new(control::Service(shared)))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                let _ = stopped.await;
            })
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin service ended");
        }
        let _ = end.send(());
    });
    Ok(AdminServer { socket: socket.to_owned(), stop: Some(stop), ended })
}
