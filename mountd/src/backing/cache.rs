//! A bounded cache of O_PATH descriptors: two generations, so that a use and an insert are both constant.

use std::{os::fd::OwnedFd, sync::Arc};

use parking_lot::Mutex;
use tandem_proto::InodeId;
use tandem_runtime::map::QuickMap;

/// Descriptors by id; those not used for a generation are closed.
pub struct PathCache {
    generations: Mutex<Generations>,
    half: usize,
}

#[derive(Default)]
struct Generations {
    young: QuickMap<InodeId, Arc<OwnedFd>>,
    old: QuickMap<InodeId, Arc<OwnedFd>>,
}

impl PathCache {
    /// Keeps at most `max` descriptors.
    pub fn new(max: usize) -> PathCache {
        PathCache { generations: Mutex::default(), half: (max / 2).max(1) }
    }

    /// The descriptor of an object, if it is kept.
    pub fn get(&self, id: &InodeId) -> Option<Arc<OwnedFd>> {
        let mut generations = self.generations.lock();
        if let Some(fd) = generations.young.get(id) {
            return Some(fd.clone());
        }
        let fd = generations.old.remove(id)?;
        let closed = generations.insert(self.half, *id, fd.clone());
        drop(generations);
        drop(closed);
        Some(fd)
    }

    /// Keeps a descriptor.
    pub fn insert(&self, id: InodeId, fd: Arc<OwnedFd>) {
        // What falls out is closed after the lock is released.
        let closed = self.generations.lock().insert(self.half, id, fd);
        drop(closed);
    }

    /// Lets go of a descriptor.
    pub fn remove(&self, id: &InodeId) {
        let mut generations = self.generations.lock();
        let removed = (generations.young.remove(id), generations.old.remove(id));
        drop(generations);
        drop(removed);
    }

    /// Lets go of all.
    pub fn clear(&self) {
        let closed = std::mem::take(&mut *self.generations.lock());
        drop(closed);
    }
}

impl Generations {
    fn insert(&mut self, half: usize, id: InodeId, fd: Arc<OwnedFd>) -> QuickMap<InodeId, Arc<OwnedFd>> {
        let mut closed = QuickMap::default();
        if self.young.len() >= half {
            closed = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        }
        self.young.insert(id, fd);
        closed
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd, sync::Arc};

    use tandem_proto::InodeId;

    use super::PathCache;

    #[test]
    fn the_bound_holds_and_what_is_used_stays() {
        let cache = PathCache::new(8);
        let fd: Arc<OwnedFd> = Arc::new(File::open("/").expect("open").into());
        let id = |n: u8| InodeId::new(&[n]).expect("id");
        cache.insert(id(0), fd.clone());
        for n in 1..100 {
            cache.insert(id(n), fd.clone());
            assert!(cache.get(&id(0)).is_some(), "after {n}");
            assert!(Arc::strong_count(&fd) <= 9);
        }
        assert!(cache.get(&id(1)).is_none());
    }
}
