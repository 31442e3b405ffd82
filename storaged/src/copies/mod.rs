//! Copies of files: out of volumes, into volumes, and from one storage daemon to another without a way around the person who asked.
//!
//! ```text
//!  Send   reader of a volume ──► list, bytes                          [sending], anybody with the role or a ticket
//!  Put    list, bytes ──► Receiver ──► staging/incoming ─► writer ──► the volume         [receiving, destination, writer]
//!  Bring  the same, with the list and the bytes of another storage daemon's Send         [bringing]
//! ```
//! A volume has one writer. What is copied into it is written by this daemon in the name of whoever copies, as a writer like a mount:
//! with an epoch of its own, in steps that are published whole. So it is refused as long as a mount holds the volume (decision 0034).
//! Bytes are written once, into a file that gets its name in the tree by the publish; a copy that ends early leaves its files in
//! `staging/incoming`, where the next one finds them.

mod asking;
mod bringing;
mod destination;
mod receiving;
mod sending;
mod tickets;
mod unmoved;
mod writer;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tandem_proto::{
    VolumeName,
    pb::{self, copies_server::Copies, copy_down::Body as Down, copy_up::Body as Up},
};
use tokio::{
    runtime::Handle,
    sync::{Mutex as Turn, OwnedMutexGuard, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use self::unmoved::Unmoved;
use self::{bringing::Origin, destination::VolumeDestination, tickets::Tickets};
use crate::{
    ingest::{refusal::Reason, service::status},
    trust::caller::{Caller, Opening, Role},
    volume::volumes::{Volume, Volumes},
};

/// How long the first message of a copy may take.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// Messages that came and are not written yet: 4 MiB of data.
const AHEAD: usize = 16;
/// Copies that are under way at a time; each has a thread.
const COPIES_MAX: usize = 64;

type Stream<T> = ReceiverStream<Result<T, Status>>;

/// The service.
pub struct CopiesService {
    volumes: Arc<Volumes>,
    tickets: Arc<Tickets>,
    rooms: Arc<Semaphore>,
    /// One copy into a volume at a time: a second one waits for its turn.
    turns: Arc<Mutex<HashMap<VolumeName, Arc<Turn<()>>>>>,
}

fn named(name: &str) -> Result<VolumeName, Status> {
    name.parse().map_err(|error: tandem_proto::volume::InvalidVolumeName| Status::invalid_argument(error.to_string()))
}

/// The first message of a stream.
async fn first<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(OPEN_WITHIN, stream.message()).await;
    message.map_err(|_| Status::deadline_exceeded("nothing came"))??.ok_or_else(|| Status::cancelled("nothing came"))
}

/// Hands on what comes, until the stream ends or nobody takes it.
fn pump<T: Send + 'static, U: Send + 'static>(mut stream: Streaming<T>, pick: fn(T) -> Option<U>) -> mpsc::Receiver<U> {
    let (to, from) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let message = tokio::select! {
                () = to.closed() => return,
                message = stream.message() => message,
            };
            let Some(picked) = message.ok().flatten().and_then(pick) else { return };
            if to.send(picked).await.is_err() {
                return;
            }
        }
    });
    from
}

impl CopiesService {
    /// For these volumes.
    pub fn new(volumes: Arc<Volumes>) -> Self {
        CopiesService {
            volumes,
            tickets: Arc::default(),
            rooms: Arc::new(Semaphore::new(COPIES_MAX)),
            turns: Arc::default(),
        }
    }

    fn room(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        let room = self.rooms.clone().try_acquire_owned();
        room.map_err(|_| Status::resource_exhausted(format!("{COPIES_MAX} copies are under way: try again later")))
    }

    /// Waits until no other copy into the volume is under way.
    async fn turn(&self, volume: &VolumeName) -> OwnedMutexGuard<()> {
        let turn = self.turns.lock().entry(volume.clone()).or_default().clone();
        turn.lock_owned().await
    }

