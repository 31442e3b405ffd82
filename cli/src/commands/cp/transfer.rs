//! Carries a copy out, over as many connections as it takes.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tandem_copy::{AHEAD, Failed, Receiver};
use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{self, copies_client::CopiesClient, copy_down::Body as Down, copy_up::Body as Up},
};
use tandem_runtime::{
    connect::{Credentials, KEEPALIVE},
    failure::said,
    tls::{Fingerprint, Identity},
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

use super::{
    local::Folder,
    place::Remote,
    show::Shown,
    source::{self, Listed},
    usage,
};
use crate::{
    exit::{Exit, Failure},
    mounts::with_causes,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// After so long without progress a copy is given up.
const STALLED: Duration = Duration::from_secs(60);
/// Messages on their way to a thread that reads or writes files.
const WAITING: usize = 16;
/// How often a receiver tells how far it is.
const TELL_EVERY: Duration = Duration::from_millis(100);

type Client = CopiesClient<InterceptedService<Channel, Credentials>>;

/// How one copy is to be done.
pub struct Transfer<'a> {
    /// Folders with what they hold.
    pub recursive: bool,
    /// Modes, owners, times.
    pub preserve: bool,
    /// What it goes to has to be a folder.
    pub directory: bool,
    /// Where people see it.
    pub shown: &'a mut Shown,
}

/// Why an attempt ended.
enum Broken {
    /// Another one may do better.
    Passing(String),
    Final(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Broken::Final(failure)
    }
}

async fn connect(remote: &Remote) -> Result<Client, Failure> {
    let server = &remote.server;
    server.may_connect().map_err(|error| usage(error.to_string()))?;
    let channel = server.connect(CONNECT_TIMEOUT, Some(KEEPALIVE)).await.map_err(|error| {
        let why = with_causes(&error);
        let message = format!("storage daemon {server} does not answer: {why}; is tandem-storaged running there?");
        Failure::new(Exit::NoAnswer, message)
    })?;
    let client = CopiesClient::with_interceptor(channel, server.credentials());
    Ok(client.max_decoding_message_size(MESSAGE_MAX_BYTES))
}

/// What an answer other than a reply means.
fn refused(remote: &Remote, status: &Status) -> Failure {
    let (exit, hint) = match status.code() {
        Code::InvalidArgument => (Exit::Usage, ""),
        Code::NotFound | Code::FailedPrecondition => (Exit::Unreachable, ""),
        Code::Unimplemented => (Exit::NoAnswer, "; it is of an older version"),
        _ => (Exit::NoAnswer, "; what has arrived is kept: run the command again"),
    };
    Failure::new(exit, format!("storage daemon {}: {}{hint}", remote.server, said(status)))
}

fn broken(remote: &Remote, status: &Status) -> Broken {
    // A connection that broke has a source. A storage daemon that was started again has another secret.
    let passing = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unauthenticated)
        || std::error::Error::source(status).is_some();
    match passing {
        true => Broken::Passing(format!("storage daemon {}: {}", remote.server, said(status))),
        false => Broken::Final(refused(remote, status)),
    }
}

/// When to try again, and when to give up.
struct Patience {
    pause: Duration,
    moved: Instant,
    before: u64,
    begun: bool,
}

impl Patience {
    fn new() -> Patience {
        Patience { pause: PAUSE_MIN, moved: Instant::now(), before: 0, begun: false }
    }

    /// Connects. Once something has begun, a storage daemon that is away is waited for.
    async fn connect(&self, remote: &Remote) -> Result<Client, Broken> {
        match connect(remote).await {
            Ok(client) => Ok(client),
            Err(_) if self.begun => Err(Broken::Passing(format!("storage daemon {} does not answer", remote.server))),
            Err(failure) => Err(Broken::Final(failure)),
        }
    }

