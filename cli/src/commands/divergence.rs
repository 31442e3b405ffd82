//! `tandem divergence`: what the folder of a mount holds and its replica does not; with `--export` also as a tree.
//!
//! It is meant for a fenced mount, whose changes nobody merges. The daemon lists; copying is done here, through the mount, with the
//! rights of who asks.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tandem_proto::pb::{DivergenceHeader, DivergenceItem, DivergenceRequest, FileType, divergence_reply::Body};
use tandem_runtime::failure::said;

use crate::{
    copy::Copier,
    exit::{Exit, Failure},
    mounts::{Mount, quoted, select},
    output::{complain, say},
    render,
};

/// In the folder of `--export`: the paths that differ.
const TREE: &str = "tree";
/// The paths that are gone, one a line, as a shell takes them.
const REMOVED: &str = "removed";
/// All of the list, one JSON object a line.
const LIST: &str = "list.jsonl";

/// Options of `tandem divergence`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem divergence ~/work                       what only this folder has, by path
  tandem divergence --export /tmp/mine ~/work    the same as a tree to be looked at")]
pub struct Args {
    /// Copies what differs to DIR, which must be new or empty: DIR/tree, a list of what is gone in DIR/removed, everything in DIR/list.jsonl.
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Prints JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// The mountpoint, or a path on it; default: all mounts of this user. A folder that is not mounted: mount it with -o ro first.
    #[arg(value_name = "MOUNT|DIR")]
    dir: Option<PathBuf>,
}

/// One path, as JSON says it. Fields are only ever added.
#[derive(Debug, Serialize)]
struct Line {
    path: String,
    #[serde(rename = "type")]
    file_type: &'static str,
    size: u64,
    removed: bool,
    named: bool,
    created: bool,
    data: bool,
    attributes: bool,
    coarse: bool,
    changed_bytes: u64,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let found = select(args.dir.as_slice()).await?;
    let mut exit = found.report_silent();
    if args.export.is_some() && found.mounts.len() > 1 {
        return Err(Failure::new(Exit::Usage, "--export needs one mount: name its mountpoint"));
    }
    for mount in &found.mounts {
        exit = exit.max(of_mount(&args, mount).await?);
    }
    Ok(exit)
}

async fn of_mount(args: &Args, mount: &Mount) -> Result<Exit, Failure> {
    let place = &mount.status.mountpoint;
    let failed = |status: tonic::Status| Failure::new(Exit::NoAnswer, format!("{place}: {}", said(&status)));
    let mut replies = mount.control().divergence(DivergenceRequest {}).await.map_err(failed)?.into_inner();
    let mut export = match &args.export {
        Some(dir) => Some(Export::begin(dir, Path::new(place))?),
        None => None,
    };
    let (mut paths, mut coarse) = (0u64, false);
    while let Some(reply) = replies.message().await.map_err(failed)? {
        match reply.body {
            Some(Body::Header(header)) if !args.json => say(&heading(place, &header))?,
            Some(Body::Item(item)) => {
                paths += 1;
                coarse |= item.coarse;
                if let Some(export) = &mut export {
                    export.take(&item)?;
                }
                let text = if args.json { json(&item) } else { text(&item) };
                say(&text)?;
            }
            Some(Body::Header(_)) | None => {}
        }
    }
    if !args.json {
        say(&summary(paths, coarse))?;
    }
    match export {
        Some(export) => {
            let copied = export.finish()?;
            complain(&format!("copied {} of {paths} paths, {}", copied.paths, render::bytes(copied.bytes)));
            Ok(Exit::InSync)
        }
        None if paths == 0 => Ok(Exit::InSync),
        None => Ok(Exit::Behind),
    }
}

fn heading(place: &str, header: &DivergenceHeader) -> String {
    let since = match header.replicated.as_str() {
        "" => "the replica has nothing of this mount".to_owned(),
        position => format!("the replica has everything up to {position}"),
    };
    let final_word = if header.state == "fenced" { "" } else { "; the mount is not fenced, so this list changes" };
    let everything = if header.everything { "; nothing is known to be equal" } else { "" };
    format!("{place}  {}: {since}{everything}{final_word}\n", header.state)
}

fn summary(paths: u64, coarse: bool) -> String {
    match (paths, coarse) {
        (0, _) => "    nothing differs\n".to_owned(),
        (paths, false) => format!("    {paths} paths differ\n"),
        (paths, true) => format!(
            "    {paths} paths differ or may differ (those with ?: only a mark that covers them outlived the daemon, and what was removed \
             beside them is not known)\n"
        ),
    }
}

fn path_of(item: &DivergenceItem) -> PathBuf {
    item.path.iter().map(|name| OsStr::from_bytes(name)).collect()
}

