//! The past of a volume: which one is meant by a path, and the way to the storage daemon that knows it.

use std::{
    ffi::OsStr,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Component, Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use tandem_proto::{VolumeName, limits::MESSAGE_MAX_BYTES, pb::archive_client::ArchiveClient};
use tandem_runtime::{
    connect::{Credentials, KEEPALIVE, ServerAddress},
    failure::said,
};
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    exit::{Exit, Failure},
    mounts::{Mount, select, with_causes},
    storage::with_own,
};

/// How long a storage daemon may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks a storage daemon about the past.
pub type Client = ArchiveClient<InterceptedService<Channel, Credentials>>;

/// Options that say which volume is meant.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The volume, where it is not mounted here; PATH is then a path in it.
    #[arg(long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// The storage daemon of that volume. Default: the one of this host.
    #[arg(long, value_name = "HOST[:PORT]", requires = "volume")]
    pub server: Option<ServerAddress>,
    /// Speaks without encryption to a storage daemon on another machine.
    #[arg(long)]
    pub insecure: bool,
}

/// A path in a volume.
#[derive(Debug)]
pub struct Place {
    /// Who has its replica.
    pub server: ServerAddress,
    /// Its name.
    pub volume: String,
    /// From the root of the volume.
    pub path: Vec<Bytes>,
    /// Where the volume is mounted here.
    pub mountpoint: Option<PathBuf>,
}

impl Which {
    /// What is meant: a path on a mount, which need not exist, or in a volume that is named.
    pub async fn place(&self, path: Option<&Path>) -> Result<Place, Failure> {
        if let Some(volume) = &self.volume {
            let default = || "localhost".parse().expect("an address");
            let server = ServerAddress { insecure: self.insecure, ..self.server.clone().unwrap_or_else(default) };
            let path = names(path.unwrap_or(Path::new("")));
            return Ok(Place { server, volume: volume.to_string(), path, mountpoint: None });
        }
        let Some(path) = path else {
            let mount = the_only_mount().await?;
            return self.of_mount(&mount, Vec::new());
        };
        let wrong = |error| Failure::new(Exit::Usage, format!("{}: {error}", path.display()));
        let (existing, rest) = resolve(path).map_err(wrong)?;
        let found = select(std::slice::from_ref(&existing)).await?;
        if let Some(silent) = found.silent.first() {
            return Err(Failure::new(Exit::NoAnswer, crate::render::silent_line(silent)));
        }
        let Some(mount) = found.mounts.first() else {
            return Err(Failure::new(Exit::NoAnswer, format!("{} is on no mount", path.display())));
        };
        let below = existing.strip_prefix(&mount.status.mountpoint).unwrap_or(Path::new(""));
        let mut path = names(below);
        path.extend(rest);
        self.of_mount(mount, path)
    }

    fn of_mount(&self, mount: &Mount, path: Vec<Bytes>) -> Result<Place, Failure> {
        let wrong = |error: String| Failure::new(Exit::NoAnswer, error);
        let server: ServerAddress = mount.status.server.parse().map_err(wrong)?;
        let server = ServerAddress { insecure: self.insecure, ..server };
        let mountpoint = Some(PathBuf::from(&mount.status.mountpoint));
        Ok(Place { server, volume: mount.status.volume.clone(), path, mountpoint })
    }
}

async fn the_only_mount() -> Result<Mount, Failure> {
    let found = select(&[]).await?;
    match &found.mounts[..] {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(Exit::NoAnswer, "no mount of this user answers; see: tandem status")),
        _ => Err(Failure::new(Exit::Usage, "several volumes are mounted here: name a path on the one that is meant")),
    }
}

fn names(path: &Path) -> Vec<Bytes> {
    let normal = |component: Component<'_>| match component {
        Component::Normal(name) => Some(Bytes::copy_from_slice(name.as_bytes())),
        _ => None,
    };
    path.components().filter_map(normal).collect()
}

/// The part of a path that exists, and the names after it.
fn resolve(path: &Path) -> std::io::Result<(PathBuf, Vec<Bytes>)> {
    let absolute = std::path::absolute(path)?;
    let mut rest = Vec::new();
    let mut at = absolute.as_path();
    loop {
        match at.canonicalize() {
            Ok(existing) => {
                rest.reverse();
                return Ok((existing, rest));
            }
            Err(error) => match (at.file_name(), at.parent()) {
                (Some(name), Some(parent)) => {
                    rest.push(Bytes::from(name.to_owned().into_vec()));
                    at = parent;
                }
                _ => return Err(error),
            },
        }
    }
}

impl Place {
    /// Connects to the storage daemon.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let server = with_own(&self.server);
        server.may_connect().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let channel = server.connect(CONNECT_TIMEOUT, Some(KEEPALIVE)).await.map_err(|error| {
            let why = with_causes(&error);
            let message =
                format!("storage daemon {} does not answer: {why}; is tandem-storaged running there?", self.server);
            Failure::new(Exit::NoAnswer, message)
        })?;
        let client = ArchiveClient::with_interceptor(channel, self.server.credentials());
        Ok(client.max_decoding_message_size(MESSAGE_MAX_BYTES))
    }

    /// What an answer other than a reply means.
    pub fn failure(&self, status: &tonic::Status) -> Failure {
        let exit = match status.code() {
            Code::InvalidArgument => Exit::Usage,
            Code::NotFound => Exit::Unreachable,
            _ => Exit::NoAnswer,
        };
        let hint = match status.code() {
            Code::Unimplemented => "; it is of an older version",
            Code::Unauthenticated | Code::PermissionDenied => "; run this as the user who runs tandem-storaged",
            _ => "",
        };
        Failure::new(exit, format!("storage daemon {}: {}{hint}", self.server, said(status)))
    }

    /// A path of the volume as people see it here.
    pub fn shown(&self, path: &[Bytes]) -> String {
        let mut shown = self.mountpoint.clone().unwrap_or_else(|| PathBuf::from("/"));
        shown.extend(path.iter().map(|name| OsStr::from_bytes(name)));
        shown.display().to_string()
    }
}
