//! What differed, kept before it is repaired: the replica's content in `history/EPOCH-SEQ/` under its path, where resyncs also keep what
//! they replace, and a line about it in `history/mismatches.jsonl`.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use tandem_proto::{
    Digest, InodeId, Name, Position,
    ids::hex,
    verify::{Compared, Item},
};

use super::compare::Seen;
use crate::{
    apply::{ApplyError, error::OnObject as _},
    reader::{ReplicaFile, ReplicaReader},
    tree::FsTree,
};

/// A file is kept whole up to this size, unless its blocks can be shared; of a larger one the extent that differs is kept.
const WHOLE_MAX: u64 = 64 << 20;
/// The list of mismatches is begun anew at this size; the one before is kept.
const LIST_MAX_BYTES: u64 = 4 << 20;
/// Read at once.
const COPY_BYTES: usize = 1 << 20;
/// The list.
const LIST: &str = "mismatches.jsonl";

/// Keeps the evidence of one check.
pub struct Evidence<'a> {
    /// The volume's directory.
    pub directory: &'a Path,
    /// Its replica, which stands still.
    pub reader: &'a ReplicaReader<FsTree>,
    /// Where.
    pub position: Position,
}

fn shown(digest: Option<&Digest>) -> String {
    digest.map_or_else(|| "none".to_owned(), |digest| hex(&digest.0))
}

impl Evidence<'_> {
    /// Keeps what the replica has of an item that differs.
    pub fn keep(&self, compared: &Compared, seen: &Seen, good: &str) -> Result<(), ApplyError> {
        let (id, what, extent) = match &compared.item {
            Item::Names(id) => (*id, "names", None),
            Item::Group { dir, .. } => (*dir, "group", None),
            Item::Node { id, .. } => (*id, "inode", None),
            Item::Extent { id, offset, len } => (*id, "extent", Some((*offset, *len))),
        };
        let path = self.reader.path(&id)?.unwrap_or_default();
        let mut kept = None;
        if matches!(compared.item, Item::Node { .. } | Item::Extent { .. })
            && let Ok(Some(file)) = self.reader.open(&id)
        {
            kept = self.keep_file(&id, &file, &path, extent)?;
        }
        let text: Vec<String> = path.iter().map(Name::to_string).collect();
        let line = serde_json::json!({
            "time_ns": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64),
            "epoch": self.position.epoch.0, "seq": self.position.seq.0,
            "path": format!("/{}", text.join("/")), "what": what,
            "offset": extent.map(|(offset, _)| offset), "len": extent.map(|(_, len)| len),
            "folder_digest": shown(compared.digest.as_ref()), "replica_digest": shown(seen.digest.as_ref()),
            "problem": seen.problem, "good": good, "kept": kept,
        });
        tracing::error!(
            position = %self.position, path = text.join("/"), what, problem = seen.problem, good,
            folder = shown(compared.digest.as_ref()), replica = shown(seen.digest.as_ref()),
            "the replica is not equal to its folder; it is repaired, what it had is kept in history/"
        );
        self.note(&line).on("note a mismatch in", "history")
    }

    fn note(&self, line: &serde_json::Value) -> io::Result<()> {
        let list = self.directory.join("history").join(LIST);
        if fs::metadata(&list).is_ok_and(|is| is.len() > LIST_MAX_BYTES) {
            fs::rename(&list, list.with_extension("jsonl.1"))?;
        }
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        OpenOptions::new().append(true).create(true).mode(0o600).open(&list)?.write_all(&bytes)
    }

    /// Where it was kept, below `history/`; `None` if something of this path is kept for this position already.
    fn keep_file(
        &self,
        id: &InodeId,
        file: &ReplicaFile<FsTree>,
        path: &[Name],
        extent: Option<(u64, u64)>,
    ) -> Result<Option<String>, ApplyError> {
        let size = file.size().on("read", id)?;
        let mut place = PathBuf::from(format!("{}-{}", self.position.epoch, self.position.seq));
        place.extend(path.iter().map(|name| OsStr::from_bytes(name.as_bytes())));
        let history = self.directory.join("history");
        if let Some(parent) = history.join(&place).parent() {
            fs::create_dir_all(parent).on("make a directory in", "history")?;
        }
        let target = history.join(&place);
        if target.exists() {
            return Ok(None);
        }
        if size > WHOLE_MAX && shares(file, &target) {
            return Ok(Some(place.display().to_string()));
        }
        let range = match extent {
            Some((offset, len)) if size > WHOLE_MAX => {
                place.as_mut_os_string().push(format!(".at-{offset}"));
                (offset, len.min(WHOLE_MAX))
            }
            Some(_) | None => (0, size.min(WHOLE_MAX)),
        };
        let target = history.join(&place);
        let kept = match File::options().write(true).create_new(true).mode(0o600).open(&target) {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(ApplyError::from_io("keep in history", id, error)),
        };
        copy(file, &kept, range).on("keep in history", id)?;
        Ok(Some(place.display().to_string()))
    }
}

/// Keeps a large file whole where that costs nothing.
fn shares(file: &ReplicaFile<FsTree>, target: &Path) -> bool {
    let Ok(kept) = File::options().write(true).create_new(true).mode(0o600).open(target) else { return false };
    let shared = file.share_with(&kept).is_ok();
    if !shared {
        // Nobody depends on it.
        let _ = fs::remove_file(target);
    }
    shared
}

/// What cannot be read is left out: that is why it differs.
fn copy(from: &ReplicaFile<FsTree>, to: &File, (offset, len): (u64, u64)) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    let mut done = 0;
    while done < len {
        let want = (len - done).min(COPY_BYTES as u64) as usize;
        match from.read_at(offset + done, &mut buffer[..want]) {
            Ok(0) => break,
            Ok(read) => {
                to.write_all_at(&buffer[..read], done)?;
                done += read as u64;
            }
            Err(_) => done += want as u64,
        }
    }
    Ok(())
}
