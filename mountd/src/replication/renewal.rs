//! Keeps our certificate good: it is renewed when two thirds of its life are over, and tried again every hour until that is done. The
//! link goes on meanwhile; its next connection uses the new one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tandem_runtime::{connect::ServerAddress, tls::Identity};

const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After the start the link has the network first.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// What is known of our certificate.
#[derive(Debug, Default)]
pub struct Renewal {
    expires_s: AtomicI64,
}

impl Renewal {
    /// Unix time; 0: there is none.
    pub fn expires_s(&self) -> i64 {
        self.expires_s.load(Ordering::Relaxed)
    }
}

/// Looks now and then, until it is dropped.
pub async fn run(server: ServerAddress, shared: Arc<Renewal>) {
    // Certificates of one's own are renewed by who made them.
    if server.protection() != "tls" || server.own.is_some() {
        return;
    }
    let path = server.identity_path();
    let mut pause = FIRST_LOOK;
    loop {
        let look = path.clone();
        // tokio does no file I/O of its own; this is a small file, once an hour.
        let identity = tokio::task::spawn_blocking(move || Identity::load(&look)).await;
        if let Ok(Ok(Some(identity))) = identity {
            shared.expires_s.store(identity.expires_s, Ordering::Relaxed);
        }
        tokio::time::sleep(pause).await;
        pause = LOOK_EVERY;
        match tandem_enrol::renew(&server, false).await {
            Ok(true) => {
                tracing::info!(identity = %path.display(), "our certificate was renewed");
                pause = FIRST_LOOK;
            }
            Ok(false) => {}
            Err(error) => {
                tracing::info!(%error, "our certificate could not be renewed yet; it is tried again in an hour")
            }
        }
    }
}
