//! What the hook flags mean together.

use std::{fs, path::PathBuf, time::Duration};

use crate::{hooks::HookRule, sandbox::Account};

/// The flags, or the keys of the file.
pub struct Given {
    pub command: Option<String>,
    pub directory: Option<PathBuf>,
    pub user: Option<String>,
    pub delay: Option<f64>,
    pub timeout: Option<f64>,
}

fn seconds(
    name: &str,
    given: Option<f64>,
    default: u64,
    range: std::ops::RangeInclusive<f64>,
) -> Result<Duration, String> {
    match given {
        None => Ok(Duration::from_secs(default)),
        Some(seconds) if range.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(seconds) => Err(format!("--{name} {seconds}: write seconds from {} to {}", range.start(), range.end())),
    }
}

/// The account that a daemon of root becomes.
pub fn account(flag: &str, name: String) -> Result<Account, String> {
    if !rustix::process::geteuid().is_root() {
        return Err(format!("{flag}: only root becomes somebody else"));
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    match ids(&name, &passwd) {
        None => Err(format!("{flag} {name}: there is no such user")),
        Some((0, _)) => Err(format!("{flag} {name}: that is root, who would give nothing away")),
        Some((uid, gid)) => Ok(Account { name, uid, gid }),
    }
}

/// User and group of a name, as /etc/passwd has them.
fn ids(name: &str, passwd: &str) -> Option<(u32, u32)> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

impl Given {
    /// The rule; none without a command.
    pub fn rule(self) -> Result<Option<HookRule>, String> {
        let Some(command) = self.command else { return Ok(None) };
        let directory = self.directory.ok_or("--hook needs --hook-dir: where hooks may write")?;
        let directory =
            directory.canonicalize().map_err(|error| format!("--hook-dir {}: {error}", directory.display()))?;
        let root = rustix::process::geteuid().is_root();
        let user = match (self.user, root) {
            (None, false) => None,
            (Some(_), false) => return Err("--hook-user: only root runs commands as somebody else".to_owned()),
            (name, true) => {
                let name = name.unwrap_or_else(|| "nobody".to_owned());
                let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
                let ids = ids(&name, &passwd).ok_or_else(|| format!("--hook-user {name}: there is no such user"))?;
                if ids.0 == 0 {
                    return Err(format!("--hook-user {name}: hooks never run as root"));
                }
                Some(ids)
            }
        };
        let delay = seconds("hook-delay", self.delay, 1, 0.05..=3600.0)?;
        let timeout = seconds("hook-timeout", self.timeout, 60, 0.1..=86_400.0)?;
        Ok(Some(HookRule { command, user, directory, delay, timeout }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Given, ids};

    #[test]
    fn a_user_is_looked_up_and_a_hook_needs_a_place() {
        let passwd = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65533:::";
        assert_eq!(ids("nobody", passwd), Some((65534, 65533)));
        assert_eq!(ids("nob", passwd), None);
        let given = Given { command: Some("true".into()), directory: None, user: None, delay: None, timeout: None };
        assert!(given.rule().expect_err("no place").contains("--hook-dir"));
    }
}
