//! What runs on a mount while faults come: fio, a storm of random operations, writers that keep a ledger, a writer in order.
//!
//! fio and the storm are processes of their own and are killed when the load stops. The others are threads of the trial.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    harness::{Mount, binary},
    rng::Rng,
    trials::{
        ledger::{KINDS, Look, Writer},
        prefix::Prefix,
    },
};

/// Everything that was promised by one load; checked for ever after, on any tree of the volume.
#[derive(Debug)]
pub struct Promises {
    writers: Vec<Writer>,
    prefix: Option<Prefix>,
}

impl Promises {
    /// What a tree lacks.
    pub fn check(&self, root: &Path, look: Look) -> Vec<String> {
        let mut wrong: Vec<String> = self.writers.iter().flat_map(|writer| writer.check(root, look)).collect();
        if look == Look::PastState
            && let Some(prefix) = &self.prefix
        {
            let floor = self.writers.iter().map(Writer::floor).max().unwrap_or(0);
            wrong.extend(prefix.check(root, floor).err());
        }
        wrong
    }

    /// Acknowledged steps of all writers.
    pub fn acked(&self) -> u64 {
        self.writers.iter().map(Writer::acked).sum()
    }

    /// Closes all ledgers; see [`Writer::close`].
    pub fn close(&self) {
        self.writers.iter().for_each(Writer::close);
    }

    /// Makes every later check fail; see [`Writer::lie`].
    pub fn lie(&self) {
        self.writers[0].lie();
    }
}

type Work = Box<dyn FnOnce(&Promises, &Path, &AtomicBool) -> io::Result<()> + Send>;

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    promises: Arc<Promises>,
    stop: Arc<AtomicBool>,
    threads: Vec<(String, JoinHandle<io::Result<()>>)>,
    children: Vec<(&'static str, Child)>,
}

/// What a load is made of.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Random 4 KiB reads and writes of fio.
    pub fio: bool,
    /// Bytes per second of fio; 0: as many as it can.
    pub rate: u64,
    /// Workers of the storm; 0: none.
    pub storm: u64,
    /// The writer in order. Its first state is brought to the replica before anything else starts.
    pub prefix: bool,
}

impl Mix {
    /// Everything; now and then fio writes faster than any link.
    pub fn any(rng: &mut Rng) -> Mix {
        let rate = if rng.chance(20) { 0 } else { 4 << 20 };
        Mix { fio: rng.chance(80), rate, storm: 1 + rng.below(2), prefix: true }
    }

    /// The writers with their ledgers only.
    pub fn promises_only() -> Mix {
        Mix { fio: false, rate: 0, storm: 0, prefix: false }
    }
}

/// Errors that a load may have met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerated {
    /// None: the mount was there all the time, with room.
    Nothing,
    /// Those of a mount whose daemon or disk was taken away.
    Gone,
    /// Those of a full disk.
    Full,
}

impl Tolerated {
    fn tolerates(self, error: &io::Error) -> bool {
        let errnos: &[i32] = match self {
            Tolerated::Nothing => &[],
            Tolerated::Gone => {
                &[libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EROFS, libc::ENODEV, libc::ESHUTDOWN]
            }
            Tolerated::Full => &[libc::ENOSPC],
        };
        error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))
    }
}

fn quiet(command: &mut Command) -> Option<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

fn fio(dir: &Path, rate: u64) -> Option<Child> {
    let mut command = Command::new("fio");
    command.args(["--name=trial", "--rw=randrw", "--rwmixwrite=70", "--bs=4k", "--size=16m", "--ioengine=psync"]);
    command.args(["--thread", "--time_based", "--runtime=3600", "--fallocate=none", "--allow_file_create=1"]);
    if rate > 0 {
        command.arg(format!("--rate={rate}"));
    }
    command.arg(format!("--directory={}", dir.display())).current_dir("/");
    let child = quiet(&mut command);
    if child.is_none() {
        println!("fio is not installed: the storm and the writers work without it");
    }
    child
}

