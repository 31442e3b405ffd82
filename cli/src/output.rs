//! Writing to people without dying of a closed pipe.

use std::io::{self, Write as _};

/// Prints and flushes, so that a reader of a pipe sees each line when it was said.
pub fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a complaint to standard error. Nobody can be told if that fails.
pub fn complain(message: &str) {
    let _ = writeln!(io::stderr().lock(), "tandem: {message}");
}
