//! Trust: who may talk to this storage daemon, and about which volumes.
//!
//! ```text
//!  TCP ─► [door]: TLS or plaintext? ─┬─ TLS with a certificate of a known client ─┬─► the house: all services
//!                                    ├─ plaintext on loopback ────────────────────┘
//!                                    └─ anybody else ─► the porch: Trust/Join only, small, short-lived
//!  each call ─► [guard]: [caller] known? this method for it? not too many? ─► service: [caller] may this volume? ─► work
//! ```
//! Certificates of another authority are looked at in [own]. What is kept is in `.trust/` of the storage directory: the CA's key ([ca]) and who has joined ([registry]). A client is known by the
//! fingerprint of its certificate; nothing that is written in the certificate is believed. What a client may not know is refused
//! in the same words, and as fast, as if it did not exist: roles are looked at before anything else.

mod bucket;
pub mod ca;
pub mod caller;
pub mod door;
pub mod guard;
pub mod own;
pub mod registry;
mod saved;
pub mod service;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tandem_runtime::{durable, tls::IdentityError};

use self::{ca::Authority, door::Tls, own::Foreign, registry::Registry};
use crate::config::OwnTls;

/// Directory of what is kept, in the storage directory. No volume can have the name.
const DIRECTORY: &str = ".trust";

/// Trust cannot be established.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key of the CA is not only ours, or cannot be read.
    #[error(transparent)]
    Key(#[from] IdentityError),
    /// A file cannot be understood.
    #[error("{}: {why}: put a copy of it back; or remove the directory it lies in, and all clients have to join again", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What.
        why: String,
    },
    /// Making a key or certificate.
    #[error("making a certificate failed: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

impl TrustError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> TrustError + '_ {
        move |source| TrustError::Io { path: path.to_owned(), source }
    }
}

/// The CA and the clients.
pub struct Trust {
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Who has joined.
    pub registry: Arc<Registry>,
}

impl Trust {
    /// Opens what is kept in a storage directory, or makes it.
    pub fn open_or_create(data: &Path) -> Result<Trust, TrustError> {
        let directory = data.join(DIRECTORY);
        durable::create_private_dir(&directory).map_err(TrustError::io(&directory))?;
        let authority = Authority::open_or_create(&directory)?;
        let registry = Registry::open(&directory)?;
        durable::sync_directory(data).map_err(TrustError::io(data))?;
        Ok(Trust { authority: Arc::new(authority), registry: Arc::new(registry) })
    }

    /// How handshakes are answered, with what is in these files by now. Blocks on the disk.
    pub fn tls(&self, files: &OwnTls) -> Result<Tls, TrustError> {
        let foreign = Arc::new(Foreign::load(files)?);
        self.registry.expect_named(!foreign.roots.is_empty());
        Ok(Tls { config: self.authority.server_config(&foreign)?, foreign })
    }
}
