//! What of a folder stays local (`-o exclude=GLOB`): patterns, and whether a path matches one. Pure but for asking the kernel for a path.
//!
//! ```text
//! *.o          a name, wherever it is          /build       from the root of the mount      a/**/tmp   any directories between
//! cache/       only a directory                [!a-c]?x\*   sets, one character, an escape  a match covers all that is below
//! ```

use std::{fmt, os::fd::BorrowedFd};

/// Patterns of one mount. Each is compared with every new name.
pub const PATTERNS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    Any,
    /// `*`
    Run,
    /// `[...]`: ranges, and whether it is everything else.
    Set(Vec<(u8, u8)>, bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Name(Vec<Token>),
    /// `**`
    Names,
}

/// One pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    /// From the root; else a name, wherever it is.
    anchored: bool,
    only_directories: bool,
    parts: Vec<Part>,
}

/// All patterns of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excludes(Vec<Pattern>);

impl fmt::Display for Excludes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<&str> = self.0.iter().map(|pattern| pattern.text.as_str()).collect();
        f.write_str(&texts.join(", "))
    }
}

impl Excludes {
    /// Adds a pattern. `Err`: why it is none.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        if self.0.len() >= PATTERNS_MAX {
            return Err(format!("more than {PATTERNS_MAX} patterns"));
        }
        let (inner, only_directories) = text.strip_suffix('/').map_or((text, false), |inner| (inner, true));
        let anchored = inner.contains('/');
        let mut parts = Vec::new();
        for part in inner.strip_prefix('/').unwrap_or(inner).split('/') {
            parts.push(match part {
                "" | "." | ".." => return Err(format!("{text:?} is no pattern: a name of it is empty, `.` or `..`")),
                "**" => Part::Names,
                part => {
                    Part::Name(tokens(part.as_bytes()).ok_or_else(|| format!("{text:?}: `[` or `\\` without its end"))?)
                }
            });
        }
        if parts == [Part::Names] {
            return Err(format!("{text:?} matches everything: then nothing would be replicated"));
        }
        let pattern = Pattern { text: text.to_owned(), anchored, only_directories, parts };
        if !self.0.contains(&pattern) {
            self.0.push(pattern);
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The patterns as they were written.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(|pattern| pattern.text.clone()).collect()
    }

    /// Whether it matters where a directory is.
    pub fn has_paths(&self) -> bool {
        self.0.iter().any(|pattern| pattern.anchored)
    }

    /// Whether a name is excluded that stands in a directory which is not. `dir`: the names that lead to that.
    pub fn matches(&self, dir: &[&[u8]], name: &[u8], is_directory: bool) -> bool {
        self.0.iter().filter(|pattern| is_directory || !pattern.only_directories).any(|pattern| {
            if !pattern.anchored {
                return matches!(&pattern.parts[..], [Part::Name(tokens)] if name_matches(tokens, name));
            }
            let path: Vec<&[u8]> = dir.iter().copied().chain([name]).collect();
            path_matches(&pattern.parts, &path)
        })
    }

    /// Whether a pattern may match something below this path by where it is, so that it would be another thing elsewhere.
    pub fn reaches_below(&self, path: &[&[u8]]) -> bool {
        self.0.iter().filter(|pattern| pattern.anchored).any(|pattern| {
            (1..pattern.parts.len())
                .any(|end| pattern.parts[..end].contains(&Part::Names) || path_matches(&pattern.parts[..end], path))
        })
    }
}

fn tokens(mut part: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    while let Some((first, rest)) = part.split_first() {
        part = rest;
        tokens.push(match first {
            b'*' => Token::Run,
            b'?' => Token::Any,
            b'\\' => {
                let (escaped, rest) = part.split_first()?;
                part = rest;
                Token::Byte(*escaped)
            }
            b'[' => {
                let (set, rest) = set(part)?;
                part = rest;
                set
            }
            byte => Token::Byte(*byte),
        });
    }
    Some(tokens)
}

fn set(part: &[u8]) -> Option<(Token, &[u8])> {
    let (mut part, others) = match part.split_first()? {
        (b'!' | b'^', rest) => (rest, true),
        _ => (part, false),
    };
    let mut ranges = Vec::new();
    loop {
        let (from, rest) = part.split_first()?;
        part = rest;
        match (from, part) {
            (b']', _) if !ranges.is_empty() => return Some((Token::Set(ranges, others), part)),
            (from, [b'-', to, rest @ ..]) if *to != b']' => {
                ranges.push((*from, *to));
                part = rest;
            }
            (from, _) => ranges.push((*from, *from)),
        }
    }
}

