//! SIGHUP: the configuration and the certificates that it names are read again, and what can change while the daemon serves is changed.

use std::sync::Arc;

use tandem_runtime::{
    settings::{self, Effective},
    telemetry,
};

use crate::{
    config::{Arguments, Config},
    trust::{Trust, door::Door},
    volume::volumes::Volumes,
};

/// Keys whose change counts at once.
const CHANGEABLE: &[&str] =
    &["log-level", "history-keep", "quota", "special", "tls-cert", "tls-key", "tls-client-ca", "tls-client-crl"];

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
        let apply = |config: &Config| self.apply(config);
        settings::reload(&self.effective, CHANGEABLE, "serving", || self.arguments.settings(), apply);
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
