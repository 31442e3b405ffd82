//! gRPC on the mount's Unix socket: Status, Watch, MountControl, health, reflection.
//!
//! The socket is 0600 in a private directory, so only the mount's user (and root) can connect; nothing more is asked for.
//! What touches the file system (flush, unmount) runs on blocking threads, never on the network's.

mod control;
mod recent;
mod status;

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdUnixListener},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use tandem_proto::{
    Seq,
    pb::{self, admin_server::AdminServer as AdminService, mount_control_server::MountControlServer},
};
use tandem_runtime::{durable, settings::Setting};
use tandem_web::{Listen, Listening, Source};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use self::recent::Recent;
use crate::{fuse::Tell, replication::Replication, vfs::CacheMode};

/// What the admin service needs of the mount itself.
pub trait MountOps: Send + Sync {
    /// Pushes the mount's dirty pages into the daemon (`syncfs` on the mountpoint) and settles pending mtimes.
    fn flush(&self) -> io::Result<()>;
    /// Unmounts. `force`: lazily, also when busy. The daemon ends after it by itself.
    fn unmount(&self, force: bool) -> io::Result<()>;
    /// What status shows of it.
    fn facts(&self) -> MountFacts;
    /// What it was told to be.
    fn settings(&self) -> Vec<Setting>;
    /// Age in seconds of the oldest fsync that a replica lacks which is durable up to there; 0: none.
    fn oldest_unreplicated_fsync(&self, durable: Seq) -> f64;
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
    /// How the kernel keeps what is written.
    pub cache_mode: CacheMode,
    /// How long it may do so.
    pub flush_interval: Duration,
    /// What fsync promises, for the mount and for paths.
    pub fsync_mode: String,
    /// What is excluded from the volume.
    pub excludes: Vec<String>,
    /// Writes that are held back because the link is slower than the writer.
    pub held_writes: usize,
    /// Objects that the daemon may not read: how many, and some of them.
    pub unreadable: (usize, Vec<String>),
    /// Inodes that the kernel remembers, and the mount with it.
    pub known_inodes: usize,
    /// Open files.
    pub open_files: usize,
    /// Files that are read ahead of who reads them in order.
    pub files_read_ahead: usize,
    /// Calls by kind.
    pub ops: Vec<pb::OpFigures>,
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// The busiest files.
    pub busy: Vec<pb::BusyFile>,
    /// Calls that wait for the replica, the first ones.
    pub waiting: Vec<pb::WaitingCall>,
    /// The folder has a `.tandem` of its own.
    pub own_inside: bool,
}

/// What the services share.
pub(crate) struct Shared {
    replication: Arc<Replication>,
    ops: Arc<dyn MountOps>,
    recent: Arc<Recent>,
    started_ns: i64,
    web: OnceLock<String>,
}

/// First port that is tried for the page of a mount.
pub const WEB_PORT: u16 = 7450;

impl Source for Shared {
    fn status(&self) -> pb::StatusReply {
        self.reply("")
    }

    fn recent(&self, _volume: &str) -> Vec<pb::HistoryItem> {
        self.recent.items(self.replication.runtime())
    }
}

/// The running admin service; ends when dropped, and its socket goes.
pub struct AdminServer {
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    stop_web: Option<oneshot::Sender<()>>,
    shared: Arc<Shared>,
    /// Hears when the last answer was given.
    ended: mpsc::Receiver<()>,
}

/// How long answers that are under way may take at the end: who asked for the unmount is told that it is done.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

impl AdminServer {
    /// What the files of `.tandem` say.
    pub fn teller(&self) -> Tell {
        let shared = Arc::downgrade(&self.shared);
        Box::new(move |name| shared.upgrade().map_or_else(String::new, |shared| shared.inside(name)))
    }

    /// Where the page is.
    pub fn web(&self) -> Option<&str> {
        self.shared.web.get().map(String::as_str)
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        self.stop_web.take().map(|stop| stop.send(()));
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
/// The page is beside it, where `listen` says.
pub fn serve(
    socket: &Path,
    listen: Listen,
    replication: Arc<Replication>,
    ops: Arc<dyn MountOps>,
) -> io::Result<AdminServer> {
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
    let recent = Recent::new(replication.server.clone(), replication.volume.to_string());
    let shared = Arc::new(Shared { replication, ops, recent, started_ns: status::now_ns(), web: OnceLock::new() });
    let stop_web = serve_web(listen, socket.parent().unwrap_or(Path::new(".")), &shared)?;
    let serving = shared.clone();
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
            .add_service(AdminService::new(status::Service(serving.clone())))
            .add_service(MountControlServer::new(control::Service(serving)))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                let _ = stopped.await;
            })
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin service ended");
        }
        let _ = end.send(());
    });
    Ok(AdminServer { socket: socket.to_owned(), stop: Some(stop), stop_web, shared, ended })
}

/// In the context of the runtime.
fn serve_web(listen: Listen, runtime: &Path, shared: &Arc<Shared>) -> io::Result<Option<oneshot::Sender<()>>> {
    let listening = Listening::open(listen, WEB_PORT, runtime).map_err(io::Error::other)?;
    let Some(listening) = listening else { return Ok(None) };
    let _ = shared.web.set(listening.url());
    tracing::info!(url = listening.url(), "the page is here");
    let (stop, stopped) = oneshot::channel::<()>();
    let source = shared.clone();
    tokio::spawn(tandem_web::serve(listening, source, async {
        let _ = stopped.await;
    }));
    Ok(Some(stop))
}
