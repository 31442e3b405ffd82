//! `.tandem` in the root of the mount: files that say how the mount is, for who has nothing but the folder.
//!
//! ```text
//!  .tandem/status     a line for each fact      .tandem/lag   seconds      .tandem/position   EPOCH:SEQ of the last operation
//! ```
//! They are not in the backing directory, not in listings, and not replicated. A `.tandem` that the folder has itself wins: it is looked
//! up first. Node ids are above all that file systems give.

use std::{ffi::OsStr, sync::OnceLock};

use tandem_proto::stage::NodeType;

use super::{
    abi::opcode,
    convert,
    device::Reply,
    listing::Listing,
    wire::{Fields, Header, Out, Short},
};
use crate::{
    backing::sys::Stat,
    vfs::{Listed, Sink as _},
};

/// The attribute that says which position holds a file's last change.
pub const POSITION_XATTR: &str = "user.tandem.position";
/// Name of the directory.
pub const NAME: &str = ".tandem";
/// Node of the root of the mount.
const ROOT: u64 = 1;
/// Node of the directory; the files follow.
const DIRECTORY: u64 = u64::MAX - 16;
const FILES: [&str; 3] = ["status", "lag", "position"];

/// Says what is in the file of a name.
pub type Tell = Box<dyn Fn(&str) -> String + Send + Sync>;

/// See the module.
#[derive(Default)]
pub struct Inside {
    tell: OnceLock<Tell>,
}

/// Whether a node is one of these.
pub fn is_inside(node: u64) -> bool {
    node >= DIRECTORY
}

/// Whether a name that means nothing in the folder means the directory.
pub fn is_entrance(parent: u64, name: &OsStr) -> bool {
    parent == ROOT && name == NAME
}

fn name_of(node: u64) -> Option<&'static str> {
    let at = usize::try_from(node.checked_sub(DIRECTORY + 1)?).ok()?;
    FILES.get(at).copied()
}

impl Inside {
    /// What the files say. Only the first is kept.
    pub fn show(&self, tell: Tell) {
        let _ = self.tell.set(tell);
    }

    /// The answer to the look-up of the directory.
    pub fn entrance(&self) -> Out {
        convert::entry_for_now(DIRECTORY, &self.stat(DIRECTORY))
    }

    fn text(&self, node: u64) -> String {
        match (name_of(node), self.tell.get()) {
            (Some(name), Some(tell)) => tell(name),
            _ => String::new(),
        }
    }

    fn stat(&self, node: u64) -> Stat {
        let mut stat = Stat::of_directory(node);
        stat.mode = libc::S_IFDIR | 0o555;
        if node != DIRECTORY {
            stat.mode = libc::S_IFREG | 0o444;
            stat.nlink = 1;
            stat.size = self.text(node).len() as u64;
        }
        stat
    }

    /// Answers a request about one of these nodes.
    pub fn call(&self, header: Header, mut fields: Fields<'_>, reply: Reply) -> Result<(), Short> {
        let node = header.node;
        match header.opcode {
            opcode::LOOKUP => {
                let name = fields.name()?;
                match FILES.iter().position(|file| *file == name).filter(|_| node == DIRECTORY) {
                    Some(at) => {
                        let file = DIRECTORY + 1 + at as u64;
                        reply.out(convert::entry_for_now(file, &self.stat(file)));
                    }
                    None => reply.error(libc::ENOENT),
                }
            }
            opcode::GETATTR => reply.out(convert::attributes_for_now(&self.stat(node))),
            opcode::OPEN => reply.out(convert::opened_uncached()),
            opcode::READ => {
                let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()? as usize);
                let text = self.text(node);
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                reply.data(&text.as_bytes()[from..text.len().min(from.saturating_add(size))]);
            }
            opcode::READDIR | opcode::READDIRPLUS => {
                let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
                let mut listing = Listing::new(size as usize, header.opcode == opcode::READDIRPLUS);
                for (at, name) in FILES.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
                    let ino = DIRECTORY + 1 + at as u64;
                    let node_type = Some(NodeType::Regular);
                    if listing.take(Listed { ino, next: at as u64 + 1, node_type, name: name.as_ref() }, None) {
                        break;
                    }
                }
                reply.data(listing.as_bytes());
            }
            opcode::FLUSH | opcode::RELEASE | opcode::RELEASEDIR | opcode::FSYNC | opcode::FSYNCDIR => reply.ok(),
            opcode::GETXATTR | opcode::REMOVEXATTR => reply.error(libc::ENODATA),
            opcode::LISTXATTR => match fields.u32()? {
                0 => reply.out(Out::default().u32(0).u32(0)),
                _ => reply.data(&[]),
            },
            opcode::STATX => reply.out(convert::statx_for_now(&self.stat(node))),
            _ => reply.error(libc::EROFS),
        }
        Ok(())
    }
}
