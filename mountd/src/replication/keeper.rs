//! The keeper of the marks: clears those that nobody needs, fails fsyncs whose time is over, notes that we are alive and whose replica we have.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tandem_proto::Uuid;

use super::remember;
use crate::{commit::Commit, link::driver::LinkShared, resync::StateReader, state::StateDir};

/// How late an fsync may fail after its time.
const TICK: Duration = Duration::from_millis(200);
/// How often marks are looked at; they stay hot for a minute anyway.
const CLEAR_EVERY: Duration = Duration::from_secs(10);
/// How old `alive` may be.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// The running thread.
#[derive(Debug)]
pub struct Keeper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// Unix time in nanoseconds, for display and for walks only.
pub fn unix_now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Keeper {
    /// Starts it.
    pub fn start(
        commit: Arc<Commit>,
        reader: Arc<dyn StateReader>,
        shared: Arc<LinkShared>,
        state: Arc<Mutex<StateDir>>,
        run: Uuid,
    ) -> io::Result<Keeper> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("mark-keeper".into()).spawn(move || {
            let (mut cleared, mut alive) = (Instant::now(), None::<Instant>);
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                let now = Instant::now();
                let reason = shared.facts.lock().reason.clone();
                commit.expire(now, &reason);
                remember::save(&commit, &state, run);
                // Until something was published, changes around the mount since the time before may not be found yet.
                if commit.durable().is_some() && alive.is_none_or(|at| now - at >= ALIVE_EVERY) {
                    alive = Some(now);
                    if let Err(error) = state.lock().touch_alive() {
                        tracing::debug!(%error, "alive");
                    }
                }
                if now - cleared >= CLEAR_EVERY {
                    cleared = now;
                    let witnesses = remember::look_at_witnesses(&commit, &*reader);
                    match commit.clear_marks(false, &|| reader.sync_durable()) {
                        Ok(0) => {}
                        Ok(_) => remember::save_witnesses(&state, witnesses),
                        Err(error) => tracing::warn!(%error, "marks could not be cleared and stand"),
                    }
                }
            }
        })?;
        Ok(Keeper { stop, thread })
    }

    /// Ends it.
    pub fn stop(self) {
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the mark keeper panicked");
        }
    }
}
