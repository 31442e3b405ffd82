//! The settings in effect, as they could be written.

use std::{path::Path, time::Duration};

use tandem_runtime::{settings::size, telemetry::LogOptions};

use super::{Config, units};

fn seconds(span: Option<Duration>) -> String {
    span.map_or_else(|| "0".to_owned(), |span| span.as_secs_f64().to_string())
}

fn path(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| path.display().to_string())
}

impl Config {
    /// The value of a key; empty: nothing is set.
    pub fn show(&self, key: &str) -> String {
        let hook = self.limits.hook.as_ref();
        let own = self.own_tls.shown.as_ref();
        match key {
            "data" => self.data.display().to_string(),
            "listen" => self.listen.to_string(),
            "runtime" => self.runtime.display().to_string(),
            "keepalive" => seconds(self.keepalive),
            "insecure" => self.insecure.to_string(),
            "web" => self.web.to_string(),
            "log-level" => self.log().effective_level(),
            "log-json" => self.log_json.to_string(),
            "history-keep" => {
                let keep = self.limits.history_keep;
                let parts: Vec<_> = keep.bytes.map(size).into_iter().chain(keep.age.map(units::shown_age)).collect();
                if parts.is_empty() { "all".to_owned() } else { parts.join(",") }
            }
            "hook" => hook.map_or_else(String::new, |hook| hook.command.clone()),
            "hook-dir" => path(hook.map(|hook| hook.directory.as_path())),
            "hook-user" => hook.and_then(|hook| hook.user).map_or_else(String::new, |(uid, _)| format!("uid {uid}")),
            "hook-delay" => hook.map_or_else(String::new, |hook| seconds(Some(hook.delay))),
            "hook-timeout" => hook.map_or_else(String::new, |hook| seconds(Some(hook.timeout))),
            "index-rate" => size(self.limits.index_rate_bytes),
            "log-max" => size(self.limits.log_max_bytes),
            "quota" => self.limits.settings.quota.map_or_else(String::new, size),
            "special" => self.limits.settings.special.as_str().to_owned(),
            "user" => self.account.as_ref().map_or_else(String::new, |account| account.name.clone()),
            "sandbox" => self.sandbox.as_str().to_owned(),
            "deleted-keep" => self.deleted_keep.map_or_else(|| "all".to_owned(), units::shown_age),
            "tls-cert" => path(own.map(|(cert, _)| cert.as_path())),
            "tls-key" => path(own.map(|(_, key)| key.as_path())),
            "tls-client-ca" => path(self.own_tls.client_ca.as_deref()),
            "tls-client-crl" => path(self.own_tls.client_crl.as_deref()),
            // A test walks the flags.
            _ => String::new(),
        }
    }

    /// How it logs.
    pub fn log(&self) -> LogOptions {
        LogOptions { level: self.log_level.clone(), json: self.log_json }
    }
}
