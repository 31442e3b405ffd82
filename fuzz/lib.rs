//! Feeds the targets of `tandem_tests::fuzz` by libFuzzer: one program for each, in `fuzz_targets/`, named as its target.
//!
//! `scripts/fuzz --coverage` builds and runs them with the stable toolchain and no tool beside it; `cargo fuzz run TARGET` does, too, where
//! cargo-fuzz is installed. The inputs to begin with come from the targets themselves: with `TANDEM_FUZZ_SEEDS=DIR` a program writes them
//! there first.

use std::{env, fs, path::Path};

pub use libfuzzer_sys;

/// Gives one input to a target; panics if the target does.
pub fn feed(name: &str, input: &[u8]) {
    if input.len() <= tandem_tests::fuzz::INPUT_MAX_BYTES {
        (tandem_tests::fuzz::target(name).run)(input);
    }
}

/// Writes the inputs that a target begins with, if somebody asks for them.
pub fn sow(name: &str) {
    let Some(dir) = env::var_os("TANDEM_FUZZ_SEEDS") else { return };
    let dir = Path::new(&dir);
    fs::create_dir_all(dir).expect("the directory can be made");
    for (at, seed) in (tandem_tests::fuzz::target(name).seeds)().into_iter().enumerate() {
        fs::write(dir.join(format!("seed-{at}")), seed).expect("it can be written");
    }
}

/// The program of one target.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::sow($name), |input: &[u8]| $crate::feed($name, input));
    };
}