    /// The volume that is written to; made if there is none.
    async fn target(&self, caller: &Caller, into: &pb::CopyInto) -> Result<(VolumeName, Arc<Volume>), Status> {
        let name = named(&into.volume)?;
        caller.may(&name, Role::Writer)?;
        let volume = match self.volumes.serving(&name) {
            Err(refusal) if refusal.reason == Reason::NoVolume => {
                let (volumes, name) = (self.volumes.clone(), name.clone());
                let made = tokio::task::spawn_blocking(move || volumes.serving_or_made(&name)).await;
                made.map_err(|_| Status::internal("making the volume failed: see the log of tandem-storaged"))?
            }
            other => other,
        };
        Ok((name, volume.map_err(|refusal| status(&refusal))?))
    }

    /// Everything that a copy into a volume needs, in its turn.
    async fn destination(
        &self,
        caller: &Caller,
        into: pb::CopyInto,
    ) -> Result<(VolumeDestination, OwnedMutexGuard<()>), Status> {
        let (name, volume) = self.target(caller, &into).await?;
        let turn = self.turn(&name).await;
        let handle = Handle::current();
        let opened = tokio::task::spawn_blocking(move || VolumeDestination::open(handle, volume, &name, &into)).await;
        Ok((opened.map_err(|_| Status::internal("the copy failed: see the log of tandem-storaged"))??, turn))
    }
}

#[tonic::async_trait]
impl Copies for CopiesService {
    type SendStream = Stream<pb::CopyDown>;

    async fn send(&self, request: Request<Streaming<pb::CopyUp>>) -> Result<Response<Self::SendStream>, Status> {
        let (caller, opening) = (Caller::of(&request), Opening::of(&request));
        let mut stream = request.into_inner();
        let Some(Up::Open(open)) = first(&mut stream).await?.body else {
            return Err(Status::invalid_argument("the first message says what is to be copied"));
        };
        drop(opening);
        let name = named(&open.volume)?;
        if !self.tickets.admit(&open.ticket, &name) {
            caller.may(&name, Role::Reader)?;
        }
        let volume = self.volumes.serving(&name).map_err(|refusal| status(&refusal))?;
        let room = self.room()?;
        let wants = pump(stream, |up| match up.body {
            Some(Up::Want(want)) => Some(want),
            _ => None,
        });
        let (out, answers) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            sending::send(volume.reader.clone(), &name, &open, wants, &out);
            drop(room);
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    type PutStream = Stream<pb::CopyUp>;

    async fn put(&self, request: Request<Streaming<pb::CopyDown>>) -> Result<Response<Self::PutStream>, Status> {
        let (caller, opening) = (Caller::of(&request), Opening::of(&request));
        let mut stream = request.into_inner();
        let Some(Down::Into(into)) = first(&mut stream).await?.body else {
            return Err(Status::invalid_argument("the first message says where to"));
        };
        drop(opening);
        let room = self.room()?;
        let (destination, turn) = self.destination(&caller, into).await?;
        let (out, answers) = mpsc::channel(AHEAD);
        let input = pump(stream, |down| down.body);
        tokio::task::spawn_blocking(move || {
            receiving::put(destination, input, &out);
            drop((room, turn));
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    type BringStream = Stream<pb::CopyUp>;

    async fn bring(&self, request: Request<pb::BringRequest>) -> Result<Response<Self::BringStream>, Status> {
        let caller = Caller::of(&request);
        let mut request = request.into_inner();
        let into = request.into.take().ok_or_else(|| Status::invalid_argument("the request does not say where to"))?;
        let origin = Origin::check(request, caller.is_local())?;
        let room = self.room()?;
        let (destination, turn) = self.destination(&caller, into).await?;
        let (out, answers) = mpsc::channel(AHEAD);
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            bringing::bring(&handle, destination, &origin, &out);
            drop((room, turn));
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn permit(&self, request: Request<pb::PermitRequest>) -> Result<Response<pb::PermitReply>, Status> {
        let caller = Caller::of(&request);
        let name = named(&request.into_inner().volume)?;
        caller.may(&name, Role::Reader)?;
        let ticket = self.tickets.issue(name).ok_or_else(|| Status::internal("no random numbers for a ticket"))?;
        Ok(Response::new(pb::PermitReply { ticket }))
    }
}
