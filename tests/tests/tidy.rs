//! The arrows of the design and the habits of the code, checked on the source text: who may import what, module headers, globs, sizes.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file of the workspace.
struct Source {
    /// From the workspace's root.
    path: String,
    text: String,
}

impl Source {
    /// The part that is not test code: everything before the first `#[cfg(test)]`, nothing of a test file.
    fn production(&self) -> &str {
        let is_test =
            self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs");
        if is_test { "" } else { self.text.split("#[cfg(test)]").next().unwrap_or_default() }
    }

    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }

    fn mentions_crate(&self, name: &str) -> bool {
        let path = format!("{name}::");
        self.code_lines().any(|(_, line)| {
            let use_line = line.starts_with(&format!("use {name}")) && !line.starts_with(&format!("use {name}_"));
            let found = line.match_indices(&path).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
            });
            use_line || found
        })
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the workspace").to_owned()
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut open: Vec<PathBuf> =
        ["proto", "mountd", "storaged", "cli", "tests"].iter().map(|part| root.join(part)).collect();
    let mut sources = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    assert!(sources.len() > 30, "the workspace was found: {} files", sources.len());
    sources
}

fn offenders(check: impl Fn(&Source) -> bool) -> Vec<String> {
    sources().into_iter().filter(check).map(|source| source.path).collect()
}

fn within(path: &str, allowed: &[&str]) -> bool {
    allowed.iter().any(|prefix| path.starts_with(prefix))
}

#[test]
fn fuser_is_imported_by_the_fuse_adapter_only() {
    // And by the bench that measures what a file system in memory costs.
    let allowed = ["mountd/src/fuse/", "tests/src/bench/mount/memory.rs"];
    let bad = offenders(|s| s.mentions_crate("fuser") && !within(&s.path, &allowed));
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn sled_is_imported_by_at_most_one_file() {
    let users = offenders(|s| s.mentions_crate("sled"));
    assert!(users.len() <= 1, "{users:?}");
    assert!(users.iter().all(|path| path.starts_with("storaged/src/index/")), "{users:?}");
}

#[test]
fn redb_is_imported_by_the_catalog_only() {
    let bad = offenders(|s| s.mentions_crate("redb") && !s.path.starts_with("storaged/src/catalog/"));
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn tokio_stays_out_of_what_touches_files() {
    let sync = [
        "mountd/src/vfs/",
        "mountd/src/backing/",
        "mountd/src/fuse/",
        "mountd/src/mount/",
        "mountd/src/state/",
        "storaged/src/apply/",
        "storaged/src/catalog/",
        "storaged/src/log/",
        "storaged/src/tree/",
        "storaged/src/index/",
        "proto/src/",
    ];
    let bad = offenders(|s| s.mentions_crate("tokio") && within(&s.path, &sync));
    assert!(bad.is_empty(), "tokio does network only: {bad:?}");
    // The commit wakes the link, and a volume's thread answers the service: both wait on the runtime.
    let beyond_waking = |line: &str| line.contains("tokio::") && !line.contains("tokio::sync");
    let wakers = ["mountd/src/commit/", "storaged/src/volume/"];
    let bad = offenders(|s| within(&s.path, &wakers) && s.production().lines().any(beyond_waking));
    assert!(bad.is_empty(), "tokio::sync only: {bad:?}");
}

#[test]
fn the_daemons_do_not_depend_on_each_other() {
    for (one, other) in
        [("mountd", "storaged"), ("storaged", "mountd"), ("cli", "mountd"), ("cli", "storaged"), ("proto", "mountd")]
    {
        let manifest = fs::read_to_string(workspace().join(one).join("Cargo.toml")).expect("a package");
        assert!(!manifest.contains(&format!("tandem-{other}.")), "{one} depends on {other}");
    }
}

#[test]
fn every_file_opens_with_what_it_promises() {
    let bad = offenders(|s| !s.text.trim_start().starts_with("//!") || s.text.starts_with("//! placeholder"));
    assert!(bad.is_empty(), "no module documentation: {bad:?}");
}

#[test]
fn imports_are_explicit() {
    let bad = offenders(|s| s.code_lines().any(|(_, line)| line.starts_with("use ") && line.contains("::*")));
    assert!(bad.is_empty(), "glob imports: {bad:?}");
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let bad =
        offenders(|s| s.production().lines().any(|line| !line.trim().starts_with("//") && line.contains(".unwrap()")));
    assert!(bad.is_empty(), "unwrap: say why it cannot fail (expect) or return the error: {bad:?}");
}

#[test]
fn no_path_of_a_developers_machine_is_in_the_source() {
    // Written in two parts, or this test would find itself.
    let paths = [concat!("/wor", "k/"), concat!("/roo", "t/")];
    let bad = offenders(|s| paths.iter().any(|path| s.text.contains(path)));
    assert!(bad.is_empty(), "{bad:?}");
}

/// Name and length of functions that are longer than 70 lines; relies on the formatter's indentation.
fn long_functions(source: &Source) -> Vec<(String, usize)> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut long = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let words = ["pub ", "pub(crate) ", "pub(super) ", "async ", "const ", "unsafe "];
        let bare = words.iter().fold(code, |code, word| code.strip_prefix(word).unwrap_or(code));
        let Some(rest) = bare.strip_prefix("fn ") else { continue };
        let end = format!("{}}}", " ".repeat(indent));
        let len = lines[at..].iter().position(|line| *line == end).unwrap_or(0) + 1;
        if len > 70 {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            long.push((name, len));
        }
    }
    long
}

