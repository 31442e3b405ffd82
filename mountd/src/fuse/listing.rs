//! Directory listings into fuser's replies.

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::{
    TTL,
    convert::{NOTHING, file_attr, file_type},
};
use crate::vfs::{Entry, Listed, Sink};

/// Names only.
pub struct Names {
    /// Where they go.
    pub reply: ReplyDirectory,
}

impl Sink for Names {
    fn take(&mut self, listed: Listed<'_>, _entry: Option<&Entry>) -> bool {
        // Type 0 (unknown) cannot be said through fuser; a regular file is what most are.
        let kind = listed.node_type.map_or(FileType::RegularFile, file_type);
        self.reply.add(INodeNo(listed.ino), listed.next, kind, listed.name)
    }
}

/// Names with what they mean.
pub struct NamesPlus {
    /// Where they go.
    pub reply: ReplyDirectoryPlus,
    /// How many were taken.
    pub taken: usize,
}

impl Sink for NamesPlus {
    fn take(&mut self, listed: Listed<'_>, entry: Option<&Entry>) -> bool {
        let full = match entry {
            Some(entry) => {
                let attr = file_attr(entry.node, &entry.stat);
                let generation = Generation(entry.generation);
                self.reply.add(INodeNo(listed.ino), listed.next, listed.name, &TTL, &attr, generation)
            }
            None => self.reply.add(INodeNo(listed.ino), listed.next, listed.name, &TTL, &NOTHING, Generation(0)),
        };
        self.taken += usize::from(!full);
        full
    }
}
