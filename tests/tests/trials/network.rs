//! A network that is bad in one way or another, under load.

use tandem_tests::trials::network::{FAULTS, trial};

use crate::report;

#[test]
fn each_bad_network_is_survived_and_both_sides_are_equal_afterwards() {
    for (seed, (name, fault)) in FAULTS.into_iter().enumerate() {
        report(&format!("network, {name}"), trial(300 + seed as u64, fault, 1));
    }
}
