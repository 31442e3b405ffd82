//! Who is at the other end: TLS 1.3 with certificates on both sides, made by the certification authority (CA) of one storage daemon.
//!
//! ```text
//!  storaged: its own CA ─┬─ its certificate, for the one name [`SERVER_NAME`]
//!                        └─ a certificate for each client, from `tandem join`
//!  client:   [`Identity`] = key, certificate, that CA;   before it has one: [`Token`], which carries the CA's fingerprint
//! ```
//! A CA speaks for one storage daemon only, and gives that name to nobody else. So addresses and host names may change, and a client's
//! certificate never passes for the server's. Everything else (which client may do what) is decided by the storage daemon from the
//! certificate's fingerprint, not from anything that is written in it.

mod client;
mod identity;
mod own;
mod token;
mod wire;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::crypto::CryptoProvider;

pub use self::{
    client::{ClientTls, Trusting},
    identity::{Identity, IdentityError, check_private, identities, path_for, section},
    own::{Own, OwnFiles, certificates, private_key, revocation_lists},
    token::{BadToken, SECRET_BYTES, Token},
    wire::Wire,
};

/// The name in every storage daemon's certificate. No real host can have it.
pub const SERVER_NAME: &str = "storaged.tandem.invalid";
/// The protocol inside: HTTP/2.
pub const ALPN: &[u8] = b"h2";
/// A handshake that takes longer is given up.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The cryptography: aws-lc.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of DER bytes.
    pub fn of(der: &[u8]) -> Fingerprint {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Fingerprint(bytes)
    }

    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Fingerprint> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Fingerprint(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Seconds since 1970.
pub fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// What a handshake's error means to people.
pub fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
    let hint = match error {
        Error::InvalidCertificate(Certificate::UnknownIssuer)
        | Error::InvalidCertificate(Certificate::BadSignature)
        | Error::InvalidCertificate(Certificate::ApplicationVerificationFailure) => {
            "this is not the storage daemon that we joined: check the address; if it was set up anew, join it again"
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "its certificate has expired: check the clocks of both machines, then restart the storage daemon"
        }
        Error::AlertReceived(Alert::CertificateExpired) => "our certificate has expired: join again with a new token",
        Error::AlertReceived(Alert::UnknownCA | Alert::DecryptError | Alert::BadCertificate) => {
            "it does not know our certificate: join it again with a new token"
        }
        Error::InvalidMessage(_) => "it does not speak TLS: is this the port of a tandem-storaged?",
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {error}; {hint}")
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn a_fingerprint_is_that_of_openssl_and_reads_back() {
        let of = Fingerprint::of(b"abc");
        assert_eq!(of.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Fingerprint::parse(&of.to_string()), Some(of));
        for wrong in ["", "ba", &"x".repeat(64), &"é".repeat(32)] {
            assert_eq!(Fingerprint::parse(wrong), None);
        }
    }
}
