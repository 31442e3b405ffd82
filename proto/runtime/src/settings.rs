//! Where the value of each setting of a daemon comes from: in rising order its own default, one TOML file, the environment, the command
//! line (flags, and `-o`). All of them know the same keys, in which `-` and `_` are equal; what is unknown is an error that names the
//! nearest known key, wherever it was written.
//!
//! A daemon keeps what it was [`Given`] and can so tell later where each value came from, and read its file again.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::notify;

/// What a daemon's settings are now, for `status`.
pub type Effective = Arc<Mutex<Vec<Setting>>>;

/// No configuration is longer.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Edits beyond which a word is not the one that was meant.
const EDITS_MAX: usize = 3;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In this TOML file.
    File(PathBuf),
    /// In this environment variable.
    Environment(String),
    /// As a flag or behind `-o`.
    CommandLine,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "${name}"),
            Origin::CommandLine => f.write_str("command line"),
        }
    }
}

/// One value that somebody wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// As [`plain`] makes it.
    pub key: String,
    /// `None`: a flag that takes no value.
    pub value: Option<OsString>,
    /// Where.
    pub origin: Origin,
}

/// A setting in effect, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// The key.
    pub key: String,
    /// As it could be written; empty: nothing is set.
    pub value: String,
    /// Where it was written; `default`: nowhere.
    pub origin: String,
    /// What the file says by now, if that counts from the next start only.
    pub next: Option<String>,
}

/// A key in the one spelling that is compared.
pub fn plain(key: &str) -> String {
    key.replace('-', "_")
}

/// The environment variable of a key: the daemon's prefix, as `TANDEM_MOUNTD_`, and the key in capitals.
pub fn variable(prefix: &str, key: &str) -> String {
    format!("{prefix}{}", plain(key).to_ascii_uppercase())
}

/// What helps whoever wrote an unknown key.
pub fn hint(key: &str, known: &[&str]) -> String {
    let key = plain(key);
    let nearest = known.iter().map(|name| (distance(&key, &plain(name)), *name)).min();
    match nearest {
        Some((edits, name)) if edits <= EDITS_MAX.min(key.len() / 2) => format!("did you mean {name}?"),
        _ => format!("the keys are {}", known.join(", ")),
    }
}

/// Edits that lead from one word to the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, r) in right.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = (diagonal + usize::from(l != *r)).min(above + 1).min(row[column] + 1);
            diagonal = above;
        }
    }
    row[right.len()]
}

fn is_known(key: &str, known: &[&str]) -> bool {
    known.iter().any(|name| plain(name) == key)
}

/// What a TOML file says. A list gives a key several values. A relative path (`is_path`) begins at the directory of the file: the daemon's own
/// is nobody's business.
pub fn from_file(path: &Path, known: &[&str], is_path: impl Fn(&str) -> bool) -> Result<Vec<Given>, String> {
    let text = read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("configuration {}: there is no such file", path.display()),
        _ => format!("configuration {}: {error}", path.display()),
    })?;
    let given = from_text(&text, path, known);
    let mut given = given.map_err(|why| format!("configuration {}: {why}", path.display()))?;
    let beside = path.parent().unwrap_or(Path::new("/"));
    for one in given.iter_mut().filter(|one| is_path(&one.key)) {
        one.value = one.value.take().map(|value| beside.join(value).into_os_string());
    }
    Ok(given)
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 1 MiB"));
    }
    fs::read_to_string(path)
}

/// The same of a text.
pub fn from_text(text: &str, path: &Path, known: &[&str]) -> Result<Vec<Given>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut given: Vec<Given> = Vec::new();
    for (written, value) in table {
        let key = plain(&written);
        if !is_known(&key, known) {
            return Err(format!("unknown key {written}: {}", hint(&written, known)));
        }
        if given.iter().any(|other| other.key == key) {
            return Err(format!("the key {written} is there twice"));
        }
        let values = match value {
            toml::Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => value.to_string(),
                other => return Err(format!("{written} is a {}, expected a plain value", other.type_str())),
            };
            given.push(Given { key: key.clone(), value: Some(value.into()), origin: Origin::File(path.to_owned()) });
        }
    }
    Ok(given)
}

