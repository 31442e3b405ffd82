//! The volumes of a storage directory: found at the start, made at their first mount, stopped at the end.

mod manage;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tandem_proto::{ids::Uuid, volume::VolumeName};
use tandem_runtime::durable;
use tokio::sync::Semaphore;

pub use self::manage::ManageError;

use super::{
    behind::Behind,
    core::{CheckpointRule, Core, OpenError, Parts},
    facts::{Facts, VolumeState},
    flow::Bounds,
    quota,
    review::Marker,
    settings::{Settings, Special},
    state::{Identity, STATE_FILE, StateError},
    thread::{Command, Commands, Driver, Measurer},
};
use crate::{
    apply::Replica,
    catalog::Catalog,
    config::Limits,
    history::{self, History, Surplus},
    hooks::Hooks,
    index::{CatalogFiles, IndexOptions, LateIndex},
    ingest::refusal::{Reason, Refusal},
    log::{LogError, LogOptions, disk::DirDisk},
    pull,
    reader::ReplicaReader,
    tree::FsTree,
    verify::Checker,
};

/// Memory for messages of one volume that wait for its thread, in KiB. One message takes at most 8 MiB.
pub const WAITING_MAX_KIB: usize = 64 << 10;

/// A volume that serves.
pub struct Volume {
    /// Who it is.
    pub identity: Identity,
    /// Its directory.
    pub directory: PathBuf,
    /// What its thread shows.
    pub facts: Arc<Mutex<Facts>>,
    /// Reads its replica.
    pub reader: ReplicaReader<FsTree>,
    /// Its content index, if it could be opened.
    pub index: Option<Arc<LateIndex>>,
    /// Bounds what resyncs replaced, if it could be started.
    pub surplus: Option<Arc<Surplus>>,
    /// Its hooks, if there is a rule for them.
    pub hooks: Option<Arc<Hooks>>,
    /// Its record of ops, if it could be opened.
    pub history: Option<Arc<History>>,
    /// Memory for waiting messages.
    pub memory: Arc<Semaphore>,
    /// Who reads the whole of it now.
    pub readers: pull::Readers,
    /// Whether it is being scrubbed.
    pub scrub: crate::scrub::Turn,
    /// Also known, weakly, to the thread that compares.
    commands: Arc<Commands>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Volume {
    /// The way to its thread.
    pub fn commands(&self) -> Commands {
        Commands::clone(&self.commands)
    }

    /// Tells its thread something. An error means that the thread is gone.
    pub fn tell(&self, command: Command) -> Result<(), Refusal> {
        self.commands.send(command).map_err(|_| Refusal::unavailable("the volume has stopped"))
    }
}

/// A volume, or why it does not serve.
#[derive(Clone)]
pub enum Entry {
    /// It serves.
    Open(Arc<Volume>),
    /// It does not.
    Broken(Arc<Broken>),
}

/// Time between two attempts to open a volume whose disk refused.
const OPEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A volume that could not be opened. If its refusal says `retry`, the disk may only have been full: it is tried again.
pub struct Broken {
    /// Its directory.
    pub directory: PathBuf,
    /// For a writer.
    pub refusal: Refusal,
}

/// All volumes.
pub struct Volumes {
    data: PathBuf,
    limits: Arc<Mutex<Limits>>,
    entries: Arc<Mutex<BTreeMap<VolumeName, Entry>>>,
    /// Making a volume takes long; only one at a time is made. True once the daemon stops: then none is made.
    making: Arc<Mutex<bool>>,
}

fn stopping() -> Refusal {
    Refusal::unavailable("the storage daemon is stopping")
}

impl Volumes {
    /// Opens all volumes of a storage directory, which is locked by the caller.
    pub fn open(data: &Path, limits: &Limits) -> io::Result<Volumes> {
        let mut names = Vec::new();
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(data)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.parse::<VolumeName>().ok()) else { continue };
            if entry.path().join(STATE_FILE).exists() {
                names.push(name);
            } else if holds_files(&entry.path()) {
                let refusal = Refusal::new(Reason::Damaged, without_state(&entry.path()));
                tracing::error!(directory = %entry.path().display(), %refusal, "the volume cannot be opened");
                entries.insert(name, Entry::Broken(Arc::new(Broken { directory: entry.path(), refusal })));
            } else if entry.file_type()?.is_dir() {
                tracing::warn!(directory = %entry.path().display(), "this directory has no file `state`: not a volume");
            }
        }
        // Recovery of one volume must not wait for that of another.
        let opening: Vec<_> = names
            .into_iter()
            .map(|name| {
                let directory = data.join(name.as_str());
                let limits = limits.clone();
                let opened = std::thread::spawn(move || open_entry(directory, &limits));
                (name, opened)
            })
            .collect();
        for (name, opened) in opening {
            let entry = opened.join().unwrap_or_else(|_| {
                let refusal = Refusal::new(Reason::Damaged, format!("opening volume {name} failed: see the log"));
                Entry::Broken(Arc::new(Broken { directory: data.join(name.as_str()), refusal }))
            });
            entries.insert(name, entry);
        }
        let (entries, making) = (Arc::new(Mutex::new(entries)), Arc::new(Mutex::new(false)));
        let volumes = Volumes { data: data.to_owned(), limits: Arc::new(Mutex::new(limits.clone())), entries, making };
        volumes.open_again()?;
        Ok(volumes)
    }

    /// Tries volumes again whose disk refused when they were opened, until they are open or the daemon stops.
    fn open_again(&self) -> io::Result<()> {
        let passing = |entry: &Entry| matches!(entry, Entry::Broken(broken) if broken.refusal.retry);
        if !self.entries.lock().values().any(passing) {
            return Ok(());
        }
        let (entries, making, limits) = (self.entries.clone(), self.making.clone(), self.limits.clone());
        std::thread::Builder::new().name("open again".to_owned()).spawn(move || {
            loop {
                std::thread::sleep(OPEN_AGAIN_AFTER);
                // Held while a volume is opened, so that the daemon does not stop in the middle.
                let stopped = making.lock();
                let waiting: Vec<_> = entries
                    .lock()
                    .iter()
                    .filter(|(_, entry)| passing(entry))
                    .map(|(n, e)| (n.clone(), e.clone()))
                    .collect();
                if *stopped || waiting.is_empty() {
                    return;
                }
                for (name, entry) in waiting {
                    let Entry::Broken(broken) = entry else { continue };
                    let limits = limits.lock().clone();
                    let entry = open_entry(broken.directory.clone(), &limits);
                    entries.lock().insert(name, entry);
                }
            }
        })?;
        Ok(())
    }

    /// All volumes by name.
    pub fn all(&self) -> Vec<(VolumeName, Entry)> {
        self.entries.lock().iter().map(|(name, entry)| (name.clone(), entry.clone())).collect()
    }

    /// One volume; `None` if there is none of that name.
    pub fn get(&self, name: &VolumeName) -> Option<Entry> {
        self.entries.lock().get(name).cloned()
    }

    /// A volume that serves, or why not.
    pub fn serving(&self, name: &VolumeName) -> Result<Arc<Volume>, Refusal> {
        match self.get(name) {
            Some(Entry::Open(volume)) => Ok(volume),
            Some(Entry::Broken(broken)) => Err(broken.refusal.clone()),
            None => Err(Refusal::new(Reason::NoVolume, format!("there is no volume {name} here"))),
        }
    }

    /// A volume that serves; made if it does not exist. Blocks on the disk.
    pub fn serving_or_made(&self, name: &VolumeName) -> Result<Arc<Volume>, Refusal> {
        let stopped = self.making.lock();
        match self.get(name) {
            Some(_) => self.serving(name),
            None if *stopped => Err(stopping()),
            None => {
                let directory = self.data.join(name.as_str());
                let limits = self.limits.lock().clone();
                let volume = make(&directory, &limits).map_err(|error| {
                    tracing::error!(volume = %name, %error, "the volume cannot be made");
                    Refusal::unavailable(format!("volume {name} cannot be made in {}: {error}", self.data.display()))
                })?;
                tracing::info!(volume = %name, directory = %directory.display(), "volume made");
                self.entries.lock().insert(name.clone(), Entry::Open(volume.clone()));
                Ok(volume)
            }
        }
    }

    /// Stops all volumes: what was accepted is applied and a checkpoint is made. Blocks. A client that comes back meanwhile is told to
    /// try again: that a volume is not there would be a lie that it takes for the end.
    pub fn stop(&self) {
        *self.making.lock() = true;
        let mut volumes = Vec::new();
        for entry in self.entries.lock().values_mut() {
            if let Entry::Open(volume) = entry {
                volumes.push(Arc::clone(volume));
                let directory = volume.directory.clone();
                *entry = Entry::Broken(Arc::new(Broken { directory, refusal: stopping() }));
            }
        }
        for volume in &volumes {
            // A thread that is gone has stopped already.
            let _ = volume.tell(Command::Stop);
        }
        for volume in &volumes {
            if let Some(thread) = volume.thread.lock().take()
                && thread.join().is_err()
            {
                tracing::error!(directory = %volume.directory.display(), "the volume's thread panicked");
            }
        }
    }
}