/// A list to look at, not a law.
#[test]
fn what_grew_too_long_is_listed() {
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > 500 {
            println!("{}: {lines} lines", source.path);
        }
        for (name, len) in long_functions(&source) {
            println!("{}: fn {name} has {len} lines", source.path);
        }
    }
}

/// Each promise names the tests that hold it to its words (`file::test`, the file somewhere in `tests/tests`).
/// Of a manifest, what its package depends on.
fn dependencies(manifest: &str) -> Vec<&str> {
    let lines = manifest.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && *name != "#")
        .collect()
}

#[test]
fn the_lock_of_fuzz_follows_the_manifests() {
    let root = workspace();
    let lock = fs::read_to_string(root.join("fuzz/Cargo.lock")).expect("it is there");
    let manifests = ["proto", "proto/runtime", "mountd", "storaged", "tests"];
    for manifest in manifests.map(|dir| fs::read_to_string(root.join(dir).join("Cargo.toml")).expect("it is there")) {
        let name = manifest.lines().find(|line| line.starts_with("name = ")).expect("a package has a name");
        let locked = lock.split("[[package]]").find(|package| package.lines().any(|line| line == name));
        let locked = locked.unwrap_or_else(|| panic!("fuzz/Cargo.lock: no {name}"));
        for dependency in dependencies(&manifest) {
            let is_there =
                locked.contains(&format!("\"{dependency}\"")) || locked.contains(&format!("\"{dependency} "));
            assert!(is_there, "{name}: run `cargo metadata --manifest-path fuzz/Cargo.toml` for {dependency}");
        }
    }
}

#[test]
fn every_promise_names_tests_that_exist() {
    let promises = fs::read_to_string(workspace().join("docs/SEMANTICS.md")).expect("the promises are written down");
    let tests: Vec<Source> = sources().into_iter().filter(|source| source.path.starts_with("tests/tests/")).collect();
    let sections: Vec<&str> = promises.split("\n## ").skip(1).collect();
    let is_promise =
        |section: &&&str| section.strip_prefix('P').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(sections.iter().filter(is_promise).count(), 8, "eight promises");
    for section in sections {
        let title = section.lines().next().unwrap_or_default();
        let (_, named) = section.split_once("*Tested by:*").unwrap_or_else(|| panic!("{title}: no tests are named"));
        let names: Vec<(&str, &str)> = named.split('`').filter_map(|word| word.split_once("::")).collect();
        assert!(!names.is_empty(), "{title}: no tests are named");
        for (file, name) in names {
            let (file, test) = (format!("/{file}.rs"), format!("#[test]\nfn {name}()"));
            let there = tests.iter().any(|source| source.path.ends_with(&file) && source.text.contains(&test));
            assert!(there, "{title}: there is no test {name} in {file}");
        }
    }
}
