//! A writer whose state after step `n` is a function of `n`: a tree is a past state of it, or it is not.
//!
//! Nothing is ever fsynced here. The steps go round over several files and one name, so a replica that holds step 41 in one file and
//! lacks step 40 in another, or a rename without the write before it, is no past state of the mount and is seen as such.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::rng::content;

/// Steps of one turn: a write to each file, then two renames of the marker.
const FILES: u64 = 6;
const TURN: u64 = FILES + 2;
const BLOCK: usize = 3000;

/// The writer.
#[derive(Debug)]
pub struct Prefix {
    dir: String,
    seed: u64,
    done: AtomicU64,
}

/// Renames among the first `steps` steps.
fn renames(steps: u64) -> u64 {
    steps / TURN * 2 + (steps % TURN).saturating_sub(FILES)
}

/// The last step at or before `steps` that wrote `file`; 0 if none did. Steps count from 1.
fn last_write(steps: u64, file: u64) -> u64 {
    // Step s writes file (s - 1) % TURN, if that is one.
    let turns = steps / TURN;
    let in_this = steps % TURN > file;
    match (turns, in_this) {
        (0, false) => 0,
        (turns, true) => turns * TURN + file + 1,
        (turns, false) => (turns - 1) * TURN + file + 1,
    }
}

impl Prefix {
    /// A writer in directory `dir` below the root of a tree.
    pub fn new(dir: &str, seed: u64) -> Self {
        Prefix { dir: dir.to_owned(), seed, done: AtomicU64::new(0) }
    }

    /// Complete steps.
    pub fn done(&self) -> &AtomicU64 {
        &self.done
    }

    fn block(&self, file: u64, step: u64) -> Vec<u8> {
        let mut bytes = content(self.seed ^ (file << 56) ^ step, BLOCK);
        bytes[..8].copy_from_slice(&step.to_le_bytes());
        bytes
    }

    /// Makes the state of step 0.
    pub fn prepare(&self, root: &Path) -> io::Result<()> {
        let dir = root.join(&self.dir);
        fs::create_dir_all(&dir)?;
        for file in 0..FILES {
            fs::write(dir.join(format!("p{file}")), self.block(file, 0))?;
        }
        fs::write(dir.join("marker-0"), b"")
    }

    /// Steps until `stop` or an error, with `pause` between turns. [`Self::prepare`] comes first.
    pub fn run(&self, root: &Path, pause: Duration, stop: &AtomicBool) -> io::Result<()> {
        let dir = root.join(&self.dir);
        let open = |file| OpenOptions::new().write(true).open(dir.join(format!("p{file}")));
        let files: Vec<File> = (0..FILES).map(open).collect::<io::Result<_>>()?;
        let mut step = self.done.load(Ordering::SeqCst);
        while !stop.load(Ordering::Relaxed) {
            step += 1;
            match files.get(((step - 1) % TURN) as usize) {
                Some(file) => file.write_all_at(&self.block((step - 1) % TURN, step), 0)?,
                None => {
                    let to = renames(step);
                    fs::rename(dir.join(format!("marker-{}", to - 1)), dir.join(format!("marker-{to}")))?;
                }
            }
            self.done.store(step, Ordering::SeqCst);
            if step.is_multiple_of(TURN) {
                thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// Which past state a tree holds, at least `floor` steps far. The state of step 0 must have reached the tree before.
    pub fn check(&self, root: &Path, floor: u64) -> Result<u64, String> {
        let name = |what: String| format!("{}: {what}", self.dir);
        let done = self.done.load(Ordering::SeqCst);
        let (steps, marker) = self.read(&root.join(&self.dir)).map_err(name)?;
        let latest = steps.iter().copied().max().unwrap_or(0);
        let fits =
            |n: &u64| renames(*n) == marker && (0..FILES).all(|file| last_write(*n, file) == steps[file as usize]);
        // Only renames can follow the last write.
        let Some(found) = (latest..=latest + 2).find(fits) else {
            return Err(name(format!("no past state: files are at steps {steps:?}, the marker at {marker}")));
        };
        if found < floor {
            return Err(name(format!("at step {found}, but an acknowledged fsync covers step {floor}")));
        }
        // One step may be done and not noted yet.
        if found > done + 1 {
            return Err(name(format!("at step {found}, of which only {done} were done")));
        }
        Ok(found)
    }

    fn read(&self, dir: &Path) -> Result<(Vec<u64>, u64), String> {
        let mut steps = Vec::new();
        for file in 0..FILES {
            let bytes = fs::read(dir.join(format!("p{file}"))).map_err(|error| format!("p{file}: {error}"))?;
            let mut word = [0; 8];
            if bytes.len() != BLOCK {
                return Err(format!("p{file} has {} bytes", bytes.len()));
            }
            word.copy_from_slice(&bytes[..8]);
            let step = u64::from_le_bytes(word);
            if bytes != self.block(file, step) {
                return Err(format!("p{file} is torn in step {step}"));
            }
            steps.push(step);
        }
        let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
        let marker = |name: &str| name.strip_prefix("marker-").and_then(|text| text.parse::<u64>().ok());
        let markers: Vec<u64> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(marker)).collect();
        match markers[..] {
            [marker] => Ok((steps, marker)),
            _ => Err(format!("the marker has the names {markers:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Duration,
    };

    use super::{FILES, Prefix, TURN, last_write, renames};

    fn stepped(dir: &Path, steps: u64) -> Prefix {
        let prefix = Prefix::new("prefix", 3);
        prefix.prepare(dir).expect("a plain directory");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| prefix.run(dir, Duration::ZERO, &stop).expect("a plain directory"));
            while prefix.done().load(Ordering::SeqCst) < steps {
                thread::sleep(Duration::from_micros(100));
            }
            stop.store(true, Ordering::Relaxed);
        });
        prefix
    }

    #[test]
    fn the_closed_forms_agree_with_counting() {
        for n in 0..100u64 {
            let is_rename = |step: &u64| (step - 1) % TURN >= FILES;
            assert_eq!(renames(n), (1..=n).filter(is_rename).count() as u64, "renames of {n}");
            for file in 0..FILES {
                let wrote = (1..=n).rev().find(|step| (step - 1) % TURN == file).unwrap_or(0);
                assert_eq!(last_write(n, file), wrote, "file {file} after {n}");
            }
        }
    }

    #[test]
    fn a_plain_directory_is_at_its_last_step() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let prefix = stepped(dir.path(), 50);
        let done = prefix.done().load(Ordering::SeqCst);
        assert_eq!(prefix.check(dir.path(), done), Ok(done));
        assert!(prefix.check(dir.path(), done + 1).is_err(), "a floor that it does not reach");
    }

    #[test]
    fn a_write_that_is_missing_between_others_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let prefix = stepped(dir.path(), 50);
        // Of the file that was written longest ago: without its last write a later one is there.
        let done = prefix.done().load(Ordering::SeqCst);
        let file = (0..FILES).min_by_key(|file| last_write(done, *file)).expect("there are files");
        let old = prefix.block(file, last_write(done, file) - TURN);
        fs::write(dir.path().join(format!("prefix/p{file}")), old).expect("writable");
        assert!(prefix.check(dir.path(), 0).is_err());
    }

    #[test]
    fn a_rename_that_is_missing_is_seen() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let prefix = stepped(dir.path(), 50);
        let at = renames(prefix.done().load(Ordering::SeqCst));
        let marker = |n: u64| dir.path().join(format!("prefix/marker-{n}"));
        fs::rename(marker(at), marker(at - 3)).expect("there");
        assert!(prefix.check(dir.path(), 0).is_err());
    }
}
