//! Hooks: a command of the administrator that runs when a file of the replica is complete, and when a directory has become quiet.
//!
//! ```text
//!  mount ─► closed(inode, seq) ──────────┐ applied
//!  apply ─► touched(inode) ─► [quiet] ───┴─ nothing more for --hook-delay ─► job: path, position, digest ─► the command, as --hook-user
//!                                                                              └─ it failed: again, later, three times; then counted
//! ```
//! The command gets the file's content on its standard input, opened by the daemon, because the replica's directory is closed to
//! others; where it may write is `--hook-dir`, its working directory. It cannot change the replica, and nothing waits for it: each
//! command has a time limit, few run at a time, and what was quiet while the daemon was down is not told again.

mod job;
mod quiet;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_proto::{
    ids::InodeId,
    op::{Change, Op},
    position::{Epoch, Seq},
};

use self::{job::Job, quiet::Quiet};
use crate::{reader::ReplicaReader, tree::FsTree};

/// Commands of one volume that run at a time.
const AT_A_TIME: usize = 2;
/// Jobs that wait for one of them.
const JOBS_MAX: usize = 1024;
/// Changes that wait to be noticed.
const TOUCHED_MAX: usize = 32 << 10;
/// Attempts for one event.
const ATTEMPTS: u32 = 3;
/// Before the second attempt; twice as long before the third.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often one looks how far apply is, while closed files wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A directory is quiet after so many times the delay of a file.
const DIRECTORY_FACTOR: u32 = 4;

/// What a hook is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// The content of a file changed.
    File,
    /// Names or files of a directory changed.
    Directory,
}

impl Event {
    /// As the command sees it.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::File => "file",
            Event::Directory => "directory",
        }
    }
}

/// What the administrator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRule {
    /// `--hook`: run by `/bin/sh -c`.
    pub command: String,
    /// `--hook-user`: its ids; `None`: the daemon's own user, who is not root.
    pub user: Option<(u32, u32)>,
    /// `--hook-dir`.
    pub directory: PathBuf,
    /// `--hook-delay`.
    pub delay: Duration,
    /// `--hook-timeout`.
    pub timeout: Duration,
}

/// What status shows.
#[derive(Clone, Debug, Default)]
pub struct HookFacts {
    /// Commands that succeeded since the start.
    pub done: u64,
    /// Events that were given up after all attempts, or that were too many.
    pub failed: u64,
    /// Events that wait.
    pub waiting: u64,
    /// The last failure.
    pub last_error: String,
}

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicU64,
    last_error: Mutex<String>,
}

impl Counters {
    fn failed(&self, why: String) {
        tracing::info!(why, "a hook failed");
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock() = why;
    }
}

enum Message {
    Touched(Event, InodeId),
    Closed(Epoch, Seq, InodeId),
    Stop,
}