/// What the variables with a daemon's prefix say. A variable that is empty says nothing. Of a key in `lists` a comma separates several values,
/// as in `-o`.
pub fn from_environment(
    prefix: &str,
    known: &[&str],
    lists: &[&str],
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    for (name, value) in variables {
        let Some(rest) = name.as_bytes().strip_prefix(prefix.as_bytes()) else { continue };
        let written = String::from_utf8_lossy(rest).into_owned();
        let key = written.to_ascii_lowercase();
        if !is_known(&key, known) || written != key.to_ascii_uppercase() {
            return Err(format!(
                "environment variable {}: unknown key {key}: {}",
                name.to_string_lossy(),
                hint(&key, known)
            ));
        }
        let origin = Origin::Environment(name.to_string_lossy().into_owned());
        let separator = |byte: &u8| *byte == b',' && lists.contains(&key.as_str());
        for value in value.as_bytes().split(separator).filter(|value| !value.is_empty()) {
            let value = Some(OsStr::from_bytes(value).to_owned());
            given.push(Given { key: key.clone(), value, origin: origin.clone() });
        }
    }
    // The environment has no order; messages and lists should.
    given.sort_by(|left, right| left.origin.cmp(&right.origin));
    Ok(given)
}

/// Where the values of each key were written, the last one first.
pub fn origins(given: &[Given]) -> BTreeMap<String, String> {
    let mut origins: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for one in given.iter().rev() {
        let of_key = origins.entry(one.key.clone()).or_default();
        let origin = one.origin.to_string();
        if !of_key.contains(&origin) {
            of_key.push(origin);
        }
    }
    origins.into_iter().map(|(key, origins)| (key, origins.join(", "))).collect()
}

/// Settings in effect after a file was read again: those that can be changed have their new value, the others say what comes at the next
/// start. What has changed, for the log.
fn merge(now: &[Setting], read: Vec<Setting>, can_change: impl Fn(&str) -> bool) -> (Vec<Setting>, Vec<String>) {
    let mut changed = Vec::new();
    let merged = read.into_iter().map(|new| match now.iter().find(|old| old.key == new.key) {
        Some(old) if old.value != new.value && can_change(&new.key) => {
            changed.push(format!("{} is {} now", new.key, shown(&new.value)));
            new
        }
        Some(old) if old.value != new.value => {
            changed.push(format!("{} is {} from the next start on", new.key, shown(&new.value)));
            Setting { next: Some(new.value), ..old.clone() }
        }
        _ => new,
    });
    (merged.collect(), changed)
}

/// SIGHUP: `read` reads everything again, and `apply` changes what the daemon can change while it serves. What cannot be understood
/// changes nothing. `changeable`: keys whose change counts at once; `status`: what the service manager is told afterwards.
pub fn reload<T, E: fmt::Display>(
    effective: &Effective,
    changeable: &[&str],
    status: &str,
    read: impl FnOnce() -> Result<(T, Vec<Setting>), E>,
    apply: impl FnOnce(&T),
) {
    notify::reloading();
    match read() {
        Ok((settings, read)) => {
            apply(&settings);
            let mut effective = effective.lock();
            let (merged, changed) = merge(&effective, read, |key| changeable.contains(&key));
            *effective = merged;
            tracing::info!(changed = changed.join("; "), "the configuration was read again");
        }
        Err(error) => tracing::warn!(%error, "the configuration was not read again: all stays as it is"),
    }
    notify::ready(status);
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "not set" } else { value }
}

