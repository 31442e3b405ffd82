//! What command lines, files and variables mean.

use std::io::Write as _;

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::{Arguments, Config, Flags, KeepRule, given, listen_address};

fn arguments(words: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
    let words = ["tandem-storaged"].iter().chain(words).map(OsString::from);
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let arguments = Arguments::read(words, environment).map_err(|error| error.to_string())?;
    arguments.config().map_err(|error| error.to_string())
}

fn load(text: &str, words: &[&str]) -> Result<Config, String> {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    let path = file.path().to_str().expect("text").to_owned();
    arguments(&[&["--config", &path], words].concat(), &[])
}

#[test]
fn every_flag_is_a_key_of_the_file_a_variable_and_an_option_and_later_ones_win() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let path = file.path().to_str().expect("text");
    let dir = tempfile::tempdir().expect("temporary directory");
    let inside = dir.path().to_str().expect("text");
    // Two values for each, so that it is seen which one counts.
    let values = |kind: &str| match kind {
        "DIR" | "FILE" => [inside.to_owned(), "/".to_owned()],
        "ADDR:PORT" => ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()],
        "SECONDS" => ["3".to_owned(), "4".to_owned()],
        "SIZE" => ["1G".to_owned(), "2G".to_owned()],
        "SIZE,AGE" => ["1G,2d".to_owned(), "3d".to_owned()],
        "AGE" => ["4d".to_owned(), "5d".to_owned()],
        "LEVEL" => ["warn".to_owned(), "debug".to_owned()],
        "keep|deny" => ["deny".to_owned(), "keep".to_owned()],
        "on|auto|off" => ["on".to_owned(), "off".to_owned()],
        "USER" => ["nobody".to_owned(), "daemon".to_owned()],
        "COMMAND" => ["true".to_owned(), "false".to_owned()],
        other => panic!("a kind of value that this test does not know: {other:?}"),
    };
    let mut walked = 0;
    for key in given::keys() {
        let command = Flags::command();
        let argument = command.get_arguments().find(|arg| arg.get_long() == Some(&key)).expect("a flag");
        let is_flag = !argument.get_action().takes_values();
        let kind = argument.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str());
        let [one, two] = if is_flag { ["true".to_owned(), "false".to_owned()] } else { values(kind) };
        let mut shown = Vec::new();
        let variable = tandem_runtime::settings::variable(given::PREFIX, &key);
        let mut rest = vec!["--config", path];
        // What needs something beside it.
        let is_of_hook = key.starts_with("hook-");
        for (needed, word, value) in [
            (key != "data", "--data", inside),
            (is_of_hook, "--hook", "true"),
            (key == "hook" || (is_of_hook && key != "hook-dir"), "--hook-dir", inside),
            (key == "tls-cert", "--tls-key", "/k"),
            (key == "tls-key", "--tls-cert", "/c"),
            (key == "tls-client-crl", "--tls-client-ca", "/a"),
        ] {
            if needed {
                rest.extend([word, value]);
            }
        }
        let mut look = |text: &str, environment: &[(&str, &str)], words: &[&str]| {
            std::fs::write(path, text).expect("written");
            let config = arguments(&[&rest, words].concat(), environment);
            if key.contains("user") && config.is_err() {
                // Only root becomes somebody else.
                shown.push(String::new());
                return;
            }
            shown.push(config.unwrap_or_else(|error| panic!("{key}: {error}")).show(&key));
        };
        let (option, long, flag) = (format!("{key}={one}"), format!("--{key}={one}"), format!("--{key}"));
        look(&format!("{key} = {one:?}\n"), &[], &[]);
        look(&format!("{} = {two:?}\n", key.replace('-', "_")), &[(&variable, &one)], &[]);
        look(&format!("{key} = {two:?}\n"), &[(&variable, &two)], &["-o", &option]);
        look("", &[(&variable, &two)], &[if is_flag { &flag } else { &long }]);
        assert!(shown.iter().all(|value| *value == shown[0]), "{key}: {shown:?}");
        if !key.contains("user") {
            assert_ne!(shown[0], "", "{key} is not shown");
        }
        walked += 1;
    }
    assert!(walked > 20, "{walked}");
    let error = arguments(&["--data", "/x"], &[("TANDEM_STORAGED_LISEN", "x")]).expect_err("unknown");
    assert!(error.contains("did you mean listen?"), "{error}");
    let error = arguments(&["--data", "/x", "-o", "lisen=x"], &[]).expect_err("unknown");
    assert!(error.contains("did you mean listen?"), "{error}");
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "data = '/from/file'\nlisten = '127.0.0.1:1'\nlog_json = true\n";
    let config = load(text, &["--listen", "[::1]:2"]).expect("good");
    assert_eq!(config.data.to_str(), Some("/from/file"));
    assert_eq!(config.listen.to_string(), "[::1]:2");
    assert!(config.log_json);
    let config = load("data = 'x'", &[]).expect("good");
    assert_eq!(config.listen.to_string(), "127.0.0.1:7440");
}

