//! `tandem restore`: has deleted and replaced files back, and deleted folders.
//!
//! A file is written under a name of its own beside its place, checked against the digest of what was sent, made durable, and then
//! renamed: what stands there already is never touched unless that was asked for. On a mount all this is replicated as any other work.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::{CWD, RenameFlags};
use tandem_proto::{
    pb::{self, pull_message::Body},
    pull::PullDigest,
};
use tandem_pull::Writer;

use crate::{
    archive::{Client, Place, Which},
    exit::{Exit, Failure},
    output::{complain, say},
    render, when,
};

/// Files that are made durable together.
const BATCH: usize = 256;
/// Before the name of a file that is being restored.
const PARTIAL: &str = ".tandem-restore-";

/// Options of `tandem restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem restore ~/docs/report.txt                     the last version that was deleted or replaced
  tandem restore ~/docs/report.txt --at 14:30 --to /tmp   the version that was there at half past two
  tandem restore ~/docs/src --since 10min              all that was deleted below src in the last ten minutes")]
pub struct Args {
    /// The version that was there at this time: an age such as 1h, or a time such as "2026-11-21 14:30".
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    at: Option<i64>,
    /// Only what was deleted or replaced since.
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    since: Option<i64>,
    /// Puts it below this folder instead of where it was.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Replaces what stands there now.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    which: Which,
    /// A path on a mount: a file, or a folder with all that was deleted below it. It need not exist any more.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The version of each path that is meant: the newest, or the one that was there at a time.
fn choose(items: Vec<pb::KeptItem>, at: Option<i64>, since: Option<i64>) -> Vec<pb::KeptItem> {
    let mut chosen: BTreeMap<Vec<Bytes>, pb::KeptItem> = BTreeMap::new();
    for item in items {
        let late_enough =
            at.is_none_or(|at| item.deleted_ns > at) && since.is_none_or(|since| item.deleted_ns >= since);
        if !late_enough {
            continue;
        }
        let better = |known: &pb::KeptItem| match at {
            Some(_) => item.deleted_ns < known.deleted_ns,
            None => item.deleted_ns >= known.deleted_ns,
        };
        if chosen.get(&item.path).is_none_or(better) {
            chosen.insert(item.path.clone(), item);
        }
    }
    chosen.into_values().collect()
}

/// Where a file shall be, and as what it is written before.
struct Target {
    item: pb::KeptItem,
    path: PathBuf,
    partial: Vec<Bytes>,
}

struct Restorer<'a> {
    args: &'a Args,
    place: &'a Place,
    client: Client,
    /// Everything is below it.
    root: PathBuf,
    restored: u64,
    bytes: u64,
    in_the_way: u64,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let place = args.which.place(Some(&args.path)).await?;
    let mut client = place.connect().await?;
    let request = pb::KeptRequest { volume: place.volume.clone(), path: place.path.clone(), limit: 0 };
    let answer = client.kept(request).await;
    let mut stream = answer.map_err(|status| place.failure(&status))?.into_inner();
    let mut items = Vec::new();
    while let Some(item) = stream.message().await.map_err(|status| place.failure(&status))? {
        items.push(item);
    }
    let chosen = choose(items, args.at, args.since);
    if chosen.is_empty() {
        let message = format!(
            "nothing that was deleted at or below {} is kept{}; see: tandem history --deleted",
            place.shown(&place.path),
            if args.at.is_some() || since_given(&args) { " of that time" } else { "" },
        );
        return Err(Failure::new(Exit::Unreachable, message));
    }
    let root = match (&args.to, &place.mountpoint) {
        (Some(dir), _) => dir.clone(),
        (None, Some(mountpoint)) => mountpoint.clone(),
        (None, None) => return Err(Failure::new(Exit::Usage, "the volume is not mounted here: say --to DIR")),
    };
    fs::create_dir_all(&root).map_err(|error| on(&root, &error))?;
    // Folders get their attributes at the end: what is put into them changes their times, and their mode may forbid it.
    let mut folders = Writer::open(&root).map_err(pull_failed)?;
    let mut restorer = Restorer { args: &args, place: &place, client, root, restored: 0, bytes: 0, in_the_way: 0 };
    let number = chosen.len();
    let (folder_items, files): (Vec<_>, Vec<_>) =
        chosen.into_iter().partition(|item| item.r#type() == pb::FileType::Directory);
    for item in &folder_items {
        restorer.folder(item, &mut folders).await?;
    }
    for batch in files.chunks(BATCH) {
        restorer.batch(batch).await?;
    }
    folders.finish().map_err(pull_failed)?;
    restorer.report(number)
}

fn pull_failed(error: tandem_pull::PullError) -> Failure {
    Failure::new(Exit::NoAnswer, error.to_string())
}

/// Seconds since it was deleted.
fn age(item: &pb::KeptItem) -> f64 {
    (when::now_ns() - item.deleted_ns).max(0) as f64 / 1e9
}

fn since_given(args: &Args) -> bool {
    args.since.is_some()
}

fn on(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::NoAnswer, format!("{}: {error}", path.display()))
}

