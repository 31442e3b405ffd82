//! The server: listens on loopback, checks the local secret, serves until it is told to stop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{self, admin_server::AdminServer, archive_server::ArchiveServer, replication_server::ReplicationServer},
};
use tandem_runtime::{
    connect::{CONNECTION_WINDOW_BYTES, FRAME_BYTES, Heartbeat, LATE, STREAM_WINDOW_BYTES},
    secret,
    watched::Watched,
};
use tandem_web::Listening;
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
};
use tokio_stream::StreamExt as _;
use tonic::{
    Request, Status,
    service::Interceptor,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    admin::{AdminService, ArchiveService},
    config::Config,
    ingest::service::ReplicationService,
    storage::{Storage, StorageError},
    volume::volumes::Volumes,
};

/// Connections that may wait to be accepted.
const LISTEN_BACKLOG: u32 = 1024;
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

/// Lets calls pass that carry the secret.
#[derive(Clone)]
struct CheckSecret {
    secret: Arc<str>,
}

impl Interceptor for CheckSecret {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let sent = request.metadata().get(secret::METADATA_KEY).and_then(|value| value.to_str().ok());
        if sent.is_some_and(|sent| secret::equal(sent, &self.secret)) {
            return Ok(request);
        }
        Err(Status::unauthenticated(
            "the local secret is missing or wrong: run as the user that runs tandem-storaged, with the same runtime directory \
             ($TANDEM_RUNTIME_DIR)",
        ))
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

/// Runs storaged until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), ServeError> {
    let mut term = signal(SignalKind::terminate()).map_err(io_error("waiting for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io_error("waiting for signals"))?;
    // The port first: two storaged of one address would otherwise both open volumes.
    let listen_error = |source| ServeError::Listen { address: config.listen, source };
    let socket = bind(config.listen).map_err(listen_error)?;
    let address = socket.local_addr().map_err(listen_error)?;
    let (storage, volumes) = open(&config).await?;
    let directory = config.runtime.display().to_string();
    let secret = secret::create(&config.runtime, address.port())
        .map_err(|source| ServeError::Secret { directory: directory.clone(), source })?;
    // Only now: who connected before would send the secret that a killed storaged left behind, and be refused.
    let listener = socket.listen(LISTEN_BACKLOG).map_err(listen_error)?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let admin = AdminService::new(volumes.clone());
    let stop_web = serve_web(&config, address.port(), &admin)?;
    let serving = serve(listener, secret, config.keepalive, volumes.clone(), admin, stopped)?;
    let mut serving = tokio::spawn(serving);
    announce(&address, &storage);
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut serving => Some(ended),
    };
    tracing::info!("stopping");
    // Ends all sessions, applies what was accepted and makes a checkpoint.
    let closing = volumes.clone();
    let closed = tokio::task::spawn_blocking(move || closing.stop()).await;
    if closed.is_err() {
        tracing::error!("stopping the volumes failed");
    }
    let _ = stop.send(());
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

async fn open(config: &Config) -> Result<(Storage, Arc<Volumes>), ServeError> {
    let (data, limits) = (config.data.clone(), config.limits.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let storage = Storage::open_or_create(&data)?;
        let volumes = Volumes::open(storage.path(), &limits).map_err(io_error("listing the storage directory"))?;
        Ok::<_, ServeError>((storage, Arc::new(volumes)))
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
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "listening without encryption off loopback, as --insecure asks: only on a network that nobody else can reach");
    }
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
    listener: TcpListener,
    secret: String,
    keepalive: Option<Duration>,
    volumes: Arc<Volumes>,
    admin: AdminService,
    stopped: tokio::sync::oneshot::Receiver<()>,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, ServeError> {
    let check = CheckSecret { secret: Arc::from(secret) };
    let replication = ReplicationServer::new(ReplicationService::new(volumes.clone()))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES);
    let archive = ArchiveServer::new(ArchiveService::new(volumes)).max_encoding_message_size(MESSAGE_MAX_BYTES);
    let admin = AdminServer::new(admin);
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let reflection_error = |error: tonic_reflection::server::Error| ServeError::Reflection(error.to_string());
    let v1 = reflection().build_v1().map_err(reflection_error)?;
    let v1alpha = reflection().build_v1alpha().map_err(reflection_error)?;
    let incoming = TcpIncoming::from(listener).map(move |accepted| Watched::new(accepted?, keepalive));
    Ok(async move {
        health.set_serving::<ReplicationServer<ReplicationService>>().await;
        health.set_serving::<AdminServer<AdminService>>().await;
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keepalive_interval(keepalive.map(|bound| Heartbeat::within(bound).interval))
            .http2_keepalive_timeout(keepalive.map(|bound| bound * LATE))
            .add_service(tonic::service::interceptor::InterceptedService::new(replication, check.clone()))
            .add_service(tonic::service::interceptor::InterceptedService::new(archive, check.clone()))
            .add_service(tonic::service::interceptor::InterceptedService::new(admin, check))
            .add_service(health_service)
            .add_service(v1)
            .add_service(v1alpha)
            .serve_with_incoming_shutdown(incoming, async {
                let _ = stopped.await;
            })
            .await
    })
}