impl Load {
    /// Starts it on a mount, in directories that carry `name`, which no other load of the volume has.
    pub fn start(mount: &Mount, name: &str, seed: u64, mix: Mix) -> Load {
        let root = mount.path().to_owned();
        let writer =
            |(at, kind): (usize, &_)| Writer::new(*kind, &format!("kept-{name}/{at}"), seed.wrapping_add(at as u64));
        let prefix = mix.prefix.then(|| Prefix::new(&format!("order-{name}"), seed));
        let promises = Arc::new(Promises { writers: KINDS.iter().enumerate().map(writer).collect(), prefix });
        if let Some(prefix) = &promises.prefix {
            prefix.prepare(&root).expect("the mount takes files");
            mount.settle();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Load { promises, stop, threads: Vec::new(), children: Vec::new() };
        load.start_threads(&root, seed);
        let dir = |part: &str| {
            let dir = root.join(part);
            fs::create_dir_all(&dir).map(|()| dir)
        };
        if mix.fio
            && let Ok(dir) = dir("fio")
        {
            load.children.extend(fio(&dir, mix.rate).map(|child| ("fio", child)));
        }
        if mix.storm > 0
            && let Ok(dir) = dir("storm")
        {
            let mut command = Command::new(binary("tandem-torture"));
            command.arg("storm").arg(&dir).args([seed.to_string(), "3600".to_owned(), mix.storm.to_string()]);
            load.children.extend(quiet(&mut command).map(|child| ("storm", child)));
        }
        load
    }

    fn start_threads(&mut self, root: &Path, seed: u64) {
        let mut spawn = |name: String, work: Work| {
            let (promises, root, stop) = (Arc::clone(&self.promises), root.to_owned(), Arc::clone(&self.stop));
            self.threads.push((name, thread::spawn(move || work(&promises, &root, &stop))));
        };
        for at in 0..self.promises.writers.len() {
            let work = move |promises: &Promises, root: &Path, stop: &AtomicBool| {
                let none = AtomicU64::new(0);
                let prefix = promises.prefix.as_ref().map_or(&none, Prefix::done);
                promises.writers[at].run(root, prefix, stop)
            };
            spawn(format!("writer {at}"), Box::new(work));
        }
        if self.promises.prefix.is_some() {
            let pause = Duration::from_millis(seed % 5);
            let work = move |promises: &Promises, root: &Path, stop: &AtomicBool| match &promises.prefix {
                Some(prefix) => prefix.run(root, pause, stop),
                None => Ok(()),
            };
            spawn("order".to_owned(), Box::new(work));
        }
    }

    /// What was promised so far; grows while the load runs.
    pub fn promises(&self) -> &Arc<Promises> {
        &self.promises
    }

    /// Stops everything and waits for it. Returns the errors that are not tolerated.
    pub fn stop(mut self, tolerated: Tolerated) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut wrong = self.end_children(tolerated);
        for (name, thread) in self.threads.drain(..) {
            match thread.join() {
                Ok(Err(error)) if tolerated.tolerates(&error) => {}
                Ok(Err(error)) => wrong.push(format!("{name}: {error}")),
                Ok(Ok(())) => {}
                Err(_) => wrong.push(format!("{name} panicked")),
            }
        }
        wrong
    }

    fn end_children(&mut self, tolerated: Tolerated) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, mut child) in self.children.drain(..) {
            match child.try_wait() {
                Ok(Some(status)) if tolerated == Tolerated::Nothing => {
                    wrong.push(format!("{name} ended by itself: {status}"))
                }
                _ => {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
        wrong
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A trial that panics: the processes must not outlive it. The threads end when their mount does.
        self.stop.store(true, Ordering::Relaxed);
        self.end_children(Tolerated::Gone);
    }
}

/// Panics with everything that is wrong with a tree by any of the loads.
pub fn assert_kept(promises: &[Arc<Promises>], root: &Path, look: Look, when: &str) {
    let wrong: Vec<String> = promises.iter().flat_map(|promises| promises.check(root, look)).collect();
    assert!(
        wrong.is_empty(),
        "{when}, {} lacks what was promised:\n{}",
        PathBuf::from(root).display(),
        wrong.join("\n")
    );
}
