//! The local secret: who may talk to a storaged over plaintext loopback.
//!
//! storaged writes a random secret to a 0600 file in its runtime directory; mountd and the CLI of the same user read it and send
//! it with every call. Other local users can reach the port but not read the file. Health and reflection stay open.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{dirs, durable};

/// Metadata key that carries the secret.
pub const METADATA_KEY: &str = "x-tandem-secret";

/// Where the storaged that listens on `port` keeps its secret.
pub fn path(runtime_dir: &Path, port: u16) -> PathBuf {
    runtime_dir.join(format!("storaged-{port}.secret"))
}

/// Makes a new secret for this run and writes it. Returns it as hexadecimal text.
pub fn create(runtime_dir: &Path, port: u16) -> io::Result<String> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let secret: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    durable::create_private_dir(runtime_dir)?;
    durable::replace_file_durably(&path(runtime_dir, port), secret.as_bytes())?;
    Ok(secret)
}

/// The secret of the local storaged on `port`; `None` if there is none that this user may read.
pub fn read(port: u16) -> Option<String> {
    fs::read_to_string(path(&dirs::runtime_dir(), port)).ok().map(|text| text.trim().to_owned())
}

/// Compares in time that does not depend on where the texts differ.
pub fn equal(left: &str, right: &str) -> bool {
    left.len() == right.len() && left.bytes().zip(right.bytes()).fold(0, |acc, (l, r)| acc | (l ^ r)) == 0
}
