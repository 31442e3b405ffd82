//! What a client keeps of a storage daemon that it joined: one file per address, `identities/HOST:PORT.pem` in the state directory.
//!
//! ```text
//! tandem identity 1            ← lines before the first section: for people, and what is known of the certificate
//! client: me@laptop
//! expires: 1790000000
//! renew-after: 1787000000
//! -----BEGIN PRIVATE KEY-----  ← ours
//! -----BEGIN CERTIFICATE-----  ← ours
//! -----BEGIN CERTIFICATE-----  ← the CA's
//! ```
//! One file, because a key and a certificate that do not belong to each other are worth nothing: it is replaced as a whole.

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use crate::{connect::ServerAddress, dirs, durable};

const HEADER: &str = "tandem identity ";
const FORMAT: u32 = 1;
/// No identity is longer.
const FILE_MAX_BYTES: u64 = 64 << 10;
const PEM_LINE: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Identity {
    /// What the storage daemon calls us.
    pub client: String,
    /// Unix time.
    pub expires_s: i64,
    /// Unix time from which on it is renewed.
    pub renew_after_s: i64,
    /// Ours, PKCS #8.
    pub key: PrivateKeyDer<'static>,
    /// Ours.
    pub certificate: CertificateDer<'static>,
    /// Of the storage daemon's CA.
    pub ca: CertificateDer<'static>,
}

/// An identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system.
    #[error("the identity {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read the key.
    #[error(
        "the identity {} holds a private key, and {found}: make it yours alone (chown, chmod 600); if somebody may have read it, revoke \
         this client and join again", path.display()
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The content of a file that is not ours.
    #[error("the certificate or key {}: {why}", path.display())]
    Own {
        /// Which.
        path: PathBuf,
        /// What.
        why: String,
    },
    /// Its content.
    #[error("the identity {}: {why}; join the storage daemon again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What.
        why: String,
    },
}

/// Where the identities of this user are.
pub fn identities() -> PathBuf {
    dirs::state_dir().join("identities")
}

/// The file for one storage daemon.
pub fn path_for(directory: &Path, server: &ServerAddress) -> PathBuf {
    directory.join(format!("{server}.pem"))
}

/// Refuses a key that somebody else could read or replace.
pub fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    let exposed = |found: String| Err(IdentityError::Exposed { path: path.to_owned(), found });
    let me = rustix::process::geteuid().as_raw();
    if metadata.mode() & 0o077 != 0 {
        return exposed(format!("its mode {:04o} lets others in", metadata.mode() & 0o7777));
    }
    if metadata.uid() != me && me != 0 {
        return exposed(format!("it belongs to user {}", metadata.uid()));
    }
    Ok(())
}

impl Identity {
    /// Reads a file; `None` if there is none.
    pub fn load(path: &Path) -> Result<Option<Identity>, IdentityError> {
        let failed = |source| IdentityError::Io { path: path.to_owned(), source };
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        check_private(path, &metadata)?;
        let damaged = |why: &str| IdentityError::Damaged { path: path.to_owned(), why: why.to_owned() };
        if metadata.len() > FILE_MAX_BYTES {
            return Err(damaged("it is too long"));
        }
        let text = fs::read_to_string(path).map_err(failed)?;
        Identity::parse(&text).map(Some).map_err(damaged)
    }

    /// Understands the text of a file.
    pub fn parse(text: &str) -> Result<Identity, &'static str> {
        let (head, _) = text.split_once("-----BEGIN").ok_or("it holds no key")?;
        let format = head.lines().next().and_then(|line| line.strip_prefix(HEADER)).ok_or("it is not an identity")?;
        if format.trim().parse() != Ok(FORMAT) {
            return Err("another version wrote it");
        }
        let field = |name: &str| {
            let found = head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name);
            found.map(|(_, value)| value.trim())
        };
        let time = |name| field(name).and_then(|value| value.parse().ok()).ok_or("a date is missing");
        let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| "its key cannot be read")?;
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|_| "a certificate cannot be read")?;
        let [certificate, ca] =
            <[CertificateDer<'static>; 2]>::try_from(certificates).map_err(|_| "it does not hold two certificates")?;
        Ok(Identity {
            client: field("client").ok_or("its name is missing")?.to_owned(),
            expires_s: time("expires")?,
            renew_after_s: time("renew-after")?,
            key: PrivateKeyDer::Pkcs8(key),
            certificate,
            ca,
        })
    }

    /// The text of its file.
    pub fn text(&self) -> String {
        // A line break in a name would end its line.
        let client: String = self.client.chars().filter(|c| !c.is_control()).collect();
        let mut text = format!(
            "{HEADER}{FORMAT}\nclient: {client}\nexpires: {}\nrenew-after: {}\n",
            self.expires_s, self.renew_after_s
        );
        section(&mut text, "PRIVATE KEY", self.key.secret_der());
        section(&mut text, "CERTIFICATE", &self.certificate);
        section(&mut text, "CERTIFICATE", &self.ca);
        text
    }

    /// Writes it, durably and as a whole.
    pub fn store(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            durable::create_private_dir(directory).map_err(failed)?;
        }
        durable::replace_file_durably(path, self.text().as_bytes()).map_err(failed)
    }
}

/// One section of a PEM file.
pub fn section(text: &mut String, label: &str, der: &[u8]) {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    // Writing to a string does not fail.
    let _ = writeln!(text, "-----BEGIN {label}-----");
    for line in STANDARD.encode(der).as_bytes().chunks(PEM_LINE) {
        let _ = writeln!(text, "{}", String::from_utf8_lossy(line));
    }
    let _ = writeln!(text, "-----END {label}-----");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::{Identity, IdentityError};

    fn identity() -> Identity {
        Identity {
            client: "me@laptop".into(),
            expires_s: 200,
            renew_after_s: 100,
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(vec![1; 100])),
            certificate: CertificateDer::from(vec![2; 300]),
            ca: CertificateDer::from(vec![3; 48]),
        }
    }

    #[test]
    fn an_identity_is_private_reads_back_and_is_refused_when_others_may_read_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("ids/localhost:7440.pem");
        assert!(Identity::load(&path).expect("nothing there").is_none());
        identity().store(&path).expect("stored");
        let back = Identity::load(&path).expect("readable").expect("there");
        assert_eq!(back.text(), identity().text());
        assert_eq!(back.key.secret_der(), [1; 100]);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(Identity::load(&path), Err(IdentityError::Exposed { .. })));
    }

    #[test]
    fn a_cut_identity_is_refused_with_what_is_missing() {
        let text = identity().text();
        for cut in (0..text.len() - 1).step_by(7) {
            assert!(Identity::parse(&text[..cut]).is_err(), "{cut}");
        }
        assert_eq!(Identity::parse(&text.replace("identity 1", "identity 2")).err(), Some("another version wrote it"));
    }
}
