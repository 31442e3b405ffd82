//! The state of a link as people see it, and which changes of it are legal.

use std::fmt;

/// State of a link.
///
/// ```text
///              ┌──────────► fenced ◄─── from every state, and from the start on if an earlier run was; it never ends, only `init` or
///              │                        `takeover` at a mount does
///   initial ───┤ published
///    ▲  │      ▼           backlog            overflow
///    │  │     live ◄──────────────► lagging ───────────► catching-up ──published──► live
///    │  │      │ overflow                                     ▲
///    │  │      └──────────────────────────────────────────────┤
///    │  └─ cut ─► offline ──attached, chain matches──► live   │
///    └──attached────┤ ▲ └────attached, else───────────────────┘
///                   ▼ │
///                  paused   (from every state but fenced, and back to offline)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// The first sync is under way: the replica has no consistent position yet.
    Initial,
    /// Every op is sent as it happens.
    Live,
    /// Sent as it happens, but the replica falls behind.
    Lagging,
    /// State is sent, to be published as one step.
    CatchingUp,
    /// Stopped by hand.
    Paused,
    /// No connection; or one that cannot be used, see the reason.
    Offline,
    /// A newer writer took the volume: the mount is read-only, now and after every restart.
    Fenced,
}

impl LinkState {
    /// As status shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            LinkState::Initial => "initial",
            LinkState::Live => "live",
            LinkState::Lagging => "lagging",
            LinkState::CatchingUp => "catching-up",
            LinkState::Paused => "paused",
            LinkState::Offline => "offline",
            LinkState::Fenced => "fenced",
        }
    }

    /// The transition table.
    pub fn may_become(self, next: LinkState) -> bool {
        use LinkState::{CatchingUp, Fenced, Initial, Lagging, Live, Offline, Paused};
        match (self, next) {
            (from, to) if from == to => true,
            (Fenced, _) => false,
            (_, Fenced | Paused | Offline) => true,
            (Initial, Live) => true,
            (Live, Lagging | CatchingUp) => true,
            (Lagging, Live | CatchingUp) => true,
            (CatchingUp, Live) => true,
            (Offline, Initial | Live | CatchingUp) => true,
            (Paused, _) => false,
            _ => false,
        }
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::LinkState::{self, CatchingUp, Fenced, Initial, Lagging, Live, Offline, Paused};

    const ALL: [LinkState; 7] = [Initial, Live, Lagging, CatchingUp, Paused, Offline, Fenced];

    #[test]
    fn a_fence_comes_from_everywhere_and_never_ends() {
        for state in ALL {
            assert!(state.may_become(Fenced));
            assert_eq!(Fenced.may_become(state), state == Fenced);
        }
    }

    #[test]
    fn only_a_connection_leads_out_of_offline_and_only_that_out_of_a_pause() {
        let after =
            |from: LinkState| ALL.into_iter().filter(|to| from != *to && from.may_become(*to)).collect::<Vec<_>>();
        assert_eq!(after(Offline), [Initial, Live, CatchingUp, Paused, Fenced]);
        assert_eq!(after(Paused), [Offline, Fenced]);
        assert_eq!(after(Initial), [Live, Paused, Offline, Fenced]);
        assert_eq!(after(CatchingUp), [Live, Paused, Offline, Fenced]);
        assert_eq!(after(Live), [Lagging, CatchingUp, Paused, Offline, Fenced]);
    }
}