fn words(item: &DivergenceItem) -> String {
    let flags = [
        (item.removed, "removed"),
        (item.created, "created"),
        (item.named && !item.created, "named"),
        (item.data && !item.created, "data"),
        (item.attributes && !item.created, "attributes"),
        (item.coarse, "?"),
    ];
    flags.iter().filter(|(set, _)| *set).map(|(_, word)| *word).collect::<Vec<_>>().join(",")
}

fn text(item: &DivergenceItem) -> String {
    let path = path_of(item);
    let shown = if path.as_os_str().is_empty() { ".".to_owned() } else { quoted(&path.to_string_lossy()) };
    let slash = if item.r#type() == FileType::Directory { "/" } else { "" };
    format!("    {:<20}{:>10}  {shown}{slash}\n", words(item), render::bytes(item.changed_bytes))
}

fn json(item: &DivergenceItem) -> String {
    let line = Line {
        path: path_of(item).to_string_lossy().into_owned(),
        file_type: match item.r#type() {
            FileType::Unspecified => "none",
            FileType::Regular => "regular",
            FileType::Directory => "directory",
            FileType::Symlink => "symlink",
            FileType::Fifo => "fifo",
            FileType::Socket => "socket",
            FileType::CharDevice => "char-device",
            FileType::BlockDevice => "block-device",
        },
        size: item.size,
        removed: item.removed,
        named: item.named,
        created: item.created,
        data: item.data,
        attributes: item.attributes,
        coarse: item.coarse,
        changed_bytes: item.changed_bytes,
    };
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// The folder of `--export`.
struct Export {
    copier: Copier,
    removed: BufWriter<File>,
    list: BufWriter<File>,
    dir: PathBuf,
}

/// What was copied.
struct Copied {
    paths: u64,
    bytes: u64,
}

impl Export {
    fn begin(dir: &Path, mountpoint: &Path) -> Result<Export, Failure> {
        let failed = |error: io::Error| Failure::new(Exit::NoAnswer, format!("--export {}: {error}", dir.display()));
        fs::create_dir_all(dir).map_err(failed)?;
        if fs::read_dir(dir).map_err(failed)?.next().is_some() {
            let message = format!("--export {}: it is not empty; name a new or an empty directory", dir.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        let dir = fs::canonicalize(dir).map_err(failed)?;
        if dir.starts_with(mountpoint) {
            let message = format!("--export {}: it lies on the mount itself; choose a place outside", dir.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        let tree = dir.join(TREE);
        fs::create_dir(&tree).map_err(failed)?;
        Ok(Export {
            removed: BufWriter::new(File::create(dir.join(REMOVED)).map_err(failed)?),
            list: BufWriter::new(File::create(dir.join(LIST)).map_err(failed)?),
            copier: Copier::new(mountpoint, &tree),
            dir,
        })
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::new(Exit::NoAnswer, format!("--export {}: {error}; it is not complete", self.dir.display()))
    }

    fn take(&mut self, item: &DivergenceItem) -> Result<(), Failure> {
        let path = path_of(item);
        let mut work = || -> io::Result<()> {
            self.list.write_all(json(item).as_bytes())?;
            if item.r#type() == FileType::Unspecified {
                return writeln!(self.removed, "{}", quoted(&path.to_string_lossy()));
            }
            // A directory that was given a new name holds what the replica has under the old one: all of it is copied.
            self.copier.copy(&path, item.named && !item.created)
        };
        let done = work();
        done.map_err(|error| self.failed(&io::Error::new(error.kind(), format!("{}: {error}", path.display()))))
    }

    fn finish(mut self) -> Result<Copied, Failure> {
        let done = self.copier.finish().and_then(|()| self.removed.flush()).and_then(|()| self.list.flush());
        done.map_err(|error| self.failed(&error))?;
        Ok(Copied { paths: self.copier.paths, bytes: self.copier.bytes })
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{DivergenceItem, FileType};

    use super::{json, text};

    #[test]
    fn a_path_is_one_line_with_what_happened_to_it() {
        let item = DivergenceItem {
            path: vec![b"a dir".as_slice().into(), b"new".as_slice().into()],
            r#type: FileType::Regular.into(),
            size: 3,
            created: true,
            named: true,
            data: true,
            changed_bytes: 3,
            ..Default::default()
        };
        assert_eq!(text(&item), "    created                    3 B  'a dir/new'\n");
        let gone = DivergenceItem { path: vec![b"x".as_slice().into()], removed: true, ..Default::default() };
        assert_eq!(text(&gone), "    removed                    0 B  x\n");
        assert!(
            json(&item).starts_with(r#"{"path":"a dir/new","type":"regular","size":3,"removed":false"#),
            "{}",
            json(&item)
        );
    }
}
