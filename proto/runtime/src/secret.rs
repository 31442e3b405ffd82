//! The local secret: who may talk to a storaged over plaintext loopback.
//!
//! storaged writes a random secret to a 0600 file in its runtime directory; mountd and the CLI of the same user read it and send
//! it with every call. Other local users can reach the port but not read the file. Health and reflection stay open.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use crate::{dirs, durable};

/// Metadata key that carries the secret.
pub const METADATA_KEY: &str = "x-tandem-secret";

/// Of a secret; it is written in hexadecimal.
const BYTES: usize = 32;
/// More is not read of its file.
const LEN_MAX: u64 = 256;

/// Where the storaged that listens on `port` keeps its secret.
pub fn path(runtime_dir: &Path, port: u16) -> PathBuf {
    runtime_dir.join(format!("storaged-{port}.secret"))
}

/// Makes a new secret for this run and writes it. Returns it as hexadecimal text.
pub fn create(runtime_dir: &Path, port: u16) -> io::Result<String> {
    let mut random = [0u8; BYTES];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    durable::create_private_dir(runtime_dir)?;
    durable::replace_file_durably(&path(runtime_dir, port), secret.as_bytes())?;
    Ok(secret)
}

/// The secret of the local storaged on `port`; `None` if there is none that this user may read.
pub fn read(port: u16) -> Option<String> {
    [dirs::runtime_dir(), dirs::storaged_runtime_dir()].iter().find_map(|dir| read_in(dir, port))
}

/// Reads one. The directory may be that of an account that is trusted less than who reads: what lies there must not lead elsewhere, nor
/// be anything but a secret, as it is sent to that account's daemon.
fn read_in(runtime_dir: &Path, port: u16) -> Option<String> {
    let mut text = String::new();
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path(runtime_dir, port)).ok()?;
    file.take(LEN_MAX).read_to_string(&mut text).ok()?;
    let text = text.trim();
    (text.len() == 2 * BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_owned())
}

/// Compares in time that does not depend on where the texts differ.
pub fn equal(left: &str, right: &str) -> bool {
    left.len() == right.len() && left.bytes().zip(right.bytes()).fold(0, |acc, (l, r)| acc | (l ^ r)) == 0
}

#[cfg(test)]
mod tests {
    use super::{create, path, read_in};

    #[test]
    fn a_secret_reads_back_and_nothing_else_is_taken_for_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read_in(dir.path(), 1), None);
        let secret = create(dir.path(), 1).expect("made");
        assert_eq!(read_in(dir.path(), 1), Some(secret));
        std::os::unix::fs::symlink(path(dir.path(), 1), path(dir.path(), 2)).expect("linked");
        assert_eq!(read_in(dir.path(), 2), None, "a link may lead to what is not that daemon's");
        std::fs::write(path(dir.path(), 3), "root:x:0:0").expect("written");
        assert_eq!(read_in(dir.path(), 3), None);
    }
}
