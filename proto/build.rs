//! Compiles the .proto files with a pure-Rust compiler, so that no system `protoc` is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tandem");
    let files = protox::compile(
        [
            "tandem/v1/replication.proto",
            "tandem/v1/admin.proto",
            "tandem/v1/archive.proto",
            "tandem/v1/trust.proto",
            "tandem/v1/volumes.proto",
            "tandem/v1/copies.proto",
        ],
        ["."],
    )?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("tandem.bin"), files.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").codec_path("crate::codec::CheckedCodec").compile_fds(files)?;
    Ok(())
}
