//! Directory listings as the kernel wants them: records of 8-byte multiples, as many as fit.

use std::os::unix::ffi::OsStrExt as _;

use tandem_proto::stage::NodeType;

use super::{convert, wire::Out};
use crate::vfs::{Entry, Listed, Sink};

/// Length of `struct fuse_dirent` without the name.
const DIRENT_BYTES: usize = 24;

/// A listing that grows to at most what the kernel has room for.
#[derive(Debug)]
pub struct Listing {
    bytes: Vec<u8>,
    max: usize,
    plus: bool,
}

impl Listing {
    /// Of `max` bytes. `plus`: with what the names mean.
    pub fn new(max: usize, plus: bool) -> Listing {
        // Bounded, whatever the request says.
        let max = max.min(1 << 20);
        Listing { bytes: Vec::with_capacity(max.min(64 << 10)), max, plus }
    }

    /// What was taken.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Sink for Listing {
    fn take(&mut self, listed: Listed<'_>, entry: Option<&Entry>) -> bool {
        let name = listed.name.as_bytes();
        let entry = self.plus.then(|| match entry {
            Some(entry) => convert::entry(entry),
            // Node 0: a name without a promise what it means.
            None => Out::default().zeroes(convert::ENTRY_BYTES),
        });
        let entry = entry.as_ref().map_or(&[][..], Out::as_bytes);
        let len = (entry.len() + DIRENT_BYTES + name.len()).next_multiple_of(8);
        if self.bytes.len() + len > self.max {
            return true;
        }
        let end = self.bytes.len() + len;
        self.bytes.extend_from_slice(entry);
        let kind = listed.node_type.map_or(libc::DT_UNKNOWN, dirent_type);
        let dirent = Out::default().u64(listed.ino).u64(listed.next).u32(name.len() as u32).u32(u32::from(kind));
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        false
    }
}

fn dirent_type(node_type: NodeType) -> u8 {
    match node_type {
        NodeType::Regular => libc::DT_REG,
        NodeType::Directory => libc::DT_DIR,
        NodeType::Symlink => libc::DT_LNK,
        NodeType::Fifo => libc::DT_FIFO,
        NodeType::Socket => libc::DT_SOCK,
        NodeType::CharDevice => libc::DT_CHR,
        NodeType::BlockDevice => libc::DT_BLK,
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::stage::NodeType;

    use super::Listing;
    use crate::vfs::{Listed, Sink as _};

    #[test]
    fn a_listing_ends_before_it_is_too_long() {
        let mut listing = Listing::new(100, false);
        let listed =
            |name: &'static str| Listed { ino: 9, next: 3, node_type: Some(NodeType::Regular), name: name.as_ref() };
        assert!(!listing.take(listed("seventeen letters"), None));
        assert_eq!(listing.as_bytes().len(), 48);
        assert!(!listing.take(listed("a"), None));
        assert_eq!(listing.as_bytes().len(), 80);
        assert!(listing.take(listed("b"), None));
        assert_eq!(listing.as_bytes().len(), 80);
        assert_eq!(&listing.as_bytes()[48 + 24..48 + 32], b"a\0\0\0\0\0\0\0");
    }
}