fn open_entry(directory: PathBuf, limits: &Limits) -> Entry {
    match serve(&directory, limits) {
        Ok(volume) => Entry::Open(volume),
        Err(error) => {
            tracing::error!(directory = %directory.display(), %error, "the volume cannot be opened");
            let reason = match &error {
                OpenError::State(StateError::Version { .. }) | OpenError::Log(LogError::Version { .. }) => {
                    Reason::Version
                }
                OpenError::Io { .. } | OpenError::Log(LogError::Io { .. }) => Reason::Unavailable,
                OpenError::Apply(error) if error.is_retryable() => Reason::Unavailable,
                _ => Reason::Damaged,
            };
            let message = format!("the volume in {} cannot be opened: {error}", directory.display());
            let refusal = match reason {
                Reason::Unavailable => Refusal::unavailable(message),
                reason => Refusal::new(reason, message),
            };
            Entry::Broken(Arc::new(Broken { directory, refusal }))
        }
    }
}

/// What a volume's directory holds. The storage directory is locked by the caller.
pub(crate) fn parts(directory: &Path) -> Result<Parts<DirDisk, FsTree>, OpenError> {
    let disk = |path: &Path| {
        DirDisk::open_or_create(path).map_err(OpenError::io(format!("opening the directory {}", path.display())))
    };
    let tree = FsTree::open(directory).map_err(OpenError::io("opening the tree"))?;
    let catalog = directory.join("catalog");
    durable::create_private_dir(&catalog).map_err(OpenError::io("making the directory of the catalog"))?;
    let catalog = Catalog::open(&catalog).map_err(|error| match error.is_of_the_system() {
        true => OpenError::Apply(error.into()),
        false => OpenError::Other(error.to_string()),
    })?;
    let mut replica = Replica::open(tree, catalog)?;
    // Also what the redo of the log deletes.
    replica.keep_deleted(true);
    let settings = Settings::load(directory).map_err(OpenError::io("reading the volume's settings"))?;
    replica.deny_special(settings.special == Special::Deny);
    Ok(Parts {
        home: disk(directory)?,
        log_disk: disk(&directory.join("log"))?,
        log_options: LogOptions::default(),
        replica,
        rule: CheckpointRule::default(),
    })
}

