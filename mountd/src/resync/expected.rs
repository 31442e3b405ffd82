//! How many bytes a resync still has to send or compare, for people. Of extents that is known when they are queued, of a file that is asked for
//! whole when it was read.

use super::plan::{StepDone, Wanted};

/// See the module.
#[derive(Debug, Default)]
pub struct Expected {
    /// Of extents that were queued, and of files that were sent whole.
    bytes: u64,
    /// Files that wait to be sent whole.
    unsized_files: u64,
}

impl Expected {
    fn of(wanted: &Wanted) -> (u64, u64) {
        match wanted {
            Wanted::Attributes => (0, 0),
            Wanted::Ranges(ranges) => (ranges.iter().map(|(start, end)| end - start).fold(0, u64::saturating_add), 0),
            Wanted::Whole => (0, 1),
        }
    }

    /// This is queued.
    pub fn add(&mut self, wanted: &Wanted) {
        let (bytes, files) = Self::of(wanted);
        self.bytes = self.bytes.saturating_add(bytes);
        self.unsized_files += files;
    }

    /// It is not any more, and was not sent.
    pub fn remove(&mut self, wanted: &Wanted) {
        let (bytes, files) = Self::of(wanted);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.unsized_files = self.unsized_files.saturating_sub(files);
    }

    /// A step is done.
    pub fn handle_done(&mut self, done: &StepDone) {
        if done.wholes > 0 {
            self.unsized_files = self.unsized_files.saturating_sub(done.wholes);
            self.bytes = self.bytes.saturating_add(done.bytes);
        }
    }

    /// All bytes, those that were sent included; `None`: not known yet.
    pub fn bytes(&self) -> Option<u64> {
        (self.unsized_files == 0).then_some(self.bytes)
    }
}
