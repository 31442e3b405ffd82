//! Files that this storage daemon gets from another one by itself: over as many connections as it takes, as long as who asked listens.

use std::time::{Duration, Instant};

use tandem_copy::{Failed, Receiver};
use tandem_proto::pb::{self, copy_up::Body as Up};
use tandem_runtime::{
    connect::{KEEPALIVE, ServerAddress},
    failure::said,
    tls::Fingerprint,
};
use tokio::{runtime::Handle, sync::mpsc};
use tonic::{Code, Status, transport::Channel};

use super::{
    AHEAD,
    asking::{Answers, ask},
    destination::VolumeDestination,
    receiving::{Heard, Out, Teller, end, hear, up},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After so long without a byte the copy is given up.
const STALLED: Duration = Duration::from_secs(60);

/// Where the files are.
pub(super) struct Origin {
    server: ServerAddress,
    /// Of its CA; `None`: plaintext.
    ca: Option<Fingerprint>,
    open: pb::CopyOpen,
}

impl Origin {
    /// Checks a request. Plaintext, which anybody on the way reads, and which could be sent to any port, is for who runs this daemon.
    pub(super) fn check(request: pb::BringRequest, local: bool) -> Result<Origin, Status> {
        let server: ServerAddress = request.source.parse().map_err(Status::invalid_argument)?;
        let ca = match &request.fingerprint[..] {
            [] if !local => {
                let why = "a copy in plaintext is for who runs the storage daemon that gets it: join the source, so that it has TLS";
                return Err(Status::permission_denied(why));
            }
            [] => None,
            bytes => {
                let bytes = bytes.try_into().map_err(|_| Status::invalid_argument("fingerprint: not 32 bytes"))?;
                Some(Fingerprint(bytes))
            }
        };
        let open = request.open.ok_or_else(|| Status::invalid_argument("the request does not say what"))?;
        Ok(Origin { server: ServerAddress { insecure: ca.is_none(), ..server }, ca, open })
    }

    async fn connect(&self) -> Result<Channel, Status> {
        let connected = match self.ca {
            Some(ca) => self.server.connect_introduced(CONNECT_TIMEOUT, ca).await,
            None => self.server.connect(CONNECT_TIMEOUT, Some(KEEPALIVE)).await,
        };
        connected.map_err(|error| {
            let mut why = error.to_string();
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                why = format!("{why}: {cause}");
                next = cause.source();
            }
            Status::unavailable(format!("the source {} does not answer: {why}", self.server))
        })
    }

    /// Opens the copy: where to ask, and what comes.
    async fn open(&self) -> Result<(mpsc::Sender<pb::CopyUp>, Answers), Status> {
        let channel = self.connect().await?;
        let (to, questions) = mpsc::channel(tandem_copy::AHEAD + AHEAD);
        let _ = to.send(up(Up::Open(self.open.clone()))).await;
        Ok((to, ask(channel, questions, STALLED).await?))
    }
}

/// Whether it may help to connect again.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Aborted | Code::Unknown | Code::DataLoss)
        || std::error::Error::source(status).is_some()
}

/// See the module.
pub(super) fn bring(handle: &Handle, destination: VolumeDestination, origin: &Origin, out: &Out) {
    let mut receiver = Receiver::new(destination);
    let mut teller = Teller::new(out, &mut receiver);
    let (mut pause, mut moved, mut before) = (PAUSE_MIN, Instant::now(), 0);
    let heard = loop {
        let (heard, why) = attempt(handle, &mut receiver, origin, &mut teller);
        let came = receiver.counted().bytes_done + receiver.counted().files_done;
        if came > before {
            (pause, moved, before) = (PAUSE_MIN, Instant::now(), came);
        }
        match (heard, why) {
            (Ok(Heard::Broken), Some(status))
                if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) && before > 0 =>
            {
                // It was started again, and has forgotten the ticket: who asked gets another one.
                let _ = receiver.settle(true);
                teller.tell(&mut receiver, false);
                let _ = out.blocking_send(Err(Status::unavailable(status.message())));
                return;
            }
            (Ok(Heard::Broken), Some(status)) if !is_passing(&status) || moved.elapsed() > STALLED => {
                break Err(Failed::All(format!("{}; what has arrived is kept", said(&status))));
            }
            (Ok(Heard::Broken), why) => {
                // What is whole gets its name first: its number in the list may be another next time.
                if let Err(error) = receiver.settle(true) {
                    break Err(error);
                }
                let why = why.map_or_else(|| "it ended in the middle".to_owned(), |status| said(&status));
                receiver.destination().waits_for = format!("the connection to {}: {why}", origin.server);
                if !teller.tell(&mut receiver, false) {
                    break Ok(Heard::Nobody);
                }
                receiver.begin_again();
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
            (heard, _) => break heard,
        }
    };
    end(&mut receiver, heard, &mut teller, out);
}

/// One connection; why it ended, if it broke.
fn attempt(
    handle: &Handle,
    receiver: &mut Receiver<VolumeDestination>,
    origin: &Origin,
    teller: &mut Teller<'_>,
) -> (Result<Heard, Failed>, Option<Status>) {
    let (ask, mut answers) = match handle.block_on(origin.open()) {
        Ok(opened) => opened,
        Err(status) => return (Ok(Heard::Broken), Some(status)),
    };
    let heard = hear(receiver, &mut answers.input, &mut |want| ask.blocking_send(up(Up::Want(want))).is_ok(), teller);
    let why = answers.why.lock().take();
    (heard, why)
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb;

    use super::Origin;

    #[test]
    fn plaintext_is_for_who_runs_the_daemon() {
        let request = |fingerprint: &[u8], source: &str| pb::BringRequest {
            source: source.to_owned(),
            fingerprint: bytes::Bytes::copy_from_slice(fingerprint),
            open: Some(pb::CopyOpen::default()),
            into: None,
        };
        assert!(Origin::check(request(b"", "far:1"), false).is_err());
        assert!(Origin::check(request(b"", "far:1"), true).is_ok());
        assert!(Origin::check(request(&[1; 32], "far:1"), false).is_ok());
        assert!(Origin::check(request(&[1; 31], "far:1"), true).is_err());
        assert!(Origin::check(request(&[1; 32], "a/b"), true).is_err());
    }
}
