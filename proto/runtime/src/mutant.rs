//! Rules that can be broken on purpose, to see that the simulation notices.
//!
//! Each rule has a name in [`ALL`] and one line in the production code that asks [`is`]. In a build without debug assertions, as
//! anybody installs one, that is a constant `false` and costs nothing. In one with them the environment variable [`VARIABLE`] names the rule that
//! this process breaks. `scripts/simulate --mutants`, and a few seeds of it in each test run, demand that a checker objects to each.

/// Environment variable with the name of the rule to break.
pub const VARIABLE: &str = "TANDEM_MUTANT";

/// A rule that can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// Its name in [`VARIABLE`].
    pub name: &'static str,
    /// The rule, as it is without the mutant.
    pub rule: &'static str,
}

/// All of them.
pub const ALL: [Mutant; 8] = [
    Mutant { name: "ack-before-fsync", rule: "durable is acknowledged after the log was synced" },
    Mutant { name: "epoch-unchecked", rule: "a run whose epoch was followed by a newer one is fenced" },
    Mutant { name: "duplicate-by-seq", rule: "a duplicate is acknowledged only if its chain is the one recorded" },
    Mutant { name: "clear-unsynced", rule: "a mark is cleared after the local file system was synced" },
    Mutant { name: "clear-any-generation", rule: "a clear names the generation of the mark that it clears" },
    Mutant { name: "publish-half", rule: "a resync is published when everything that was asked for is staged" },
    Mutant { name: "redo-by-name", rule: "redo recognises objects by identity, not by name" },
    Mutant { name: "early-s1", rule: "S1 is reserved after the last read of a resync" },
];

/// Whether this process breaks the rule `name`.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn is(_name: &'static str) -> bool {
    false
}

/// Whether this process breaks the rule `name`.
#[cfg(debug_assertions)]
pub fn is(name: &'static str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    assert!(ALL.iter().any(|mutant| mutant.name == name), "{name} is no mutant of the list");
    CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok()).as_deref() == Some(name)
}
