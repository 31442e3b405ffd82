//! A real `tandem-storaged` process and a scripted client for it.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use tandem_proto::{
    chain::Chain,
    convert,
    ids::{InodeId, Name},
    op::{Attr, AttrPatch, Change, NodeKind, Op, Timestamp},
    pb::{self, client_message::Body, replication_client::ReplicationClient, server_message::Body as Answer},
    position::{Epoch, Position, Seq},
    stage::{Content, Listing, NodeState, StageData, StageDir, StageEntry, StageNode},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::Channel,
};

pub type Replication = ReplicationClient<InterceptedService<Channel, WithSecret>>;

/// Sends the secret, if there is one.
#[derive(Clone)]
pub struct WithSecret(pub Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for WithSecret {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(secret) = &self.0 {
            request.metadata_mut().insert(tandem_runtime::secret::METADATA_KEY, secret.clone());
        }
        Ok(request)
    }
}

/// A running process; killed when dropped.
pub struct Storaged {
    child: Child,
    pub port: u16,
    pub data: PathBuf,
    runtime: PathBuf,
}

impl Storaged {
    pub fn command(data: &Path, runtime: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem-storaged"));
        command.arg("--data").arg(data).arg("--runtime").arg(runtime).args(["--listen", "127.0.0.1:0"]);
        command
    }

    pub fn start(data: &Path, runtime: &Path) -> Storaged {
        let mut child = Self::command(data, runtime).stdout(Stdio::piped()).spawn().expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("said something");
        let address = line.split("listening on ").nth(1).unwrap_or_else(|| panic!("not listening: {line}"));
        let address = address.split(',').next().expect("an address");
        let port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Storaged { child, port, data: data.to_owned(), runtime: runtime.to_owned() }
    }

    pub fn secret(&self) -> MetadataValue<Ascii> {
        let path = tandem_runtime::secret::path(&self.runtime, self.port);
        std::fs::read_to_string(path).expect("secret").parse().expect("text")
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", self.port));
        endpoint.expect("address").connect().await.expect("connected")
    }

    pub async fn client(&self) -> Replication {
        ReplicationClient::with_interceptor(self.channel().await, WithSecret(Some(self.secret())))
    }

    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        self.child.wait().expect("ended").code()
    }

    pub fn tree(&self, volume: &str) -> PathBuf {
        self.data.join(volume).join("tree")
    }
}