    /// Waits, unless nothing has moved for long, or nothing has ever begun.
    async fn wait(&mut self, moved: u64, why: String, shown: &mut Shown) -> Result<(), Failure> {
        if moved > self.before {
            (self.pause, self.moved, self.before) = (PAUSE_MIN, Instant::now(), moved);
        }
        if !self.begun || self.moved.elapsed() > STALLED {
            shown.clear();
            return Err(Failure::new(
                Exit::NoAnswer,
                format!("{why}; what has arrived is kept: run the command again"),
            ));
        }
        shown.again(&why);
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

fn up(body: Up) -> pb::CopyUp {
    pb::CopyUp { body: Some(body) }
}

/// Who copies, for the record of ops.
fn me() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let user = user.unwrap_or_else(|_| rustix::process::getuid().as_raw().to_string());
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

/// What a thread that puts files in place tells.
enum News {
    Progress(pb::CopyProgress),
    Over(Result<(), Failed>),
}

/// Puts in place what comes, on a thread of its own, which ends when all is there or nothing comes any more.
fn receive(
    receiver: Arc<Mutex<Receiver<Folder>>>,
    input: mpsc::Receiver<Down>,
    ask: impl Fn(pb::CopyWant) -> bool + Send + 'static,
) -> mpsc::Receiver<News> {
    let (news, told) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut receiver = receiver.blocking_lock();
        let over = hear(&mut receiver, input, &ask, &news);
        let progress = pb::CopyProgress { finished: receiver.is_complete(), ..receiver.progress() };
        drop(receiver);
        let _ = news.blocking_send(News::Progress(progress));
        let _ = news.blocking_send(News::Over(over));
    });
    told
}

fn hear(
    receiver: &mut Receiver<Folder>,
    mut input: mpsc::Receiver<Down>,
    ask: &dyn Fn(pb::CopyWant) -> bool,
    news: &mpsc::Sender<News>,
) -> Result<(), Failed> {
    let mut at = Instant::now();
    while !receiver.is_complete() {
        match input.blocking_recv() {
            Some(Down::Item(item)) => receiver.item(item)?,
            Some(Down::Listed(_)) => receiver.listed(),
            Some(Down::Frame(frame)) => receiver.frame(frame)?,
            Some(Down::Into(_)) => return Err(Failed::All("a message for a storage daemon came".to_owned())),
            None => return Ok(()),
        }
        while let Some(want) = receiver.want()? {
            if !ask(want) {
                return Ok(());
            }
        }
        receiver.settle(false)?;
        if at.elapsed() > TELL_EVERY {
            at = Instant::now();
            let _ = news.blocking_send(News::Progress(receiver.progress()));
        }
    }
    receiver.settle(true)
}

