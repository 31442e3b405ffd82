//! When a connection that answers its pings has nevertheless come to a stand.
//!
//! A damaged length or window update of HTTP/2 can leave a stream that waits for ever, on a connection that is well. So the storage daemon
//! says regularly how many of our messages it has taken ([`Alive`]). The stream stands if nothing is heard of it for the bound, or if for the
//! bound not one of the messages that are under way was taken, unless the storage daemon says that it is the one who waits.

use std::time::Duration;

use tandem_proto::pb::Alive;

/// So many times `keepalive` is the bound. One message is at most some 1 MiB, so a link of 140 kbit/s is not taken for a stream that stands.
const FACTOR: u32 = 30;
/// So often within the bound the storage daemon is asked to say that it is there.
const TELLS: u32 = 8;

/// See the module. Pure: time is an argument.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    bound: Duration,
    /// The other side says when it is there; an old one does not.
    told: bool,
    heard_at: Duration,
    received: u64,
    moved_at: Duration,
}

impl Silence {
    /// A stream that was begun now.
    pub fn new(keepalive: Duration, now: Duration) -> Silence {
        Silence { bound: keepalive * FACTOR, told: false, heard_at: now, received: 0, moved_at: now }
    }

    /// How often the storage daemon is asked to tell, in milliseconds.
    pub fn alive_ms(&self) -> u32 {
        u32::try_from((self.bound / TELLS).as_millis()).unwrap_or(u32::MAX)
    }

    /// A message came.
    pub fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// The storage daemon said how far it is.
    pub fn alive(&mut self, alive: &Alive, now: Duration) {
        self.told = true;
        if alive.received > self.received || alive.waits {
            self.received = self.received.max(alive.received);
            self.moved_at = now;
        }
    }

    /// Whether the stream stands, and why that is said. `sent`: messages that were given to it.
    pub fn verdict(&mut self, sent: u64, now: Duration) -> Option<String> {
        if sent <= self.received {
            // Nothing is under way.
            self.moved_at = now;
        }
        let stands = |since: Duration| now.saturating_sub(since) > self.bound;
        if !self.told {
            return None;
        }
        let seconds = self.bound.as_secs();
        if stands(self.heard_at) {
            return Some(format!("nothing came for {seconds} s on a connection that answers its pings"));
        }
        stands(self.moved_at)
            .then(|| format!("nothing that was sent arrived for {seconds} s on a connection that answers its pings"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandem_proto::pb::Alive;

    use super::Silence;

    const KEEPALIVE: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_stream_on_which_nothing_arrives_stands_and_one_that_waits_for_a_disk_or_is_idle_does_not() {
        let mut silence = Silence::new(KEEPALIVE, at(0));
        silence.heard(at(0));
        silence.alive(&Alive { received: 1, waits: false }, at(0));
        assert_eq!(silence.verdict(1, at(30)), None, "all of it arrived");
        for second in (60..300).step_by(7) {
            silence.heard(at(second));
            silence.alive(&Alive { received: 2, waits: true }, at(second));
            assert_eq!(silence.verdict(9, at(second)), None, "the other side's disk is full");
        }
        for second in (300..340).step_by(7) {
            silence.heard(at(second));
            silence.alive(&Alive { received: 2, waits: false }, at(second));
            assert_eq!(silence.verdict(9, at(second)), None);
        }
        silence.heard(at(360));
        silence.alive(&Alive { received: 2, waits: false }, at(360));
        let why = silence.verdict(9, at(360)).expect("seven messages stay away");
        assert!(why.contains("arrived"), "{why}");
        // One that moves, however slowly, goes on.
        silence.alive(&Alive { received: 3, waits: false }, at(361));
        assert_eq!(silence.verdict(9, at(380)), None);
    }

    #[test]
    fn a_stream_on_which_nothing_comes_stands_unless_the_other_side_never_said_that_it_would() {
        let mut old = Silence::new(KEEPALIVE, at(0));
        assert_eq!(old.verdict(9, at(1000)), None);
        old.alive(&Alive { received: 9, waits: false }, at(1000));
        old.heard(at(1000));
        assert_eq!(old.verdict(9, at(1059)), None);
        assert!(old.verdict(9, at(1061)).expect("silent").contains("came"));
    }
}
