//! Power loss of either side, and of both, on loop-mounted file systems.

use tandem_tests::trials::{
    Outcome,
    image::FileSystem,
    power::{Side, trial},
};

use crate::report;

#[test]
fn power_losses_of_the_client_lose_nothing_acknowledged() {
    report("power of the client, ext4", trial(201, FileSystem::Ext4, Side::Client, 2, false));
    report("power of the client, xfs", trial(202, FileSystem::Xfs, Side::Client, 2, false));
}

#[test]
fn power_losses_of_the_storage_side_lose_nothing_acknowledged() {
    report("power of the storage, ext4", trial(203, FileSystem::Ext4, Side::Storage, 2, false));
    report("power of the storage, xfs", trial(204, FileSystem::Xfs, Side::Storage, 2, false));
}

#[test]
fn power_losses_of_both_lose_nothing_acknowledged() {
    report("power of both, ext4", trial(205, FileSystem::Ext4, Side::Both, 2, false));
    report("power of both, xfs", trial(206, FileSystem::Xfs, Side::Both, 2, false));
}

#[test]
#[should_panic(expected = "lacks what was promised")]
fn a_power_loss_that_loses_an_acknowledged_call_fails_its_trial() {
    if let Outcome::Skipped(why) = trial(207, FileSystem::Ext4, Side::Both, 1, true) {
        panic!("SKIPPED: {why}, so nothing lacks what was promised");
    }
}
