//! Full disks of either side, on small images.

use tandem_tests::trials::{
    full::{Side, trial},
    image::FileSystem,
};

use crate::report;

#[test]
fn replica_without_room_is_told_of_and_catches_up_when_there_is_some() {
    report("full disk of the storage, ext4", trial(401, FileSystem::Ext4, Side::Storage, 1));
    report("full disk of the storage, xfs", trial(402, FileSystem::Xfs, Side::Storage, 1));
}

#[test]
fn folder_without_room_gives_enospc_and_the_replica_gets_what_happened() {
    report("full disk of the client, ext4", trial(403, FileSystem::Ext4, Side::Client, 1));
    report("full disk of the client, xfs", trial(404, FileSystem::Xfs, Side::Client, 1));
}
