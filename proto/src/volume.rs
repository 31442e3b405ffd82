//! Volume names.

use std::{fmt, str::FromStr};

/// Name of a volume: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`. Safe as a directory name and in messages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeName(String);

/// A volume name breaks the rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a volume name: use 1 to 63 of A-Z a-z 0-9 . _ - and begin with a letter or digit")]
pub struct InvalidVolumeName(String);

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = InvalidVolumeName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let legal = (1..=63).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if legal { Ok(VolumeName(name.to_owned())) } else { Err(InvalidVolumeName(name.to_owned())) }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::VolumeName;

    #[test]
    fn names_that_are_no_plain_directory_name_are_refused() {
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for good in ["a", "0", "a.b_c-d", &"x".repeat(63)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good:?}");
        }
    }
}
