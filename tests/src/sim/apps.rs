//! The applications of the simulation: they change the folder as the vfs of mountd does, and every state is remembered.

use std::{collections::BTreeMap, sync::Arc};

use tandem_mountd::commit::Commit;
use tandem_proto::{Origin, Seq};

use crate::{
    rng::Rng,
    sim::{
        folder::FolderReader,
        picture::Picture,
        requests::{cells, next_request},
    },
};

/// States of the folder, by run of mountd and seq.
pub type History = Vec<BTreeMap<u64, Arc<Picture>>>;

/// The applications and their mount's commit.
pub struct Apps {
    /// Chooses what they ask for.
    pub rng: Rng,
    /// The folder.
    pub reader: FolderReader,
    /// Of the running mount.
    pub commit: Arc<Commit>,
    /// Every state so far.
    pub history: History,
    /// Nobody asks for anything any more.
    pub quiet: bool,
}

impl Apps {
    /// Remembers the state just after `seq`.
    pub fn draw(&mut self, seq: Seq) {
        let picture = Arc::new(self.reader.folder().picture());
        let run = self.history.last_mut().expect("a run has begun");
        run.insert(seq.0, picture);
    }

    /// One request of an application; returns what it was.
    pub fn request(&mut self) -> String {
        let request = next_request(&mut self.rng);
        let planned = self.reader.folder().clone().perform(&request);
        let commit = Arc::clone(&self.commit);
        let Some(changes) = planned else {
            // A call that fails leaves a void slot.
            let slot = commit.reserve();
            let seq = slot.seq();
            self.draw(seq);
            slot.void();
            return format!("{seq}: void ({request:?})");
        };
        let _mark = commit.mark(&cells(&changes)).expect("the activity log can be written");
        let slot = commit.reserve();
        let seq = slot.seq();
        let happened = self.reader.folder().perform(&request).expect("it was possible a moment ago");
        self.draw(seq);
        let text = format!("{seq}: {happened:?}");
        slot.fill(Origin::default(), happened);
        text
    }
}
