//! The steps of a simulation.

mod harm;

use std::{collections::VecDeque, time::Duration};

use tandem_mountd::{
    link::{core::Effect, state::LinkState},
    resync::{plan::Step, read::carry_out},
};
use tandem_proto::{
    Seq,
    pb::{self, client_message::Body},
    stage::Stage,
};

use crate::{
    rng::Rng,
    sim::{
        checks::Checks,
        faults::Faults,
        machine::{Connection, End, Machine},
        replica::ReplicaHost,
        trace::{Keep, Trace},
    },
};

/// Machines that may write the volume.
const MACHINES: usize = 2;
/// For so many sends at most no message is taken.
const STOPPED_MAX: u64 = 40;

/// Simulated mounts and their storage. See the module above.
pub struct World {
    rng: Rng,
    faults: Faults,
    now: Duration,
    machines: Vec<Machine>,
    /// The machine that is to have the volume in the end.
    writer: usize,
    /// Runs of mountd so far.
    runs: usize,
    storage: ReplicaHost,
    /// Connections that ended for their mount, and whose bytes still arrive. With the machine.
    late: VecDeque<(usize, Connection)>,
    checks: Checks,
    trace: Trace,
    /// Percentage of steps that are requests of applications, for now.
    busy: u64,
    /// No fault any more.
    calm: bool,
    /// So many steps until this machine loses power.
    doomed: Option<(u64, usize)>,
}

fn message_of(stage: &Stage, session: u64) -> Body {
    match stage {
        Stage::Dir(dir) => Body::StageDir(pb::StageDir { session, ..dir.into() }),
        Stage::Node(node) => Body::StageNode(pb::StageNode { session, ..node.into() }),
        Stage::Recipe(recipe) => Body::StageRecipe(pb::StageRecipe { session, ..recipe.into() }),
        Stage::Data(data) => Body::StageData(pb::StageData { session, ..data.into() }),
    }
}

impl World {
    /// A new folder on a new volume.
    pub fn new(seed: u64, faults: Faults, keep: Keep) -> World {
        let mut rng = Rng::new(seed);
        let mut window = Rng::new(seed ^ 0x77);
        // From nearly nothing, which overflows all the time, to more than a run fills.
        let window_bytes = match faults.window_bytes {
            0 => *window.pick(&[600, 3000, 20_000, 1 << 20]),
            given => given,
        };
        let machine = Machine::new(0, 0, false, window_bytes, rng.fork());
        World {
            rng,
            faults: Faults { window_bytes, ..faults },
            now: Duration::ZERO,
            machines: vec![machine],
            writer: 0,
            runs: 1,
            storage: ReplicaHost::new(),
            late: VecDeque::new(),
            checks: Checks::default(),
            trace: Trace::new(keep),
            busy: 15,
            calm: false,
            doomed: None,
        }
    }