impl Transfer<'_> {
    fn failed(why: Failed) -> Broken {
        let (Failed::Item(why) | Failed::All(why)) = why;
        Broken::Final(Failure::new(Exit::Unreachable, why))
    }

    /// What an attempt came to: done, to be tried again, or over.
    async fn ended(
        &mut self,
        attempt: Result<(), Broken>,
        patience: &mut Patience,
        moved: u64,
    ) -> Result<bool, Failure> {
        match attempt {
            Ok(()) => {
                self.shown.next();
                return Ok(true);
            }
            Err(Broken::Final(failure)) => {
                self.shown.clear();
                return Err(failure);
            }
            Err(Broken::Passing(why)) => patience.wait(moved, why, self.shown).await?,
        }
        Ok(false)
    }

    /// From a volume to this machine.
    pub async fn get(mut self, from: &Remote, paths: Vec<Vec<Bytes>>, to: &Path) -> Result<(), Failure> {
        let folder = Folder::open(to, self.directory, self.preserve)?;
        let receiver = Arc::new(Mutex::new(Receiver::new(folder)));
        let open = self.open(from, paths, Bytes::new());
        let mut patience = Patience::new();
        loop {
            let attempt = self.get_once(from, &open, &receiver, &mut patience).await;
            let moved = {
                let mut receiver = receiver.lock().await;
                let counted = receiver.counted();
                receiver.begin_again();
                counted.bytes_done + counted.files_done
            };
            if self.ended(attempt, &mut patience, moved).await? {
                return Ok(());
            }
        }
    }

    fn open(&self, from: &Remote, paths: Vec<Vec<Bytes>>, ticket: Bytes) -> pb::CopyOpen {
        let paths = paths.into_iter().map(|names| pb::CopyPath { names }).collect();
        pb::CopyOpen { volume: from.volume.to_string(), paths, recursive: self.recursive, ticket }
    }

    async fn get_once(
        &mut self,
        from: &Remote,
        open: &pb::CopyOpen,
        receiver: &Arc<Mutex<Receiver<Folder>>>,
        patience: &mut Patience,
    ) -> Result<(), Broken> {
        let mut client = patience.connect(from).await?;
        let before = receiver.lock().await.counted().bytes_done;
        let (to_server, asked) = mpsc::channel(AHEAD + WAITING);
        // There is room for it.
        let _ = to_server.send(up(Up::Open(open.clone()))).await;
        let answer = client.send(ReceiverStream::new(asked)).await.map_err(|status| broken(from, &status))?;
        patience.begun = true;
        let (input, heard) = mpsc::channel(WAITING);
        let feeding = tokio::spawn(feed(answer.into_inner(), input));
        let news = receive(receiver.clone(), heard, move |want| to_server.blocking_send(up(Up::Want(want))).is_ok());
        if self.follow(news, before).await? {
            return Ok(());
        }
        match feeding.await {
            Ok(Err(status)) => Err(broken(from, &status)),
            _ => Err(Broken::Passing(format!("storage daemon {}: it ended in the middle", from.server))),
        }
    }

    /// Shows what a receiver tells; whether it came to its end. `before`: bytes that it had counted in earlier attempts.
    async fn follow(&mut self, mut news: mpsc::Receiver<News>, before: u64) -> Result<bool, Broken> {
        let (mut complete, mut over) = (false, Ok(()));
        while let Some(news) = news.recv().await {
            match news {
                News::Progress(mut progress) => {
                    complete = progress.finished;
                    progress.bytes_done -= before;
                    self.shown.hear(progress, 0);
                }
                News::Over(how) => over = how,
            }
        }
        over.map_err(Self::failed)?;
        Ok(complete)
    }

    /// From this machine to this machine, where a volume is mounted.
    pub async fn here(mut self, listed: Listed, to: &Path) -> Result<(), Failure> {
        let folder = Folder::open(to, self.directory, self.preserve)?;
        let receiver = Arc::new(Mutex::new(Receiver::new(folder)));
        let (wanted, wants) = mpsc::channel(AHEAD + WAITING);
        let (input, heard) = mpsc::channel(WAITING);
        let parts = listed.parts(&listed.left());
        tokio::task::spawn_blocking(move || source::serve(parts, wants, &mut |body| input.blocking_send(body).is_ok()));
        let news = receive(receiver, heard, move |want| wanted.blocking_send(want).is_ok());
        let attempt = match self.follow(news, 0).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Broken::Final(Failure::new(Exit::NoAnswer, "reading ended in the middle"))),
            Err(broken) => Err(broken),
        };
        self.ended(attempt, &mut Patience::new(), 0).await.map(|_| ())
    }

    /// From this machine into a volume.
    pub async fn put(mut self, mut listed: Listed, to: &Remote) -> Result<(), Failure> {
        let (mut patience, mut came) = (Patience::new(), 0);
        loop {
            let attempt = self.put_once(&mut listed, to, &mut patience, &mut came).await;
            if self.ended(attempt, &mut patience, came + listed.done()).await? {
                return Ok(());
            }
        }
    }

    async fn put_once(
        &mut self,
        listed: &mut Listed,
        to: &Remote,
        patience: &mut Patience,
        came: &mut u64,
    ) -> Result<(), Broken> {
        let mut client = patience.connect(to).await?;
        let (to_server, messages) = mpsc::channel(WAITING);
        let down = |body| pb::CopyDown { body: Some(body) };
        let into = to.into(self.directory, self.preserve, me());
        // There is room for it.
        let _ = to_server.send(down(Down::Into(into))).await;
        let answer = client.put(ReceiverStream::new(messages)).await.map_err(|status| broken(to, &status))?;
        patience.begun = true;
        let (left, done) = (listed.left(), listed.done());
        let (wanted, wants) = mpsc::channel(AHEAD + WAITING);
        let parts = listed.parts(&left);
        tokio::task::spawn_blocking(move || {
            source::serve(parts, wants, &mut |body| to_server.blocking_send(down(body)).is_ok());
        });
        let before = *came;
        let mut heard = |progress: &pb::CopyProgress| {
            listed.finished(&left, &progress.done);
            *came = before + progress.bytes_done;
        };
        self.listen(to, answer.into_inner(), Some(wanted), done, &mut heard).await
    }

    /// Hears how far a storage daemon is, and what it wants, until it has all.
    async fn listen(
        &mut self,
        to: &Remote,
        mut answers: Streaming<pb::CopyUp>,
        wanted: Option<mpsc::Sender<pb::CopyWant>>,
        done: u64,
        heard: &mut (dyn FnMut(&pb::CopyProgress) + Send),
    ) -> Result<(), Broken> {
        loop {
            let answer = answers.message().await.map_err(|status| broken(to, &status))?;
            match answer.and_then(|answer| answer.body) {
                Some(Up::Progress(progress)) => {
                    heard(&progress);
                    let finished = progress.finished;
                    self.shown.hear(progress, done);
                    if finished {
                        return Ok(());
                    }
                }
                Some(Up::Want(want)) => {
                    if let Some(wanted) = &wanted {
                        // Who reads the files ends with the connection, which is heard of here.
                        let _ = wanted.send(want).await;
                    }
                }
                Some(Up::Open(_)) => {}
                None => {
                    return Err(Broken::Passing(format!("storage daemon {}: it ended in the middle", to.server)));
                }
            }
        }
    }

    /// From one storage daemon to another, which gets the files by itself.
    pub async fn bring(mut self, from: &Remote, paths: Vec<Vec<Bytes>>, to: &Remote) -> Result<(), Failure> {
        if from.server.is_loopback() && !to.server.is_loopback() {
            let message = format!(
                "storage daemon {} would look for {} on its own host: write a name of it that both know",
                to.server, from.server
            );
            return Err(usage(message));
        }
        let (mut patience, mut came) = (Patience::new(), 0);
        loop {
            let attempt = self.bring_once(from, &paths, to, &mut patience, &mut came).await;
            if self.ended(attempt, &mut patience, came).await? {
                return Ok(());
            }
        }
    }

    async fn bring_once(
        &mut self,
        from: &Remote,
        paths: &[Vec<Bytes>],
        to: &Remote,
        patience: &mut Patience,
        came: &mut u64,
    ) -> Result<(), Broken> {
        let mut source = patience.connect(from).await?;
        let permit = pb::PermitRequest { volume: from.volume.to_string() };
        let ticket = source.permit(permit).await.map_err(|status| broken(from, &status))?.into_inner().ticket;
        let mut client = patience.connect(to).await?;
        let request = pb::BringRequest {
            into: Some(to.into(self.directory, self.preserve, me())),
            open: Some(self.open(from, paths.to_vec(), ticket)),
            source: from.server.to_string(),
            fingerprint: fingerprint(from)?,
        };
        let answer = client.bring(request).await.map_err(|status| broken(to, &status))?;
        patience.begun = true;
        let before = *came;
        let mut heard = |progress: &pb::CopyProgress| *came = before + progress.bytes_done + progress.files_done;
        self.listen(to, answer.into_inner(), None, 0, &mut heard).await
    }
}

