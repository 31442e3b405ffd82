//! Certificates of somebody else's authority (`--tls-cert`, `--tls-key`, `--tls-client-ca`, `--tls-client-crl`), beside those of our own.
//!
//! ```text
//!  shown:    the client asks for the name of our own CA ─► our own certificate
//!            for any other name, or none                ─► that of --tls-cert, if there is one
//!  believed: a certificate that the registry knows      ─► that client
//!            one that --tls-client-ca vouches for, and that no list of --tls-client-crl names
//!                                                       ─► the client of the name in it, if somebody gave that name roles
//! ```
//! The two kinds of clients never mix: one that joined is known by its certificate only, whatever name another authority writes in its own.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tandem_runtime::tls::{certificates, private_key, provider, revocation_lists};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use super::TrustError;
use crate::config::OwnTls;

/// Of a client's name.
const NAME_MAX: usize = 64;

/// What was in the files.
#[derive(Debug, Default)]
pub struct Foreign {
    /// Shown to who does not ask for our own CA.
    pub shown: Option<Arc<CertifiedKey>>,
    /// Vouch for clients.
    pub roots: Vec<CertificateDer<'static>>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl Foreign {
    /// Reads them.
    pub fn load(files: &OwnTls) -> Result<Foreign, TrustError> {
        let tls = |error: &dyn std::fmt::Display| TrustError::Tls(error.to_string());
        let shown = match &files.shown {
            None => None,
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                let key = provider().key_provider.load_private_key(private_key(key)?).map_err(|error| tls(&error))?;
                let shown = CertifiedKey::new(chain, key);
                shown.keys_match().map_err(|_| {
                    TrustError::Tls(format!("{} is not the certificate of the key beside it", cert.display()))
                })?;
                Some(Arc::new(shown))
            }
        };
        let roots = files.client_ca.as_deref().map_or(Ok(Vec::new()), certificates)?;
        let verifier = match roots.is_empty() {
            true => None,
            false => {
                let mut store = RootCertStore::empty();
                roots.iter().try_for_each(|root| store.add(root.clone())).map_err(|error| tls(&error))?;
                let revoked = files.client_crl.as_deref().map_or(Ok(Vec::new()), revocation_lists)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
                    .with_crls(revoked)
                    // Of an authority without a list, as there are without this option.
                    .allow_unknown_revocation_status();
                Some(verifier.build().map_err(|error| tls(&error))?)
            }
        };
        Ok(Foreign { shown, roots, verifier })
    }

    /// The client's name, if its certificate is one that these authorities vouch for.
    pub fn name_of(&self, chain: &[CertificateDer<'_>]) -> Option<String> {
        let (certificate, rest) = chain.split_first()?;
        self.verifier.as_ref()?.verify_client_cert(certificate, rest, UnixTime::now()).ok()?;
        name_in(certificate)
    }
}

/// The name that a certificate is for: the first alternative one, else the common name. `None`: it has none that can be shown.
fn name_in(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let named = alternative.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                Some((*name).to_owned())
            }
            _ => None,
        })
    });
    let common =
        || certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(str::to_owned);
    named.or_else(common).filter(|name| is_name(name))
}

/// Whether a name can be that of a client: what can be shown, and typed.
pub fn is_name(name: &str) -> bool {
    let fit = |c: char| c.is_ascii_alphanumeric() || "@._-:/".contains(c);
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(fit)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::{Foreign, is_name, name_in};
    use crate::config::OwnTls;

    fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("signed").pem();
        (Issuer::new(params, key), pem)
    }

    fn client(issuer: &Issuer<'static, KeyPair>, names: &[&str], common: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let names_len = names.len() as u64 + 1;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, common);
        params.serial_number = Some(SerialNumber::from(names_len));
        (params.signed_by(&key, issuer).expect("signed"), key)
    }

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn a_client_is_the_name_that_a_trusted_authority_wrote_and_nobody_by_another() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("ca.pem");
        let ((trusted, pem), (other, _)) = (authority("ours"), authority("theirs"));
        write(&file, &pem, 0o644);
        let foreign = Foreign::load(&OwnTls { client_ca: Some(file), ..OwnTls::default() }).expect("good");
        let name = |certificate: &rcgen::Certificate| foreign.name_of(&[certificate.der().clone()]);
        assert_eq!(name(&client(&trusted, &["host.example"], "cn").0).as_deref(), Some("host.example"));
        assert_eq!(name(&client(&trusted, &[], "me@laptop").0).as_deref(), Some("me@laptop"));
        assert_eq!(name(&client(&trusted, &[], "no name\n").0), None);
        assert_eq!(name(&client(&other, &["host.example"], "cn").0), None);
        assert_eq!(Foreign::default().name_of(&[client(&trusted, &["a"], "a").0.der().clone()]), None);
        assert!(name_in(b"junk").is_none());
        assert!(is_name("spiffe://x/y") && !is_name("") && !is_name("a b"));
    }

    #[test]
    fn a_certificate_that_its_authority_revoked_is_nobodys() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (ca, list) = (dir.path().join("ca.pem"), dir.path().join("crl.pem"));
        let ((one, pem), (two, another)) = (authority("one"), authority("two"));
        write(&ca, &format!("{pem}{another}"), 0o644);
        // The serial number of a certificate is the number of its names and one.
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(2),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let revoked = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        write(&list, &revoked.signed_by(&one).expect("signed").pem().expect("text"), 0o644);
        let files = OwnTls { shown: None, client_ca: Some(ca.clone()), client_crl: Some(list) };
        let foreign = Foreign::load(&files).expect("good");
        let name = |issuer, names: &[&str]| foreign.name_of(&[client(issuer, names, "cn").0.der().clone()]);
        assert_eq!(name(&one, &["revoked.example"]), None);
        assert_eq!(name(&one, &["a.example", "b.example"]).as_deref(), Some("a.example"));
        assert_eq!(name(&two, &["a.example"]).as_deref(), Some("a.example"), "it has no list");
        let files = OwnTls { client_crl: Some(ca), ..files };
        assert!(Foreign::load(&files).expect_err("no list").to_string().contains("revocation list"));
    }

    #[test]
    fn a_key_that_others_may_read_or_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let (issuer, _) = authority("ours");
        let ((made, its), (_, another)) = (client(&issuer, &["a"], "a"), client(&issuer, &["b"], "b"));
        let files = OwnTls { shown: Some((cert.clone(), key.clone())), ..OwnTls::default() };
        write(&cert, &made.pem(), 0o644);
        write(&key, &its.serialize_pem(), 0o600);
        assert!(Foreign::load(&files).expect("good").shown.is_some());
        write(&key, &another.serialize_pem(), 0o600);
        assert!(Foreign::load(&files).expect_err("another key").to_string().contains("not the certificate"));
        write(&key, &its.serialize_pem(), 0o644);
        assert!(Foreign::load(&files).expect_err("exposed").to_string().contains("chmod 600"));
    }
}
