//! The disk under the client's folder: what of it a loss of power leaves.
//!
//! As a journaling file system does it: changes of names, attributes and sizes survive up to some point and none after it; of file data any
//! part survives, also data that was written after that point into room that a file had already. What was synced stands, and a sync of one
//! file makes all names and attributes durable with it.
//!
//! A sync that fails loses, for ever and without a further word, some of the data that it was to write; who reads sees it until the power
//! goes.

use tandem_proto::{Change, Changes, InodeId};

use crate::{rng::Rng, sim::folder::Folder};

#[derive(Clone, Debug)]
struct Written {
    changes: Changes,
    /// Inode whose data is on the disk.
    safe: Vec<InodeId>,
    /// Its data never gets there.
    lost: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct BackingDisk {
    synced: Folder,
    since: Vec<Written>,
    /// So many of `since` have their names and attributes on the disk.
    committed: usize,
}

impl BackingDisk {
    /// A disk that holds this folder.
    pub fn holding(folder: &Folder) -> Self {
        BackingDisk { synced: folder.clone(), since: Vec::new(), committed: 0 }
    }

    /// Something was changed.
    pub fn written(&mut self, changes: &Changes) {
        self.since.push(Written { changes: changes.clone(), safe: Vec::new(), lost: false });
    }

    /// `syncfs`, which succeeded.
    pub fn sync(&mut self) {
        for written in std::mem::take(&mut self.since) {
            self.synced.redo(&written.changes, |_, _| written.lost);
        }
        self.committed = 0;
    }

    /// `fsync` of one file, or of a directory.
    pub fn sync_one(&mut self, id: &InodeId) {
        self.committed = self.since.len();
        for written in &mut self.since {
            if !written.lost && data_of(&written.changes).any(|of| of == id) {
                written.safe.push(*id);
            }
        }
    }

    /// A sync that failed.
    pub fn sync_failed(&mut self, rng: &mut Rng) {
        for written in &mut self.since {
            written.lost |= written.safe.is_empty() && rng.chance(50);
        }
    }

    /// What is found when the power is back. `before`: the folder as it was, for what a file system never uses twice.
    pub fn lose_power(&mut self, before: &Folder, rng: &mut Rng) -> Folder {
        let mut found = std::mem::take(&mut self.synced);
        let kept = self.committed + rng.index(self.since.len() - self.committed + 1);
        let losing = *rng.pick(&[0, 10, 50, 100]);
        for (at, written) in std::mem::take(&mut self.since).into_iter().enumerate() {
            let mut lost = |id: &InodeId| !written.safe.contains(id) && (written.lost || rng.chance(losing));
            if at < kept {
                found.redo(&written.changes, |id, _| lost(id));
            } else {
                found.redo_in_place(&written.changes, |id| !lost(id));
            }
        }
        found.go_on_from(before);
        *self = BackingDisk::holding(&found);
        found
    }
}

fn data_of(changes: &Changes) -> impl Iterator<Item = &InodeId> {
    changes.iter().filter_map(|change| match change {
        Change::Data { id, .. } | Change::Hole { id, .. } => Some(id),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tandem_proto::{Name, NodeKind};

    use super::BackingDisk;
    use crate::{
        rng::Rng,
        sim::{
            folder::{Folder, Request, id_of},
            requests::next_request,
        },
    };

    fn do_it(folder: &mut Folder, disk: &mut BackingDisk, request: &Request) {
        if let Some(changes) = folder.perform(request) {
            disk.written(&changes);
        }
    }

    fn file(folder: &mut Folder, disk: &mut BackingDisk) {
        let name = Name::new(b"a".to_vec()).expect("a name");
        do_it(folder, disk, &Request::Create { dir: 0, name, kind: NodeKind::Regular });
    }

    fn write(folder: &mut Folder, disk: &mut BackingDisk, byte: u8) {
        let bytes = Bytes::from(vec![byte; 8]);
        do_it(folder, disk, &Request::Write { file: 0, offset: 0, bytes });
    }

    #[test]
    fn what_was_synced_stands_and_the_journal_replays_what_happened() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut folder = Folder::default();
            let mut disk = BackingDisk::holding(&folder);
            for _ in 0..60 {
                do_it(&mut folder, &mut disk, &next_request(&mut rng));
            }
            disk.sync();
            let found = disk.lose_power(&folder, &mut rng);
            assert_eq!(found.picture().differences(&folder.picture()), "", "seed {seed}");
        }
    }

    #[test]
    fn a_synced_file_keeps_its_data_and_what_a_failed_sync_lost_never_comes_back() {
        let id = id_of(2);
        let mut lost_once = false;
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let mut folder = Folder::default();
            let mut disk = BackingDisk::holding(&folder);
            file(&mut folder, &mut disk);
            write(&mut folder, &mut disk, 1);
            disk.sync_one(&id);
            let found = disk.lose_power(&folder, &mut rng);
            assert_eq!(found.picture().data["/a"], [1; 8], "seed {seed}");
            folder = found;
            write(&mut folder, &mut disk, 2);
            disk.sync_failed(&mut rng);
            disk.sync();
            lost_once |= disk.lose_power(&folder, &mut rng).picture().data["/a"] == [1; 8];
        }
        assert!(lost_once);
    }
}
