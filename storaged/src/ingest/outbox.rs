//! The way back to a writer: what the volume's thread says, read by the session's stream.
//!
//! The volume's thread never waits on the network, so this never blocks. It is bounded: acknowledgements that were not yet read
//! are replaced by newer ones, and a writer that does not read its answers loses its session.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use tandem_proto::pb::{self, server_message::Body};
use tokio::sync::Notify;
use tokio_stream::Stream;
use tonic::Status;

/// Answers that may wait. A writer asks for at most a few thousand ids before it waits for a barrier.
const WAITING_MAX: usize = 16 << 10;

#[derive(Default)]
struct State {
    waiting: VecDeque<pb::ServerMessage>,
    closed: bool,
    waker: Option<Waker>,
}

/// Messages on their way to one writer.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// Told when it is closed; one task waits for it.
    ended: Notify,
}

impl Outbox {
    /// Queues a message. Once closed, or when the writer does not read, it is dropped.
    pub fn send(&self, body: Body) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let last = state.waiting.back_mut().and_then(|message| message.body.as_mut());
        match (last, body) {
            (Some(Body::Ack(last)), Body::Ack(ack)) => *last = ack,
            (Some(Body::Alive(last)), Body::Alive(alive)) => *last = alive,
            (_, body) => state.waiting.push_back(pb::ServerMessage { body: Some(body) }),
        }
        if state.waiting.len() > WAITING_MAX {
            state.waiting.clear();
            state.closed = true;
            self.ended.notify_one();
        }
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    /// Ends the stream after what waits, and after `last`.
    pub fn close(&self, last: Option<pb::ServerMessage>) {
        let mut state = self.state.lock();
        if !state.closed {
            state.waiting.extend(last);
            state.closed = true;
            self.ended.notify_one();
        }
        if let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }

    /// Whether nothing more can be sent.
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Returns when it is closed. For one task.
    pub async fn ended(&self) {
        if !self.is_closed() {
            self.ended.notified().await;
        }
    }

    /// Takes all that waits; for a driver without a stream, as the simulation is.
    pub fn drain(&self) -> Vec<pb::ServerMessage> {
        self.state.lock().waiting.drain(..).collect()
    }
}

/// The stream of an [`Outbox`]. Dropping it closes the outbox.
pub struct OutboxStream(pub Arc<Outbox>);

impl Stream for OutboxStream {
    type Item = Result<pb::ServerMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state.lock();
        if let Some(message) = state.waiting.pop_front() {
            return Poll::Ready(Some(Ok(message)));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for OutboxStream {
    fn drop(&mut self) {
        self.0.close(None);
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::{Ack, BarrierReached, server_message::Body};

    use super::{Outbox, WAITING_MAX};

    #[test]
    fn waiting_acks_are_replaced_and_order_is_kept() {
        let outbox = Outbox::default();
        let ack = |durable| Body::Ack(Ack { durable, ..Default::default() });
        outbox.send(ack(1));
        outbox.send(ack(2));
        outbox.send(Body::Barrier(BarrierReached { token: 1 }));
        outbox.send(ack(3));
        let bodies: Vec<_> = outbox.drain().into_iter().filter_map(|message| message.body).collect();
        assert_eq!(bodies, [ack(2), Body::Barrier(BarrierReached { token: 1 }), ack(3)]);
    }

    #[test]
    fn a_writer_that_does_not_read_loses_its_session() {
        let outbox = Outbox::default();
        for token in 0..=WAITING_MAX as u64 {
            outbox.send(Body::Barrier(BarrierReached { token }));
        }
        assert!(outbox.is_closed());
        assert!(outbox.drain().is_empty());
    }
}
