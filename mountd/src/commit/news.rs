//! Whether this thread tells the link at once of what it fills, or when it has answered. A thread serves one mount.

use std::cell::Cell;

#[derive(Clone, Copy, PartialEq)]
enum News {
    /// Each is told at once.
    Prompt,
    /// None yet.
    Held,
    /// Some wait to be told.
    Due,
}

thread_local! {
    static NEWS: Cell<News> = const { Cell::new(News::Prompt) };
}

/// From now on news wait.
pub fn hold() {
    NEWS.with(|news| {
        if news.get() == News::Prompt {
            news.set(News::Held);
        }
    });
}

/// Whether news that came up now wait for [`take`].
pub fn keep_back() -> bool {
    NEWS.with(|news| {
        let holds = news.get() != News::Prompt;
        if holds {
            news.set(News::Due);
        }
        holds
    })
}

/// Whether there is something to tell now. Whatever comes next waits for the next time.
pub fn take() -> bool {
    NEWS.with(|news| {
        let due = news.get() == News::Due;
        if due {
            news.set(News::Held);
        }
        due
    })
}

#[cfg(test)]
mod tests {
    use super::{hold, keep_back, take};

    #[test]
    fn what_is_kept_back_is_told_once() {
        assert!(!keep_back(), "a thread that never asked for it is prompt");
        hold();
        assert!(!take());
        assert!(keep_back() && keep_back());
        hold();
        assert!(take() && !take());
        assert!(keep_back() && take());
    }
}
