//! SIGHUP: the configuration file is read again, and what can change while the mount serves is changed.

use std::sync::{Arc, atomic::Ordering};

use tandem_runtime::{
    settings::{self, Effective},
    telemetry,
};

use crate::{
    options::{Layers, Settings, keys::CHANGEABLE},
    replication::Replication,
};

/// See the module.
pub struct Reload {
    layers: Layers,
    effective: Effective,
    replication: Arc<Replication>,
}

impl Reload {
    /// For a mount whose settings came from here.
    pub fn new(layers: Layers, effective: Effective, replication: Arc<Replication>) -> Reload {
        Reload { layers, effective, replication }
    }

    /// Reads the file. One that cannot be understood changes nothing.
    pub fn now(&self) {
        let apply = |settings: &Settings| self.apply(settings);
        settings::reload(&self.effective, CHANGEABLE, "the mount serves", || self.layers.settings(), apply);
    }

    fn apply(&self, settings: &Settings) {
        if let Err(error) = telemetry::set_level(&settings.log) {
            tracing::warn!(error, "the level of the log stays as it is");
        }
        self.replication.link().gauge.set_limit(settings.bandwidth_limit);
        self.replication.link().resync_full.store(settings.resync_full, Ordering::Relaxed);
        self.replication.commit.set_congestion(settings.congestion);
        if let Some(verifier) = self.replication.verifier() {
            verifier.set_rule(settings.verify);
        }
    }
}