impl Restorer<'_> {
    /// Where a file goes: where it was, or below `--to` as seen from what was asked for.
    fn target(&self, number: usize, item: &pb::KeptItem) -> Target {
        let skip = match &self.args.to {
            // The last name of what was asked for stays.
            Some(_) => self.place.path.len().saturating_sub(1),
            None => 0,
        };
        let names = &item.path[skip.min(item.path.len().saturating_sub(1))..];
        let mut path = self.root.clone();
        path.extend(names.iter().map(|name| OsStr::from_bytes(name)));
        let mut partial: Vec<Bytes> = names[..names.len().saturating_sub(1)].to_vec();
        partial.push(Bytes::from(format!("{PARTIAL}{}-{number}", std::process::id())));
        Target { item: item.clone(), path, partial }
    }

    /// Makes a folder again, if nothing is there.
    async fn folder(&mut self, item: &pb::KeptItem, writer: &mut Writer) -> Result<(), Failure> {
        let mut target = self.target(0, item);
        match target.path.symlink_metadata() {
            Ok(is) if is.is_dir() => return Ok(()),
            Ok(_) => {
                complain(&format!("{} is there already, and is no folder", target.path.display()));
                self.in_the_way += 1;
                return Ok(());
            }
            Err(_) => {}
        }
        if let Some(parent) = target.path.parent() {
            fs::create_dir_all(parent).map_err(|error| on(parent, &error))?;
        }
        target.partial.pop();
        target.partial.extend(item.path.last().cloned());
        self.fetch(&target, writer).await?;
        self.restored += 1;
        say(&format!("{}/  folder, deleted {} ago\n", target.path.display(), render::seconds(age(item))))?;
        Ok(())
    }

    async fn batch(&mut self, items: &[pb::KeptItem]) -> Result<(), Failure> {
        let mut targets = Vec::new();
        let mut writer = Writer::open(&self.root).map_err(pull_failed)?;
        for (number, item) in items.iter().enumerate() {
            let target = self.target(number, item);
            if !self.args.overwrite && target.path.symlink_metadata().is_ok() {
                self.in_the_way += 1;
                if self.in_the_way <= 3 {
                    let path = target.path.display();
                    complain(&format!("{path} is there already: --overwrite replaces it, --to DIR puts it elsewhere"));
                }
                continue;
            }
            if let Some(parent) = target.path.parent() {
                fs::create_dir_all(parent).map_err(|error| on(parent, &error))?;
            }
            targets.push(target);
            let target = targets.last().expect("just pushed");
            if let Err(failure) = self.fetch(target, &mut writer).await {
                self.remove_partials(&targets);
                return Err(failure);
            }
        }
        if let Err(error) = writer.finish() {
            self.remove_partials(&targets);
            return Err(pull_failed(error));
        }
        for target in &targets {
            self.put_in_place(target)?;
        }
        Ok(())
    }

    fn partial_path(&self, target: &Target) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(target.partial.iter().map(|name| OsStr::from_bytes(name)));
        path
    }

    fn remove_partials(&self, targets: &[Target]) {
        for target in targets {
            // The last one may not have come to be.
            let _ = fs::remove_file(self.partial_path(target));
        }
    }

    /// Writes one file under its partial name; what was sent is checked against its digest.
    async fn fetch(&mut self, target: &Target, writer: &mut Writer) -> Result<(), Failure> {
        let item = &target.item;
        let request = pb::FetchRequest {
            volume: self.place.volume.clone(),
            place: item.place.clone(),
            stored: item.stored.clone(),
        };
        let broken = |why: &str| Failure::new(Exit::NoAnswer, format!("{}: {why}", target.path.display()));
        let answer = self.client.fetch(request).await;
        let mut stream = answer.map_err(|status| self.place.failure(&status))?.into_inner();
        let mut digest = PullDigest::default();
        while let Some(message) = stream.message().await.map_err(|status| self.place.failure(&status))? {
            if !matches!(message.body, Some(Body::End(_))) {
                digest.add(&message);
            }
            match message.body {
                Some(Body::Node(node)) => {
                    writer.node(pb::PullNode { path: target.partial.clone(), ..node }).map_err(pull_failed)?;
                }
                Some(Body::Data(data)) => {
                    self.bytes += data.data.len() as u64;
                    writer.data(&data).map_err(pull_failed)?;
                }
                Some(Body::End(end)) if end.digest[..] == digest.value().0 => return Ok(()),
                _ => return Err(broken("what came is not what was sent; try again")),
            }
        }
        Err(broken("the storage daemon ended in the middle; try again"))
    }

    fn put_in_place(&mut self, target: &Target) -> Result<(), Failure> {
        let partial = self.partial_path(target);
        let flags = if self.args.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        if let Err(error) = rustix::fs::renameat_with(CWD, &partial, CWD, &target.path, flags) {
            let _ = fs::remove_file(&partial);
            return Err(on(&target.path, &error.into()));
        }
        self.restored += 1;
        let size = render::bytes(target.item.size);
        let deleted = render::seconds(age(&target.item));
        say(&format!("{}  {size}, deleted {deleted} ago\n", target.path.display()))?;
        Ok(())
    }

    fn report(&self, chosen: usize) -> Result<Exit, Failure> {
        if chosen > 1 {
            let way = match self.in_the_way {
                0 => String::new(),
                number => format!("; {number} left alone, because something is there"),
            };
            complain(&format!("{} restored, {}{way}", self.restored, render::bytes(self.bytes)));
        }
        Ok(if self.restored == 0 { Exit::Behind } else { Exit::InSync })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tandem_proto::pb::KeptItem;

    use super::choose;

    #[test]
    fn the_newest_is_taken_or_what_was_there_at_a_time() {
        let item = |name: &'static str, deleted_ns| KeptItem {
            path: vec![Bytes::from_static(name.as_bytes())],
            deleted_ns,
            ..Default::default()
        };
        let items = || vec![item("a", 10), item("a", 30), item("a", 20), item("b", 5)];
        let times = |at, since| choose(items(), at, since).iter().map(|item| item.deleted_ns).collect::<Vec<_>>();
        assert_eq!(times(None, None), [30, 5]);
        assert_eq!(times(Some(15), None), [20]);
        assert_eq!(times(None, Some(6)), [30]);
    }
}
