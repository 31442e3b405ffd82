//! Feeds the targets of `tandem_tests::fuzz` by libFuzzer: one program for each, in `fuzz_targets/`, named as its target.
//!
//! `scripts/fuzz --coverage` builds and runs them with the stable toolchain and no tool beside it; `cargo fuzz run TARGET` does, too, where
//! cargo-fuzz is installed. The inputs to begin with come from the targets themselves (`seeds.rs`).

pub use libfuzzer_sys;

/// Gives one input to a target; panics if the target does.
pub fn feed(name: &str, input: &[u8]) {
    if input.len() <= tandem_tests::fuzz::INPUT_MAX_BYTES {
        (tandem_tests::fuzz::target(name).run)(input);
    }
}

/// The program of one target.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|input: &[u8]| $crate::feed($name, input));
    };
}
