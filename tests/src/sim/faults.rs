//! What goes wrong in a run, and how often.

use crate::rng::Rng;

/// Kinds of what goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection is cut; bytes may arrive late.
    Cut,
    /// The storage process is killed.
    StorageKill,
    /// The storage machine loses power.
    StoragePower,
    /// mountd is killed.
    MountKill,
    /// The client's machine loses power.
    ClientPower,
    /// Another machine takes the volume over.
    TakeOver,
    /// A person pauses or resumes a link.
    Pause,
    /// The storage's disk is full, for a while.
    StorageFull,
    /// A sync of the storage's disk fails.
    StorageSync,
    /// The net repeats a message.
    Duplicate,
    /// Someone sends ops of another history under the same numbers.
    Forgery,
}

/// How often what goes wrong, in steps of 10,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// [`Fault::Cut`].
    pub cuts: u64,
    /// [`Fault::StorageKill`].
    pub storage_kills: u64,
    /// [`Fault::StoragePower`].
    pub storage_power: u64,
    /// [`Fault::MountKill`].
    pub mount_kills: u64,
    /// [`Fault::ClientPower`].
    pub client_power: u64,
    /// [`Fault::TakeOver`].
    pub takeovers: u64,
    /// [`Fault::Pause`].
    pub pauses: u64,
    /// [`Fault::StorageFull`].
    pub storage_full: u64,
    /// [`Fault::StorageSync`].
    pub storage_syncs: u64,
    /// [`Fault::Duplicate`].
    pub duplicates: u64,
    /// [`Fault::Forgery`].
    pub forgeries: u64,
    /// Syncs of the client's disk fail.
    pub backing_syncs: bool,
    /// Bound of the window in bytes; 0: the seed chooses.
    pub window_bytes: usize,
}

impl Faults {
    /// The mix of a seed: each kind is in about half of all mixes, so that every pair meets.
    pub fn of_seed(seed: u64) -> Faults {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut syncs = Rng::new(seed ^ 0x515c);
        let mut often = |most: u64| if rng.chance(50) { 1 + rng.below(most) } else { 0 };
        Faults {
            cuts: often(100),
            storage_kills: often(50),
            storage_power: often(50),
            mount_kills: often(50),
            client_power: often(50),
            takeovers: often(20),
            pauses: often(20),
            storage_full: often(20),
            storage_syncs: if syncs.chance(50) { 1 + syncs.below(10) } else { 0 },
            duplicates: often(100),
            forgeries: often(8),
            backing_syncs: syncs.chance(50),
            window_bytes: 0,
        }
    }

    /// What goes wrong in this step.
    pub fn choose(&self, rng: &mut Rng) -> Option<Fault> {
        let mut left = rng.below(10_000);
        let rates = [
            (self.cuts, Fault::Cut),
            (self.storage_kills, Fault::StorageKill),
            (self.storage_power, Fault::StoragePower),
            (self.mount_kills, Fault::MountKill),
            (self.client_power, Fault::ClientPower),
            (self.takeovers, Fault::TakeOver),
            (self.pauses, Fault::Pause),
            (self.storage_full, Fault::StorageFull),
            (self.storage_syncs, Fault::StorageSync),
            (self.duplicates, Fault::Duplicate),
            (self.forgeries, Fault::Forgery),
        ];
        for (rate, fault) in rates {
            if left < rate {
                return Some(fault);
            }
            left -= rate;
        }
        None
    }
}
