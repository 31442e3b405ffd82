//! Patterns of file names: `*` is any run of bytes, `?` is any byte.

/// Whether a name matches.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on if what followed the last star does not fit: one byte further.
    let (mut at, mut to, mut star) = (0, 0, None);
    while to < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, to));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || *wanted == name[to] => (at, to) = (at + 1, to + 1),
            _ => match &mut star {
                Some((after, from)) => {
                    *from += 1;
                    (at, to) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|left| *left == b'*')
}

/// Whether a name is a pattern at all.
pub fn is_pattern(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Whether a listed name is meant by a pattern: hidden ones only by a pattern that begins like them.
pub fn selects(pattern: &[u8], name: &[u8]) -> bool {
    matches(pattern, name) && (!name.starts_with(b".") || pattern.starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::{matches, selects};

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, name, is) in [
            ("*.gz", "a.gz", true),
            ("*.gz", "a.g", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("a*c*", "abcd", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), is, "{pattern} {name}");
        }
        assert!(!selects(b"*", b".hidden") && selects(b".h*", b".hidden"));
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        assert!(!matches(&b"*a".repeat(100), &[b'a'; 99]));
    }
}
