//! Who holds descriptors that are older than the mount, and so reaches the backing directory around it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Holders that are listed at most; one line is enough to be warned.
const HOLDERS_MAX: usize = 50;

/// Processes that work in `dir`, or hold something below it open. Call it before mounting over it.
pub fn holders(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        if let Some(what) = held_by(&process.path(), dir) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} ({}): {}", command.trim(), what.display()));
        }
        if found.len() >= HOLDERS_MAX {
            break;
        }
    }
    found
}

fn held_by(process: &Path, dir: &Path) -> Option<PathBuf> {
    let below = |link: PathBuf| fs::read_link(link).ok().filter(|target| target.starts_with(dir));
    below(process.join("cwd")).or_else(|| {
        let descriptors = fs::read_dir(process.join("fd")).ok()?;
        descriptors.flatten().find_map(|descriptor| below(descriptor.path()))
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_works_in_the_folder_is_listed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut child = Command::new("sleep")
            .arg("30")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .spawn()
            .expect("a process that waits");
        let holders = super::holders(&dir.path().canonicalize().expect("path"));
        child.kill().expect("end it");
        child.wait().expect("its end");
        assert!(holders.iter().any(|holder| holder.starts_with(&format!("{} ", child.id()))), "{holders:?}");
    }
}