/// The settings as lines of a configuration with where each came from, for `--check-config`.
pub fn table(settings: &[Setting]) -> String {
    let lines = settings.iter().map(|setting| {
        let sign = if setting.origin == "default" { "#" } else { "" };
        format!("{:<40} # {}\n", format!("{sign}{} = {:?}", setting.key, setting.value), setting.origin)
    });
    lines.collect()
}

/// A number of bytes in the largest unit that divides it, as configurations have it.
pub fn size(bytes: u64) -> String {
    let unit =
        [(30, "G"), (20, "M"), (10, "K")].into_iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift));
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, path::Path};

    use super::{Given, Origin, Setting, from_environment, from_text, hint, merge, origins, size};

    const KEYS: &[&str] = &["log-level", "exclude", "window"];

    #[test]
    fn files_and_variables_know_the_same_keys_and_name_the_one_that_was_meant() {
        let file = |text: &str| from_text(text, Path::new("x.toml"), KEYS);
        let given = file("log_level = 'info'\nexclude = ['a', 'b']\nwindow = 5\n").expect("good");
        let keys: Vec<_> = given.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["exclude", "exclude", "log_level", "window"]);
        assert!(file("log-levl = 'info'").expect_err("unknown").contains("did you mean log-level?"));
        assert!(file("colour = 'red'").expect_err("unknown").contains("the keys are log-level"));
        assert!(file("log-level = 'a'\nlog_level = 'b'").expect_err("twice").contains("twice"));
        assert!(file("window = { a = 1 }").expect_err("a table").contains("plain value"));
        let variables = |name: &str, value: &str| {
            let other = (OsString::from("HOME"), OsString::from("/x"));
            from_environment("TANDEM_X_", KEYS, &["exclude"], [other, (name.into(), value.into())].into_iter())
        };
        let given = variables("TANDEM_X_EXCLUDE", "*.o,build").expect("good");
        assert_eq!(given.len(), 2);
        assert_eq!(variables("TANDEM_X_LOG_LEVEL", "a=debug,info").expect("good").len(), 1);
        assert_eq!(variables("TANDEM_X_WINDOW", "").expect("good"), []);
        assert!(variables("TANDEM_X_WINDO", "1").expect_err("unknown").contains("did you mean window?"));
        assert_eq!(hint("wndow", KEYS), "did you mean window?");
    }

    #[test]
    fn who_wrote_a_value_is_told_the_last_one_first() {
        let given = |key: &str, origin| Given { key: key.into(), value: None, origin };
        let all = [
            given("a", Origin::File("/f".into())),
            given("a", Origin::Environment("X_A".into())),
            given("b", Origin::CommandLine),
            given("a", Origin::CommandLine),
        ];
        assert_eq!(origins(&all)["a"], "command line, $X_A, /f");
        assert_eq!(origins(&all)["b"], "command line");
    }

    #[test]
    fn what_cannot_change_says_what_comes_at_the_next_start() {
        let setting = |key: &str, value: &str| Setting { key: key.into(), value: value.into(), ..Default::default() };
        let now = [setting("a", "1"), setting("b", "1"), setting("c", "1")];
        let read = vec![setting("a", "2"), setting("b", "2"), setting("c", "1")];
        let (merged, changed) = merge(&now, read, |key| key == "a");
        assert_eq!(merged[0], setting("a", "2"));
        assert_eq!(merged[1], Setting { next: Some("2".into()), ..setting("b", "1") });
        assert_eq!(merged[2], setting("c", "1"));
        assert_eq!(changed, ["a is 2 now", "b is 2 from the next start on"]);
        // Back to what it was: nothing waits any more.
        let (merged, changed) = merge(&merged, vec![setting("b", "1")], |_| false);
        assert_eq!((merged[0].next.clone(), changed.len()), (None, 0));
    }

    #[test]
    fn sizes_are_written_in_their_largest_unit() {
        for (bytes, text) in [(0, "0"), (1 << 20, "1M"), (3 << 30, "3G"), (1000, "1000"), (64 << 10, "64K")] {
            assert_eq!(size(bytes), text);
        }
    }
}
