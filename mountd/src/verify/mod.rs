//! Proof that folder and replica are equal, while both are used: the mount's side of `tandem verify`, and of the passes in the background.
//!
//! ```text
//!  waiting ── due, or asked ──► running: directory by directory ──► waiting        verify.json keeps the last result
//!                                 │ digests of what is here, placed in the stream ([`desk`]); the replica compares there
//!                                 └ what differs: asked again exactly, told, sent again by a resync, asked once more
//! ```
//! It promises: no false alarm whatever programs do meanwhile, because each comparison is of one exact position (`docs/decisions/0023`);
//! what was changed around the mount on either side is found; what differs is repaired from the folder, and the replica keeps what it had.
//! It leaves to others: sending (`resync`), and keeping the evidence (the storage daemon).
//!
//! [`pass`] walks, [`look`] reads and asks, [`suspect`] decides what differs and has it repaired.

pub mod desk;
mod look;
mod pass;
mod record;
mod suspect;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_proto::{Name, pb};
use tandem_runtime::priority::{self, Priority};

use self::{pass::Pass, record::Record};
use crate::{commit::Commit, resync::StateReader, vfs::Vfs};

/// Default time between two passes in the background.
pub const EVERY: Duration = Duration::from_secs(24 * 3600);
/// Default rate of a pass in the background, in bytes read here a second.
pub const RATE_BYTES: u64 = 32 << 20;
/// A new mount is left alone for so long.
const FIRST_AFTER: Duration = Duration::from_secs(600);
/// Mismatches that status shows.
const RECENT_MAX: usize = 20;
/// How often it looks whether it has to end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Settings of the passes in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Time between two; `None`: there are none.
    pub every: Option<Duration>,
    /// Bytes a second.
    pub rate_bytes: u64,
}

impl Default for Rule {
    fn default() -> Self {
        Rule { every: Some(EVERY), rate_bytes: RATE_BYTES }
    }
}

/// Who is told how a pass that was asked for goes. Bounded by its reader: a message that does not fit is left out, the last one waits.
pub type Updates = tokio::sync::mpsc::Sender<Result<pb::VerifyReply, tonic::Status>>;

struct Request {
    path: Vec<Name>,
    now: bool,
    updates: Updates,
}

/// What a pass works with.
struct Worker {
    vfs: Arc<Vfs<Commit>>,
    reader: Arc<dyn StateReader>,
    commit: Arc<Commit>,
    rule: Arc<Mutex<Rule>>,
    requests: Receiver<Request>,
    /// For which a pass in the background made way.
    pending: Option<Request>,
    facts: Arc<Mutex<Facts>>,
    stop: Arc<AtomicBool>,
    record: Record,
}

#[derive(Default)]
struct Facts {
    running: Option<pb::Progress>,
    last: record::Kept,
    recent: Vec<String>,
    next: Option<Instant>,
}

/// The verifier of one mount.
pub struct Verifier {
    requests: Sender<Request>,
    facts: Arc<Mutex<Facts>>,
    stop: Arc<AtomicBool>,
    rule: Arc<Mutex<Rule>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Verifier {
    /// Starts its thread. `state` is the state directory.
    pub fn start(
        vfs: Arc<Vfs<Commit>>,
        reader: Arc<dyn StateReader>,
        commit: Arc<Commit>,
        state: &Path,
        rule: Rule,
    ) -> std::io::Result<Verifier> {
        let (requests, received) = channel();
        let (facts, stop) = (Arc::new(Mutex::new(Facts::default())), Arc::new(AtomicBool::new(false)));
        let rule = Arc::new(Mutex::new(rule));
        let record = Record::in_directory(state);
        facts.lock().last = record.load();
        let worker = Worker {
            vfs,
            reader,
            commit,
            rule: rule.clone(),
            requests: received,
            pending: None,
            facts: facts.clone(),
            stop: stop.clone(),
            record,
        };
        let thread = std::thread::Builder::new().name("verify".to_owned()).spawn(move || worker.run())?;
        Ok(Verifier { requests, facts, stop, rule, thread: Mutex::new(Some(thread)) })
    }

    /// Changes how often and how fast it compares in the background. A pass under way goes on as it is.
    pub fn set_rule(&self, rule: Rule) {
        *self.rule.lock() = rule;
    }

    /// Compares what is below a path now; without `now` as slowly as in the background. How it goes is told until its end.
    pub fn ask(&self, path: Vec<Name>, now: bool, updates: Updates) -> Result<(), &'static str> {
        self.requests.send(Request { path, now, updates }).map_err(|_| "the verifier has ended; see the mount's log")
    }

    /// For status.
    pub fn status(&self) -> (pb::VerifyStatus, Option<pb::Progress>) {
        let facts = self.facts.lock();
        let state = match (&facts.running, self.rule.lock().every) {
            (Some(_), _) => "running",
            (None, Some(_)) => "waiting",
            (None, None) => "off",
        };
        let last = &facts.last;
        let next = facts.next.map_or_else(String::new, |next| {
            let minutes = next.saturating_duration_since(Instant::now()).as_secs() / 60;
            format!("in {minutes} min, if the link is live then")
        });
        let status = pb::VerifyStatus {
            state: state.to_owned(),
            position: last.position.clone(),
            time_ns: last.time_ns,
            files: last.files,
            bytes: last.bytes,
            unchecked: last.unchecked,
            mismatches: last.mismatches,
            repaired: last.repaired,
            recent: facts.recent.clone(),
            next,
        };
        (status, facts.running.clone())
    }

    /// Ends its thread, in the middle of a pass if need be.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the verifier's thread panicked");
        }
    }
}

impl Worker {
    fn run(mut self) {
        let begun = Instant::now();
        loop {
            let due = self.due(begun);
            self.facts.lock().next = due;
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            match self.requests.recv_timeout(LOOK_EVERY) {
                Ok(request) => self.serve(request),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.commit.desk().is_open() {
                let damaged = self.commit.desk().take_damaged();
                if !damaged.is_empty() {
                    Pass::of_damaged(&mut self).run_files(&damaged);
                }
            }
            if due.is_some_and(|due| due <= Instant::now()) && self.commit.desk().is_open() {
                // In a thread of its own, because a lower priority cannot be taken back by everybody.
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        priority::settle(Priority::Spare);
                        Pass::in_background(&mut self).run(&[]);
                    });
                });
                if let Some(request) = self.pending.take() {
                    self.serve(request);
                }
            }
        }
    }

    /// When the next pass in the background begins.
    fn due(&self, begun: Instant) -> Option<Instant> {
        let every = self.rule.lock().every?;
        let last = self.facts.lock().last.ended;
        Some(last.map_or(begun, |last| last + every).max(begun + FIRST_AFTER.min(every)))
    }

    fn serve(&mut self, request: Request) {
        let Request { path, now, updates } = request;
        Pass::asked_for(self, now, updates).run(&path);
    }

    fn is_ending(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