    /// What happened.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What was checked.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    fn note(&mut self, words: impl AsRef<str>) {
        self.trace.note(words.as_ref());
    }

    /// One small step, chosen by the seed.
    pub fn step(&mut self) {
        match self.doomed {
            Some((0, machine)) => {
                self.doomed = None;
                self.crash_mount(machine, End::PowerLoss);
                return self.converge();
            }
            Some((steps, machine)) => self.doomed = Some((steps - 1, machine)),
            None => {}
        }
        if let Some(fault) = self.faults.choose(&mut self.rng) {
            return self.fail(fault);
        }
        if self.rng.chance(1) {
            // Idle, as people are; busy, as builds are; and more than the link can take.
            self.busy = *self.rng.pick(&[0, 2, 5, 15, 40]);
        }
        let machine = self.rng.index(self.machines.len());
        // Who is doomed does nothing more: later marks of the same cells would hide what is to be seen.
        if self.rng.chance(self.busy) && self.doomed.is_none() {
            self.request(machine);
        } else if self.rng.chance(4) {
            self.pass_time();
        } else {
            self.network_step(machine);
        }
        self.keep_promises();
    }

    fn request(&mut self, machine: usize) {
        // A burst fills the window faster than the link empties it.
        let count = if self.rng.chance(3) { self.rng.below(60) } else { 1 };
        for _ in 0..count {
            let text = self.machines[machine].apps.request();
            self.note(text);
        }
    }

    fn pass_time(&mut self) {
        let passed = Duration::from_millis(self.rng.below(400));
        self.now += passed;
        for machine in &mut self.machines {
            machine.tick(self.now);
        }
        if self.rng.chance(30) {
            self.storage.heal();
        }
        self.storage.tick(passed);
        self.collect(None);
    }

    fn network_step(&mut self, machine: usize) {
        match self.rng.below(8) {
            0 => self.connect(machine),
            1 => self.send(machine),
            2 => self.read(machine),
            3 => self.deliver_to_storage(machine),
            4 => self.deliver_to_mount(machine),
            5 => {
                self.storage.flush();
                self.collect(None);
            }
            6 => self.deliver_late(),
            _ => {
                let limit = 1 + self.rng.index(8);
                self.storage.apply(limit);
                self.collect(None);
                self.check_prefix();
            }
        }
        self.carry_out_effects(machine);
    }

    fn connect(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let due = machine.link.connect_at().is_some_and(|at| at <= self.now);
        if due && machine.connection.is_none() && self.storage.core().is_some() {
            machine.connection = Some(Connection::new());
            machine.link.handle_connected(self.now);
            self.note("connected");
        }
    }

    fn send(&mut self, number: usize) {
        // A channel that is full, or a window in flight that is, takes no message for a while, and reading goes on: one may be far ahead of
        // the other, for a message or for most of a resync.
        let (sends, reads) = if self.calm { (true, true) } else { (self.rng.chance(60), self.rng.chance(60)) };
        let stops = !self.calm && self.rng.chance(3);
        let machine = &mut self.machines[number];
        if let Some(connection) = &mut machine.connection {
            if stops && connection.full_for == 0 {
                connection.full_for = self.rng.below(STOPPED_MAX);
            }
            connection.full_for = if self.calm { 0 } else { connection.full_for.saturating_sub(1) };
            if sends
                && connection.full_for == 0
                && connection.to_storage.len() < 20
                && let Some(message) = machine.link.poll_message()
            {
                connection.to_storage.push_back(message);
            }
        }
        if reads && let Some(step) = machine.link.poll_step() {
            machine.steps.push_back(step);
        }
    }

    /// Reads for the resync, while applications go on.
    fn read(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(connection) = &mut machine.connection else { return };
        let Some((step, manner, session)) = machine.steps.pop_front() else { return };
        let apps = &mut machine.apps;
        let reader = apps.reader.clone();
        let mut meanwhile = Vec::new();
        if let Step::Barrier(token) = step {
            let body = Body::Barrier(pb::Barrier { session, token });
            connection.to_storage.push_back(pb::ClientMessage { body: Some(body) });
        }
        let done = carry_out(&step, manner, &reader, &mut |stage| {
            let body = message_of(&stage, session);
            connection.to_storage.push_back(pb::ClientMessage { body: Some(body) });
            if !apps.quiet && apps.rng.chance(15) {
                meanwhile.push(apps.request());
            }
            Ok(())
        });
        let done = done.expect("the folder can be read");
        machine.link.handle_step_done(&done);
        self.note(format!("read {step:?}"));
        for text in meanwhile {
            self.note(format!("  meanwhile {text}"));
        }
    }

    fn deliver_to_storage(&mut self, number: usize) {
        if !self.storage.accepts() {
            return;
        }
        let Some(connection) = &mut self.machines[number].connection else { return };
        let Some(message) = connection.to_storage.pop_front() else { return };
        match &message.body {
            Some(Body::Batch(batch)) => connection.last_batch = Some(batch.clone()),
            // From here on ops are others, under numbers of which some were taken before.
            Some(Body::Begin(_)) => connection.last_batch = None,
            _ => {}
        }
        self.trace.message("storage takes", &message);
        self.storage.deliver(&mut connection.inbound, message);
        self.collect(Some(number));
        // A publish is looked at before the next op hides what it lacked.
        self.check_prefix();
    }

    /// Bytes of a connection that its mount has left behind.
    fn deliver_late(&mut self) {
        if !self.storage.accepts() {
            return;
        }
        let Some((machine, mut connection)) = self.late.pop_front() else { return };
        let Some(message) = connection.to_storage.pop_front() else {
            self.storage.closed(&connection.inbound);
            return;
        };
        self.trace.message("storage takes, late,", &message);
        self.storage.deliver(&mut connection.inbound, message);
        self.collect(None);
        // Nobody hears the answers.
        let _ = connection.inbound.outbox.drain();
        match self.rng.chance(50) {
            true => self.late.push_front((machine, connection)),
            false => self.late.push_back((machine, connection)),
        }
    }

    /// Takes what the storage said, at the moment when it said it, past the checkers.
    fn collect(&mut self, asked: Option<usize>) {
        let before = self.checks.holder();
        self.checks.look_at(&self.storage);
        for number in 0..self.machines.len() {
            let Some(mut connection) = self.machines[number].connection.take() else { continue };
            let machine = &self.machines[number];
            let held = before.is_some_and(|holder| (holder.machine, holder.run) == (number, machine.apps.run));
            for message in connection.inbound.outbox.drain() {
                if let Some(pb::server_message::Body::Attached(attached)) = &message.body {
                    assert_eq!(asked, Some(number), "a mount is attached that did not ask");
                    connection.inbound.epoch = Some(attached.epoch);
                }
                self.checks.answered(&message, machine, &connection, held);
                connection.to_mount.push_back(message);
            }
            self.machines[number].connection = Some(connection);
        }
    }

    fn deliver_to_mount(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(connection) = &mut machine.connection else { return };
        let ended = connection.inbound.outbox.is_closed();
        match connection.to_mount.pop_front() {
            Some(message) => {
                self.trace.message("mount takes", &message);
                if let Err(why) = machine.link.handle_message(message, self.now) {
                    panic!("the mount does not understand the storage: {why}");
                }
                machine.note_durable();
            }
            None if ended => self.cut(number, true),
            None => {}
        }
    }

    /// Fsyncs that returned promise what the storage said.
    fn keep_promises(&mut self) {
        for machine in &mut self.machines {
            for promise in machine.apps.take_promises() {
                self.checks.promised(promise);
            }
        }
    }

    fn carry_out_effects(&mut self, number: usize) {
        while let Some(effect) = self.machines[number].link.poll_effect() {
            let machine = &mut self.machines[number];
            match effect {
                Effect::SaveHeader(header) => {
                    machine.apps.commit.set_header_durably(header).expect("the activity log can be written");
                    machine.link.handle_saved();
                }
                Effect::SaveFloor => machine.save_floor(),
                Effect::Disconnect => self.cut(number, false),
            }
        }
        if self.rng.chance(2) {
            let may_fail = self.faults.backing_syncs && !self.calm;
            let meanwhile = self.machines[number].clear_marks(&mut self.rng, may_fail);
            // What happened meanwhile is what a mark that was cleared wrongly would leave uncovered.
            if !meanwhile.is_empty() && self.faults.client_power > 0 && self.rng.chance(30) {
                self.doomed = Some((self.rng.below(60), number));
            }
            for text in meanwhile {
                self.note(format!("while marks are cleared: {text}"));
            }
        }
    }

    fn cut(&mut self, number: usize, arrives: bool) {
        // Some answers are on their way and still arrive.
        let arrive = match &self.machines[number].connection {
            Some(connection) if arrives && self.rng.chance(50) => self.rng.index(connection.to_mount.len() + 1),
            _ => 0,
        };
        for _ in 0..arrive {
            self.deliver_to_mount(number);
        }
        self.keep_promises();
        let machine = &mut self.machines[number];
        machine.steps.clear();
        let Some(mut connection) = machine.connection.take() else { return };
        machine.link.handle_disconnected("cut", self.now);
        let sent = self.rng.index(connection.to_storage.len() + 1);
        connection.to_storage.truncate(sent);
        // A takeover that arrives late is still obeyed, and an empty volume is everybody's.
        let empty = self.storage.core().is_none_or(|core| core.receiver().is_empty());
        let takes = (machine.pushes || empty) && !connection.inbound.is_attached();
        if sent > 0 && !self.calm && !takes && self.rng.chance(60) {
            self.late.push_back((number, connection));
        } else {
            self.storage.closed(&connection.inbound);
        }
    }

    fn check_prefix(&mut self) {
        if self.storage.is_settled() {
            self.checks.prefix(&self.storage, &self.machines);
        }
    }

    fn is_settled(&self) -> bool {
        let machine = &self.machines[self.writer];
        let commit = &machine.apps.commit;
        let last = commit.last_reserved();
        let all = |seq: Option<Seq>| seq.is_some_and(|seq| seq >= last);
        let marks = commit.facts().watermarks;
        let others = self.machines.iter().filter(|other| other.number != machine.number);
        let left = others.map(|other| other.link.state()).all(|state| {
            // Fenced, or refused because another holds the volume.
            matches!(state, LinkState::Fenced | LinkState::Offline)
        });
        left && machine.link.state() == LinkState::Live && commit.is_clean() && all(marks.durable) && all(marks.applied)
    }

    /// Ends all faults and lets both sides become equal; then they go on. Panics if they do not.
    pub fn converge(&mut self) {
        self.note("faults end");
        self.calm = true;
        self.storage.heal();
        for number in 0..self.machines.len() {
            self.machines[number].apps.quiet = true;
            if self.machines[number].paused {
                self.pause(number);
            }
        }
        for round in 0..30_000 {
            for number in 0..self.machines.len() {
                self.connect(number);
                self.send(number);
                self.read(number);
                self.deliver_to_storage(number);
                self.deliver_late();
                self.storage.flush();
                self.storage.apply(usize::MAX);
                self.collect(None);
                self.deliver_to_mount(number);
                self.carry_out_effects(number);
                self.keep_promises();
            }
            if round % 10 == 0 {
                self.now += Duration::from_millis(100);
                for machine in &mut self.machines {
                    machine.tick(self.now);
                }
                self.storage.tick(Duration::from_millis(100));
            }
            if self.is_settled() {
                self.check_equal();
                self.calm = false;
                self.machines.iter_mut().for_each(|machine| machine.apps.quiet = false);
                return;
            }
        }
        let machine = &self.machines[self.writer];
        let (state, reason) = (machine.link.state(), machine.link.reason().to_owned());
        panic!("no convergence: the link is {state} ({reason}), {:?}", machine.apps.commit.facts());
    }

    fn check_equal(&mut self) {
        let expected = self.machines[self.writer].apps.reader.folder().picture();
        let found = self.storage.picture();
        assert!(found == expected, "convergence: not equal at the end:\n{}", expected.differences(&found));
        // It must also be so after the storage process dies and recovers.
        self.storage.kill();
        self.late.clear();
        for number in 0..self.machines.len() {
            self.cut(number, true);
        }
        self.start_storage();
        let found = self.storage.picture();
        assert!(found == expected, "convergence: not equal after a restart:\n{}", expected.differences(&found));
    }
}