pub(crate) fn random_id() -> Result<[u8; 16], OpenError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| OpenError::Other(format!("no random numbers: {error}")))?;
    Ok(id)
}

fn make(directory: &Path, limits: &Limits) -> Result<Arc<Volume>, OpenError> {
    if holds_files(directory) {
        return Err(OpenError::Other(without_state(directory)));
    }
    let made = durable::create_private_dir(directory).and_then(|()| {
        // What is left of an earlier attempt was never acknowledged to anybody.
        for part in ["log", "catalog", "staging", "index"] {
            match fs::remove_dir_all(directory.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    });
    made.map_err(OpenError::io(format!("making the directory {}", directory.display())))?;
    let identity = Identity { volume_id: Uuid(random_id()?), replica_id: Uuid(random_id()?) };
    limits.settings.store(directory).map_err(OpenError::io("writing the volume's settings"))?;
    Core::create(&parts(directory)?, identity, random_id()?)?;
    if let Some(parent) = directory.parent() {
        durable::sync_directory(parent).map_err(OpenError::io("syncing the storage directory"))?;
    }
    serve(directory, limits)
}

fn holds_files(directory: &Path) -> bool {
    fs::read_dir(directory.join("tree")).is_ok_and(|mut entries| entries.next().is_some())
}

fn without_state(directory: &Path) -> String {
    let tree = directory.join("tree");
    format!(
        "{} holds files, but the file `{STATE_FILE}` beside it is missing: restore it from a copy, or stop storaged and run \
         tandem-storaged check --repair",
        tree.display()
    )
}

/// A log that must be redone found the disk full: deleted files give way, as they do while the volume is served. It is tried again soon.
fn make_room(directory: &Path, error: &OpenError) {
    if matches!(error, OpenError::Apply(error) if error.is_no_space())
        && let Err(error) = history::give_way_unserved(&directory.join("history"))
    {
        tracing::warn!(directory = %directory.display(), %error, "deleted files could not be given up for room");
    }
}

/// Opens a volume, recovers it and starts its thread.
fn serve(directory: &Path, limits: &Limits) -> Result<Arc<Volume>, OpenError> {
    let started = Instant::now();
    pull::clear(directory).map_err(OpenError::io("removing old snapshots"))?;
    let (mut core, recovered) =
        Core::open(parts(directory)?, started).inspect_err(|error| make_room(directory, error))?;
    let reader = core.replica().reader();
    let behind = behind(directory, &reader, &recovered, limits);
    let (index, surplus, history) = (behind.index.clone(), behind.surplus.clone(), behind.history.clone());
    let hooks = behind.hooks.clone();
    core.follow(behind);
    core.keep_deleted(limits.history_keep.bytes != Some(0));
    let settings = Settings::load(directory).map_err(OpenError::io("reading the volume's settings"))?;
    core.set_quota(settings.quota);
    core.bound(Bounds { log_max_bytes: limits.log_max_bytes, ..Bounds::default() });
    let facts = Arc::new(Mutex::new(Facts::default()));
    let (commands, received) = mpsc::channel();
    let commands = Arc::new(commands);
    let identity = core.identity();
    tracing::info!(
        directory = %directory.display(), position = %core.durable(), changed = recovered.changed.len(),
        milliseconds = started.elapsed().as_millis() as u64, "volume opened"
    );
    let mut driver = Driver::new(core, received, facts.clone());
    match Checker::start(directory, reader.clone(), index.clone(), Arc::downgrade(&commands)) {
        Ok(checker) => driver.check_with(checker),
        Err(error) => tracing::warn!(%error, "the volume cannot be verified"),
    }
    driver.review_with(Marker::of(directory));
    driver.measure_with(measurer(directory, Arc::downgrade(&commands)));
    let name = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let thread = {
        let facts = facts.clone();
        std::thread::Builder::new()
            .name(format!("volume {name}"))
            .spawn(move || {
                let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| driver.run()));
                if run.is_err() {
                    tracing::error!(volume = name, "the volume's thread panicked; the others go on");
                    let mut facts = facts.lock();
                    facts.state = VolumeState::Damaged;
                    facts.connected = false;
                    facts.reason = Some(Arc::from("the volume's thread panicked: see the log, then restart storaged"));
                }
            })
            .map_err(OpenError::io("starting the volume's thread"))?
    };
    Ok(Arc::new(Volume {
        identity,
        directory: directory.to_owned(),
        facts,
        reader,
        index,
        surplus,
        history,
        hooks,
        memory: Arc::new(Semaphore::new(WAITING_MAX_KIB)),
        readers: pull::Readers::default(),
        scrub: Default::default(),
        commands,
        thread: Mutex::new(Some(thread)),
    }))
}

