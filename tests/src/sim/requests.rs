//! What applications ask of the simulated folder.

use bytes::Bytes;
use tandem_mountd::commit::{ATTRIBUTES, MarkCell};
use tandem_proto::{Change, Changes, Name, NodeKind, limits::MARK_BLOCK};

use crate::{
    rng::{Rng, content},
    sim::folder::Request,
};

/// Few names, so that they meet: renames into each other's old names, exchanges, delete and create again.
const NAMES: u64 = 6;

fn name(rng: &mut Rng) -> Name {
    Name::new(vec![b'a' + rng.below(NAMES) as u8]).expect("a letter is a name")
}

/// The next request of a seed.
pub fn next_request(rng: &mut Rng) -> Request {
    let (dir, node) = (rng.bits() >> 8, rng.bits() >> 8);
    match rng.below(100) {
        0..25 => {
            let kind = match rng.below(10) {
                0..5 => NodeKind::Regular,
                5..8 => NodeKind::Directory,
                8 => NodeKind::Symlink(Bytes::from(format!("to{}", rng.below(100)))),
                _ => NodeKind::Fifo,
            };
            Request::Create { dir, name: name(rng), kind }
        }
        25..32 => Request::Link { file: node, dir, name: name(rng) },
        32..50 => Request::Rename { from: (dir, name(rng)), to: (node, name(rng)), exchange: rng.chance(35) },
        50..62 => Request::Remove { dir, name: name(rng) },
        62..66 => Request::Copy {
            from: rng.bits() >> 8,
            from_offset: rng.below(200),
            file: node,
            offset: rng.below(300),
            len: 1 + rng.below(400),
        },
        66..80 => {
            let len = if rng.chance(10) { 6000 } else { 1 + rng.index(200) };
            let fill = rng.bits();
            Request::Write { file: node, offset: rng.below(300), bytes: content(fill, len).into() }
        }
        80..85 => Request::Truncate { file: node, size: rng.below(400) },
        85..88 => Request::Punch { file: node, offset: rng.below(300), len: 1 + rng.below(200) },
        88..92 => Request::SetMode { node, mode: 0o600 + rng.below(8) as u32 },
        92..95 => Request::SetOwner { node, uid: rng.below(4) as u32 },
        _ => {
            let value = rng.chance(70).then(|| Bytes::from(format!("v{}", rng.below(1000))));
            Request::SetXattr { node, name: Bytes::from(format!("user.x{}", rng.below(2))), value }
        }
    }
}

/// The cells that an op marks first, as the vfs of mountd does.
pub fn cells(changes: &Changes) -> Vec<MarkCell> {
    let names_change = changes.iter().any(|change| matches!(change, Change::Entry { .. }));
    let mut cells = Vec::new();
    for change in changes {
        match change {
            Change::Entry { dir, .. } => cells.push(MarkCell::Dir(*dir)),
            Change::Data { id, offset, .. } | Change::Copy { id, offset, .. } | Change::Hole { id, offset, .. } => {
                let block = *offset / MARK_BLOCK;
                cells.push(MarkCell::File { id: *id, block });
            }
            Change::Size { id, size } => {
                cells.push(MarkCell::File { id: *id, block: *size / MARK_BLOCK });
                cells.push(MarkCell::File { id: *id, block: ATTRIBUTES });
            }
            Change::Attr { id, .. } | Change::Xattr { id, .. } if !names_change => {
                cells.push(MarkCell::File { id: *id, block: ATTRIBUTES });
            }
            Change::Attr { .. } | Change::Xattr { .. } | Change::Birth { .. } => {}
        }
    }
    cells.sort_unstable();
    cells.dedup();
    cells
}