impl Drop for Storaged {
    fn drop(&mut self) {
        // Ended already, in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An attached writer.
pub struct Writer {
    out: mpsc::Sender<pb::ClientMessage>,
    answers: Streaming<pb::ServerMessage>,
    pub attached: pb::Attached,
    pub position: Position,
}

pub fn attach_message(volume: &str, run: u8, epoch: u64) -> pb::Attach {
    pb::Attach {
        protocol: tandem_proto::limits::PROTOCOL_VERSION,
        volume: volume.to_owned(),
        client_id: vec![1; 16].into(),
        client_name: "tester@here:/folder".to_owned(),
        run_id: vec![run; 16].into(),
        epoch,
        create: true,
        ..Default::default()
    }
}

impl Writer {
    /// Attaches; the answer if it is not granted.
    pub async fn attach(mut client: Replication, attach: pb::Attach) -> Result<Writer, pb::Refused> {
        let (out, stream) = mpsc::channel(64);
        let mut answers =
            client.replicate(ReceiverStream::new(stream)).await.expect("the call is allowed").into_inner();
        let message = pb::ClientMessage { body: Some(Body::Attach(attach)) };
        out.send(message).await.expect("sent");
        match answers.message().await.expect("an answer").and_then(|message| message.body) {
            Some(Answer::Attached(attached)) => {
                let position = convert::position("position", &attached.position).expect("a position");
                Ok(Writer { out, answers, attached, position })
            }
            Some(Answer::Refused(refused)) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    pub async fn send(&self, body: Body) {
        self.out.send(pb::ClientMessage { body: Some(body) }).await.expect("sent");
    }

    pub async fn answer(&mut self) -> Answer {
        let answer = tokio::time::timeout(Duration::from_secs(20), self.answers.message()).await;
        answer.expect("in time").expect("no error").and_then(|message| message.body).expect("an answer")
    }

    pub async fn answer_of<T>(&mut self, pick: impl Fn(Answer) -> Option<T>) -> T {
        loop {
            let answer = self.answer().await;
            if let Answer::Refused(refused) = &answer {
                panic!("refused: {refused:?}");
            }
            if let Some(found) = pick(answer) {
                return found;
            }
        }
    }

    pub fn batch(&mut self, changes: Vec<Vec<Change>>) -> pb::Batch {
        let before = self.position;
        let mut scratch = Vec::new();
        let mut ops = Vec::new();
        for changes in changes {
            let seq = self.position.seq.next();
            let op = Op { seq, origin: Default::default(), changes: changes.into_iter().collect() };
            let op = pb::Op::from(&op);
            let chain = convert::chain_after(&self.position.chain, seq, &op, &mut scratch);
            self.position = Position { seq, chain, ..self.position };
            ops.push(op);
        }
        pb::Batch {
            session: self.attached.session,
            epoch: before.epoch.0,
            first_seq: before.seq.0 + 1,
            chain_before: Bytes::copy_from_slice(&before.chain.0),
            chain_after: Bytes::copy_from_slice(&self.position.chain.0),
            ops,
        }
    }

    pub async fn ops(&mut self, changes: Vec<Vec<Change>>) {
        let batch = self.batch(changes);
        self.send(Body::Batch(batch)).await;
    }

    pub async fn applied(&mut self) {
        let seq = self.position.seq.0;
        self.answer_of(|answer| matches!(answer, Answer::Ack(ack) if ack.applied >= seq).then_some(())).await;
    }

    pub async fn durable(&mut self) {
        let seq = self.position.seq.0;
        self.answer_of(|answer| matches!(answer, Answer::Ack(ack) if ack.durable >= seq).then_some(())).await;
    }

    pub async fn begin(&self, round: u64, full: bool) {
        let begin = pb::ResyncBegin { session: self.attached.session, round, full, s0: Some((&self.position).into()) };
        self.send(Body::Begin(begin)).await;
    }

    pub async fn publish(&mut self, round: u64) {
        let publish = pb::Publish { session: self.attached.session, round, position: Some((&self.position).into()) };
        self.send(Body::Publish(publish)).await;
        self.answer_of(|answer| matches!(answer, Answer::Published(_)).then_some(())).await;
    }

    pub async fn stage_dir(&self, dir: InodeId, entries: &[(&str, InodeId, NodeKind)]) {
        let entries = entries.iter().map(|(text, id, kind)| StageEntry {
            name: name(text),
            node: Some((*id, kind.node_type())),
            stamp: None,
        });
        let stage = StageDir { dir, listing: Listing::CompleteEnd, entries: entries.collect(), born_since: None };
        self.send(Body::StageDir(pb::StageDir { session: self.attached.session, ..(&stage).into() })).await;
    }

    pub async fn stage_node(&self, id: InodeId, kind: NodeKind, size: u64) {
        let xattrs = Vec::new();
        let state = NodeState { attr: attr(&kind), kind, xattrs, size, content: Content::Whole };
        let stage = StageNode { id, state: Some(state) };
        self.send(Body::StageNode(pb::StageNode { session: self.attached.session, ..(&stage).into() })).await;
    }

    pub async fn stage_data(&self, id: InodeId, data: &'static str) {
        let stage = StageData { id, offset: 0, data: data.into() };
        self.send(Body::StageData(pb::StageData { session: self.attached.session, ..(&stage).into() })).await;
    }

    pub async fn barrier(&mut self) -> Vec<Answer> {
        self.send(Body::Barrier(pb::Barrier { session: self.attached.session, token: 7 })).await;
        let mut before = Vec::new();
        loop {
            match self.answer().await {
                Answer::Barrier(reached) => {
                    assert_eq!(reached.token, 7);
                    return before;
                }
                answer => before.push(answer),
            }
        }
    }

    /// The first sync: a file, a directory and a file in it.
    pub async fn first_sync(&mut self) {
        self.begin(1, true).await;
        let root = InodeId::ROOT;
        self.stage_node(root, NodeKind::Directory, 0).await;
        self.stage_dir(root, &[("a", id(1), NodeKind::Regular), ("d", id(2), NodeKind::Directory)]).await;
        self.stage_node(id(1), NodeKind::Regular, 5).await;
        self.stage_data(id(1), "hello").await;
        self.stage_node(id(2), NodeKind::Directory, 0).await;
        self.stage_dir(id(2), &[("b", id(3), NodeKind::Regular)]).await;
        self.stage_node(id(3), NodeKind::Regular, 3).await;
        self.stage_data(id(3), "abc").await;
        self.barrier().await;
        self.publish(1).await;
    }
}

pub fn id(number: u8) -> InodeId {
    InodeId::new(&[9, number]).expect("short")
}

pub fn name(text: &str) -> Name {
    Name::new(Bytes::copy_from_slice(text.as_bytes())).expect("legal")
}

pub fn attr(kind: &NodeKind) -> Attr {
    let mode = if kind.is_directory() { 0o755 } else { 0o644 };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attr { mode, uid, gid, mtime: Timestamp { seconds: 1_000_000_000, nanos: 5 } }
}

/// A new file with its content, as mountd would send it.
pub fn create(dir: InodeId, text: &str, file: InodeId, content: &str) -> Vec<Vec<Change>> {
    let patch = AttrPatch::from(attr(&NodeKind::Regular));
    vec![
        vec![
            Change::Birth { id: file, kind: NodeKind::Regular },
            Change::Attr { id: file, patch },
            Change::Entry { dir, name: name(text), old: None, new: Some(file) },
            Change::Attr { id: dir, patch: AttrPatch { mtime: patch.mtime, ..Default::default() } },
        ],
        vec![Change::Data { id: file, offset: 0, data: Bytes::copy_from_slice(content.as_bytes()) }],
        vec![Change::Attr { id: file, patch: AttrPatch { mtime: patch.mtime, ..Default::default() } }],
    ]
}

pub fn rename(dir: InodeId, old: &str, file: InodeId, new: &str) -> Vec<Change> {
    vec![
        Change::Entry { dir, name: name(old), old: Some(file), new: None },
        Change::Entry { dir, name: name(new), old: None, new: Some(file) },
    ]
}

/// A position from an answer.
pub fn position(position: &Option<pb::Position>) -> Position {
    convert::position("position", position).expect("a position")
}

/// Nothing yet.
pub fn nowhere() -> Position {
    Position { epoch: Epoch(0), seq: Seq(0), chain: Chain::default() }
}