#[test]
fn a_relative_path_in_a_file_begins_at_the_directory_of_the_file() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("storaged.toml");
    std::fs::write(&file, "data = 'volumes'\ntls-client-ca = '../ca.pem'\n").expect("written");
    let config =
        arguments(&["--config", file.to_str().expect("text"), "-o", "tls-client-crl=crl.pem"], &[]).expect("good");
    assert_eq!(config.data, dir.path().join("volumes"));
    assert_eq!(config.own_tls.client_ca, Some(dir.path().join("../ca.pem")));
    assert_eq!(config.own_tls.client_crl, Some("crl.pem".into()), "on the command line it is the working directory");
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    let parse = |text| load(text, &["--data", "/x"]);
    assert!(parse("log-levl = 'info'").expect_err("unknown").contains("did you mean log-level?"));
    assert!(parse("colour = 'red'").expect_err("unknown").contains("the keys are data"));
    assert!(parse("log-json = 'perhaps'").expect_err("no flag").contains("true or false"));
    assert!(parse("log-json = true\nlog_json = true").is_err());
    assert!(parse("tls-cert = '/c'").expect_err("no key").contains("--tls-key"));
}

#[test]
fn what_is_kept_of_history_is_a_size_an_age_or_both() {
    let keep = |text: &str| load("data = 'x'", &["--history-keep", text]).map(|config| config.limits.history_keep);
    let day = std::time::Duration::from_secs(24 * 3600);
    assert_eq!(keep("5GiB,7d"), Ok(KeepRule { bytes: Some(5 << 30), age: Some(7 * day) }));
    assert_eq!(keep("1d"), Ok(KeepRule { bytes: None, age: Some(day) }));
    assert_eq!(keep("all"), Ok(KeepRule { bytes: None, age: None }));
    for wrong in ["", "5GiB,7GiB", "ever", "1d,2d"] {
        assert!(keep(wrong).expect_err("refused").contains("10GiB,30d"), "{wrong}");
    }
    let file = load("data = 'x'\nindex_rate = '1MiB'\nhistory-keep = '2d'", &[]).expect("good");
    assert_eq!(file.limits.index_rate_bytes, 1 << 20);
    assert_eq!(file.limits.history_keep.age, Some(2 * day));
}

#[test]
fn an_address_is_a_number_with_or_without_a_port() {
    for good in ["127.0.0.1:0", "[::1]:7440", "localhost:7440", "127.0.0.1", "::1", "0.0.0.0:7440"] {
        assert!(listen_address(good).is_ok(), "{good}");
    }
    assert!(listen_address("nowhere").expect_err("no address").to_string().contains("ADDR:PORT"));
}

#[test]
fn a_missing_storage_directory_is_asked_for() {
    assert!(arguments(&[], &[]).expect_err("missing").contains("--data DIR"));
}
