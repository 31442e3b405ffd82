//! The server: listens, serves who may come in ([`crate::trust`]) until it is told to stop.
//!
//! Clients of other machines are served beside those of this one; who is neither gets a server of its own with small windows, which only
//! lets them join.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit};
use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{
        self, admin_server::AdminServer, archive_server::ArchiveServer, copies_server::CopiesServer,
        replication_server::ReplicationServer, trust_server::TrustServer, volumes_server::VolumesServer,
    },
};
use tandem_runtime::{
    connect::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, Heartbeat, LATE, STREAM_WINDOW_BYTES},
    notify, secret,
    settings::{Effective, Setting},
};
use tandem_web::Listening;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::{
    admin::{AdminService, ArchiveService, volumes::VolumesService},
    config::{Arguments, Config},
    copies::{CopiesService, Unmoved},
    ingest::service::ReplicationService,
    reload::Reload,
    storage::{Storage, StorageError},
    trust::{
        Trust, TrustError,
        door::{Door, Rooms},
        guard::Guard,
        service::TrustService,
    },
    volume::volumes::Volumes,
};

/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: u32 = 1024;
/// Calls of one connection at the same time.
const STREAMS_MAX: u32 = 256;
/// The same for who is not known.
const PORCH_STREAMS_MAX: u32 = 4;
/// Flow-control window for who is not known.
const PORCH_WINDOW_BYTES: u32 = 64 << 10;
/// Headers of a call.
const HEADERS_MAX_BYTES: u32 = 16 << 10;
/// A join is a few hundred bytes.
const TRUST_MESSAGE_MAX_BYTES: usize = 16 << 10;
/// The longest first message of a copy, which names what is to be copied, of who is not known.
const PORCH_MESSAGE_MAX_BYTES: usize = 512 << 10;
/// Questions about a volume: what is long in them is a path.
const QUESTION_MAX_BYTES: usize = 512 << 10;
/// How long streams may take to end when the server stops.
const STOP_WITHIN: Duration = Duration::from_secs(3);

/// Why storaged did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The storage directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The address.
    #[error("cannot listen on {address}: {source}{}", listen_hint(source))]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The secret.
    #[error(
        "cannot write the local secret in {directory}: {source}; name a directory that can be written with --runtime"
    )]
    Secret {
        /// Where.
        directory: String,
        /// Why.
        source: io::Error,
    },
    /// Something of the system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The page.
    #[error(transparent)]
    Web(tandem_web::ListenError),
    /// The server broke.
    #[error("the server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Keys and clients.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// gRPC reflection.
    #[error("reflection cannot be served: {0}")]
    Reflection(String),
}

fn listen_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            ": another program uses this port, perhaps another tandem-storaged; stop it or choose another with --listen"
        }
        io::ErrorKind::PermissionDenied => ": ports below 1024 need privileges; choose another with --listen",
        _ => "",
    }
}

/// As many descriptors as the system lets us have: connections and files are many, and the usual limit is meant for shells.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::info!(%error, "the limit of descriptors stays as it is");
    }
}

