//! SIGHUP: the configuration file is read again, and what can change while the mount serves is changed.

use std::sync::Arc;

use parking_lot::Mutex;
use tandem_runtime::{
    settings::{self, Setting},
    telemetry,
};

use crate::{
    options::{Layers, Settings, keys::CHANGEABLE},
    replication::Replication,
};

/// What a mount's settings are now, for `status`.
pub type Effective = Arc<Mutex<Vec<Setting>>>;

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
        tandem_runtime::notify::reloading();
        match self.layers.settings() {
            Ok((settings, read)) => {
                self.apply(&settings);
                let mut effective = self.effective.lock();
                let (merged, changed) = settings::merge(&effective, read, |key| CHANGEABLE.contains(&key));
                *effective = merged;
                tracing::info!(changed = changed.join("; "), "the configuration was read again");
            }
            Err(error) => tracing::warn!(%error, "the configuration was not read again: all stays as it is"),
        }
        tandem_runtime::notify::ready("the mount serves");
    }

    fn apply(&self, settings: &Settings) {
        if let Err(error) = telemetry::set_level(&settings.log) {
            tracing::warn!(error, "the level of the log stays as it is");
        }
        self.replication.link().gauge.set_limit(settings.bandwidth_limit);
        self.replication.commit.set_congestion(settings.congestion);
        if let Some(verifier) = self.replication.verifier() {
            verifier.set_rule(settings.verify);
        }
    }
}
