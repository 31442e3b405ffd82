//! What goes wrong in a simulation, done to it.

use std::time::Duration;

use tandem_proto::pb::{self, client_message::Body};

use super::{MACHINES, World};
use crate::sim::{
    faults::Fault,
    forge::forged,
    machine::{End, Machine},
};

impl World {
    pub(super) fn fail(&mut self, fault: Fault) {
        let machine = self.rng.index(self.machines.len());
        match fault {
            Fault::Cut => {
                self.note("cut");
                self.cut(machine, true);
            }
            Fault::StorageKill => self.crash_storage(false),
            Fault::StoragePower => self.crash_storage(true),
            Fault::MountKill => self.crash_mount(machine, End::Kill),
            Fault::ClientPower => self.crash_mount(machine, End::PowerLoss),
            Fault::TakeOver => self.take_over(),
            Fault::Pause => self.pause(machine),
            Fault::StorageFull => {
                let room = self.rng.below(30);
                self.note("the storage's disk fills");
                self.storage.fill(room);
            }
            Fault::StorageSync => {
                self.note("a sync of the storage's disk will fail");
                self.storage.fail_sync(&mut self.rng);
            }
            Fault::Duplicate => self.duplicate(machine),
            Fault::Forgery => self.forge(machine),
        }
        self.keep_promises();
    }

    pub(super) fn duplicate(&mut self, number: usize) {
        let Some(connection) = &mut self.machines[number].connection else { return };
        let Some(batch) = connection.last_batch.clone() else { return };
        if !self.storage.accepts() || !self.storage.streams(&connection.inbound) {
            return;
        }
        let message = pb::ClientMessage { body: Some(Body::Batch(batch)) };
        self.trace.message("storage takes once more", &message);
        self.storage.deliver(&mut connection.inbound, message);
        self.collect(None);
    }

    /// Ops of another history arrive under numbers that are taken. The storage must notice, and acknowledge nothing of it.
    pub(super) fn forge(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let Some(connection) = &mut machine.connection else { return };
        let Some(batch) = connection.last_batch.as_ref().and_then(forged) else { return };
        if machine.forged || !self.storage.accepts() || !self.storage.streams(&connection.inbound) {
            return;
        }
        (machine.forged, connection.forged) = (true, true);
        let message = pb::ClientMessage { body: Some(Body::Batch(batch)) };
        self.trace.message("storage takes what nobody said:", &message);
        self.storage.deliver(&mut connection.inbound, message);
        let noticed = connection.inbound.outbox.is_closed();
        assert!(noticed, "duplicate: ops of another history were taken for ones that the storage has");
        self.collect(None);
    }

    pub(super) fn pause(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        machine.paused = !machine.paused;
        machine.link.handle_pause(machine.paused, self.now);
        let words = if machine.paused { "paused" } else { "resumed" };
        self.note(words);
        self.carry_out_effects(number);
    }

    pub(super) fn crash_storage(&mut self, power: bool) {
        if self.rng.chance(60) {
            // In the middle of whatever comes next.
            let budget = self.rng.below(25);
            self.note(format!("storage will die after {budget} changes"));
            self.storage.set_budget(Some(budget));
            for _ in 0..self.rng.below(40) {
                let machine = self.rng.index(self.machines.len());
                match self.rng.below(4) {
                    0 => self.deliver_to_storage(machine),
                    1 => self.storage.flush(),
                    2 => self.storage.apply(4),
                    _ => self.storage.tick(Duration::from_millis(700)),
                }
                self.collect(None);
            }
        }
        self.stop_storage(power);
        self.late.clear();
        for number in 0..self.machines.len() {
            self.cut(number, true);
        }
        self.late.clear();
        // Recovery may be interrupted as well; it must be able to begin again.
        while self.rng.chance(30) {
            let budget = self.rng.below(30);
            self.note(format!("recovery will die after {budget} changes"));
            self.storage.set_budget(Some(budget));
            let _opened = self.storage.try_start();
            let power = power && self.rng.chance(50);
            self.stop_storage(power);
        }
        self.start_storage();
    }

    pub(super) fn stop_storage(&mut self, power: bool) {
        if power {
            self.note("storage loses power");
            self.storage.lose_power(&mut self.rng);
        } else {
            self.note("storage is killed");
            self.storage.kill();
        }
    }

    pub(super) fn start_storage(&mut self) {
        self.storage.start();
        self.checks.came_back(&self.storage);
        self.checks.look_at(&self.storage);
        self.check_prefix();
    }

    pub(super) fn crash_mount(&mut self, number: usize, how: End) {
        self.note(format!("{how:?} of machine {number}"));
        self.cut(number, true);
        let text = self.machines[number].end(how, &mut self.rng);
        self.note(text);
        let run = self.runs;
        self.runs += 1;
        self.machines[number].start(run);
        // Later changes of the same cells would hide what the marks do not say.
        if number == self.writer && !self.calm && self.rng.chance(40) {
            self.converge();
        }
    }

    /// Another machine takes the volume over, with what it has in its own folder.
    pub(super) fn take_over(&mut self) {
        // Of two machines that both try, the last one that arrives wins, whichever that is.
        // And an empty volume is everybody's.
        let empty = self.storage.core().is_none_or(|core| core.receiver().is_empty());
        if self.machines[self.writer].pushes || empty {
            return;
        }
        let run = self.runs;
        self.runs += 1;
        let number = (self.writer + 1) % MACHINES;
        self.note(format!("machine {number} takes the volume over"));
        if self.machines.len() <= number {
            let machine = Machine::new(number, run, true, self.faults.window_bytes, self.rng.fork());
            self.machines.push(machine);
        } else {
            self.cut(number, true);
            let _text = self.machines[number].end(End::Kill, &mut self.rng);
            self.machines[number].start_pushing(run);
        }
        self.writer = number;
        for _ in 0..self.rng.below(30) {
            self.request(number);
        }
    }
}
