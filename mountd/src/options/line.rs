//! The command line of a mount, also as mount(8) writes it: only taken apart here.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use tandem_runtime::settings::{Given, Origin, plain};

use super::{
    UsageError,
    keys::{CONFIG, KEYS, help},
    usage,
};

/// What stood on a command line.
#[derive(Debug, Default)]
pub struct Line {
    /// SOURCE and DIR, as far as they are there.
    pub positional: Vec<OsString>,
    /// The options, in their order.
    pub given: Vec<Given>,
    /// `-f` of mount(8): only check.
    pub fake: bool,
    /// `--check-config`.
    pub check: bool,
    /// To print this, and nothing else.
    pub print: Option<String>,
}

struct Parser<'a> {
    arguments: &'a [OsString],
    at: usize,
    line: Line,
}

/// Reads a command line.
pub fn read(arguments: &[OsString], as_helper: bool) -> Result<Line, UsageError> {
    let mut parser = Parser { arguments, at: 0, line: Line::default() };
    parser.line.print = parser.run(as_helper)?;
    Ok(parser.line)
}

impl Parser<'_> {
    /// `Some`: only print this.
    fn run(&mut self, as_helper: bool) -> Result<Option<String>, UsageError> {
        while let Some(argument) = self.arguments.get(self.at) {
            self.at += 1;
            let bytes = argument.as_bytes();
            if let Some(long) = bytes.strip_prefix(b"--") {
                match long {
                    b"help" => return Ok(Some(help())),
                    b"version" => return Ok(Some(format!("tandem-mountd {}", env!("CARGO_PKG_VERSION")))),
                    b"check-config" => self.line.check = true,
                    _ => self.long(long)?,
                }
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                if let Some(text) = self.short(&bytes[1..], as_helper)? {
                    return Ok(Some(text));
                }
            } else {
                self.line.positional.push(argument.clone());
            }
        }
        Ok(None)
    }

    fn long(&mut self, long: &[u8]) -> Result<(), UsageError> {
        let (key, value) = split_pair(long)?;
        let takes_value = key == CONFIG || KEYS.iter().any(|(name, argument, _)| *name == key && argument.is_some());
        let value = match value {
            None if takes_value => Some(self.next(&format!("--{key}"))?),
            value => value,
        };
        self.line.given.push(given(key, value));
        Ok(())
    }

    fn short(&mut self, letters: &[u8], as_helper: bool) -> Result<Option<String>, UsageError> {
        for (at, letter) in letters.iter().enumerate() {
            let rest = &letters[at + 1..];
            match letter {
                b'o' => {
                    let list = if rest.is_empty() { self.next("-o")? } else { OsString::from_vec(rest.to_vec()) };
                    for option in list.as_bytes().split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
                        let (key, value) = split_pair(option)?;
                        self.line.given.push(given(key, value));
                    }
                    return Ok(None);
                }
                b't' | b'N' if as_helper => {
                    if rest.is_empty() {
                        self.next("-t")?;
                    }
                    return Ok(None);
                }
                b'f' if as_helper => self.line.fake = true,
                b'f' => self.line.given.push(given("foreground".to_owned(), None)),
                // Sloppy, no mtab, verbose: nothing to do.
                b's' | b'n' | b'v' => {}
                b'h' => return Ok(Some(help())),
                b'V' => return Ok(Some(format!("tandem-mountd {}", env!("CARGO_PKG_VERSION")))),
                other => return usage(format!("unknown flag -{}; try --help", char::from(*other))),
            }
        }
        Ok(None)
    }

    fn next(&mut self, of: &str) -> Result<OsString, UsageError> {
        let value = self.arguments.get(self.at).cloned();
        self.at += 1;
        value.ok_or_else(|| UsageError(format!("{of} needs a value; try --help")))
    }
}

/// `key=value`; in the key `-` is `_`, except for a leading one that mount(8) uses (`_netdev`, `x-...`).
fn split_pair(option: &[u8]) -> Result<(String, Option<OsString>), UsageError> {
    let (key, value) = match option.iter().position(|byte| *byte == b'=') {
        Some(at) => (&option[..at], Some(OsString::from_vec(option[at + 1..].to_vec()))),
        None => (option, None),
    };
    match std::str::from_utf8(key) {
        Ok(key) if !key.is_empty() => Ok((plain(key), value)),
        _ => usage(format!("{:?} is not an option", String::from_utf8_lossy(option))),
    }
}

fn given(key: String, value: Option<OsString>) -> Given {
    Given { key, value, origin: Origin::CommandLine }
}