/// The last `*` is where it goes back to, so this takes at most the product of both lengths.
fn name_matches(tokens: &[Token], name: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        let fits = match (tokens.get(token), name.get(at)) {
            (None, None) => return true,
            (Some(Token::Run), _) => {
                back = Some((token, at));
                token += 1;
                continue;
            }
            (Some(Token::Any), Some(_)) => true,
            (Some(Token::Byte(byte)), Some(other)) => byte == other,
            (Some(Token::Set(ranges, others)), Some(byte)) => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(byte)) != *others
            }
            _ => false,
        };
        if fits {
            (token, at) = (token + 1, at + 1);
            continue;
        }
        match back {
            Some((run, from)) if from < name.len() => {
                back = Some((run, from + 1));
                (token, at) = (run + 1, from + 1);
            }
            _ => return false,
        }
    }
}

fn path_matches(parts: &[Part], path: &[&[u8]]) -> bool {
    match parts.split_first() {
        None => path.is_empty(),
        Some((Part::Names, rest)) => (0..=path.len()).any(|skipped| path_matches(rest, &path[skipped..])),
        Some((Part::Name(tokens), rest)) => match path.split_first() {
            Some((name, below)) => name_matches(tokens, name) && path_matches(rest, below),
            None => false,
        },
    }
}

/// The names that lead from one open directory to another below it, as the kernel knows them now; `None`: it is not below.
pub fn path_between(root: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> Option<Vec<Vec<u8>>> {
    let link = |fd: BorrowedFd<'_>| {
        let path = crate::backing::sys::ProcPath::new(fd);
        rustix::fs::readlink(path.as_str(), Vec::new()).ok().map(|text| text.into_bytes())
    };
    let (root, dir) = (link(root)?, link(dir)?);
    let below = if root == b"/" { &dir[..] } else { dir.strip_prefix(&root[..])? };
    if !below.is_empty() && below[0] != b'/' {
        return None;
    }
    Some(below.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::Excludes;

    fn excludes(patterns: &[&str]) -> Excludes {
        let mut excludes = Excludes::default();
        patterns.iter().for_each(|pattern| excludes.add(pattern).expect("a pattern"));
        excludes
    }

    fn is_out(patterns: &[&str], path: &str) -> bool {
        let (path, is_directory) = path.strip_suffix('/').map_or((path, false), |path| (path, true));
        let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        let (name, dir) = names.split_last().expect("a name");
        excludes(patterns).matches(dir, name, is_directory)
    }

    #[test]
    fn a_pattern_without_a_slash_is_a_name_wherever_it_is() {
        for (pattern, path, out) in [
            ("*.o", "a.o", true),
            ("*.o", "deep/er/b.o", true),
            ("*.o", "b.obj", false),
            ("*a*b*", "xaxxbx", true),
            ("*a*b*", "xbxxax", false),
            ("?", "x", true),
            ("?", "xy", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("cache/", "x/cache/", true),
            ("cache/", "x/cache", false),
            (".git", "sub/.git", true),
        ] {
            assert_eq!(is_out(&[pattern], path), out, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_with_a_slash_begins_at_the_root() {
        for (pattern, path, out) in [
            ("/build", "build", true),
            ("/build", "sub/build", false),
            ("a/*/c", "a/b/c", true),
            ("a/*/c", "a/b/b/c", false),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("**/x/y", "p/x/y", true),
            ("a/**", "a/b", true),
        ] {
            assert_eq!(is_out(&[pattern], path), out, "{pattern} {path}");
        }
        let excludes = excludes(&["/a/b/*.tmp", "*.o"]);
        assert!(excludes.reaches_below(&[b"a"]) && excludes.reaches_below(&[b"a", b"b"]));
        assert!(!excludes.reaches_below(&[b"b"]) && !excludes.reaches_below(&[b"a", b"c"]));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["", "/", "a//b", "..", "a/./b", "[a", "x\\", "**"] {
            assert!(Excludes::default().add(bad).is_err(), "{bad:?}");
        }
    }
}
