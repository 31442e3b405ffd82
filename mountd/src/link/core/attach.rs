//! Attaching: whose replica it is, whether it is where this folder relies on it, and what a refusal means.

use std::{collections::VecDeque, time::Duration};

use tandem_proto::{
    Chain, Epoch, Position, Seq, Uuid, convert,
    limits::{FEATURE_CLOSED, FEATURE_COPIES, PROTOCOL_OLDEST, PROTOCOL_VERSION},
    pb,
};

use crate::{
    commit::{activity_log::Header, dirty::DirtySet},
    link::{
        core::{Effect, IN_FLIGHT_MAX_BYTES, LinkCore, MISTAKES_MAX, Phase, Stream, early::Gate},
        state::LinkState,
    },
};

/// Pauses of a writer whose volume is full: each attempt reads again what has changed here, and brings it as far as it fits. They double
/// from one refusal to the next, until something was published.
const FULL_PAUSE_MIN: Duration = Duration::from_secs(2);
const FULL_PAUSE_MAX: Duration = Duration::from_secs(30);

impl LinkCore {
    pub(super) fn handle_attached(&mut self, attached: pb::Attached) -> Result<(), String> {
        if !matches!(self.phase, Phase::Attaching { .. }) {
            return Err("the storage daemon sent Attached twice".into());
        }
        // One of before versions were chosen says nothing, and speaks the first.
        let spoken = attached.protocol.max(1);
        if !(PROTOCOL_OLDEST..=PROTOCOL_VERSION).contains(&spoken) {
            self.halt(&format!(
                "the storage daemon wants to speak protocol {spoken}, and this mount speaks {PROTOCOL_OLDEST} to {PROTOCOL_VERSION}: upgrade \
                 the mount"
            ));
            return Ok(());
        }
        let id = |field, bytes: &[u8]| convert::uuid(field, bytes).map_err(|error| error.to_string());
        let volume_id = id("attached.volume_id", &attached.volume_id)?;
        let replica_id = id("attached.replica_id", &attached.replica_id)?;
        let header = self.commit.header();
        if header.volume_id == volume_id && header.replica_id == replica_id {
            return self.attached(&attached).or_else(|why| {
                self.halt(&why);
                Ok(())
            });
        }
        if header.volume_id != Uuid::default() && !self.config.replace {
            self.halt("the storage daemon has another volume under this name than the one this folder belongs to; unmount, then \
                       mount with -o init=push (the folder replaces it) or another volume name");
            return Ok(());
        }
        self.phase = Phase::Saving(attached);
        // A new replica: nothing of an older one's floor counts.
        self.effects.push_back(Effect::SaveHeader(Header {
            volume_id,
            replica_id,
            floor: Position::default(),
            ..header
        }));
        Ok(())
    }

