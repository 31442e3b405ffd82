//! The thread that owns a volume: collects what came in, makes it durable, applies it, and looks at the clock.
//!
//! ```text
//!  loop { collect ─► flush (append, fsync, ack durable) ─► apply, until something came in or the backlog is empty ─► tick }
//! ```
//! Newly arrived ops are logged before more of the backlog is applied, so that an fsync on the mount does not wait for apply,
//! until the backlog is full: then apply comes first. It sleeps on its channel only; nothing here polls.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tandem_proto::pb;
use tandem_runtime::priority::{self, Priority};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    core::Core,
    facts::Facts,
    hold::{Held, Place},
    quota::Used,
    review::Marker,
    settings::Settings,
};
use crate::{
    ingest::{
        incoming::{AttachRequest, Incoming},
        outbox::Outbox,
        refusal::Refusal,
    },
    log::disk::Disk,
    tree::{ReplicaTree, rush},
    verify::{Check, Checker, Job, Outcome},
};

/// Ops that are applied before the thread looks at its channel again: some 100 us.
const APPLY_SLICE: usize = 16;

/// What a volume's thread is told.
pub enum Command {
    /// Somebody claims the volume.
    Attach {
        /// Who.
        request: Box<AttachRequest>,
        /// Where answers go.
        outbox: Arc<Outbox>,
        /// The session's number.
        reply: oneshot::Sender<Result<u64, Refusal>>,
    },
    /// A message of a session.
    Message {
        /// Which.
        session: u64,
        /// What.
        message: Box<Incoming>,
        /// Its share of the memory for waiting messages.
        permit: OwnedSemaphorePermit,
    },
    /// A session's stream ended.
    Closed {
        /// Which.
        session: u64,
    },
    /// What is true now, for somebody who decides by it: the facts beside the thread are those of its last round, which may have
    /// been followed by a publish that its writer heard of already.
    Look {
        /// Told in its turn.
        reply: oneshot::Sender<Facts>,
    },
    /// Apply shall stand still at a position, for a reader.
    Hold {
        /// Chosen by the reader, for [`Command::Release`].
        number: u64,
        /// Where; else at what is durable now.
        at: Option<Place>,
        /// Told when it stands there, or that it never will.
        reply: oneshot::Sender<Result<Held, Refusal>>,
    },
    /// The reader has ended, or waits no more.
    Release {
        /// Which.
        number: u64,
    },
    /// Its settings have changed.
    Configure {
        /// To these.
        settings: Settings,
    },
    /// How much its tree and staging take; none: they could not be measured.
    Measured {
        /// Bytes.
        used: Option<Used>,
    },
    /// A check was compared.
    Checked {
        /// Of its hold.
        number: u64,
        /// Whose it was.
        session: u64,
        /// Names it in the answer.
        token: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// A scrub found files that are damaged.
    Damaged {
        /// Which.
        files: Vec<pb::DamagedFile>,
        /// Whether there is a mount that was told of them.
        reply: oneshot::Sender<bool>,
    },
    /// Stop; the thread ends.
    Stop,
}

/// What a session sent and the volume has not taken yet, in order.
enum Waiting {
    Message { session: u64, message: Box<Incoming>, permit: OwnedSemaphorePermit },
    Closed { session: u64 },
}

/// Starts a measurement; whether it could.
pub type Measurer = Box<dyn Fn() -> bool + Send>;

/// The thread's view of the world.
pub struct Driver<D: Disk, T: ReplicaTree> {
    core: Core<D, T>,
    commands: Receiver<Command>,
    waiting: VecDeque<Waiting>,
    facts: Arc<Mutex<Facts>>,
    /// Readers that wait for their position.
    readers: HashMap<u64, oneshot::Sender<Result<Held, Refusal>>>,
    /// Compares what a mount wants to be compared.
    checker: Option<Checker>,
    /// Begins to measure the volume, for its quota; the answer is [`Command::Measured`].
    measurer: Option<Measurer>,
    /// Says that a review is not done.
    marker: Option<Marker>,
    /// Brings the tree to the disk ahead of a checkpoint.
    ahead: Option<JoinHandle<()>>,
    stopping: bool,
}

fn unix_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl<D: Disk, T: ReplicaTree> Driver<D, T> {
    /// Takes an opened volume.
    pub fn new(core: Core<D, T>, commands: Receiver<Command>, facts: Arc<Mutex<Facts>>) -> Self {
        let mut driver = Driver {
            core,
            commands,
            waiting: VecDeque::new(),
            facts,
            readers: HashMap::new(),
            checker: None,
            measurer: None,
            marker: None,
            ahead: None,
            stopping: false,
        };
        driver.show();
        driver
    }

    /// Who compares for a mount; without one nothing is compared.
    pub fn check_with(&mut self, checker: Checker) {
        self.checker = Some(checker);
    }

    /// Who measures the volume; without one it has no quota.
    pub fn measure_with(&mut self, measurer: Measurer) {
        self.measurer = Some(measurer);
    }

    /// Where a review that is to be made is noted.
    pub fn review_with(&mut self, marker: Marker) {
        if marker.is_set() {
            self.core.begin_review();
        }
        self.marker = Some(marker);
    }

    fn reviewed(&self) {
        if let Some(Err(error)) = self.marker.as_ref().map(Marker::clear) {
            tracing::debug!(%error, "what was reviewed will be looked at again");
        }
    }

    /// Has the volume measured, if its quota asks for it.
    fn measure(&mut self, now: Instant) {
        if !self.core.wants_measure() {
            return;
        }
        self.core.measure_begins(now);
        if !self.measurer.as_ref().is_some_and(|begin| begin()) {
            self.core.measured(None, now);
        }
    }

    /// Runs until [`Command::Stop`], or until nobody can send any more.
    pub fn run(mut self) {
        while !self.stopping {
            self.collect();
            let now = Instant::now();
            while self.core.accepts()
                && let Some(waiting) = self.waiting.pop_front()
            {
                match waiting {
                    Waiting::Message { session, message, permit } => {
                        self.core.handle(session, *message, now);
                        drop(permit);
                    }
                    Waiting::Closed { session } => self.core.closed(session),
                }
            }
            if self.core.wants_flush() {
                self.core.flush(now);
                // The acknowledgement goes out before the tree is worked on: whoever sends it was often put behind this thread.
                std::thread::yield_now();
            }
            self.apply();
            priority::take(self.priority());
            let now = Instant::now();
            self.measure(now);
            self.core.take_held(now);
            if self.core.next_tick().is_some_and(|due| due <= now) {
                self.core.tick(now);
            }
            self.core.tidy();
            if self.core.review_some(now) {
                self.reviewed();
            }
            if self.ahead.as_ref().is_none_or(JoinHandle::is_finished) && self.core.wants_staged_ahead() {
                self.sync_ahead();
            }
            // A full log is waited for by the writer: then the short way is to wait here.
            if self.core.checkpoint_is_due() && (self.core.log_is_full() || self.is_synced_ahead()) {
                self.core.checkpoint_now(now);
            }
            self.tell_readers();
            self.show();
        }
        self.core.stop(Instant::now());
        self.show();
    }

    /// Of what is staged nobody waits for a part: it stands back while fsyncs of other volumes pass, and behind nobody else.
    fn priority(&self) -> Priority {
        match self.core.is_staging() {
            true if rush::is_on() => Priority::Patient,
            true => Priority::Usual,
            false => Priority::Prompt,
        }
    }

    /// Takes what came in; sleeps if there is nothing at all to do.
    fn collect(&mut self) {
        let busy = self.core.has_work() || (!self.waiting.is_empty() && self.core.accepts());
        if !busy {
            let wait = self.core.next_tick().map(|due| due.saturating_duration_since(Instant::now()));
            // Without a next tick nothing is due, ever; an hour stands for that.
            match self.commands.recv_timeout(wait.unwrap_or(Duration::from_secs(3600))) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    break;
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Message { session, message, permit } => {
                self.waiting.push_back(Waiting::Message { session, message, permit });
            }
            Command::Attach { request, outbox, reply } => {
                let attached = self.core.attach(&request, outbox, now, unix_ns());
                if attached.is_ok() {
                    // What an older session still has waiting was never accepted, and is not any more. Who is refused takes
                    // nothing from the session that goes on: a hole in what it staged would be published unseen.
                    self.waiting.clear();
                }
                if let Err(Ok(session)) = reply.send(attached) {
                    // The stream was gone before it heard.
                    self.core.closed(session);
                }
            }
            // In its turn: what it sent before it left still counts.
            Command::Closed { session } => self.waiting.push_back(Waiting::Closed { session }),
            Command::Look { reply } => {
                self.show();
                let _ = reply.send(self.facts.lock().clone());
            }
            Command::Hold { number, at, reply } => {
                self.readers.insert(number, reply);
                self.core.hold(number, at);
            }
            Command::Release { number } => {
                self.readers.remove(&number);
                self.core.release(number);
            }
            Command::Configure { settings } => {
                self.core.set_quota(settings.quota);
                if self.core.set_special(settings.special) {
                    self.core.begin_review();
                }
            }
            Command::Measured { used } => self.core.measured(used, now),
            Command::Checked { number, session, token, outcome } => self.core.checked(number, session, token, outcome),
            Command::Damaged { files, reply } => {
                let _ = reply.send(self.core.tell_damaged(files));
            }
            Command::Stop => self.stopping = true,
        }
        self.tell_readers();
    }

    /// Tells readers what was decided for them. Who hears nothing any more releases by itself.
    fn tell_readers(&mut self) {
        self.core.decide_holds();
        for (number, decision) in self.core.take_decided() {
            if let Some(reply) = self.readers.remove(&number) {
                let _ = reply.send(decision);
            } else if let Some(check) = self.core.check_of(number) {
                self.compare(number, check, decision);
            }
        }
    }

    /// A check has its position, or never will.
    fn compare(&mut self, number: u64, check: Check, decision: Result<Held, Refusal>) {
        let (session, token) = (check.session, check.token);
        let refused = match (decision, &self.checker) {
            (Ok(held), Some(checker)) => match checker.compare(Job { number, check, held }) {
                Ok(()) => return,
                Err(_) => "the thread that compares has ended: see storaged's log".to_owned(),
            },
            (Ok(_), None) => "this volume compares nothing: see storaged's log".to_owned(),
            (Err(refusal), _) => refusal.message,
        };
        self.core.checked(number, session, token, Outcome::unchecked(refused));
    }

    /// Applies until something came in, or all is applied.
    fn apply(&mut self) {
        while self.core.apply_some(Instant::now(), APPLY_SLICE) == APPLY_SLICE {
            match self.commands.try_recv() {
                Ok(command) => {
                    self.obey(command);
                    if self.core.accepts() {
                        return;
                    }
                }
                Err(_) => continue,
            }
        }
    }

    /// Whether most of what a checkpoint will sync is on the disk. While ops come in, that is done by another thread, so that
    /// acknowledgements do not wait for it; what is written meanwhile is what the checkpoint itself has to wait for.
    fn is_synced_ahead(&mut self) -> bool {
        match self.ahead.take() {
            Some(thread) if !thread.is_finished() => {
                self.ahead = Some(thread);
                false
            }
            // It proves nothing, so nothing depends on how it ended.
            Some(thread) => {
                let _ = thread.join();
                true
            }
            None => !self.sync_ahead(),
        }
    }

    /// Has another thread bring what is written to the disk; whether there is one.
    fn sync_ahead(&mut self) -> bool {
        let tree = self.core.replica().tree();
        let spawned = std::thread::Builder::new().name("sync ahead".to_owned()).spawn(move || {
            priority::settle(Priority::Patient);
            tree.sync_ahead();
        });
        self.ahead = spawned.ok();
        self.ahead.is_some()
    }

    fn show(&mut self) {
        let mut facts = self.facts.lock();
        let new = self.core.facts(&facts);
        *facts = new;
    }
}

impl<D: Disk, T: ReplicaTree> Drop for Driver<D, T> {
    /// A thread that panicked answers nobody any more: its writer must not wait for acknowledgements on an open stream.
    fn drop(&mut self) {
        self.core.end_session(None);
    }
}

/// The way to a volume's thread.
pub type Commands = Sender<Command>;
