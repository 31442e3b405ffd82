//! The file of who has joined: `.trust/clients.json`, replaced as a whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tandem_runtime::{durable, tls::check_private};

use super::{TrustError, caller::Role};

const FILE: &str = "clients.json";
const FORMAT: u32 = 1;

/// One certificate of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedCertificate {
    /// SHA-256, hexadecimal.
    pub fingerprint: String,
    /// Unix time.
    pub expires_s: i64,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClient {
    /// When it joined.
    pub joined_s: i64,
    /// Its roles.
    pub grants: BTreeMap<String, Role>,
    /// The newest last.
    pub certificates: Vec<SavedCertificate>,
    /// It has none of ours: it is whoever another authority vouches for by this name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub named: bool,
}

/// An invitation that nobody has redeemed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedInvitation {
    /// For which volume.
    pub volume: String,
    /// With which role.
    pub role: Role,
    /// Unix time.
    pub expires_s: i64,
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    format: u32,
    /// By name.
    pub clients: BTreeMap<String, SavedClient>,
    /// By the SHA-256 of their secret.
    pub invitations: BTreeMap<String, SavedInvitation>,
}

impl Default for Saved {
    fn default() -> Self {
        Saved { format: FORMAT, clients: BTreeMap::new(), invitations: BTreeMap::new() }
    }
}

/// Where it is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

impl Saved {
    /// Reads it; a missing one is empty.
    pub fn load(path: &Path) -> Result<Saved, TrustError> {
        let damaged = |why: String| TrustError::Damaged { path: path.to_owned(), why };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
            Err(error) => return Err(TrustError::io(path)(error)),
            Ok(metadata) => check_private(path, &metadata)?,
        }
        let text = fs::read_to_string(path).map_err(TrustError::io(path))?;
        let saved: Saved = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if saved.format != FORMAT {
            return Err(damaged(format!("it has format {}, and this tandem-storaged knows {FORMAT}", saved.format)));
        }
        Ok(saved)
    }

    /// Writes it durably.
    pub fn store(&self, path: &Path) -> Result<(), TrustError> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| TrustError::Tls(error.to_string()))?;
        durable::replace_file_durably(path, &text).map_err(TrustError::io(path))
    }
}
