//! Scrub: reads every file of a replica from its disk, while it is applied, and compares it with what the content index read after the last
//! op that changed it.
//!
//! ```text
//!   each file ─► equal ─────────────────────────────────────────────► next
//!        └─► differs ─► hold apply ─► index caught up ─► differs ─► damaged ─► told, and told to the mount: it compares, repairs
//! ```
//! It finds what no op did: a bad disk, or a hand in the tree, and needs no mount for that; the folder's side is the good one then. A file
//! that is written meanwhile is no false alarm: what differs is looked at once more while apply stands still and the index has read all. It
//! repairs nothing: the mount does, which has the data ([`tandem_proto::pb::Damaged`]). What the index does not know is counted, not judged.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tandem_proto::{InodeId, Name, pb};
use tandem_runtime::priority::{self, Priority};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    index::{CatalogFiles, IndexedFile, LateIndex, Pacer, Recipe, ReplicaFiles},
    pull,
    volume::{thread::Command, volumes::Volume},
};

/// Files that are asked for at once.
const PAGE: usize = 512;
/// Messages on their way to who asked. One about progress that does not fit is left out.
const AHEAD: usize = 64;
/// Time between two messages about how it goes.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// How long the index may need to read a file that was changed just now; then it is not judged.
const INDEX_PATIENCE: Duration = Duration::from_secs(30);
/// How long a place in the stream is waited for.
const HOLD_PATIENCE: Duration = Duration::from_secs(30);

/// Whether a scrub of a volume is under way.
#[derive(Debug, Default)]
pub struct Turn(AtomicBool);

type Out = mpsc::Sender<Result<pb::ScrubReply, Status>>;

/// Why it ends before its end.
enum Stop {
    /// Nobody listens any more.
    Gone,
    /// In words.
    Failed(String),
}

/// Begins a scrub in a thread of its own. `rate_bytes`: a second, at most; 0: as fast as the disk is.
pub fn start(volume: Arc<Volume>, rate_bytes: u64) -> Result<ReceiverStream<Result<pb::ScrubReply, Status>>, Status> {
    let Some(index) = volume.index.clone() else {
        return Err(Status::failed_precondition("the volume has no content index: see the log of the storage daemon"));
    };
    if volume.scrub.0.swap(true, Ordering::SeqCst) {
        return Err(Status::resource_exhausted("a scrub of this volume is under way"));
    }
    let (out, replies) = mpsc::channel(AHEAD);
    let (runtime, theirs) = (Handle::current(), volume.clone());
    let now = Instant::now();
    let rate = if rate_bytes == 0 { u64::MAX } else { rate_bytes };
    let spawned = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || {
        priority::settle(Priority::Spare);
        let files = CatalogFiles::new(theirs.reader.clone());
        let pacer = Pacer::new(rate, now);
        let mut scrub = Scrub {
            volume: &theirs,
            index: &index,
            files,
            out,
            runtime,
            begun: now,
            told: now,
            pacer,
            reply: pb::ScrubReply::default(),
        };
        scrub.run();
    });
    if let Err(error) = spawned {
        volume.scrub.0.store(false, Ordering::SeqCst);
        return Err(Status::unavailable(format!("no thread for a scrub: {error}")));
    }
    Ok(ReceiverStream::new(replies))
}

struct Scrub<'a> {
    volume: &'a Volume,
    index: &'a LateIndex,
    files: CatalogFiles<crate::tree::FsTree>,
    out: Out,
    runtime: Handle,
    begun: Instant,
    told: Instant,
    pacer: Pacer,
    reply: pb::ScrubReply,
}

