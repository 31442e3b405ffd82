//! See `tandem_tests::fuzz`.
#![no_main]

tandem_fuzz::program!("kept");
