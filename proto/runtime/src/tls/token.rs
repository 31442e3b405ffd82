//! The token that `tandem invite` prints and `tandem join` redeems: where the storage daemon is, how to know it, and a secret that is good
//! once.
//!
//! ```text
//! tandem1.BASE64URL( CA fingerprint (32) ‖ secret (16) ‖ HOST:PORT ‖ crc32c (4) )
//! ```

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::Fingerprint;
use crate::connect::ServerAddress;

/// Length of the secret: nobody guesses it while the token is good.
pub const SECRET_BYTES: usize = 16;
const PREFIX: &str = "tandem1.";
/// Longest text that is looked at.
const TEXT_MAX: usize = 1024;
const FIXED: usize = 32 + SECRET_BYTES + 4;

/// See the module. Its `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Of the CA that the storage daemon must prove to be of.
    pub ca: Fingerprint,
    /// Redeems the invitation.
    pub secret: [u8; SECRET_BYTES],
    /// Where the inviter thinks the storage daemon is reached.
    pub address: ServerAddress,
}

/// A text is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a token ({0}): copy the whole of what `tandem invite` printed, which begins with {PREFIX}")]
pub struct BadToken(&'static str);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("ca", &self.ca).field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.ca.0);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(self.address.to_string().as_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Token, BadToken> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return Err(BadToken("it is too long"));
        }
        let coded = text.strip_prefix(PREFIX).ok_or(BadToken("its beginning is missing"))?;
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| BadToken("a character is not one of a token"))?;
        if bytes.len() <= FIXED {
            return Err(BadToken("it is cut off"));
        }
        let (body, sum) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return Err(BadToken("a character is missing or wrong"));
        }
        let (ca, rest) = body.split_at(32);
        let (secret, address) = rest.split_at(SECRET_BYTES);
        let bad_address = BadToken("its address cannot be read");
        let address = std::str::from_utf8(address).map_err(|_| bad_address.clone())?;
        Ok(Token {
            ca: Fingerprint(ca.try_into().map_err(|_| bad_address.clone())?),
            secret: secret.try_into().map_err(|_| bad_address.clone())?,
            address: address.parse().map_err(|_| bad_address)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{Fingerprint, Token};

    fn token() -> Token {
        Token { ca: Fingerprint([7; 32]), secret: [9; 16], address: "storage.example:7440".parse().expect("address") }
    }

    #[test]
    fn a_token_reads_back_and_a_damaged_one_is_refused() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token()));
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<Token>().is_err(), "{cut}");
        }
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            assert!(String::from_utf8(other).expect("text").parse::<Token>().is_err(), "{at}");
        }
        assert!(!format!("{:?}", token()).contains('9'), "a log must not hold the secret");
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_refused(text in any::<String>(), coded in "[A-Za-z0-9_-]{0,200}") {
            let _ = text.parse::<Token>();
            let _ = format!("tandem1.{coded}").parse::<Token>();
        }
    }
}
