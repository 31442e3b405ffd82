//! Maps of a staging that has millions of inodes: their leaves are kept full.
//!
//! What comes in order leaves the leaves of a B-tree half empty, and a first sync comes in order. So a map that has grown by a quarter is built
//! anew, which costs each row some five moves in all; and a listing when its last part is there.

use std::collections::BTreeMap;

/// Smaller maps stay as they are.
const LEAST: usize = 1 << 16;
/// A smaller listing is a leaf or two.
const LISTING_LEAST: usize = 24;

/// Builds a map anew, with full leaves.
fn rebuild<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    // By way of a row: built from an iterator that is known to be sorted, leaves are filled.
    let rows: Vec<(K, V)> = std::mem::take(map).into_iter().collect();
    *map = rows.into_iter().collect();
}

/// Builds a listing that is complete anew.
pub fn listing<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    if map.len() >= LISTING_LEAST {
        rebuild(map);
    }
}

/// Of one map: when it was built anew last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    next: usize,
}

impl Pace {
    /// Call it when the map may have grown.
    pub fn keep<K: Ord, V>(&mut self, map: &mut BTreeMap<K, V>) {
        if map.len() >= self.next.max(LEAST) {
            rebuild(map);
            self.next = map.len() + map.len() / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{LEAST, Pace, listing};

    #[test]
    fn a_map_is_the_same_and_is_built_anew_some_times_only() {
        let (mut map, mut pace, mut rebuilt) = (BTreeMap::new(), Pace::default(), 0);
        for at in 0..3 * LEAST {
            map.insert(at, at * 7);
            let before = pace;
            pace.keep(&mut map);
            rebuilt += usize::from(before != pace);
        }
        assert_eq!(rebuilt, 5);
        assert!(map.iter().enumerate().all(|(at, (key, value))| (at, at * 7) == (*key, *value)));
        let before = map.clone();
        listing(&mut map);
        assert_eq!(map, before);
    }
}
