//! Polls the positions that daemons tell, and objects when one goes back.
//!
//! A position is (epoch, seq). The storage daemon's `durable` and `applied` are looked at, and what the mount knows of both. Asking a
//! daemon that is down is no answer and proves nothing; the number of answers is part of the result.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::harness::{Mount, Storage, rpc};

const PAUSE: Duration = Duration::from_millis(30);

/// Highest positions seen by name, and what went back.
#[derive(Debug, Default)]
pub struct Positions {
    highest: BTreeMap<&'static str, (u64, u64)>,
    went_back: Vec<String>,
}

impl Positions {
    /// Notes a position.
    pub fn saw(&mut self, name: &'static str, epoch: u64, seq: u64) {
        let highest = self.highest.entry(name).or_default();
        if (epoch, seq) < *highest {
            self.went_back.push(format!("{name} went from {}:{} back to {epoch}:{seq}", highest.0, highest.1));
        } else {
            *highest = (epoch, seq);
        }
    }
}

/// A poller that runs until it is finished.
#[derive(Debug)]
pub struct Watch {
    positions: Arc<Mutex<Positions>>,
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Begins to poll. Each daemon has a poller of its own, so that one that hangs hides nothing of the other.
    pub fn start(storage: &Storage, mount: &Mount, volume: &str) -> Watch {
        let mut watch =
            Watch { positions: Arc::default(), answers: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        let (storage, volume) = (storage.clone(), volume.to_owned());
        watch.poll(move |positions| {
            let Some(secret) = storage.try_secret() else { return false };
            let Ok(reply) = rpc::storage_status(storage.port(), &secret) else { return false };
            let Some(status) = reply.volumes.into_iter().find(|status| status.volume == volume) else { return false };
            let mut positions = positions.lock().unwrap_or_else(PoisonError::into_inner);
            let published = status.position.unwrap_or_default();
            positions.saw("position of the replica", published.epoch, published.seq);
            positions.saw("durable of the replica", status.epoch, status.durable);
            // 0 stands for a position of an older epoch.
            if status.applied > 0 {
                positions.saw("applied of the replica", status.epoch, status.applied);
            }
            true
        });
        let mount = mount.clone();
        watch.poll(move |positions| {
            let Ok(reply) = rpc::mount_status(&mount.socket()) else { return false };
            let Some(status) = reply.mounts.into_iter().next() else { return false };
            // A mount that was never attached in this run has no position of its own yet.
            if status.epoch == 0 {
                return false;
            }
            let mut positions = positions.lock().unwrap_or_else(PoisonError::into_inner);
            positions.saw("durable as the mount knows it", status.epoch, status.durable);
            positions.saw("applied as the mount knows it", status.epoch, status.applied);
            true
        });
        watch
    }

    fn poll(&mut self, mut ask: impl FnMut(&Mutex<Positions>) -> bool + Send + 'static) {
        let (positions, answers, stop) =
            (Arc::clone(&self.positions), Arc::clone(&self.answers), Arc::clone(&self.stop));
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if ask(&positions) {
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(PAUSE);
            }
        }));
    }

    /// What went back so far.
    pub fn went_back(&self) -> Vec<String> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).went_back.clone()
    }

    /// Stops polling. Panics if a position went back; returns how many answers there were.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok(), "a poller panicked");
        }
        let wrong = self.went_back();
        assert!(wrong.is_empty(), "a position went back:\n{}", wrong.join("\n"));
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Positions;

    #[test]
    fn a_seq_that_falls_within_its_epoch_is_seen_and_one_of_a_new_epoch_is_not() {
        let mut positions = Positions::default();
        for (epoch, seq) in [(1, 5), (1, 9), (2, 0), (2, 3)] {
            positions.saw("x", epoch, seq);
        }
        assert!(positions.went_back.is_empty());
        positions.saw("x", 2, 2);
        assert_eq!(positions.went_back, ["x went from 2:3 back to 2:2"]);
        positions.saw("x", 1, 100);
        assert_eq!(positions.went_back.len(), 2);
    }
}