    /// Decides how to go on: the error is one that only a person can mend.
    pub(super) fn attached(&mut self, attached: &pb::Attached) -> Result<(), String> {
        let position = convert::position("attached.position", &attached.position).map_err(|error| error.to_string())?;
        let epoch = Epoch(attached.epoch);
        let known_epoch = self.epoch;
        if let Some(durable) = self.commit.durable()
            && (position.is_before(&durable)
                || ((position.epoch, position.seq) == (durable.epoch, durable.seq) && position.chain != durable.chain))
        {
            return Err(format!(
                "the replica is at {position}, but acknowledged {durable} before: it was restored from something older. Unmount, then \
                 mount with -o init=push to make it equal to this folder (what it holds is kept in its history)"
            ));
        }
        if known_epoch.is_none() {
            self.check_floor(attached)?;
            self.epoch = Some(epoch);
            self.commit.begin_epoch(epoch, if position.epoch == epoch { position.chain } else { Chain::default() });
        }
        self.attempts = 0;
        self.verifies = attached.verifies;
        self.fault.clear();
        let mut stream = Stream {
            session: attached.session,
            sent: Seq(0),
            sent_chain: Chain::default(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            held_back: false,
            copying: None,
            round: None,
            empty: attached.empty,
            staged: attached.staged,
            features: attached.features,
            slow: false,
            in_flight_max: IN_FLIGHT_MAX_BYTES,
            gate: Gate::default(),
            gated: false,
            early: false,
        };
        self.commit.set_takes_copies(attached.features & FEATURE_COPIES != 0);
        self.commit.closings().set_wanted(attached.features & FEATURE_CLOSED != 0);
        let same = known_epoch == Some(epoch)
            && position.epoch == epoch
            && self.commit.durable().is_some()
            && self.commit.is_keeping()
            && self.commit.is_clean()
            && self.commit.chain_at(position.seq) == Some(position.chain);
        if same {
            (stream.sent, stream.sent_chain) = (position.seq, position.chain);
            self.phase = Phase::Streaming(Box::new(stream));
            self.commit.acked(position.seq, Seq(attached.applied));
            self.become_state(LinkState::Live, "");
        } else {
            self.phase = Phase::Streaming(Box::new(stream));
            self.begin_round();
        }
        Ok(())
    }

    /// At the first attach of a run: is the replica at least where this client relies on it?
    pub(super) fn check_floor(&mut self, attached: &pb::Attached) -> Result<(), String> {
        let floor = self.commit.header().floor;
        let published = match &attached.published {
            Some(position) => Some(Position::try_from(position).map_err(|error| error.to_string())?),
            None => None,
        };
        if self.config.replace {
            self.commit.insert_dirty(&DirtySet::everything(true));
            return Ok(());
        }
        if floor.epoch == Epoch(0) {
            // Never complete so far.
            self.commit.insert_dirty(&DirtySet::everything(!attached.empty));
            return Ok(());
        }
        let older = "mount with -o init=push to make it equal to this folder (what it holds is kept in its history)";
        match published {
            None => Err(format!("the replica is empty, but this folder relies on it up to {floor}; {older}")),
            Some(_) if attached.empty => {
                Err(format!("the replica is empty, but this folder relies on it up to {floor}; {older}"))
            }
            Some(published) if published.is_before(&floor) => Err(format!(
                "the replica is at {published}, older than {floor}, up to which this folder relies on it; {older}"
            )),
            Some(published)
                if (published.epoch, published.seq) == (floor.epoch, floor.seq) && published.chain != floor.chain =>
            {
                Err(format!("the replica has another history at {floor} than this folder; {older}"))
            }
            Some(published) => {
                if !self.commit.confirm_floor(Some(&published)) {
                    tracing::warn!(%published, "the replica is older than it was before this daemon was killed: all marks are compared");
                }
                Ok(())
            }
        }
    }

    pub(super) fn handle_refused(&mut self, refused: &pb::Refused, now: Duration) {
        use pb::refused::Reason;
        let mut message = refused.message.clone();
        if !refused.expected.is_empty() || !refused.found.is_empty() {
            message = format!("{message} (expected {}, found {})", refused.expected, refused.found);
        }
        self.last_error = message.clone();
        self.effects.push_back(Effect::Disconnect);
        let attaching = matches!(self.phase, Phase::Attaching { .. });
        match refused.reason() {
            Reason::Fenced => self.fence(&message),
            // The replica relies on somebody else now: what was changed here since is a history of its own.
            Reason::Held if self.relies_on_replica() => self.fence(&message),
            // The same claim would be refused again.
            Reason::Diverged if attaching => self.halt(&message),
            Reason::Gap | Reason::Diverged | Reason::BadRequest if !attaching && self.mistakes < MISTAKES_MAX => {
                // The two sides do not agree on what the replica has. What it has is never assumed then: everything is compared.
                self.mistakes += 1;
                tracing::error!(message, "the replica refused the stream; everything is compared");
                self.leave_stream();
                self.commit.distrust();
                self.effects.push_back(Effect::SaveFloor);
                self.become_state(LinkState::Offline, &message);
                self.back_off(now);
            }
            // What waits to be sent may be gone from the folder by the next attempt: its state is compared then, and what is gone not sent.
            Reason::Quota => {
                self.leave_stream();
                self.commit.give_up_window();
                self.become_state(LinkState::Offline, &message);
                let pause = FULL_PAUSE_MIN.saturating_mul(1 << self.full_refusals.min(8)).min(FULL_PAUSE_MAX);
                self.full_refusals = self.full_refusals.saturating_add(1);
                self.pause_for(pause, now);
            }
            _ if refused.retry
                || matches!(refused.reason(), Reason::StaleSession | Reason::Unavailable | Reason::Gap) =>
            {
                self.leave_stream();
                self.become_state(LinkState::Offline, &message);
                self.back_off(now);
            }
            _ => self.halt(&message),
        }
    }

    /// Whether the replica has ever held the state of this folder, as far as this client knows.
    fn relies_on_replica(&self) -> bool {
        !self.config.replace && self.commit.header().floor.epoch != Epoch(0)
    }

    fn fence(&mut self, why: &str) {
        let why = format!(
            "{why}. The mount is read-only. `tandem divergence` lists what the replica does not have, and `tandem divergence --export` \
             copies it; afterwards mount with -o init=pull into an empty folder, or with -o init=push if this folder is right"
        );
        self.leave_stream();
        self.phase = Phase::Halted;
        self.commit.fence(&why);
        self.become_state(LinkState::Fenced, &why);
    }

    pub(super) fn attach_message(&self) -> pb::Attach {
        let header = self.commit.header();
        let known = header.volume_id != Uuid::default() && !self.config.replace;
        let first = self.epoch.is_none();
        let id = |id: Uuid| if known { bytes::Bytes::copy_from_slice(&id.0) } else { bytes::Bytes::new() };
        pb::Attach {
            protocol: PROTOCOL_VERSION,
            protocol_oldest: PROTOCOL_OLDEST,
            volume: self.config.volume.to_string(),
            client_id: bytes::Bytes::copy_from_slice(&self.config.client_id.0),
            client_name: self.config.client_name.clone(),
            run_id: bytes::Bytes::copy_from_slice(&self.config.run_id.0),
            epoch: self.epoch.map_or(0, |epoch| epoch.0),
            create: self.config.create && !known,
            volume_id: id(header.volume_id),
            replica_id: id(header.replica_id),
            takeover: self.config.takeover && first,
            succeed: self.config.claim.succeed && first,
            have: self.config.claim.have.as_ref().filter(|_| first).map(Into::into),
            runs: self.config.claim.runs.iter().map(|run| bytes::Bytes::copy_from_slice(&run.0)).collect(),
            // The driver asks for what it watches.
            hears_damage: true,
            alive_ms: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tandem_proto::{
        Chain, Epoch, Position, Seq, Uuid,
        pb::{self, server_message::Body},
    };

    use crate::{
        commit::{Commit, activity_log::Header},
        link::core::{BACKOFF_MAX, Claim, CoreConfig, LinkCore},
    };

    fn config() -> CoreConfig {
        CoreConfig {
            volume: "v".parse().expect("legal"),
            client_id: Uuid([9; 16]),
            client_name: "test".into(),
            run_id: Uuid([8; 16]),
            create: false,
            takeover: false,
            replace: false,
            claim: Claim::default(),
            reconnect_max: BACKOFF_MAX,
        }
    }

    fn attached(session: u64, position: Position) -> pb::ServerMessage {
        let id = |byte: u8| bytes::Bytes::copy_from_slice(&[byte; 16]);
        let attached = pb::Attached {
            session,
            epoch: 7,
            volume_id: id(1),
            replica_id: id(2),
            position: Some((&position).into()),
            applied: position.seq.0,
            empty: false,
            published: Some((&position).into()),
            ..Default::default()
        };
        pb::ServerMessage { body: Some(Body::Attached(attached)) }
    }

    #[test]
    fn an_older_storage_daemon_is_gone_on_with_and_one_that_speaks_a_newer_version_is_not() {
        for (protocol, goes_on) in [(0, true), (1, true), (9, false)] {
            let mut core = LinkCore::new(config(), Arc::new(Commit::in_memory(1 << 20)), 1);
            core.handle_connected(Duration::ZERO);
            let mut message = attached(1, Position { epoch: Epoch(7), ..Position::default() });
            if let Some(Body::Attached(attached)) = &mut message.body {
                attached.protocol = protocol;
            }
            core.handle_message(message, Duration::ZERO).expect("understood");
            assert_eq!(core.reason().contains("upgrade the mount"), !goes_on, "{protocol}: {}", core.reason());
        }
    }

    #[test]
    fn full_volume_is_asked_less_and_less_often_until_something_was_published() {
        let commit = Arc::new(Commit::in_memory(1 << 20));
        let mut core = LinkCore::new(config(), commit.clone(), 1);
        let full = pb::Refused { reason: pb::refused::Reason::Quota.into(), retry: true, ..Default::default() };
        let refuse = |core: &mut LinkCore, now: Duration| {
            core.handle_connected(now);
            let message = pb::ServerMessage { body: Some(Body::Refused(full.clone())) };
            core.handle_message(message, now).expect("understood");
            core.handle_left(now);
            core.connect_at().expect("it tries again") - now
        };
        let mut now = Duration::ZERO;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = refuse(&mut core, now);
            pauses.push(pause);
            now += pause;
        }
        let within = |pause: Duration, whole: u64| {
            (Duration::from_millis(whole * 500)..=Duration::from_secs(whole)).contains(&pause)
        };
        assert!(
            [2, 4, 8, 16, 30, 30, 30].iter().zip(&pauses).all(|(whole, pause)| within(*pause, *whole)),
            "{pauses:?}"
        );
    }

    #[test]
    fn a_replica_that_comes_back_older_than_it_acknowledged_is_not_synced_over() {
        let commit = Arc::new(Commit::in_memory(1 << 20));
        let at = |seq: u64| Position { epoch: Epoch(7), seq: Seq(seq), chain: Chain([seq as u8; 16]) };
        let floor = Position { epoch: Epoch(6), seq: Seq(3), chain: Chain([6; 16]) };
        let header = Header { volume_id: Uuid([1; 16]), replica_id: Uuid([2; 16]), floor, ..commit.header() };
        commit.set_header_durably(header).expect("in memory");
        let mut core = LinkCore::new(config(), commit.clone(), 1);
        let now = Duration::ZERO;
        core.handle_connected(now);
        core.handle_message(attached(1, Position { seq: Seq(0), ..at(0) }), now).expect("first attach");
        commit.published(at(40));
        core.handle_disconnected("cut", now);
        core.handle_connected(now);
        core.handle_message(attached(2, at(12)), now).expect("understood");
        assert!(core.connect_at().is_none(), "only a person can go on");
        assert!(core.reason().contains("restored from something older"), "{}", core.reason());
    }
}