/// How the other storage daemon recognises the source; empty: it is reached in plaintext.
fn fingerprint(from: &Remote) -> Result<Bytes, Failure> {
    if from.server.protection() != "tls" {
        return Ok(Bytes::new());
    }
    let identity = Identity::load(&from.server.identity_path());
    let identity = identity.map_err(|error| Failure::new(Exit::NoAnswer, error.to_string()))?;
    let identity = identity.ok_or_else(|| usage(format!("{} was not joined", from.server)))?;
    Ok(Bytes::copy_from_slice(&Fingerprint::of(&identity.ca).0))
}

/// Hands on what a stream brings; why it ended.
async fn feed(mut stream: Streaming<pb::CopyDown>, input: mpsc::Sender<Down>) -> Result<(), Status> {
    loop {
        let message = tokio::select! {
            () = input.closed() => return Ok(()),
            message = tokio::time::timeout(STALLED, stream.message()) => message,
        };
        let late = || Status::unavailable(format!("nothing came for {} s", STALLED.as_secs()));
        let Some(message) = message.map_err(|_| late())?? else { return Ok(()) };
        let body = message.body.ok_or_else(|| Status::unimplemented("a message that this version does not know"))?;
        if input.send(body).await.is_err() {
            return Ok(());
        }
    }
}