/// The hooks of one volume.
pub struct Hooks {
    touched: SyncSender<Message>,
    counters: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Hooks {
    /// Starts its threads.
    pub fn start(rule: HookRule, volume: String, reader: ReplicaReader<FsTree>) -> std::io::Result<Hooks> {
        let (touched, messages) = sync_channel(TOUCHED_MAX);
        let (jobs, waiting) = sync_channel::<Job>(JOBS_MAX);
        let counters = Arc::new(Counters::default());
        let waiting = Arc::new(Mutex::new(waiting));
        let rule = Arc::new(rule);
        for _ in 0..AT_A_TIME {
            let (rule, waiting, counters) = (rule.clone(), waiting.clone(), counters.clone());
            let (reader, volume) = (reader.clone(), volume.clone());
            let work = move || {
                loop {
                    // Held only while one waits: the other gets the next.
                    let next = waiting.lock().recv();
                    let Ok(job) = next else { return };
                    attempt(&job, &rule, &volume, &reader, &counters);
                    counters.waiting.fetch_sub(1, Ordering::Relaxed);
                }
            };
            std::thread::Builder::new().name("hook".to_owned()).spawn(work)?;
        }
        let (watching, delay) = (counters.clone(), rule.delay);
        let applied = move || {
            let applied = reader.applied();
            (applied.epoch, applied.seq)
        };
        let thread = std::thread::Builder::new().name("hooks".to_owned()).spawn(move || {
            watch(&messages, &jobs, &watching, delay, applied);
            // The workers end with `jobs`, after the commands that run: the daemon does not wait for those.
        })?;
        Ok(Hooks { touched, counters, thread: Mutex::new(Some(thread)) })
    }

    /// An op was applied. Never blocks.
    pub fn applied(&self, op: &Op) {
        for change in &op.changes {
            let (event, id) = match change {
                Change::Data { id, .. }
                | Change::Copy { id, .. }
                | Change::Hole { id, .. }
                | Change::Size { id, .. } => (Event::File, id),
                Change::Entry { dir, new, .. } => {
                    // A file that was written under another name and renamed is told by the name that it has now.
                    if let Some(new) = new {
                        self.put(Event::File, new);
                    }
                    (Event::Directory, dir)
                }
                Change::Birth { .. } | Change::Attr { .. } | Change::Xattr { .. } => continue,
            };
            self.put(event, id);
        }
    }

    /// A file may have another content.
    pub fn changed(&self, id: &InodeId) {
        self.put(Event::File, id);
    }

    /// Files were closed that programs had open for writing; all of it is in ops up to there. Never blocks: one that is not heard becomes
    /// quiet.
    pub fn closed(&self, epoch: Epoch, seq: Seq, ids: impl Iterator<Item = InodeId>) {
        for id in ids {
            let _ = self.touched.try_send(Message::Closed(epoch, seq, id));
        }
    }

    fn put(&self, event: Event, id: &InodeId) {
        if self.touched.try_send(Message::Touched(event, *id)).is_err() {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// For status.
    pub fn facts(&self) -> HookFacts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HookFacts {
            done: count(&self.counters.done),
            failed: count(&self.counters.failed),
            waiting: count(&self.counters.waiting),
            last_error: self.counters.last_error.lock().clone(),
        }
    }

    /// Ends its threads. Commands that run go on.
    pub fn close(&self) {
        let _ = self.touched.send(Message::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

/// Waits for quiet, and makes jobs.
fn watch(
    messages: &Receiver<Message>,
    jobs: &SyncSender<Job>,
    counters: &Counters,
    delay: Duration,
    applied: impl Fn() -> (Epoch, Seq),
) {
    const IDLE: Duration = Duration::from_secs(3600);
    let mut quiet = Quiet::default();
    loop {
        let wait = quiet.wait(Instant::now()).unwrap_or(IDLE);
        let wait = if quiet.waits_for_apply() { wait.min(LOOK_EVERY) } else { wait };
        match messages.recv_timeout(wait) {
            Ok(Message::Touched(event, id)) => {
                let delay = if event == Event::Directory { delay * DIRECTORY_FACTOR } else { delay };
                quiet.touched(event, id, Instant::now() + delay);
            }
            Ok(Message::Closed(epoch, seq, id)) => quiet.closed(id, (epoch, seq), Instant::now() + delay),
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        if quiet.waits_for_apply() {
            quiet.reached(applied(), Instant::now());
        }
        while let Some((event, id)) = quiet.pop(Instant::now()) {
            counters.waiting.fetch_add(1, Ordering::Relaxed);
            if jobs.try_send(Job { event, id }).is_err() {
                counters.waiting.fetch_sub(1, Ordering::Relaxed);
                counters.failed("more files became quiet than commands can be run for".to_owned());
            }
        }
        if quiet.take_missed() > 0 {
            counters.failed("more files change than are followed".to_owned());
        }
    }
}

fn attempt(job: &Job, rule: &HookRule, volume: &str, reader: &ReplicaReader<FsTree>, counters: &Counters) {
    let mut pause = AGAIN_AFTER;
    for attempt in 1..=ATTEMPTS {
        match job.run(rule, volume, reader) {
            Ok(true) => {
                counters.done.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // It is gone, or no file: nobody to be told of.
            Ok(false) => return,
            Err(why) if attempt == ATTEMPTS => counters.failed(why),
            Err(_) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
        }
    }
}
