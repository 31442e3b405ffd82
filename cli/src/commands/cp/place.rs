//! Ends of a copy as people write them.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tandem_proto::{VolumeName, pb};
use tandem_runtime::connect::ServerAddress;

/// A path of a volume.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Who has its replica.
    pub server: ServerAddress,
    /// Which.
    pub volume: VolumeName,
    /// From its root.
    pub path: Vec<Bytes>,
    /// It was written with a slash at its end.
    pub slash: bool,
}

/// Where files are, or are to be.
#[derive(Clone, Debug)]
pub enum End {
    /// On this machine.
    Here(PathBuf),
    /// In a volume.
    There(Remote),
}

impl End {
    /// Whether it has to be a folder.
    pub fn has_slash(&self) -> bool {
        match self {
            End::Here(path) => path.as_os_str().as_bytes().ends_with(b"/"),
            End::There(remote) => remote.slash,
        }
    }
}

impl Remote {
    /// Whether both are of the same volume.
    pub fn is_of(&self, other: &Remote) -> bool {
        self.server == other.server && self.volume == other.volume
    }

    /// The same path below a mountpoint of the volume.
    pub fn below(&self, mountpoint: &Path) -> PathBuf {
        let mut path = mountpoint.to_owned();
        path.extend(self.path.iter().map(|name| OsStr::from_bytes(name)));
        path
    }

    /// As the storage daemon is told.
    pub fn into(&self, directory: bool, preserve: bool, client: String) -> pb::CopyInto {
        let path = pb::CopyPath { names: self.path.clone() };
        pb::CopyInto { volume: self.volume.to_string(), path: Some(path), directory, preserve, client }
    }
}

/// `HOST[:PORT]:/VOLUME/PATH`, or a path of this machine.
pub fn parse(text: &str, insecure: bool) -> Result<End, String> {
    let here = || Ok(End::Here(PathBuf::from(text)));
    let Some((server, path)) = text.split_once(":/") else { return here() };
    if server.contains('/') || server.is_empty() {
        return here();
    }
    let server = crate::storage::with_own(&ServerAddress { insecure, ..server.parse()? }).as_local();
    let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    let volume = parts.next().ok_or("name a volume: HOST:/VOLUME/PATH")?;
    let volume = volume.parse::<VolumeName>().map_err(|error| error.to_string())?;
    let path: Vec<_> = parts.map(|part| Bytes::copy_from_slice(part.as_bytes())).collect();
    if path.iter().any(|part| &part[..] == b"..") {
        return Err("a path of a volume has no ..".to_owned());
    }
    Ok(End::There(Remote { server, volume, path, slash: text.ends_with('/') }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{End, parse};

    #[test]
    fn ends_are_read_as_scp_writes_them() {
        let Ok(End::There(remote)) = parse("store:99:/docs/a/b", false) else { panic!("remote") };
        assert_eq!((remote.server.to_string().as_str(), remote.volume.as_str()), ("store:99", "docs"));
        assert_eq!((remote.path.len(), remote.slash), (2, false));
        assert_eq!(remote.below(Path::new("/mnt")), Path::new("/mnt/a/b"));
        for here in ["./a:/b", "/a/b", "file", "a/"] {
            assert!(matches!(parse(here, false), Ok(End::Here(_))), "{here}");
        }
        assert!(parse("store:/", false).is_err() && parse("store:/v/../x", false).is_err());
        assert!(parse("[::1]:7440:/v/", true).is_ok_and(|end| end.has_slash()));
    }
}
