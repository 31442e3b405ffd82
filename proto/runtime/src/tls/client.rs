//! The client's side of a handshake.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{ALPN, Fingerprint, HANDSHAKE_TIMEOUT, Identity, Own, SERVER_NAME, explain, provider};

/// How the other side is known.
#[derive(Debug)]
pub enum Trusting {
    /// We joined it: both sides prove who they are.
    Joined(Box<Identity>),
    /// We are about to: a certificate of its chain has this fingerprint. We have none ourselves.
    Introduced(Fingerprint),
    /// By certificates of somebody else's authority, which vouches for its host name.
    Own {
        /// What is ours, and whom we trust.
        own: Box<Own>,
        /// The host that we mean.
        host: String,
    },
}

/// Makes TLS connections to one storage daemon.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// The name that its certificate must have.
    name: ServerName<'static>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClientTls")
    }
}

impl ClientTls {
    /// For a storage daemon that is known so.
    pub fn new(trusting: Trusting) -> Result<ClientTls, Error> {
        let builder =
            ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
        let mut name = SERVER_NAME.to_owned();
        let mut config = match trusting {
            Trusting::Own { own, host } => {
                name = host;
                let mut roots = RootCertStore::empty();
                own.roots.into_iter().try_for_each(|root| roots.add(root))?;
                builder.with_root_certificates(roots).with_client_auth_cert(own.chain, own.key)?
            }
            Trusting::Joined(identity) => builder
                .with_root_certificates(only(identity.ca)?)
                .with_client_auth_cert(vec![identity.certificate], identity.key)?,
            Trusting::Introduced(ca) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ByFingerprint { ca }))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection proves itself anew: a ticket would outlive a revocation.
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from(name).map_err(|error| Error::General(error.to_string()))?;
        Ok(ClientTls { config: Arc::new(config), name })
    }

    /// Shakes hands on a connection.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let shaking = TlsConnector::from(self.config.clone()).connect(self.name.clone(), stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(explained(error)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS: the other side did not finish the handshake")),
        }
    }
}

/// The same error, in words that help.
pub(super) fn explained(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(inner) => io::Error::new(error.kind(), explain(inner)),
        None => error,
    }
}

fn only(ca: CertificateDer<'static>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(roots)
}

/// Trusts the CA of one fingerprint, which the server sends along.
#[derive(Debug)]
struct ByFingerprint {
    ca: Fingerprint,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(ca) = intermediates.iter().find(|certificate| Fingerprint::of(certificate) == self.ca) else {
            return Err(Error::General(
                "the storage daemon is not the one that made the token: somebody is in between, or it was set up anew; \
                 ask for a new token, and check the address"
                    .to_owned(),
            ));
        };
        let roots = Arc::new(only(ca.clone().into_owned())?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
