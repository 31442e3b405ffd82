//! Maps that are asked several times for each change: with a hash that takes a few nanoseconds for a short key, where the standard library's
//! takes some fifty. It is seeded, but not made to withstand an enemy who chooses keys: for those that nobody outside chooses, as inode
//! numbers and what the kernel calls inodes by.

/// See the module.
pub type QuickMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
/// See the module.
pub type QuickSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;
