//! SIGHUP: the configuration and the certificates that it names are read again, and what can change while the daemon serves is changed.

use std::sync::Arc;

use parking_lot::Mutex;
use tandem_runtime::{
    notify,
    settings::{self, Setting},
    telemetry,
};

use crate::{
    config::{Arguments, Config},
    trust::{Trust, door::Door},
    volume::volumes::Volumes,
};

/// What the daemon's settings are now, for `status`.
pub type Effective = Arc<Mutex<Vec<Setting>>>;

/// Keys whose change counts at once.
const CHANGEABLE: &[&str] = &["log-level", "history-keep", "quota", "special", "tls-cert", "tls-key", "tls-client-ca"];

/// See the module.
pub struct Reload {
    /// What is read again.
    pub arguments: Arguments,
    /// What is shown.
    pub effective: Effective,
    /// Whose limits change.
    pub volumes: Arc<Volumes>,
    /// Whose certificates change.
    pub trust: Arc<Trust>,
    /// Where they are shown.
    pub door: Arc<Door>,
}

impl Reload {
    /// Reads everything. What cannot be understood changes nothing. Blocks on the disk.
    pub fn now(&self) {
        notify::reloading();
        match self.arguments.settings() {
            Ok((config, read)) => {
                self.apply(&config);
                let mut effective = self.effective.lock();
                let (merged, changed) = settings::merge(&effective, read, |key| CHANGEABLE.contains(&key));
                *effective = merged;
                tracing::info!(changed = changed.join("; "), "the configuration was read again");
            }
            Err(error) => tracing::warn!(%error, "the configuration was not read again: all stays as it is"),
        }
        notify::ready("serving");
    }

    fn apply(&self, config: &Config) {
        if let Err(error) = telemetry::set_level(&config.log()) {
            tracing::warn!(error, "the level of the log stays as it is");
        }
        self.volumes.set_limits(&config.limits);
        match self.trust.tls(&config.own_tls) {
            Ok(tls) => self.door.answer_with(tls),
            Err(error) => tracing::warn!(%error, "certificates stay as they are"),
        }
    }
}
