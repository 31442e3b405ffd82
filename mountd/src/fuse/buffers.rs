//! Memory that requests are read into. What a large write brings is kept where it was read: the window gets the memory, and the thread
//! gets other memory, so that the data is copied once, into the backing file.
//!
//! Memory that the window lets go of is used again, up to [`FREE_MAX`] pieces, because fresh memory costs as much as a copy.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

/// Pieces that are kept for use: what is in the window while a writer and the replica are equally fast.
const FREE_MAX: usize = 24;
/// Pieces that are lent at most; beyond that, data is copied.
const LENT_MAX: usize = 128;
/// Data that is shorter than this part of a piece is copied: it would keep the whole piece.
const LEND_PART: usize = 2;

/// Where memory comes from.
#[derive(Debug)]
pub struct Buffers {
    len: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Box<[u8]>>,
    lent: usize,
}

/// The memory of one thread.
#[derive(Debug)]
pub struct Buffer {
    pool: Arc<Buffers>,
    /// Shared with what was kept of the last request.
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Memory {
    /// `None` only while it is dropped.
    bytes: Option<Box<[u8]>>,
    pool: Weak<Buffers>,
}

/// A part of a request that is kept.
struct Kept {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
}

impl Buffers {
    /// Pieces of this length.
    pub fn new(len: usize) -> Arc<Buffers> {
        Arc::new(Buffers { len, state: Mutex::default() })
    }

    /// Memory for a thread.
    pub fn buffer(self: &Arc<Buffers>) -> Buffer {
        Buffer { pool: self.clone(), memory: Arc::new(self.memory()) }
    }

    fn memory(self: &Arc<Buffers>) -> Memory {
        let free = self.state.lock().free.pop();
        let bytes = free.unwrap_or_else(|| vec![0; self.len].into_boxed_slice());
        Memory { bytes: Some(bytes), pool: Arc::downgrade(self) }
    }

    /// Lets go of what nobody has used for a while.
    pub fn trim(&self) {
        let free = std::mem::take(&mut self.state.lock().free);
        drop(free);
    }
}

impl Buffer {
    /// For the next request.
    pub fn for_reading(&mut self) -> &mut [u8] {
        if Arc::get_mut(&mut self.memory).is_none() {
            self.memory = Arc::new(self.pool.memory());
        }
        let memory = Arc::get_mut(&mut self.memory).and_then(|memory| memory.bytes.as_deref_mut());
        memory.expect("memory that was just made has one owner")
    }

    /// The last request.
    pub fn bytes(&self) -> &[u8] {
        self.memory.as_slice()
    }

    /// Keeps a part of the last request, which must lie in [`Buffer::bytes`].
    pub fn keep(&self, part: &[u8]) -> Bytes {
        let start = (part.as_ptr() as usize).wrapping_sub(self.bytes().as_ptr() as usize);
        let inside = start.checked_add(part.len()).is_some_and(|end| end <= self.bytes().len());
        if !inside || part.len() < self.pool.len / LEND_PART || !self.pool.may_lend() {
            return Bytes::copy_from_slice(part);
        }
        Bytes::from_owner(Kept { memory: self.memory.clone(), start, len: part.len() })
    }
}

impl Buffers {
    fn may_lend(&self) -> bool {
        let mut state = self.state.lock();
        let may = state.lent < LENT_MAX;
        state.lent += usize::from(may);
        may
    }
}

impl Memory {
    fn as_slice(&self) -> &[u8] {
        self.bytes.as_deref().unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (Some(bytes), Some(pool)) = (self.bytes.take(), self.pool.upgrade()) else { return };
        let mut state = pool.state.lock();
        if state.free.len() < FREE_MAX {
            state.free.push(bytes);
        }
    }
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.memory.as_slice()[self.start..self.start + self.len]
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(pool) = self.memory.pool.upgrade() {
            pool.state.lock().lent -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, FREE_MAX};

    impl Buffers {
        /// Free, and lent.
        fn counts(&self) -> (usize, usize) {
            let state = self.state.lock();
            (state.free.len(), state.lent)
        }
    }

    #[test]
    fn what_is_kept_stays_while_the_next_request_is_read_and_comes_back_when_it_goes() {
        let pool = Buffers::new(1000);
        let mut buffer = pool.buffer();
        buffer.for_reading().fill(1);
        let kept = buffer.keep(&buffer.bytes()[40..940]);
        buffer.for_reading().fill(2);
        assert_eq!(kept, vec![1; 900]);
        let short = buffer.keep(&buffer.bytes()[40..50]);
        buffer.for_reading().fill(3);
        assert_eq!(&short[..], &[2; 10]);
        assert_eq!(pool.counts(), (0, 1));
        drop(kept);
        assert_eq!(pool.counts(), (1, 0));
        pool.trim();
        assert_eq!(pool.counts(), (0, 0));
    }

    #[test]
    fn a_part_of_something_else_is_copied() {
        let pool = Buffers::new(16);
        let mut buffer = pool.buffer();
        buffer.for_reading().fill(1);
        let other = [7; 16];
        let kept = buffer.keep(&other);
        assert_eq!(&kept[..], &other);
        assert_eq!(pool.counts(), (0, 0));
    }

    #[test]
    fn no_more_is_kept_for_use_than_the_bound() {
        let pool = Buffers::new(100);
        let mut buffer = pool.buffer();
        let kept: Vec<_> = (0..2 * FREE_MAX)
            .map(|_| {
                buffer.for_reading().fill(1);
                buffer.keep(buffer.bytes())
            })
            .collect();
        drop(kept);
        assert_eq!(pool.counts(), (FREE_MAX, 0));
    }
}
