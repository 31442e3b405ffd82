//! A set of byte ranges of a file.

use std::collections::BTreeMap;

/// Disjoint, not touching, half-open ranges `[start, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals(BTreeMap<u64, u64>);

impl Intervals {
    /// Adds `[start, end)`; nothing if it is empty.
    pub fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.0.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.0.range(start..=end).next() {
            end = end.max(next_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// Adds all ranges of `other`.
    pub fn union(&mut self, other: &Intervals) {
        for (start, end) in other.iter() {
            self.insert(start, end);
        }
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(start, end)| (*start, *end))
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `at` is in a range.
    pub fn contains(&self, at: u64) -> bool {
        self.0.range(..=at).next_back().is_some_and(|(_, end)| *end > at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, proptest};

    use super::Intervals;

    proptest! {
        #[test]
        fn equals_a_naive_set_of_bytes(ranges in prop::collection::vec((0..200u64, 0..40u64), 0..40)) {
            let (mut set, mut naive) = (Intervals::default(), std::collections::BTreeSet::new());
            for (start, len) in ranges {
                set.insert(start, start + len);
                naive.extend(start..start + len);
                assert!((0..250).all(|at| set.contains(at) == naive.contains(&at)));
                let list: Vec<_> = set.iter().collect();
                assert!(list.windows(2).all(|pair| pair[0].1 < pair[1].0), "touching ranges are joined: {list:?}");
            }
        }
    }
}
