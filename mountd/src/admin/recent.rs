//! What was done lately on the volume, for the page of a mount: the record of it is the storage side's, so it is asked, and only while
//! somebody looks at the page. What was heard last stays when the storage daemon is away.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_proto::{
    limits::MESSAGE_MAX_BYTES,
    pb::{self, archive_client::ArchiveClient},
};
use tandem_runtime::connect::ServerAddress;
use tokio::{runtime::Handle, time::timeout};
use tonic::{Status, transport::Channel};

/// Items that a page shows.
const SHOWN: u32 = 12;
/// Time between two questions.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Nobody looks any more when the page was not made for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(6);
/// How long an answer, and a connection, may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Known {
    items: Vec<pb::HistoryItem>,
    /// When the page was made last; `None`: nobody asks.
    looked: Option<Instant>,
}

/// See the module.
pub(crate) struct Recent {
    server: ServerAddress,
    volume: String,
    known: Mutex<Known>,
}

impl Recent {
    /// Of a volume.
    pub(crate) fn new(server: ServerAddress, volume: String) -> Arc<Recent> {
        Arc::new(Recent { server, volume, known: Mutex::default() })
    }

    /// What is known, oldest first. Never waits; asks anew on `runtime` from now on, until nobody looks any more.
    pub(crate) fn items(self: &Arc<Self>, runtime: &Handle) -> Vec<pb::HistoryItem> {
        let mut known = self.known.lock();
        if known.looked.replace(Instant::now()).is_none() {
            runtime.spawn(follow(Arc::downgrade(self)));
        }
        known.items.clone()
    }

    async fn connect(&self) -> Option<Channel> {
        let connected = timeout(ANSWER_WITHIN, self.server.connect(ANSWER_WITHIN, None)).await;
        connected.ok()?.ok()
    }

    async fn ask(&self, channel: Channel) -> Result<Vec<pb::HistoryItem>, Status> {
        let client = ArchiveClient::with_interceptor(channel, self.server.credentials());
        let mut client = client.max_decoding_message_size(MESSAGE_MAX_BYTES);
        let request = pb::HistoryRequest { volume: self.volume.clone(), limit: SHOWN, ..Default::default() };
        let mut stream = client.history(request).await?.into_inner();
        let mut items = Vec::new();
        while let Some(item) = stream.message().await? {
            items.push(item);
        }
        Ok(items)
    }
}

async fn follow(of: Weak<Recent>) {
    let mut channel = None;
    while let Some(recent) = of.upgrade() {
        if channel.is_none() {
            channel = recent.connect().await;
        }
        if let Some(open) = channel.clone() {
            match timeout(ANSWER_WITHIN, recent.ask(open)).await {
                Ok(Ok(items)) => recent.known.lock().items = items,
                _ => channel = None,
            }
        }
        {
            let mut known = recent.known.lock();
            if known.looked.is_none_or(|looked| looked.elapsed() > FORGOTTEN_AFTER) {
                known.looked = None;
                return;
            }
        }
        drop(recent);
        tokio::time::sleep(ASK_EVERY).await;
    }
}
