//! The certification authority of one storage daemon: its key, and the certificates that it signs.
//!
//! Its key and certificate lie in one file, written once. The certificate that storaged itself shows is made in memory, and anew long
//! before it expires; nobody has to keep it, because clients know the CA.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tandem_runtime::{
    durable,
    tls::{ALPN, Fingerprint, SERVER_NAME, check_private, now_s, provider, section},
};
use time::OffsetDateTime;

use super::{TrustError, own::Foreign};

const FILE: &str = "ca.pem";
const DAY_S: i64 = 24 * 3600;
/// Of the CA. Whoever changes it makes every client join again.
const CA_LIFE_S: i64 = 30 * 365 * DAY_S;
/// Of a client's certificate. One that was stolen unnoticed is worth something for so long.
const CLIENT_LIFE_S: i64 = 90 * DAY_S;
/// Of storaged's own.
const SERVER_LIFE_S: i64 = 90 * DAY_S;
/// storaged shows a certificate that is younger.
const SERVER_RENEW: Duration = Duration::from_secs(30 * DAY_S as u64);
/// How far clocks may be apart.
const SKEW_S: i64 = DAY_S;
/// A request is a few hundred bytes.
const CSR_MAX_BYTES: usize = 4 << 10;

/// A certificate for a client.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER.
    pub certificate: Vec<u8>,
    /// Of it.
    pub fingerprint: Fingerprint,
    /// Unix time.
    pub expires_s: i64,
    /// Unix time.
    pub renew_after_s: i64,
}

/// See the module.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn params(name: &str, life_s: i64) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    // A serial number is positive.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (at(now_s() - SKEW_S), at(now_s() + life_s));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

impl Authority {
    /// Reads its key, or makes one.
    pub fn open_or_create(directory: &Path) -> Result<Authority, TrustError> {
        let path = directory.join(FILE);
        if !path.exists() {
            let key = KeyPair::generate()?;
            let mut ca = params("TandemFS storage daemon", CA_LIFE_S)?;
            ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            let certificate = ca.self_signed(&key)?;
            let mut text = String::new();
            section(&mut text, "PRIVATE KEY", &key.serialize_der());
            section(&mut text, "CERTIFICATE", certificate.der());
            durable::replace_file_durably(&path, text.as_bytes()).map_err(TrustError::io(&path))?;
            tracing::info!(file = %path.display(), "made a certification authority");
        }
        let metadata = fs::metadata(&path).map_err(TrustError::io(&path))?;
        check_private(&path, &metadata)?;
        let text = fs::read_to_string(&path).map_err(TrustError::io(&path))?;
        let damaged = |why: String| TrustError::Damaged { path: path.clone(), why };
        let certificate =
            CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|error| damaged(error.to_string()))?;
        let key = KeyPair::try_from(&key).map_err(|error| damaged(error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| damaged(error.to_string()))?;
        Ok(Authority { issuer, certificate: certificate.into_owned() })
    }

    /// Its certificate.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Of its certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Signs a client's public key. From its request nothing but the key is taken, and that it has the private one.
    pub fn issue(&self, csr: &[u8]) -> Result<Issued, TrustError> {
        if csr.len() > CSR_MAX_BYTES {
            return Err(TrustError::Tls(format!("the request is longer than {CSR_MAX_BYTES} bytes")));
        }
        self.issue_for(csr, CLIENT_LIFE_S)
    }

    /// The same with another life.
    pub fn issue_for(&self, csr: &[u8], life_s: i64) -> Result<Issued, TrustError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
        self.sign_client(&request.public_key, life_s)
    }

    fn sign_client(&self, key: &impl PublicKeyData, life_s: i64) -> Result<Issued, TrustError> {
        let mut client = params("TandemFS client", life_s)?;
        client.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = client.signed_by(key, &self.issuer)?.der().to_vec();
        let (now, expires_s) = (now_s(), now_s() + life_s);
        let fingerprint = Fingerprint::of(&certificate);
        Ok(Issued { certificate, fingerprint, expires_s, renew_after_s: now + life_s * 2 / 3 })
    }

    fn own(&self) -> Result<Arc<CertifiedKey>, TrustError> {
        let key = KeyPair::generate()?;
        let mut own = params("TandemFS storage daemon", SERVER_LIFE_S)?;
        own.subject_alt_names = vec![rcgen::SanType::DnsName(SERVER_NAME.try_into()?)];
        own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = own.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = provider().key_provider.load_private_key(key).map_err(|error| TrustError::Tls(error.to_string()))?;
        // The CA goes along for those who know its fingerprint only.
        Ok(Arc::new(CertifiedKey::new(vec![certificate, self.certificate.clone()], key)))
    }

    /// How handshakes are answered: TLS 1.3, a certificate of this CA, or of one that was brought along, or none, and nothing that
    /// outlives the connection.
    pub fn server_config(self: &Arc<Self>, foreign: &Foreign) -> Result<Arc<ServerConfig>, TrustError> {
        let tls = |error: &dyn std::fmt::Display| TrustError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        for root in foreign.roots.iter().chain([&self.certificate]) {
            roots.add(root.clone()).map_err(|error| tls(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls(&error))?;
        let shown = Mutex::new((Instant::now(), self.own()?));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| tls(&error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown { authority: self.clone(), shown, brought: foreign.shown.clone() }));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A ticket would let a client in whose certificate was revoked meanwhile.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

/// storaged's own certificate, made anew in time.
struct Shown {
    authority: Arc<Authority>,
    shown: Mutex<(Instant, Arc<CertifiedKey>)>,
    /// For who does not know our CA.
    brought: Option<Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(brought) = &self.brought
            && hello.server_name() != Some(SERVER_NAME)
        {
            return Some(brought.clone());
        }
        let mut shown = self.shown.lock();
        if shown.0.elapsed() > SERVER_RENEW {
            match self.authority.own() {
                Ok(own) => *shown = (Instant::now(), own),
                Err(error) => tracing::error!(%error, "the old certificate is shown on"),
            }
        }
        Some(shown.1.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

    use proptest::prelude::{any, proptest};

    use super::{Authority, FILE, Foreign};

    #[test]
    fn the_authority_lasts_and_its_key_is_refused_when_others_may_read_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = Authority::open_or_create(dir.path()).expect("made");
        let again = Arc::new(Authority::open_or_create(dir.path()).expect("opened"));
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert!(again.server_config(&Foreign::default()).is_ok());
        let file = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).expect("stat").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o604)).expect("chmod");
        let error = Authority::open_or_create(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("0604") && error.contains("chmod 600"), "{error}");
    }

    proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn any_bytes_for_a_request_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600), flip in any::<(usize, u8)>()) {
            let dir = tempfile::tempdir().expect("temporary directory");
            let authority = Authority::open_or_create(dir.path()).expect("made");
            assert!(authority.issue(&bytes).is_err());
            let key = rcgen::KeyPair::generate().expect("a key");
            let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
            let mut der = request.der().to_vec();
            assert!(authority.issue(&der).is_ok());
            let at = flip.0 % der.len();
            der[at] ^= flip.1.max(1);
            // Nearly all are refused; what a signature does not cover, as the unused bits of its own bit string, does no harm.
            let _ = authority.issue(&der);
        }
    }
}
