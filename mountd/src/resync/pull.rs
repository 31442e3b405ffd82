//! `-o init=pull`: fills an empty folder from the replica.
//!
//! Runs in the foreground before the mount. It can be interrupted at any point and run again: files that are complete (their mtime is
//! set last) are not written again. A note in the state directory tells a half-filled folder from one that belongs to somebody.
//! Receiving and writing are [`tandem_pull`]'s.

use std::{fs, io, path::Path};

use tandem_proto::VolumeName;
use tandem_pull::{Pull, Pulled, Writer, io_error};
use tandem_runtime::{connect::ServerAddress, durable};

/// Name of the note in the state directory.
const NOTE: &str = "pulling";

/// Pulling failed. What was written stays; running it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The folder holds something that does not come from a pull.
    #[error(
        "{0} is not empty: init=pull fills an empty folder only. Empty it, mount another folder, or use -o init=push"
    )]
    NotEmpty(String),
    /// The storage daemon or the local disk.
    #[error("{0}; mount again with -o init=pull to go on")]
    Failed(#[from] tandem_pull::PullError),
}

/// Whether a pull began to fill the folder of this state directory and did not end: what it holds is not what it means.
pub fn is_half_done(state_dir: &Path) -> bool {
    // If it cannot be told, it is safer not to go on.
    state_dir.join(NOTE).try_exists().unwrap_or(true)
}

/// A folder that replaces the replica means what it holds.
pub fn forget_half_done(state_dir: &Path) -> io::Result<()> {
    match fs::remove_file(state_dir.join(NOTE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Fills `directory` from the replica, from a thread without a tokio context. `state_dir` keeps the note that a pull is under way, which
/// makes a second run go on instead of refusing the half-filled folder. `progress` is called now and then.
pub fn pull_blocking(
    server: &ServerAddress,
    volume: &VolumeName,
    directory: &Path,
    state_dir: &Path,
    progress: &mut dyn FnMut(Pulled),
) -> Result<Pulled, PullError> {
    let writer = begin(directory, state_dir)?;
    let pull =
        Pull { server: server.clone(), volume: volume.clone(), at: None, wait: None, reader: "init=pull".to_owned() };
    let pulled = pull.receive_blocking(writer, progress)?;
    finish(state_dir)?;
    tracing::info!(directory = %directory.display(), position = %pulled.position, nodes = pulled.nodes, bytes = pulled.bytes, "pulled");
    Ok(pulled)
}

/// Checks that the folder may be filled, and notes that it is being.
fn begin(directory: &Path, state_dir: &Path) -> Result<Writer, PullError> {
    let note = state_dir.join(NOTE);
    let half_filled = note.exists();
    let mut entries = fs::read_dir(directory).map_err(|source| io_error(directory, source))?;
    // A fresh file system has a lost+found; it is never replicated over.
    let occupied = entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found"));
    if occupied && !half_filled {
        return Err(PullError::NotEmpty(directory.display().to_string()));
    }
    durable::create_private_dir(state_dir).map_err(|source| io_error(state_dir, source))?;
    durable::replace_file_durably(&note, b"a pull is under way\n").map_err(|source| io_error(&note, source))?;
    Ok(Writer::open(directory)?)
}

fn finish(state_dir: &Path) -> Result<(), PullError> {
    let note = state_dir.join(NOTE);
    Ok(fs::remove_file(&note).map_err(|source| io_error(&note, source))?)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt as _};

    use bytes::Bytes;
    use tandem_proto::{Attr, AttrPatch, InodeId, NodeKind, Timestamp, convert, pb};

    use super::{PullError, begin, finish, is_half_done};

    fn path(names: &[&str]) -> Vec<Bytes> {
        names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect()
    }

    fn node(names: &[&str], kind: &NodeKind, mode: u32, size: u64) -> pb::PullNode {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let attr = Attr { mode, uid, gid, mtime: Timestamp { seconds: 1_000_000, nanos: 7 } };
        pb::PullNode {
            path: path(names),
            kind: Some(kind.into()),
            attr: Some(convert::attr_message(&InodeId::ROOT, &AttrPatch::from(attr))),
            xattrs: Vec::new(),
            size,
        }
    }

    fn data(offset: u64, bytes: &'static [u8]) -> pb::PullData {
        pb::PullData { offset, data: Bytes::from_static(bytes), crc32c: crc32c::crc32c(bytes) }
    }

    #[test]
    fn a_pull_that_was_cut_goes_on_and_the_folder_is_equal() {
        let (folder, state) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("state"));
        let (at, state_dir) = (folder.path(), state.path().join("mounts/k"));
        let mut writer = begin(at, &state_dir).expect("empty");
        writer.node(node(&[], &NodeKind::Directory, 0o755, 0)).expect("root");
        writer.node(node(&["d"], &NodeKind::Directory, 0o555, 0)).expect("directory");
        writer.node(node(&["d", "f"], &NodeKind::Regular, 0o640, 10)).expect("file");
        writer.data(&data(2, b"half")).expect("data");
        drop(writer);
        assert!(is_half_done(&state_dir), "mounted now, the folder's other half would be taken for deleted");
        let mut writer = begin(at, &state_dir).expect("half filled");
        writer.node(node(&[], &NodeKind::Directory, 0o755, 0)).expect("root");
        writer.node(node(&["d"], &NodeKind::Directory, 0o555, 0)).expect("directory");
        writer.node(node(&["d", "f"], &NodeKind::Regular, 0o640, 10)).expect("file");
        writer.data(&data(2, b"whole")).expect("data");
        writer.link(&pb::PullLink { path: path(&["g"]), target: path(&["d", "f"]) }).expect("link");
        writer.node(node(&["l"], &NodeKind::Symlink("to/nowhere".into()), 0o777, 0)).expect("symlink");
        writer.finish().expect("written");
        finish(&state_dir).expect("finished");
        assert!(!is_half_done(&state_dir));
        assert_eq!(fs::read(at.join("g")).expect("file"), b"\0\0whole\0\0\0");
        let (dir, file) = (fs::metadata(at.join("d")).expect("dir"), fs::metadata(at.join("d/f")).expect("file"));
        assert_eq!((file.mode() & 0o7777, file.nlink(), file.mtime(), file.mtime_nsec()), (0o640, 2, 1_000_000, 7));
        assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o555, 1_000_000));
        assert_eq!(fs::read_link(at.join("l")).expect("symlink").as_os_str(), "to/nowhere");
        assert!(matches!(begin(at, &state_dir), Err(PullError::NotEmpty(_))), "a finished pull is no half one");
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        let (folder, state) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("state"));
        let outside = tempfile::tempdir().expect("outside");
        let target = outside.path().to_str().expect("a name in ASCII").to_owned();
        let mut writer = begin(folder.path(), &state.path().join("k")).expect("empty");
        writer.node(node(&[], &NodeKind::Directory, 0o755, 0)).expect("root");
        assert!(writer.node(node(&["..", "x"], &NodeKind::Regular, 0o644, 0)).is_err());
        writer.node(node(&["out"], &NodeKind::Symlink(target.into()), 0o777, 0)).expect("symlink");
        assert!(writer.node(node(&["out", "x"], &NodeKind::Regular, 0o644, 0)).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("there").count(), 0);
    }
}