/// Measures a volume on a thread of its own.
fn measurer(directory: &Path, commands: Weak<Commands>) -> Measurer {
    let directory = directory.to_owned();
    Box::new(move || {
        let (directory, commands) = (directory.clone(), commands.clone());
        let measuring = std::thread::Builder::new().name("measure".to_owned()).spawn(move || {
            let used = quota::measure(&directory);
            let used = used.inspect_err(|error| tracing::warn!(%error, "the volume cannot be measured for its quota"));
            if let Some(commands) = commands.upgrade() {
                // A volume that has stopped needs no answer.
                let _ = commands.send(Command::Measured { used: used.ok() });
            }
        });
        measuring.is_ok()
    })
}

/// Starts what follows behind apply. The replica is as good without it.
fn behind(
    directory: &Path,
    reader: &ReplicaReader<FsTree>,
    recovered: &crate::apply::Recovered,
    limits: &Limits,
) -> Behind {
    let options = IndexOptions { rebuild_bytes_per_second: limits.index_rate_bytes, ..IndexOptions::default() };
    let files = Box::new(CatalogFiles::new(reader.clone()));
    let index = LateIndex::open(&directory.join("index"), files, recovered.applied, options);
    let index = index.inspect_err(|error| tracing::warn!(%error, "the volume has no content index")).ok();
    let names = reader.clone();
    let history = History::open(
        &directory.join("history").join("ops"),
        // What cannot be read is shown by its id.
        Box::new(move |id| names.name(id).unwrap_or_default()),
        limits.history_keep.age,
    );
    let history = history.inspect_err(|error| tracing::warn!(%error, "the volume has no record of ops")).ok();
    let surplus = Surplus::start(&directory.join("history"), limits.history_keep);
    let surplus = surplus.inspect_err(|error| tracing::warn!(%error, "the volume's history is not bounded")).ok();
    let history = history.map(Arc::new);
    let hooks = limits.hook.clone().and_then(|rule| {
        let volume = directory.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let hooks = Hooks::start(rule, volume, reader.clone());
        hooks.inspect_err(|error| tracing::warn!(%error, "the volume's hooks do not run")).ok().map(Arc::new)
    });
    let behind = Behind { hooks, index: index.map(Arc::new), history, surplus: surplus.map(Arc::new) };
    behind.recovered(recovered);
    behind
}
