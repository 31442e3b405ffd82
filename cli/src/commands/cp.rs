//! `tandem cp`: files of a volume, as its replica has them now, to this machine.
//!
//! ```text
//!  HOST:/VOLUME/path ─ list ─► what to copy ─► some files at a time: .NAME.tandem-part, from where it stopped ─► digest ─► NAME
//! ```
//! Promise: a name appears only when its bytes are those that the storage daemon read, by their digest. What had arrived of a file when
//! the link was cut, or when this command was killed, is not sent again: the bytes that are there are named by their digest.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Read as _},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::Bytes;
use tandem_proto::{
    VolumeName, convert,
    pb::{self, pull_message::Body},
};
use tandem_runtime::connect::ServerAddress;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    archive::{Client, Place},
    exit::{Exit, Failure},
    output::{complain, say},
    render,
};

/// Files that are copied at a time.
const AT_A_TIME: usize = 8;
/// After so long without a byte a file is given up.
const STALLED: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Options of `tandem cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem cp localhost:/docs/report.txt .            one file of volume docs
  tandem cp -r store:/docs/src ./src-copy           a folder
  tandem cp 'store:/docs/logs/*.gz' /tmp            what matches; quoted, so that the shell leaves it alone

Run it again after an interruption: what had arrived is not sent again.
Into a volume there is one way: mount it, and copy into the mount.")]
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
    /// What to copy: HOST[:PORT]:/VOLUME/PATH, with * and ? in names; then where to: a folder, or a new name.
    #[arg(value_name = "SRC... DST", num_args = 2.., required = true)]
    paths: Vec<String>,
}

/// A storage daemon, a volume of it, and a path in that.
type Remote = (ServerAddress, VolumeName, Vec<Bytes>);

/// `HOST[:PORT]:/VOLUME/PATH`; `None`: a local path.
fn remote(text: &str) -> Option<Result<Remote, String>> {
    let (server, path) = text.split_once(":/")?;
    if server.contains('/') || server.is_empty() {
        return None;
    }
    let parse = || {
        let server = server.parse::<ServerAddress>()?;
        let mut parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
        let volume = parts.next().ok_or("name a volume: HOST:/VOLUME/PATH")?;
        let volume = volume.parse::<VolumeName>().map_err(|error| error.to_string())?;
        Ok((server, volume, parts.map(|part| Bytes::copy_from_slice(part.as_bytes())).collect()))
    };
    Some(parse())
}

/// Whether a name matches a pattern of `*` and `?`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.first(), name.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], name) || (!name.is_empty() && matches(pattern, &name[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &name[1..]),
        (Some(wanted), Some(is)) if wanted == is => matches(&pattern[1..], &name[1..]),
        _ => false,
    }
}

fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// One file on its way.
struct Job {
    path: Vec<Bytes>,
    target: PathBuf,
    attr: tandem_proto::Attr,
}

#[derive(Default)]
struct Progress {
    files: AtomicU64,
    bytes: AtomicU64,
    kept: AtomicU64,
}

struct Copy {
    args: Args,
    place: Place,
    progress: Arc<Progress>,
}

fn on(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::NoAnswer, format!("{}: {error}", path.display()))
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let (to, sources) = args.paths.split_last().expect("clap wants two");
    if remote(to).is_some() {
        let message =
            format!("{to}: a volume has one writer, so there is one way into it: mount it, and copy into the mount");
        return Err(usage(message));
    }
    let (to, sources) = (PathBuf::from(to), sources.to_vec());
    let begin = Instant::now();
    let progress = Arc::new(Progress::default());
    let into = to.is_dir() || sources.len() > 1;
    let mut jobs = Vec::new();
    let mut copies = Vec::new();
    let args = Arc::new(args);
    for source in sources {
        let Some(parsed) = remote(&source) else {
            return Err(usage(format!("{source} is on this machine: use cp; or write HOST:/VOLUME/PATH")));
        };
        let (server, volume, path) = parsed.map_err(|why| usage(format!("{source}: {why}")))?;
        let server = ServerAddress { insecure: args.insecure, ..server };
        let place = Place { server, volume: volume.to_string(), path, mountpoint: None };
        let mut client = place.connect().await?;
        for path in expand(&mut client, &place).await? {
            let listed = plan(&mut client, &place, &path, &args, &to, into).await?;
            jobs.extend(listed.into_iter().map(|job| (copies.len(), job)));
        }
        let args = Args { paths: Vec::new(), ..*args };
        copies.push(Arc::new(Copy { args, place, progress: progress.clone() }));
    }
    let total = jobs.len() as u64;
    let showing = tokio::spawn(show(progress.clone(), total, begin));
    let failed = all(&copies, jobs).await;
    showing.abort();
    let (files, bytes) = (progress.files.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
    let kept = match progress.kept.load(Ordering::Relaxed) {
        0 => String::new(),
        kept => format!(", {} were there already", render::bytes(kept)),
    };
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    say(&format!(
        "{files} of {total} files, {}{kept}, {}\n",
        render::bytes(bytes),
        render::seconds(begin.elapsed().as_secs_f64())
    ))?;
    for why in failed.iter().take(10) {
        complain(why);
    }
    Ok(if failed.is_empty() { Exit::InSync } else { Exit::Unreachable })
}

/// The paths that are meant.
async fn expand(client: &mut Client, place: &Place) -> Result<Vec<Vec<Bytes>>, Failure> {
    let mut paths: Vec<Vec<Bytes>> = vec![Vec::new()];
    for part in &place.path {
        if !is_pattern(part) {
            paths.iter_mut().for_each(|path| path.push(part.clone()));
            continue;
        }
        let mut found = Vec::new();
        for path in paths {
            for node in list(client, place, &path, 1).await? {
                let last = node.path.get(path.len());
                if last.is_some_and(|name| matches(part, name) && (!name.starts_with(b".") || part.starts_with(b"."))) {
                    found.push(node.path);
                }
            }
        }
        found.sort();
        paths = found;
    }
    if paths.is_empty() {
        return Err(Failure::new(Exit::Unreachable, format!("nothing in {} matches", place.volume)));
    }
    Ok(paths)
}

async fn list(client: &mut Client, place: &Place, path: &[Bytes], depth: u32) -> Result<Vec<pb::PullNode>, Failure> {
    let request = pb::TreeRequest { volume: place.volume.clone(), path: path.to_vec(), depth };
    let answer = client.tree(request).await;
    let mut stream = answer.map_err(|status| place.failure(&status))?.into_inner();
    let mut nodes = Vec::new();
    while let Some(item) = stream.message().await.map_err(|status| place.failure(&status))? {
        nodes.extend(item.node);
    }
    Ok(nodes)
}

/// What is to be copied of one source; folders and links are made at once.
async fn plan(
    client: &mut Client,
    place: &Place,
    path: &[Bytes],
    args: &Args,
    to: &Path,
    into: bool,
) -> Result<Vec<Job>, Failure> {
    let nodes = list(client, place, path, if args.recursive { u32::MAX } else { 0 }).await?;
    let mut jobs = Vec::new();
    let top = match path.last() {
        Some(name) if into => to.join(OsStr::from_bytes(name)),
        _ => to.to_owned(),
    };
    for node in nodes {
        let mut target = top.clone();
        for name in &node.path[path.len().min(node.path.len())..] {
            let name =
                convert::name("path", name.clone()).map_err(|error| Failure::new(Exit::NoAnswer, error.to_string()))?;
            target.push(OsStr::from_bytes(name.as_bytes()));
        }
        let invalid = |error: convert::Invalid| Failure::new(Exit::NoAnswer, error.to_string());
        let attr = convert::attr_complete(&node.attr).map_err(invalid)?;
        let kind = node.kind.unwrap_or_default();
        match kind.r#type() {
            pb::FileType::Directory if args.recursive => {
                fs::create_dir_all(&target).map_err(|error| on(&target, &error))?;
            }
            pb::FileType::Directory => {
                return Err(Failure::new(Exit::Usage, format!("{} is a folder: use -r", place.shown(path))));
            }
            pb::FileType::Symlink => match std::os::unix::fs::symlink(OsStr::from_bytes(&kind.target), &target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(on(&target, &error)),
                _ => {}
            },
            pb::FileType::Regular => jobs.push(Job { path: node.path, target, attr }),
            _ => complain(&format!("{}: a device, socket or pipe is left out", place.shown(&node.path))),
        }
    }
    Ok(jobs)
}

async fn show(progress: Arc<Progress>, total: u64, begin: Instant) {
    if !io::stderr().is_terminal() {
        return;
    }
    loop {
        tokio::time::sleep(SHOW_EVERY).await;
        let (files, bytes) = (progress.files.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
        let rate = bytes as f64 / begin.elapsed().as_secs_f64().max(0.001);
        eprint!("\r\x1b[K{files} of {total} files, {}, {}/s ", render::bytes(bytes), render::bytes(rate as u64));
    }
}

/// Copies all, some at a time; what could not be, in words.
async fn all(copies: &[Arc<Copy>], jobs: Vec<(usize, Job)>) -> Vec<String> {
    let mut running = JoinSet::new();
    let mut failed = Vec::new();
    let mut jobs = jobs.into_iter();
    loop {
        while running.len() < AT_A_TIME
            && let Some((of, job)) = jobs.next()
        {
            let copy = copies[of].clone();
            running.spawn(async move { copy.file(job).await });
        }
        match running.join_next().await {
            None => return failed,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(why))) => failed.push(why),
            Some(Err(error)) => failed.push(error.to_string()),
        }
    }
}

/// The name of a file while it is incomplete.
fn partial(target: &Path) -> PathBuf {
    let mut name = vec![b'.'];
    name.extend_from_slice(target.file_name().unwrap_or_default().as_bytes());
    // Beside a name of the greatest length there is no room.
    name.truncate(240);
    name.extend_from_slice(b".tandem-part");
    target.with_file_name(std::ffi::OsString::from_vec(name))
}

/// Hashes what is there.
fn hashed(file: &mut File) -> io::Result<(u64, blake3::Hasher)> {
    let (mut hasher, mut len, mut buffer) = (blake3::Hasher::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((len, hasher)),
            read => {
                hasher.update(&buffer[..read]);
                len += read as u64;
            }
        }
    }
}

fn worth_another_try(status: &Status) -> bool {
    // A connection that broke has a source; aborted is a file that changed while it was read.
    matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unauthenticated)
        || std::error::Error::source(status).is_some()
}

impl Copy {
    /// Copies one file, over as many connections as it takes.
    async fn file(&self, job: Job) -> Result<(), String> {
        let shown = job.target.display().to_string();
        let part = partial(&job.target);
        let (mut pause, mut moved) = (PAUSE_MIN, Instant::now());
        let mut client = None;
        // What was there before this command is told apart from what it brought itself.
        let mut begun_before = true;
        loop {
            let before = fs::metadata(&part).map_or(0, |is| is.len());
            let attempt = match &mut client {
                Some(client) => self.attempt(client, &job, &part, begun_before).await,
                // Anew after each cut: a storage daemon that was started again has another secret.
                none => match self.place.connect().await {
                    Ok(connected) => self.attempt(none.insert(connected), &job, &part, begun_before).await,
                    Err(_) => Err(Status::unavailable("the storage daemon does not answer").into()),
                },
            };
            let error = match attempt {
                Ok(()) => return Ok(()),
                Err(Attempt::Local(error)) => return Err(format!("{shown}: {error}")),
                Err(Attempt::Remote(status)) => status,
            };
            if fs::metadata(&part).map_or(0, |is| is.len()) > before {
                (pause, moved) = (PAUSE_MIN, Instant::now());
            }
            if !worth_another_try(&error) || moved.elapsed() > STALLED {
                return Err(format!(
                    "{shown}: {}; what has arrived is kept: run the command again",
                    crate::mounts::said(&error)
                ));
            }
            (client, begun_before) = (None, false);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, client: &mut Client, job: &Job, part: &Path, begun_before: bool) -> Result<(), Attempt> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(part)?;
        let (mut at, mut hasher) = hashed(&mut file)?;
        let request = pb::ReadRequest {
            volume: self.place.volume.clone(),
            path: job.path.clone(),
            offset: at,
            prefix_digest: Bytes::copy_from_slice(hasher.finalize().as_bytes()),
        };
        let mut stream = client.read(request).await?.into_inner();
        let mut first = true;
        while let Some(message) = tokio::time::timeout(STALLED, stream.message()).await.map_err(|_| late())?? {
            match message.body {
                Some(Body::Data(data)) => {
                    if std::mem::take(&mut first) {
                        if data.offset != at {
                            // It is another file by now.
                            file.set_len(0)?;
                            (at, hasher) = (0, blake3::Hasher::new());
                        }
                        self.progress.kept.fetch_add(if begun_before { at } else { 0 }, Ordering::Relaxed);
                    }
                    if data.offset != at || crc32c::crc32c(&data.data) != data.crc32c {
                        return Err(Status::unavailable("the bytes are not those that were sent").into());
                    }
                    file.write_all_at(&data.data, at)?;
                    hasher.update(&data.data);
                    at += data.data.len() as u64;
                    self.progress.bytes.fetch_add(data.data.len() as u64, Ordering::Relaxed);
                }
                Some(Body::End(end)) if end.digest[..] == hasher.finalize().as_bytes()[..] => {
                    self.complete(job, &file, part)?;
                    self.progress.files.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Some(Body::End(_)) => {
                    // What is there is wrong somewhere: from the beginning.
                    file.set_len(0)?;
                    return Err(Status::unavailable("the copy has another digest").into());
                }
                _ => return Err(Status::unimplemented("a message that this version does not know").into()),
            }
        }
        Err(Status::unavailable("the storage daemon ended in the middle").into())
    }

    fn complete(&self, job: &Job, file: &File, part: &Path) -> io::Result<()> {
        let attr = &job.attr;
        let mut mode = attr.mode & 0o777;
        if self.args.preserve {
            match std::os::unix::fs::fchown(file, Some(attr.uid), Some(attr.gid)) {
                // Only root gives files away.
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
            mode = attr.mode & 0o7777;
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if self.args.preserve && attr.mtime.seconds >= 0 {
            file.set_modified(UNIX_EPOCH + Duration::new(attr.mtime.seconds.unsigned_abs(), attr.mtime.nanos))?;
        }
        file.sync_data()?;
        fs::rename(part, &job.target)
    }
}

fn late() -> Status {
    Status::unavailable(format!("nothing came for {} s", STALLED.as_secs()))
}

/// Why an attempt ended.
enum Attempt {
    Local(io::Error),
    Remote(Status),
}

impl From<io::Error> for Attempt {
    fn from(error: io::Error) -> Self {
        Attempt::Local(error)
    }
}

impl From<Status> for Attempt {
    fn from(status: Status) -> Self {
        Attempt::Remote(status)
    }
}

#[cfg(test)]
mod tests {
    use super::{matches, partial, remote};

    #[test]
    fn sources_are_read_as_scp_writes_them() {
        let (server, volume, path) = remote("store:99:/docs/a/b").expect("remote").expect("right");
        assert_eq!((server.to_string().as_str(), volume.as_str(), path.len()), ("store:99", "docs", 2));
        assert!(remote("./a:/b").is_none() && remote("/a/b").is_none() && remote("file").is_none());
        assert!(remote("store:/").expect("remote").is_err());
        assert!(remote("[::1]:7440:/v").expect("remote").is_ok());
    }

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, name, is) in [
            ("*.gz", "a.gz", true),
            ("*.gz", "a.g", false),
            ("a?c", "abc", true),
            ("*", "", true),
            ("a*c*", "abcd", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), is, "{pattern} {name}");
        }
        assert_eq!(partial("/d/f".as_ref()).to_str(), Some("/d/.f.tandem-part"));
    }
}
