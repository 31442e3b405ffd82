//! How a client gets its certificate from a storage daemon, and a new one before that expires.
//!
//! ```text
//!  join:  token ─► TLS to a server of the CA that the token names ─► key made here, CSR + secret ─► certificate ─► identity file
//!  renew: TLS with the old certificate ─► new key, CSR ─► certificate ─► identity file replaced as a whole
//! ```
//! The private key never leaves this machine. A renewed identity is used by the next connection; those that are open go on.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tandem_proto::pb::{self, trust_client::TrustClient};
use tandem_runtime::{
    connect::{KEEPALIVE, ServerAddress},
    tls::{Fingerprint, Identity, IdentityError, Token, now_s},
};
use tonic::{Status, transport::Channel};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// A client could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No connection.
    #[error("{server} does not answer: {why}")]
    Unreachable {
        /// The address.
        server: String,
        /// The cause.
        why: String,
    },
    /// It said no.
    #[error("{server} refused: {why}")]
    Refused {
        /// The address.
        server: String,
        /// Its words.
        why: String,
    },
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another storage daemon was joined under this address.
    #[error(
        "{server} was joined before, and it was another storage daemon then: if it was set up anew, remove {} and join again", path.display()
    )]
    Other {
        /// The address.
        server: String,
        /// The file.
        path: std::path::PathBuf,
    },
    /// Keys cannot be made.
    #[error("making a key failed: {0}")]
    Key(#[from] rcgen::Error),
}

/// What a client may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// What the storage daemon calls it.
    pub client: String,
    /// The volume that the token was for.
    pub volume: String,
    /// Its role there.
    pub role: &'static str,
    /// Unix time.
    pub expires_s: i64,
}

/// A key, and a request for a certificate of it.
fn request() -> Result<(PrivateKeyDer<'static>, Bytes), rcgen::Error> {
    let key = KeyPair::generate()?;
    // What is in the request does not matter: the storage daemon takes the public key from it, and nothing else.
    let csr = CertificateParams::default().serialize_request(&key)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((key, Bytes::copy_from_slice(csr.der())))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn call<T>(
    server: &ServerAddress,
    work: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, EnrolError> {
    let unreachable = |why: String| EnrolError::Unreachable { server: server.to_string(), why };
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Err(_) => Err(unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))),
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        // A source means that it is not the other side's word: the connection broke.
        Ok(Err(status)) => match std::error::Error::source(&status) {
            Some(source) => Err(unreachable(root_cause(source))),
            None => Err(EnrolError::Refused { server: server.to_string(), why: status.message().to_owned() }),
        },
    }
}

fn role(role: i32) -> &'static str {
    match pb::Role::try_from(role) {
        Ok(pb::Role::Reader) => "reader",
        Ok(pb::Role::Writer) => "writer",
        Ok(pb::Role::Admin) => "admin",
        _ => "unknown",
    }
}

/// Redeems a token, and keeps what came of it at `path`. A storage daemon that was joined before gets us one role more.
pub async fn join(server: &ServerAddress, token: &Token, name: &str, path: &Path) -> Result<Joined, EnrolError> {
    let old = Identity::load(path)?;
    if old.as_ref().is_some_and(|old| Fingerprint::of(&old.ca) != token.ca) {
        return Err(EnrolError::Other { server: server.to_string(), path: path.to_owned() });
    }
    // One that has expired is replaced: nobody takes it any more.
    let old = old.filter(|old| old.expires_s > now_s());
    let unreachable = |error: tonic::transport::Error| EnrolError::Unreachable {
        server: server.to_string(),
        why: root_cause(&error),
    };
    let secret = Bytes::copy_from_slice(&token.secret);
    let joined = |reply: &pb::JoinReply| Joined {
        client: reply.client.clone(),
        volume: reply.volume.clone(),
        role: role(reply.role),
        expires_s: reply.expires_s,
    };
    if old.is_some() {
        let known = ServerAddress { identity: Some(path.to_owned()), insecure: false, ..server.clone() };
        let channel = known.connect(CONNECT_TIMEOUT, Some(KEEPALIVE)).await.map_err(unreachable)?;
        let request = pb::JoinRequest { secret: secret.clone(), csr: Bytes::new(), name: name.to_owned() };
        match call(server, TrustClient::new(channel).join(request)).await {
            Ok(reply) => return Ok(joined(&reply)),
            // One that was revoked is another client from now on.
            Err(EnrolError::Refused { why, .. }) => {
                tracing::info!(why, "joining with the identity that is there failed")
            }
            Err(other) => return Err(other),
        }
    }
    let (key, csr) = request()?;
    let channel = server.connect_introduced(CONNECT_TIMEOUT, token.ca).await.map_err(unreachable)?;
    let reply =
        call(server, TrustClient::new(channel).join(pb::JoinRequest { secret, csr, name: name.to_owned() })).await?;
    let ca = CertificateDer::from(reply.ca.to_vec());
    if Fingerprint::of(&ca) != token.ca || reply.certificate.is_empty() {
        return Err(EnrolError::Refused {
            server: server.to_string(),
            why: "its answer holds no certificate of its CA; it may be of another version".to_owned(),
        });
    }
    let identity = Identity {
        client: reply.client.clone(),
        expires_s: reply.expires_s,
        renew_after_s: reply.renew_after_s,
        key,
        certificate: CertificateDer::from(reply.certificate.to_vec()),
        ca,
    };
    identity.store(path)?;
    Ok(joined(&reply))
}

/// Gets a new certificate if the one at `path` is old enough, or in any case with `now`. True: it was renewed.
pub async fn renew(server: &ServerAddress, now: bool) -> Result<bool, EnrolError> {
    let path = server.identity_path();
    let Some(old) = Identity::load(&path)? else { return Ok(false) };
    if !now && now_s() < old.renew_after_s {
        return Ok(false);
    }
    let (key, csr) = request()?;
    let channel: Channel = server
        .connect(CONNECT_TIMEOUT, Some(KEEPALIVE))
        .await
        .map_err(|error| EnrolError::Unreachable { server: server.to_string(), why: root_cause(&error) })?;
    let reply = call(server, TrustClient::new(channel).renew(pb::RenewRequest { csr })).await?;
    let identity = Identity {
        client: old.client,
        expires_s: reply.expires_s,
        renew_after_s: reply.renew_after_s,
        key,
        certificate: CertificateDer::from(reply.certificate.to_vec()),
        ca: old.ca,
    };
    identity.store(&path)?;
    Ok(true)
}
