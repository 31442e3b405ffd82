//! The page and the metrics of a daemon, over HTTP/1.1, in the daemon's own process.
//!
//! ```text
//!  daemon: Source::status ──each half second──► [sample]: series, events ─┬─► GET /            the page, all of it in this program
//!                                                                         ├─► GET /api/state   one snapshot, JSON
//!                                                                         ├─► GET /api/stream  snapshots as server-sent events
//!                                                                         └─► GET /metrics     for Prometheus, see [metrics]
//! ```
//! Promises: nothing can be changed through it; it costs one look at the status each half second, however many watch; it listens on
//! loopback unless told otherwise, answers only requests that name it by a loopback name there (a page of somebody else cannot read it
//! through the browser), and of other users of the machine, and off loopback, only who has the token. Watchers are bounded in number.

mod guard;
mod json;
mod listen;
pub mod metrics;
mod owner;
mod sample;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use bytes::Bytes;
use tandem_proto::pb;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    service::Routes,
    transport::{Server, server::TcpConnectInfo},
};

pub use self::listen::{Listen, ListenError, Listening};
use self::{guard::Guard, sample::Sampler};

/// Where the metrics are.
const METRICS: &str = "/metrics";
/// Pages that are open at a time.
const WATCHERS_MAX: usize = 32;
/// How often the status is looked at, for plots and open pages.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a daemon shows.
pub trait Source: Send + Sync + 'static {
    /// Its status now. Must not block on the disk or the network.
    fn status(&self) -> pb::StatusReply;

    /// What was done lately on a volume, oldest first.
    fn recent(&self, _volume: &str) -> Vec<pb::HistoryItem> {
        Vec::new()
    }

    /// Who has joined, of a storage daemon.
    fn clients(&self) -> Vec<pb::ClientEntry> {
        Vec::new()
    }
}

struct Shared {
    source: Arc<dyn Source>,
    sampler: Sampler,
    guard: Guard,
    address: SocketAddr,
    watchers: AtomicUsize,
}

/// Serves until `stop` is ready. Runs on tokio.
pub async fn serve(listening: Listening, source: Arc<dyn Source>, stop: impl Future<Output = ()>) {
    let address = listening.address;
    let guard = Guard::new(address, listening.token, rustix::process::geteuid().as_raw());
    let (sampler, watchers) = (Sampler::default(), AtomicUsize::new(0));
    let shared = Arc::new(Shared { source, sampler, guard, address, watchers });
    let sampling = shared.clone();
    let sampler = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (status, shared) = (sampling.source.status(), &sampling);
            shared.sampler.look(&status);
        }
    });
    let served = Server::builder()
        .accept_http1(true)
        .add_routes(Routes::from(router(shared)))
        .serve_with_incoming_shutdown(tonic::transport::server::TcpIncoming::from(listening.listener), stop)
        .await;
    sampler.abort();
    if let Err(error) = served {
        tracing::warn!(%error, %address, "the page is not served any more");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let page = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text).into_response() })
    };
    Router::new()
        .route("/", page("text/html; charset=utf-8", include_str!("../assets/page.html")))
        .route("/page.css", page("text/css; charset=utf-8", include_str!("../assets/page.css")))
        .route("/page.js", page("text/javascript; charset=utf-8", include_str!("../assets/page.js")))
        .route("/icon.svg", page("image/svg+xml", include_str!("../assets/icon.svg")))
        .route("/api/state", get(state))
        .route("/api/stream", get(stream))
        .route(METRICS, get(scrape))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .layer(middleware::from_fn_with_state(shared.clone(), guarded))
        .with_state(shared)
}

/// Who may ask, and what every answer says about itself.
async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let address = shared.address;
    let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    let who = match peer.filter(|_| shared.guard.asks_who()) {
        // The kernel makes that file while it is read.
        Some(peer) => tokio::task::spawn_blocking(move || owner::of(peer, address)).await.ok().flatten(),
        None => None,
    };
    let mut response = match shared.guard.admit(&request, who) {
        guard::Verdict::Pass => next.run(request).await,
        guard::Verdict::Remember(cookie) => {
            let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response
        }
        guard::Verdict::Refuse(status, why) => (status, why).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (
            "content-security-policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                     img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl Shared {
    fn snapshot(&self, with_series: bool) -> String {
        let status = self.source.status();
        let recent = |volume: &str| self.source.recent(volume);
        let mut snapshot = json::snapshot(&status, &self.sampler, &recent, with_series);
        snapshot["clients"] = self.source.clients().iter().map(json::client).collect();
        snapshot.to_string()
    }
}

async fn state(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], shared.snapshot(true)).into_response()
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::render(&shared.source.status())).into_response()
}

/// One that watches, counted.
struct Watcher(Arc<Shared>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn stream(State(shared): State<Arc<Shared>>) -> Response {
    if shared.watchers.fetch_add(1, Ordering::Relaxed) >= WATCHERS_MAX {
        shared.watchers.fetch_sub(1, Ordering::Relaxed);
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    }
    let (out, events) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let watcher = Watcher(shared);
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            let event = format!("data: {}\n\n", watcher.0.snapshot(std::mem::take(&mut first)));
            // A page that is slower gets the newest when it is ready; one that is closed ends this.
            if out.send(Ok(event.into())).await.is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(events));
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}