/// Takes the port without listening yet.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port whose last connections are still winding down may be taken again; one that is listened on may not.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Runs storaged until SIGTERM or SIGINT. `shown`: the settings, and where `arguments` had them from.
pub async fn run(config: Config, arguments: Arguments, shown: Vec<Setting>) -> Result<(), ServeError> {
    raise_descriptor_limit();
    let mut term = signal(SignalKind::terminate()).map_err(io_error("waiting for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("waiting for signals"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(io_error("waiting for signals"))?;
    // The port first: two storaged of one address would otherwise both open volumes.
    let listen_error = |source| ServeError::Listen { address: config.listen, source };
    let socket = bind(config.listen).map_err(listen_error)?;
    let address = socket.local_addr().map_err(listen_error)?;
    let (storage, volumes, trust) = open(&config).await?;
    let directory = config.runtime.display().to_string();
    let secret = secret::create(&config.runtime, address.port())
        .map_err(|source| ServeError::Secret { directory: directory.clone(), source })?;
    // Only now: who connected before would send the secret that a killed storaged left behind, and be refused.
    let listener = socket.listen(LISTEN_BACKLOG).map_err(listen_error)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (door, rooms) =
        Door::new(trust.registry.clone(), trust.tls(&config.own_tls)?, config.insecure, config.keepalive);
    let effective: Effective = Arc::new(Mutex::new(shown));
    let admin = AdminService::new(volumes.clone(), trust.clone(), effective.clone());
    let reload = Reload { arguments, effective, volumes: volumes.clone(), trust: trust.clone(), door: door.clone() };
    let reload = Arc::new(reload);
    let stop_web = serve_web(&config, address.port(), &admin)?;
    let services = Services {
        guard: Guard::new(secret),
        keepalive: config.keepalive,
        deleted_keep: config.deleted_keep,
        volumes: volumes.clone(),
        admin,
        trust,
    };
    let mut serving = tokio::spawn(serve(services, address.port(), rooms, stopped)?);
    let mut doors = vec![tokio::spawn(door.clone().stand(listener))];
    if let Some(listener) = beside(&address) {
        doors.push(tokio::spawn(door.stand(listener)));
    }
    announce(&address, &storage);
    let ended = loop {
        tokio::select! {
            _ = term.recv() => break None,
            _ = interrupt.recv() => break None,
            _ = hangup.recv() => {
                let reload = reload.clone();
                // One at a time, in their order.
                let _ = tokio::task::spawn_blocking(move || reload.now()).await;
            }
            ended = &mut serving => break Some(ended),
        }
    };
    tracing::info!("stopping");
    notify::stopping();
    // Ends all sessions, applies what was accepted and makes a checkpoint.
    let closing = volumes.clone();
    let closed = tokio::task::spawn_blocking(move || closing.stop()).await;
    if closed.is_err() {
        tracing::error!("stopping the volumes failed");
    }
    let _ = stop.send(true);
    doors.iter().for_each(tokio::task::JoinHandle::abort);
    drop(stop_web);
    let ended = match ended {
        Some(ended) => Some(ended),
        None => tokio::time::timeout(STOP_WITHIN, serving).await.ok(),
    };
    // Nobody may take a secret for that of a later storaged.
    let _ = std::fs::remove_file(secret::path(&config.runtime, address.port()));
    drop(storage);
    tracing::info!("stopped");
    match ended {
        Some(Ok(result)) => Ok(result?),
        // Streams that did not end in time end with the process.
        Some(Err(_)) | None => Ok(()),
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { what, source }
}

async fn open(config: &Config) -> Result<(Storage, Arc<Volumes>, Arc<Trust>), ServeError> {
    let (data, limits, deleted_keep) = (config.data.clone(), config.limits.clone(), config.deleted_keep);
    let opened = tokio::task::spawn_blocking(move || {
        let storage = Storage::open_or_create(&data)?;
        let trust = Trust::open_or_create(storage.path())?;
        let volumes = Volumes::open(storage.path(), &limits).map_err(io_error("listing the storage directory"))?;
        volumes.remove_deleted(deleted_keep).map_err(io_error("starting a thread"))?;
        Ok::<_, ServeError>((storage, Arc::new(volumes), Arc::new(trust)))
    });
    opened.await.map_err(|error| ServeError::Io { what: "opening volumes", source: io::Error::other(error) })?
}

/// Says that it is ready: on standard output for people and scripts, in the log for everybody else.
fn announce(address: &SocketAddr, storage: &Storage) {
    use std::io::Write as _;
    let line = format!("tandem-storaged listening on {address}, storage directory {}\n", storage.path().display());
    // Who closed standard output does not want to hear.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
    tracing::info!(%address, directory = %storage.path().display(), "listening");
    notify::ready(&format!("listening on {address}"));
}

/// The same port on loopback, where an address of the network is listened on: the commands of this host come there. Another program may
/// have it; then they have to name the address, with a certificate.
fn beside(address: &SocketAddr) -> Option<TcpListener> {
    if address.ip().is_unspecified() || address.ip().is_loopback() {
        return None;
    }
    let local = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    let listener = bind(local).and_then(|socket| socket.listen(LISTEN_BACKLOG));
    listener.inspect_err(|error| tracing::warn!(%local, %error, "not listening on loopback too")).ok()
}

/// What is served, and to whom.
struct Services {
    guard: Guard,
    keepalive: Option<Duration>,
    deleted_keep: Option<Duration>,
    volumes: Arc<Volumes>,
    admin: AdminService,
    trust: Arc<Trust>,
}

/// Ends when it is told to.
async fn told(mut stop: tokio::sync::watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves the page until what it returns is dropped. `port`: the daemon's own.
fn serve_web(config: &Config, port: u16, admin: &AdminService) -> Result<tokio::sync::oneshot::Sender<()>, ServeError> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // The port after the daemon's own, or one near it; a daemon that took any port takes any for the page, too.
    let first = if config.listen.port() == 0 { 0 } else { port.checked_add(1).unwrap_or(0) };
    let listening = Listening::open(config.web, first, &config.runtime).map_err(ServeError::Web)?;
    if let Some(listening) = listening {
        let source = admin.page(listening.url());
        tracing::info!(url = listening.url(), "the page is here");
        tokio::spawn(tandem_web::serve(listening, source, async {
            let _ = stopped.await;
        }));
    }
    Ok(stop)
}

fn serve(
    services: Services,
    port: u16,
    rooms: Rooms,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, ServeError> {
    let Services { guard, keepalive, deleted_keep, volumes, admin, trust } = services;
    let replication = ReplicationServer::new(ReplicationService::new(volumes.clone()))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let archive = ArchiveServer::new(ArchiveService::new(volumes.clone()))
        .max_decoding_message_size(QUESTION_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let copies = Arc::new(CopiesService::new(volumes.clone()));
    let others = CopiesServer::from_arc(copies.clone())
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let copies = Unmoved::new(copies, others);
    let admin = AdminServer::new(admin).max_decoding_message_size(QUESTION_MAX_BYTES);
    let volumes = VolumesServer::new(VolumesService::new(volumes, trust.clone(), deleted_keep));
    let trust = TrustServer::new(TrustService::new(trust, port)).max_decoding_message_size(TRUST_MESSAGE_MAX_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_error = |error: tonic_reflection::server::Error| ServeError::Reflection(error.to_string());
    let v1 = reflection().build_v1().map_err(reflection_error)?;
    let v1alpha = reflection().build_v1alpha().map_err(reflection_error)?;
    let server = |windows: (u32, u32), streams| {
        Server::builder()
            .initial_stream_window_size(windows.0)
            .initial_connection_window_size(windows.1)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(Some(streams))
            .http2_max_header_list_size(Some(HEADERS_MAX_BYTES))
            .http2_keepalive_interval(keepalive.map(|bound| Heartbeat::within(bound).interval))
            .http2_keepalive_timeout(keepalive.map(|bound| bound * LATE))
            .layer(guard.clone())
    };
    let house = server((STREAM_WINDOW_BYTES, CONNECTION_WINDOW_BYTES), STREAMS_MAX)
        .add_service(replication)
        .add_service(archive)
        .add_service(copies.clone())
        .add_service(admin)
        .add_service(volumes)
        .add_service(trust.clone())
        .add_service(health_service)
        .add_service(v1)
        .add_service(v1alpha)
        .serve_with_incoming_shutdown(ReceiverStream::new(rooms.house), told(stop.clone()));
    let porch = server((PORCH_WINDOW_BYTES, PORCH_WINDOW_BYTES), PORCH_STREAMS_MAX)
        .add_service(trust)
        // For another storage daemon that has a ticket.
        .add_service(copies.max_decoding_message_size(PORCH_MESSAGE_MAX_BYTES))
        .serve_with_incoming_shutdown(ReceiverStream::new(rooms.porch), told(stop));
    Ok(async move {
        health.set_serving::<ReplicationServer<ReplicationService>>().await;
        health.set_serving::<AdminServer<AdminService>>().await;
        tokio::try_join!(house, porch).map(|((), ())| ())
    })
}
