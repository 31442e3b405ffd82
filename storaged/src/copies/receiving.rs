//! Files into a volume: asks for what is missing, takes what comes, tells how far it is. On a thread of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_copy::{Failed, Receiver};
use tandem_proto::pb::{self, copy_down::Body as Down, copy_up::Body as Up};
use tokio::sync::mpsc;
use tonic::Status;

use super::destination::VolumeDestination;

/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Answers to who asked for the copy.
pub(super) type Out = mpsc::Sender<Result<pb::CopyUp, Status>>;

/// How listening to the other end ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// All came.
    All,
    /// The connection to who has the files broke.
    Broken,
    /// Nobody wants it any more.
    Nobody,
}

pub(super) fn up(body: Up) -> pb::CopyUp {
    pb::CopyUp { body: Some(body) }
}

/// Tells progress, now and then.
pub(super) struct Teller<'a> {
    out: &'a Out,
    at: Instant,
    told: Arc<Mutex<pb::CopyProgress>>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(out: &'a Out, receiver: &mut Receiver<VolumeDestination>) -> Teller<'a> {
        let told = Arc::<Mutex<pb::CopyProgress>>::default();
        receiver.destination().told_to(out.clone(), told.clone());
        Teller { out, at: Instant::now(), told }
    }

    /// Whether anybody listens.
    pub(super) fn tell(&mut self, receiver: &mut Receiver<VolumeDestination>, finished: bool) -> bool {
        self.at = Instant::now();
        let waits_for = std::mem::take(&mut receiver.destination().waits_for);
        let progress = pb::CopyProgress { waits_for, finished, ..receiver.progress() };
        let news = pb::CopyProgress { done: Vec::new(), failed: Vec::new(), skipped: Vec::new(), ..progress.clone() };
        *self.told.lock() = news;
        self.out.blocking_send(Ok(up(Up::Progress(progress)))).is_ok()
    }

    fn tell_now_and_then(&mut self, receiver: &mut Receiver<VolumeDestination>) -> bool {
        self.at.elapsed() < TELL_EVERY || self.tell(receiver, false)
    }
}

/// Hears the list and the bytes until all is there.
pub(super) fn hear(
    receiver: &mut Receiver<VolumeDestination>,
    input: &mut mpsc::Receiver<Down>,
    ask: &mut dyn FnMut(pb::CopyWant) -> bool,
    teller: &mut Teller<'_>,
) -> Result<Heard, Failed> {
    while !receiver.is_complete() {
        let heard = match input.blocking_recv() {
            Some(Down::Item(item)) => receiver.item(item),
            Some(Down::Listed(_)) => {
                receiver.listed();
                Ok(())
            }
            Some(Down::Frame(frame)) => receiver.frame(frame),
            Some(Down::Into(_)) => Err(Failed::All("a second beginning of the copy".to_owned())),
            None => return Ok(Heard::Broken),
        };
        heard?;
        while let Some(want) = receiver.want()? {
            if !ask(want) {
                return Ok(Heard::Broken);
            }
        }
        receiver.settle(false)?;
        if !teller.tell_now_and_then(receiver) {
            return Ok(Heard::Nobody);
        }
    }
    Ok(Heard::All)
}

/// Gives what is whole its name, also when the rest did not come, and says how it ended. After a failure here nothing more is published:
/// a disk that is full would hold it up, and what is whole is found in its part by the next copy.
pub(super) fn end(
    receiver: &mut Receiver<VolumeDestination>,
    heard: Result<Heard, Failed>,
    teller: &mut Teller<'_>,
    out: &Out,
) {
    let settled = if heard.is_ok() { receiver.settle(true) } else { Ok(()) };
    let failed = match (heard, settled) {
        (Ok(Heard::All), Ok(())) => {
            teller.tell(receiver, true);
            return;
        }
        (Err(Failed::Item(why) | Failed::All(why)), _) | (_, Err(Failed::Item(why) | Failed::All(why))) => why,
        (Ok(_), Ok(())) => {
            teller.tell(receiver, false);
            return;
        }
    };
    teller.tell(receiver, false);
    tracing::warn!(error = failed, "a copy into a volume ended");
    // Who left does not hear it.
    let _ = out.blocking_send(Err(Status::failed_precondition(failed)));
}

/// What the caller has, into a volume.
pub(super) fn put(destination: VolumeDestination, mut input: mpsc::Receiver<Down>, out: &Out) {
    let mut receiver = Receiver::new(destination);
    let mut teller = Teller::new(out, &mut receiver);
    let mut ask = |want| out.blocking_send(Ok(up(Up::Want(want)))).is_ok();
    let heard = hear(&mut receiver, &mut input, &mut ask, &mut teller);
    // Whole files of a copy that ends here get their names: the next one need not look at their parts.
    end(&mut receiver, heard, &mut teller, out);
}
