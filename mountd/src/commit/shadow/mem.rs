//! A shadow in the memory of a simulation: a crash of the simulated process keeps it, a power loss drops it.

use std::{io, sync::Arc};

use parking_lot::Mutex;

use super::{Region, ShadowStore};

type Shared = Arc<Mutex<Option<Arc<Mutex<Vec<u8>>>>>>;

/// See the module. Clones share their content.
#[derive(Clone, Debug, Default)]
pub struct MemStore(Shared);

impl MemStore {
    /// What a process that starts now finds. What the one before goes on to write is not in it.
    pub fn after_kill(&self) -> MemStore {
        let content = self.0.lock().as_ref().map(|region| Arc::new(Mutex::new(region.lock().clone())));
        MemStore(Arc::new(Mutex::new(content)))
    }
}

struct MemRegion(Arc<Mutex<Vec<u8>>>);

impl Region for MemRegion {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.0.lock()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn store(&mut self, offset: usize, word: u64) {
        self.write(offset, &word.to_le_bytes());
    }
}

impl ShadowStore for MemStore {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().as_ref().map(|region| region.lock().clone()))
    }

    fn replace(&mut self, len: usize, fill: &mut dyn FnMut(&mut dyn Region)) -> io::Result<Box<dyn Region>> {
        let memory = Arc::new(Mutex::new(vec![0; len]));
        let mut region = MemRegion(memory.clone());
        fill(&mut region);
        *self.0.lock() = Some(memory);
        Ok(Box::new(region))
    }

    fn remove(&mut self) -> io::Result<()> {
        *self.0.lock() = None;
        Ok(())
    }
}
