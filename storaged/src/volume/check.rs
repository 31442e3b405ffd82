//! Checks of a verifying mount: each is answered with the replica at exactly the place where it stands in the stream.

use std::collections::HashMap;

use tandem_proto::pb::{self, server_message::Body};

use super::{core::Core, hold::Place};
use crate::{
    ingest::{
        receiver::Phase,
        refusal::{Reason, Refusal},
    },
    log::disk::Disk,
    tree::ReplicaTree,
    verify::{Check, Outcome},
};

/// Checks of one session that are not answered. A mount sends one and waits for its answer.
const CHECKS_MAX: usize = 4;
/// Numbers of their holds begin here; those of pulls are below.
const NUMBERS_FROM: u64 = 1 << 63;

/// Checks whose position is not held yet.
#[derive(Debug)]
pub(super) struct Checks {
    next: u64,
    waiting: HashMap<u64, Check>,
}

impl Default for Checks {
    fn default() -> Self {
        Checks { next: NUMBERS_FROM, waiting: HashMap::new() }
    }
}

impl<D: Disk, T: ReplicaTree> Core<D, T> {
    /// Takes a check: everything that was received before it is part of what it compares.
    pub(super) fn take_check(&mut self, check: Check) -> Result<(), Refusal> {
        self.receiver.check_session(check.session)?;
        if !self.is_live() {
            // The mount sent it before it heard of its own resync.
            self.answer_check(check.session, check.token, Outcome::unchecked("a resync is under way"));
            return Ok(());
        }
        let tip = self.receiver.accepted_tip();
        if check.seq != tip.seq.0 {
            let message = format!("a check at seq {} stands behind op {}", check.seq, tip.seq);
            return Err(Refusal::new(Reason::BadRequest, message).of(tip.seq, check.seq));
        }
        if self.checks.waiting.len() >= CHECKS_MAX {
            let message = format!("{CHECKS_MAX} checks of this session wait already");
            return Err(Refusal::new(Reason::BadRequest, message));
        }
        let number = self.checks.next;
        self.checks.next += 1;
        self.checks.waiting.insert(number, check);
        self.hold(number, Some(Place::from(tip)));
        Ok(())
    }

    /// Tells the mount of files that a scrub found to be damaged; whether there is one that understands.
    pub(super) fn tell_damaged(&self, files: Vec<pb::DamagedFile>) -> bool {
        // Also during a resync: it looks when that is over.
        let hears = self.session.as_ref().is_some_and(|session| session.hears_damage);
        if hears {
            self.send(Body::Damaged(pb::Damaged { files }));
        }
        hears
    }

    /// The check that a hold was for.
    pub fn check_of(&mut self, number: u64) -> Option<Check> {
        self.checks.waiting.remove(&number)
    }

    /// The session is over: nobody waits for the answers.
    pub(super) fn drop_checks(&mut self) {
        let numbers: Vec<u64> = self.checks.waiting.drain().map(|(number, _)| number).collect();
        numbers.into_iter().for_each(|number| self.release(number));
    }

    /// A check is done: apply goes on, and names whose object is another are made to say so, for the resync that follows.
    pub fn checked(&mut self, number: u64, session: u64, token: u64, mut outcome: Outcome) {
        self.release(number);
        if !outcome.mend.is_empty() {
            let mended = if self.is_held() || !self.is_live() || !self.faults.is_empty() {
                Err("the volume is busy; the next pass does it".to_owned())
            } else {
                self.replica.mend(&outcome.mend).map_err(|error| error.to_string())
            };
            match mended {
                Ok(kept) => tracing::warn!(names = outcome.mend.len(), kept, "names of the tree were mended"),
                Err(why) => {
                    tracing::error!(why, "names of the tree cannot be mended");
                    if let Some(finding) = outcome.findings.first_mut() {
                        finding.problem = format!("{}; its names cannot be mended: {why}", finding.problem);
                    }
                }
            }
        }
        self.mismatches += outcome.findings.len() as u64;
        self.answer_check(session, token, outcome);
    }

    fn is_live(&self) -> bool {
        matches!(self.receiver.phase(), Phase::Live)
    }

    fn answer_check(&self, session: u64, token: u64, outcome: Outcome) {
        if self.session.as_ref().is_some_and(|current| current.number == session) {
            let Outcome { unchecked, findings, inodes, .. } = outcome;
            self.send(Body::Verified(pb::VerifyResult { token, unchecked, findings, inodes }));
        }
    }
}
