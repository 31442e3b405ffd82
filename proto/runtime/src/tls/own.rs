//! Certificates of one's own, instead of those that `tandem join` gets: a private key, its certificate, and the authorities that may vouch
//! for the other side. The files belong to somebody else's tools, so they are read for each connection: a renewed one counts at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject};

use super::{IdentityError, check_private};

/// No chain is longer.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// Where they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnFiles {
    /// Authorities for the other side, PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate and its chain, PEM.
    pub cert: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
}

/// What was in the files.
#[derive(Debug)]
pub struct Own {
    /// Authorities for the other side.
    pub roots: Vec<CertificateDer<'static>>,
    /// Our certificate, and its chain.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Own { path: path.to_owned(), why: why.to_string() }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_MAX_BYTES {
        return Err(damaged(path, "it is too long"));
    }
    fs::read(path).map_err(failed)
}

/// All items of one kind in a PEM file; there is one at least, or it `lacks` them.
fn items<T: PemObject>(path: &Path, lacks: &str) -> Result<Vec<T>, IdentityError> {
    let text = read(path)?;
    let found = T::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| damaged(path, error))?;
    if found.is_empty() {
        return Err(damaged(path, lacks));
    }
    Ok(found)
}

/// All certificates of a PEM file; there is one at least.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    items(path, "it holds no certificate (PEM)")
}

/// All revocation lists of a PEM file; there is one at least.
pub fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, IdentityError> {
    items(path, "it holds no revocation list (PEM, X509 CRL)")
}

/// The private key of a PEM file, which must be ours alone.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    check_private(path, &fs::metadata(path).map_err(failed)?)?;
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| damaged(path, error))
}

impl OwnFiles {
    /// Nothing, if none is named.
    pub fn given(self) -> Option<OwnFiles> {
        (self != OwnFiles::default()).then_some(self)
    }

    /// Refuses some without the others.
    pub fn complete(&self) -> Result<(), String> {
        let named = [&self.ca, &self.cert, &self.key].into_iter().flatten().count();
        if named == 0 || named == 3 {
            return Ok(());
        }
        Err("certificates of your own need all three of ca, cert and key".to_owned())
    }

    /// Reads them.
    pub fn load(&self) -> Result<Own, IdentityError> {
        let missing = |what: &str| damaged(Path::new(what), "it is not named: ca, cert and key belong together");
        let named = |path: &Option<PathBuf>, what| path.clone().ok_or_else(|| missing(what));
        Ok(Own {
            roots: certificates(&named(&self.ca, "ca")?)?,
            chain: certificates(&named(&self.cert, "cert")?)?,
            key: private_key(&named(&self.key, "key")?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{OwnFiles, certificates, private_key};
    use crate::tls::{IdentityError, section};

    #[test]
    fn a_key_that_others_may_read_is_refused_and_so_is_a_file_without_certificates() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
        let mut text = String::new();
        section(&mut text, "PRIVATE KEY", &[1; 40]);
        std::fs::write(&key, &text).expect("written");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(private_key(&key).is_ok());
        assert!(matches!(certificates(&key), Err(IdentityError::Own { .. })));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(private_key(&key), Err(IdentityError::Exposed { .. })));
        section(&mut text, "CERTIFICATE", &[2; 40]);
        section(&mut text, "CERTIFICATE", &[3; 40]);
        std::fs::write(&cert, text).expect("written");
        assert_eq!(certificates(&cert).expect("two").len(), 2);
        let files = OwnFiles { ca: Some(cert), ..OwnFiles::default() };
        assert!(files.complete().is_err() && files.load().is_err() && OwnFiles::default().complete().is_ok());
    }
}
