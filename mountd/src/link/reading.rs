//! The thread that reads files for a resync.
//!
//! What it reads goes out in small heaps: of small files each is two messages, and if each was handed over by itself, each would wake the
//! link's task, cost a segment of its own and wake the storage daemon. A heap is handed over when it is as much as goes out at once, and
//! before the thread waits for anything, so nothing lies here while nothing is read.

use std::{
    io,
    sync::{atomic::Ordering, mpsc as thread_mpsc},
};

use tandem_proto::{
    pb::{self, client_message::Body},
    stage::Stage,
};
use tandem_runtime::priority;
use tokio::sync::mpsc;

use crate::{
    link::driver::LinkShared,
    resync::{
        StateReader,
        plan::{Manner, Step, StepDone},
        read,
    },
};

/// Messages of a heap: no more than the channel to gRPC takes at once.
const HEAP_MESSAGES: usize = 16;
/// Bytes of a heap: some more than gRPC puts into one frame.
const HEAP_BYTES: u64 = 48 << 10;

/// One step to be carried out.
pub(super) struct Job {
    pub(super) step: Step,
    pub(super) manner: Manner,
    pub(super) session: u64,
    /// Which connection of this run it is for: a storage daemon that was restarted counts its sessions from the beginning again.
    pub(super) connection: u64,
    pub(super) out: mpsc::Sender<pb::ClientMessage>,
}

/// What came of it.
pub(super) struct JobDone {
    pub(super) connection: u64,
    pub(super) result: io::Result<StepDone>,
}

fn outgoing_session(stage: Stage, session: u64) -> pb::ClientMessage {
    let body = match stage {
        Stage::Dir(stage) => Body::StageDir(pb::StageDir { session, ..(&stage).into() }),
        Stage::Node(stage) => Body::StageNode(pb::StageNode { session, ..(&stage).into() }),
        Stage::Recipe(stage) => Body::StageRecipe(pb::StageRecipe { session, ..(&stage).into() }),
        Stage::Data(stage) => Body::StageData(pb::StageData { session, ..(&stage).into() }),
    };
    pb::ClientMessage { body: Some(body) }
}

/// What was read and not handed over yet, all of one connection.
#[derive(Default)]
struct Heap {
    messages: Vec<pb::ClientMessage>,
    bytes: u64,
    /// Steps that are done when these messages are handed over.
    done: Vec<StepDone>,
}

impl Heap {
    /// Adds a message; hands all of them over if they are enough.
    fn add(&mut self, message: pb::ClientMessage, len: u64, out: &mpsc::Sender<pb::ClientMessage>) -> io::Result<()> {
        self.messages.push(message);
        self.bytes += len;
        if self.messages.len() < HEAP_MESSAGES && self.bytes < HEAP_BYTES {
            return Ok(());
        }
        self.hand_over(out)
    }

    fn hand_over(&mut self, out: &mpsc::Sender<pb::ClientMessage>) -> io::Result<()> {
        self.bytes = 0;
        for message in self.messages.drain(..) {
            out.blocking_send(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }

    /// The same, and tells which steps are done. Whether there is still somebody who is told.
    fn finish(&mut self, of: &Job, done: &mpsc::UnboundedSender<JobDone>) -> bool {
        let went = self.hand_over(&of.out);
        self.done.drain(..).all(|step| {
            let result = match &went {
                Ok(()) => Ok(step),
                Err(error) => Err(error.kind().into()),
            };
            done.send(JobDone { connection: of.connection, result }).is_ok()
        })
    }
}

/// The reading thread: ends when the driver is gone.
pub(super) fn read_jobs(
    jobs: &thread_mpsc::Receiver<Job>,
    done: &mpsc::UnboundedSender<JobDone>,
    reader: &dyn StateReader,
    shared: &LinkShared,
) {
    let mut heap = Heap::default();
    let mut next = jobs.recv().ok();
    while let Some(job) = next {
        priority::settle(shared.patience());
        match carry_out(&job, reader, shared, &mut heap) {
            Ok(step) => heap.done.push(step),
            Err(error) => {
                if !heap.finish(&job, done)
                    || done.send(JobDone { connection: job.connection, result: Err(error) }).is_err()
                {
                    return;
                }
            }
        }
        let following = jobs.try_recv().ok();
        let goes_on = following.as_ref().is_some_and(|next| next.connection == job.connection);
        if (!goes_on || heap.messages.is_empty()) && !heap.finish(&job, done) {
            return;
        }
        next = following.or_else(|| jobs.recv().ok());
    }
}

fn carry_out(job: &Job, reader: &dyn StateReader, shared: &LinkShared, heap: &mut Heap) -> io::Result<StepDone> {
    let mut send = |message: pb::ClientMessage| {
        let (message, len) = shared.packer.pack(message);
        shared.traffic.sent_bytes.fetch_add(len, Ordering::Relaxed);
        heap.add(message, len, &job.out)
    };
    match &job.step {
        Step::Barrier(token) => {
            let barrier = pb::Barrier { session: job.session, token: *token };
            send(pb::ClientMessage { body: Some(Body::Barrier(barrier)) }).map(|()| StepDone::default())
        }
        step => read::carry_out(step, job.manner, reader, &mut |stage| send(outgoing_session(stage, job.session))),
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb;
    use tokio::sync::mpsc;

    use super::{HEAP_BYTES, HEAP_MESSAGES, Heap};

    #[test]
    fn messages_wait_until_they_are_as_much_as_goes_out_at_once() {
        let (out, mut queue) = mpsc::channel(2 * HEAP_MESSAGES);
        let mut heap = Heap::default();
        for _ in 1..HEAP_MESSAGES {
            heap.add(pb::ClientMessage::default(), 100, &out).expect("there is room");
        }
        assert!(queue.try_recv().is_err(), "too few, and too short");
        heap.add(pb::ClientMessage::default(), 100, &out).expect("there is room");
        assert_eq!(queue.len(), HEAP_MESSAGES);
        while queue.try_recv().is_ok() {}
        heap.add(pb::ClientMessage::default(), HEAP_BYTES, &out).expect("there is room");
        assert_eq!(queue.len(), 1, "long ones wait for nobody");
    }

    #[test]
    fn steps_whose_messages_went_nowhere_are_not_told_as_done() {
        let (out, queue) = mpsc::channel(1);
        let (done, mut told) = mpsc::unbounded_channel();
        let job = super::Job {
            step: crate::resync::plan::Step::Barrier(1),
            manner: Default::default(),
            session: 1,
            connection: 7,
            out,
        };
        let mut heap = Heap::default();
        heap.add(pb::ClientMessage::default(), 1, &job.out).expect("kept");
        heap.done.push(Default::default());
        drop(queue);
        assert!(heap.finish(&job, &done));
        let told = told.try_recv().expect("told");
        assert_eq!(told.connection, 7);
        assert_eq!(told.result.expect_err("it went nowhere").kind(), std::io::ErrorKind::BrokenPipe);
    }
}