impl Scrub<'_> {
    fn run(&mut self) {
        let result = self.all();
        let directory = self.volume.directory.display();
        self.reply.reason = match result {
            Ok(()) => String::new(),
            Err(Stop::Failed(why)) => why,
            Err(Stop::Gone) => "who asked for it left".to_owned(),
        };
        let pb::ScrubReply { files_done, bytes_done, damaged, unindexed, ref reason, .. } = self.reply;
        tracing::info!(%directory, files = files_done, bytes = bytes_done, damaged, unindexed, reason, "scrubbed");
        self.reply.done = true;
        // Before it is said: who hears it may begin the next one.
        self.volume.scrub.0.store(false, Ordering::SeqCst);
        // Who has gone does not hear it.
        let _ = self.say(String::new());
    }

    fn all(&mut self) -> Result<(), Stop> {
        let mut after = None;
        loop {
            let ids = self.files.ids_after(after, PAGE).map_err(failed)?;
            let Some(last) = ids.last() else { return Ok(()) };
            after = Some(*last);
            self.reply.files_total = self.files.count();
            for id in ids {
                self.file(&id)?;
                self.reply.files_done += 1;
                self.tell()?;
            }
        }
    }

    fn file(&mut self, id: &InodeId) -> Result<(), Stop> {
        let Some(recipe) = self.index.recipe(id) else {
            // Directories and what else has no content have none either.
            let regular = self.files.open(id).is_ok_and(|file| file.is_some());
            self.reply.unindexed += u64::from(regular);
            return Ok(());
        };
        if self.looks_damaged(id, &recipe)?.is_none() {
            return Ok(());
        }
        match self.confirm(id)? {
            Judged::Good => Ok(()),
            Judged::Unknown => {
                self.reply.unindexed += 1;
                Ok(())
            }
            Judged::Damaged(what) => self.damaged(id, &what),
        }
    }

    /// What is wrong with a file, if anything is.
    fn looks_damaged(&mut self, id: &InodeId, recipe: &Recipe) -> Result<Option<String>, Stop> {
        let file = match self.files.open(id) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(format!("it cannot be opened: {error}"))),
        };
        file.forget_cached();
        match file.stamp() {
            Ok(stamp) if stamp.size == recipe.stamp.size => {}
            Ok(stamp) => {
                let what = format!("it has {} bytes, and had {} after the last op", stamp.size, recipe.stamp.size);
                return Ok(Some(what));
            }
            Err(error) => return Ok(Some(format!("it cannot be read: {error}"))),
        }
        self.content(&*file, recipe)
    }

    fn content(&mut self, file: &dyn IndexedFile, recipe: &Recipe) -> Result<Option<String>, Stop> {
        let mut buffer = Vec::new();
        for chunk in &recipe.chunks {
            match crate::index::differs(file, chunk, &mut buffer) {
                Ok(None) => {}
                Ok(Some(what)) => return Ok(Some(what)),
                Err(error) => return Ok(Some(format!("it cannot be read at byte {}: {error}", chunk.offset))),
            }
            let bytes = u64::from(chunk.len);
            self.reply.bytes_done += bytes;
            self.tell()?;
            let wait = self.pacer.read(bytes, Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
        }
        Ok(None)
    }

    /// The same while apply stands still, and the index has read what was applied: then only what no op did is left.
    fn confirm(&mut self, id: &InodeId) -> Result<Judged, Stop> {
        let held = self.runtime.block_on(pull::hold(self.volume, None, Some(HOLD_PATIENCE)));
        let (held, hold) = held.map_err(|status| Stop::Failed(status.message().to_owned()))?;
        if !self.index.wait_for(held.position, INDEX_PATIENCE) {
            return Ok(Judged::Unknown);
        }
        let Some(recipe) = self.index.recipe(id) else { return Ok(Judged::Unknown) };
        let looks = self.looks_damaged(id, &recipe)?;
        if held.abort.why().is_some() {
            return Ok(Judged::Unknown);
        }
        drop(hold);
        Ok(looks.map_or(Judged::Good, Judged::Damaged))
    }

    fn damaged(&mut self, id: &InodeId, what: &str) -> Result<(), Stop> {
        let read = |error: crate::apply::ApplyError| Stop::Failed(error.to_string());
        let reader = &self.volume.reader;
        let text = |path: Vec<Name>| path.iter().fold(String::new(), |text, name| format!("{text}/{name}"));
        let path = reader.path(id).map_err(read)?.map(text).unwrap_or_default();
        let place = reader.names(id).map_err(read)?.into_iter().next();
        self.reply.damaged += 1;
        self.reply.told = false;
        if let Some((dir, name)) = place {
            let below = reader.path(&dir).map_err(read)?.map(text).unwrap_or_default();
            let wire = |id: &InodeId| Bytes::copy_from_slice(id.as_bytes());
            let name = Bytes::copy_from_slice(name.as_bytes());
            let files = vec![pb::DamagedFile { dir: wire(&dir), name, id: wire(id), below }];
            let (reply, answer) = oneshot::channel();
            if self.volume.tell(Command::Damaged { files, reply }).is_ok() {
                self.reply.told = answer.blocking_recv().unwrap_or(false);
            }
        }
        tracing::error!(path, what, told = self.reply.told, "a scrub found a file of the replica that no op made so");
        let next = match self.reply.told {
            true => "its mount was told, and repairs it",
            false => "no mount is there that could repair it: once there is one, run tandem verify --now there",
        };
        self.say(format!("{path}: {what}: the replica's data is damaged, the folder's is good; {next}"))
    }

    /// Says something that must be heard.
    fn say(&mut self, found: String) -> Result<(), Stop> {
        self.reply.seconds = self.begun.elapsed().as_secs_f64();
        let reply = pb::ScrubReply { found, ..self.reply.clone() };
        self.out.blocking_send(Ok(reply)).map_err(|_| Stop::Gone)
    }

    /// Says how it goes, now and then.
    fn tell(&mut self) -> Result<(), Stop> {
        if self.told.elapsed() < TELL_EVERY {
            return Ok(());
        }
        self.told = Instant::now();
        self.reply.seconds = self.begun.elapsed().as_secs_f64();
        match self.out.try_send(Ok(self.reply.clone())) {
            Err(TrySendError::Closed(_)) => Err(Stop::Gone),
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
        }
    }
}

/// What came of looking at a file exactly.
enum Judged {
    Good,
    /// The index does not know it.
    Unknown,
    Damaged(String),
}

fn failed(error: io::Error) -> Stop {
    Stop::Failed(format!("the replica's catalog cannot be read: {error}"))
}
