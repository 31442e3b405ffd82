//! `tandem cp`: files out of volumes, into volumes, and from one storage daemon to another.
//!
//! ```text
//!   sources ─► groups of one place each ─┬ volume → here     Copies.Send, [local] puts them in place
//!                                        ├ here → volume     [source] lists and reads, Copies.Put
//!                                        ├ volume → volume   Copies.Bring: the storage daemons talk to each other
//!                                        └ here → here       a volume that is mounted here: through its mount
//! ```
//! Promise: a name appears only when its bytes have the digest that the other end computed. What had arrived of a file when the link was
//! cut, or when this command was killed, is not sent again: the bytes that are there are named by their digest.

mod local;
mod place;
mod show;
mod source;
mod transfer;

use std::path::PathBuf;

use tandem_runtime::connect::ServerAddress;

use self::{
    place::{End, Remote, parse},
    show::Shown,
    source::Listed,
    transfer::Transfer,
};
use crate::{
    exit::{Exit, Failure},
    mounts,
    output::complain,
};

/// Options of `tandem cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem cp localhost:/docs/report.txt .            one file of volume docs
  tandem cp -r store:/docs/src ./src-copy           a folder
  tandem cp 'store:/docs/logs/*.gz' /tmp            what matches; quoted, so that the shell leaves it alone
  tandem cp -rp ./photos store:/archive/            into a volume that nobody has mounted
  tandem cp -r store:/docs far:/docs-2026/          from one storage daemon to the other, not by way of this machine

Run it again after an interruption: what had arrived is not sent again.
A volume has one writer: into one that is mounted here the copy goes through its mount; one that is mounted elsewhere is refused.")]
pub struct Args {
    /// Folders with all that they hold.
    #[arg(short, long)]
    recursive: bool,
    /// Keeps modes, owners (as root) and times.
    #[arg(short, long)]
    preserve: bool,
    /// Speaks without encryption to a storage daemon on another machine.
    #[arg(long)]
    insecure: bool,
    /// What to copy, then where to: HOST[:PORT]:/VOLUME/PATH or a path of this machine; * and ? in the last name.
    #[arg(value_name = "SRC... DST", num_args = 2.., required = true)]
    paths: Vec<String>,
}

/// Sources of one place, which are copied together.
enum Group {
    Here(Vec<PathBuf>),
    There(Remote, Vec<Vec<bytes::Bytes>>),
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn grouped(sources: &[String], insecure: bool) -> Result<Vec<Group>, Failure> {
    let mut groups: Vec<Group> = Vec::new();
    for source in sources {
        let end = parse(source, insecure).map_err(|why| usage(format!("{source}: {why}")))?;
        match (end, groups.last_mut()) {
            (End::Here(path), Some(Group::Here(paths))) => paths.push(path),
            (End::Here(path), _) => groups.push(Group::Here(vec![path])),
            (End::There(remote), Some(Group::There(last, paths))) if last.is_of(&remote) => paths.push(remote.path),
            (End::There(mut remote), _) => {
                let path = std::mem::take(&mut remote.path);
                groups.push(Group::There(remote, vec![path]));
            }
        }
    }
    Ok(groups)
}

/// Where a volume is mounted on this machine, if it is.
async fn mounted_here(remote: &Remote) -> Option<PathBuf> {
    let found = mounts::select(&[]).await.ok()?;
    let is_same = |mount: &mounts::Mount| {
        let server = mount.status.server.parse::<ServerAddress>();
        mount.status.volume == remote.volume.as_str()
            && server.is_ok_and(|server| {
                server.port == remote.server.port
                    && (server.host == remote.server.host || (server.is_loopback() && remote.server.is_loopback()))
            })
    };
    found.mounts.iter().find(|mount| is_same(mount)).map(|mount| PathBuf::from(&mount.status.mountpoint))
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let (to, sources) = args.paths.split_last().expect("clap wants two");
    let groups = grouped(sources, args.insecure)?;
    let mut to = parse(to, args.insecure).map_err(|why| usage(format!("{to}: {why}")))?;
    let mut directory = sources.len() > 1 || to.has_slash();
    if matches!((&to, &groups[..]), (End::Here(_), [Group::Here(_)])) {
        return Err(usage("all of it is on this machine: use cp; or write HOST:/VOLUME/PATH"));
    }
    if let End::There(remote) = to.clone()
        && let Some(mountpoint) = mounted_here(&remote).await
    {
        complain(&format!(
            "volume {} is mounted at {}: the copy goes through its mount",
            remote.volume,
            mountpoint.display()
        ));
        to = End::Here(remote.below(&mountpoint));
        directory |= remote.path.is_empty();
    }
    let mut shown = Shown::default();
    for group in groups {
        let transfer = Transfer { recursive: args.recursive, preserve: args.preserve, directory, shown: &mut shown };
        match (group, &to) {
            (Group::Here(paths), End::Here(to)) => transfer.here(Listed::list(&paths, args.recursive)?, to).await?,
            (Group::Here(paths), End::There(to)) => transfer.put(Listed::list(&paths, args.recursive)?, to).await?,
            (Group::There(from, paths), End::Here(to)) => transfer.get(&from, paths, to).await?,
            (Group::There(from, paths), End::There(to)) => transfer.bring(&from, paths, to).await?,
        }
    }
    shown.end()
}
