//! Open objects by inode id, so that a stream of changes to the same files and directories opens each once.

use std::collections::HashMap;

use tandem_proto::ids::InodeId;

/// Most objects that are kept open. Half are directories in practice; the usual limit of descriptors is 1,024, of which the
/// rest of the daemon needs some.
pub const HANDLES_MAX: usize = 384;

/// A bounded map that forgets what was not used for longest.
pub struct Handles<N> {
    open: HashMap<InodeId, (N, u64)>,
    clock: u64,
    max: usize,
}

impl<N: Clone> Handles<N> {
    /// An empty map.
    pub fn new(max: usize) -> Self {
        Handles { open: HashMap::new(), clock: 0, max }
    }

    /// The open object.
    pub fn get(&mut self, id: &InodeId) -> Option<N> {
        self.clock += 1;
        let (node, used) = self.open.get_mut(id)?;
        *used = self.clock;
        Some(node.clone())
    }

    /// Keeps an object open.
    pub fn put(&mut self, id: InodeId, node: N) {
        if self.open.len() >= self.max {
            // A quarter at a time, so that the sort is paid once per many insertions.
            let mut ages: Vec<u64> = self.open.values().map(|(_, used)| *used).collect();
            let (_, limit, _) = ages.select_nth_unstable(self.max / 4);
            let limit = *limit;
            self.open.retain(|_, (_, used)| *used > limit);
        }
        self.clock += 1;
        self.open.insert(id, (node, self.clock));
    }

    /// Closes an object.
    pub fn forget(&mut self, id: &InodeId) {
        self.open.remove(id);
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::ids::InodeId;

    use super::Handles;

    #[test]
    fn the_oldest_are_forgotten_and_the_bound_holds() {
        let id = |n: u8| InodeId::new(&[n]).expect("short");
        let mut handles = Handles::new(8);
        for n in 0..100 {
            handles.put(id(n), n);
            assert_eq!(handles.get(&id(0)), Some(0), "in use all the time");
            assert!(handles.open.len() <= 8);
        }
        assert_eq!(handles.get(&id(99)), Some(99));
        assert_eq!(handles.get(&id(50)), None);
    }
}
