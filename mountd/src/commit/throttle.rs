//! Whether writers have to be slowed (`congestion=throttle`): a link that is slower than the writer would make the window overflow, and
//! resyncs would not converge. Pure.
//!
//! ```text
//!              bytes ≥ 3/4 of the window
//!      open ───────────────────────────────► closed        only while connected, and only while the window keeps ops:
//!           ◄───────────────────────────────               without a replica, or before a resync says from where on ops are
//!              bytes ≤ 1/2, or cut off                     wanted, holding writers back would help nobody
//! ```

/// What to do when the link is slower than the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Congestion {
    /// Fall behind, consistently.
    #[default]
    Lag,
    /// Slow the writer.
    Throttle,
}

impl Congestion {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Congestion::Lag => "lag",
            Congestion::Throttle => "throttle",
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    connected: bool,
    closed: bool,
}

impl Throttle {
    /// Whether there is a connection over which the window can drain.
    pub fn set_connected(&mut self, connected: bool) {
        self.connected = connected;
    }

    /// Whether writers have to wait now. `keeping`: the window keeps ops.
    pub fn is_closed(&mut self, bytes: usize, limit_bytes: usize, keeping: bool) -> bool {
        self.closed = self.connected
            && keeping
            && match self.closed {
                true => bytes > limit_bytes / 2,
                false => bytes >= limit_bytes / 4 * 3,
            };
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::Throttle;

    #[test]
    fn writers_wait_from_the_high_mark_to_the_low_one() {
        let mut throttle = Throttle::default();
        throttle.set_connected(true);
        let seen: Vec<bool> =
            [70, 75, 60, 51, 50, 60, 74].into_iter().map(|bytes| throttle.is_closed(bytes, 100, true)).collect();
        assert_eq!(seen, [false, true, true, true, false, false, false]);
    }

    #[test]
    fn nobody_waits_for_a_replica_that_is_away() {
        let mut throttle = Throttle::default();
        assert!(!throttle.is_closed(99, 100, true));
        throttle.set_connected(true);
        assert!(throttle.is_closed(99, 100, true));
        throttle.set_connected(false);
        assert!(!throttle.is_closed(99, 100, true));
        throttle.set_connected(true);
        assert!(!throttle.is_closed(60, 100, true), "it begins anew");
        assert!(!throttle.is_closed(99, 100, false));
    }
}
