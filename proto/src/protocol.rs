//! Which version of the replication protocol two daemons speak: the newest that both know.
//!
//! Each side says the newest and the oldest version that it speaks. A storage daemon chooses, and says what it chose. What is merely added
//! needs no version: unknown fields are skipped, and what a storage daemon understands beside version 1 it tells as features.

use crate::limits::{PROTOCOL_OLDEST, PROTOCOL_VERSION};

/// Versions that one side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// At least 1.
    pub oldest: u32,
    /// At least `oldest`.
    pub newest: u32,
}

/// Two daemons have no version in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this storage daemon speaks protocol {} and the mount {}: upgrade the {}",
    range(.storage),
    range(.mount),
    older(*.storage_is_older)
)]
pub struct NoCommon {
    /// Of the storage daemon.
    pub storage: Spoken,
    /// Of the mount.
    pub mount: Spoken,
    /// Which side is to be upgraded.
    pub storage_is_older: bool,
}

fn older(storage: bool) -> &'static str {
    if storage { "storage daemon" } else { "mount" }
}

fn range(spoken: &Spoken) -> String {
    match spoken.oldest == spoken.newest {
        true => spoken.newest.to_string(),
        false => format!("{} to {}", spoken.oldest, spoken.newest),
    }
}

impl Spoken {
    /// By this program.
    pub const OURS: Spoken = Spoken { oldest: PROTOCOL_OLDEST, newest: PROTOCOL_VERSION };

    /// As the wire has it: who says no oldest version speaks one only.
    pub fn of_wire(newest: u32, oldest: u32) -> Spoken {
        let oldest = if oldest == 0 { newest } else { oldest };
        Spoken { oldest: oldest.min(newest), newest }
    }
}

/// The version that a storage daemon speaks with a mount.
pub fn choose(storage: Spoken, mount: Spoken) -> Result<u32, NoCommon> {
    let newest = storage.newest.min(mount.newest);
    if newest >= storage.oldest.max(mount.oldest) {
        return Ok(newest);
    }
    Err(NoCommon { storage, mount, storage_is_older: storage.newest < mount.oldest })
}

#[cfg(test)]
mod tests {
    use super::{Spoken, choose};

    #[test]
    fn the_newest_version_that_both_speak_is_chosen_or_the_older_side_is_named() {
        let spoken = |oldest, newest| Spoken { oldest, newest };
        assert_eq!(choose(spoken(1, 3), spoken(2, 5)), Ok(3));
        assert_eq!(choose(spoken(2, 5), spoken(1, 3)), Ok(3));
        assert_eq!(choose(Spoken::OURS, Spoken::OURS), Ok(Spoken::OURS.newest));
        let said = choose(spoken(1, 1), spoken(2, 3)).expect_err("too new").to_string();
        assert!(said.contains("protocol 1 and the mount 2 to 3: upgrade the storage daemon"), "{said}");
        let said = choose(spoken(2, 3), spoken(1, 1)).expect_err("too old").to_string();
        assert!(said.contains("2 to 3 and the mount 1: upgrade the mount"), "{said}");
    }

    #[test]
    fn a_mount_of_before_ranges_speaks_one_version_and_nonsense_is_harmless() {
        assert_eq!(Spoken::of_wire(1, 0), Spoken { oldest: 1, newest: 1 });
        assert_eq!(Spoken::of_wire(2, 1), Spoken { oldest: 1, newest: 2 });
        assert!(choose(Spoken::OURS, Spoken::of_wire(0, 0)).is_err());
        assert!(choose(Spoken::OURS, Spoken::of_wire(1, 9)).is_ok(), "its newest is one of ours");
    }
}
