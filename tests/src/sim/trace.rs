//! What happened in a run: a hash of all of it, by which two runs of one seed are compared, and on demand the last of it in words.

use std::collections::VecDeque;

use prost::Message;

/// Lines that a failure shows.
const LINES: usize = 60;

/// What of a run is kept in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: that is fast.
    #[default]
    Nothing,
    /// The last steps.
    Last,
    /// All steps whose words contain this.
    All(String),
}

/// See the module.
#[derive(Default)]
pub struct Trace {
    keep: Keep,
    lines: VecDeque<String>,
    hasher: blake3::Hasher,
}

impl Trace {
    /// A trace of nothing yet.
    pub fn new(keep: Keep) -> Trace {
        Trace { keep, ..Trace::default() }
    }

    /// Something happened.
    pub fn note(&mut self, words: &str) {
        self.hasher.update(words.as_bytes());
        self.keep(|| words.to_owned());
    }

    /// A message arrived.
    pub fn message<M: Message + std::fmt::Debug>(&mut self, what: &str, message: &M) {
        self.hasher.update(what.as_bytes()).update(&message.encode_to_vec());
        self.keep(|| format!("{what} {message:?}"));
    }

    fn keep(&mut self, words: impl FnOnce() -> String) {
        match &self.keep {
            Keep::Nothing => {}
            Keep::Last => {
                if self.lines.len() == LINES {
                    self.lines.pop_front();
                }
                self.lines.push_back(words().chars().take(300).collect());
            }
            Keep::All(word) => {
                let words = words();
                if words.contains(word.as_str()) {
                    self.lines.push_back(words.chars().take(300).collect());
                }
            }
        }
    }

    /// What was kept.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> String {
        self.hasher.finalize().to_hex()[..16].to_owned()
    }
}
