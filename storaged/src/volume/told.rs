//! Which faults were told: each one once, then once a minute. When log and tree are both at fault, each is tried twice a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a fault that was told is not told again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Faults that are remembered. Their texts name files, so there may be any number.
const REMEMBERED_MAX: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Told {
    faults: Vec<(Arc<str>, Instant)>,
}

impl Told {
    /// Whether a fault is to be told now; it counts as told then.
    pub(super) fn is_due(&mut self, message: &Arc<str>, now: Instant) -> bool {
        self.faults.retain(|(_, at)| now.saturating_duration_since(*at) < AGAIN_AFTER);
        if self.faults.iter().any(|(told, _)| told == message) {
            return false;
        }
        if self.faults.len() == REMEMBERED_MAX {
            self.faults.remove(0);
        }
        self.faults.push((message.clone(), now));
        true
    }

    /// They are over.
    pub(super) fn forget(&mut self) {
        self.faults.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::Told;

    #[test]
    fn two_faults_that_take_turns_are_told_once_each_and_again_after_a_minute() {
        let (mut told, begun) = (Told::default(), Instant::now());
        let (log, tree): (Arc<str>, Arc<str>) = ("log".into(), "tree".into());
        let mut count = |millis: u64| {
            let now = begun + Duration::from_millis(millis);
            [&log, &tree].into_iter().filter(|fault| told.is_due(fault, now)).count()
        };
        assert_eq!(count(0), 2);
        assert_eq!((1..120).map(|half| count(half * 500)).sum::<usize>(), 0);
        assert_eq!(count(60_000), 2);
        told.forget();
        assert!(told.is_due(&log, begun + Duration::from_millis(60_001)), "it is another time");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut told, now) = (Told::default(), Instant::now());
        for file in 0..100 {
            assert!(told.is_due(&format!("no room for file {file}").into(), now));
        }
        assert_eq!(told.faults.len(), super::REMEMBERED_MAX);
    }
}
