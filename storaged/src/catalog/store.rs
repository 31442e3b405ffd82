//! Where a catalog's bytes lie: redb on disk, or memory for the simulation. Three sorted tables and one row of meta data, changed
//! by whole commits only.

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use redb::{Builder, Database, Durability, ReadOnlyTable, ReadableDatabase as _, Savepoint, TableDefinition};

use super::CatalogError;

/// One of the sorted tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Inode id → what is known of it.
    Nodes = 0,
    /// (directory, name) → inode id.
    Entries = 1,
    /// (inode id, directory, name) → nothing: the names of an inode.
    Links = 2,
}

/// How many tables there are.
pub const TABLES: usize = 3;
/// Changes of one table since the last commit; `None`: removed.
pub type Overlay = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;
/// A row.
pub type Row = (Box<[u8]>, Box<[u8]>);

/// Pages of the store that are kept in memory. redb takes 1 GiB if nobody says otherwise, and a million files have half of that.
const CACHE_BYTES: usize = 64 << 20;
const META: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("meta");
const META_KEY: &[u8] = b"checkpoint";
const DEFINITIONS: [TableDefinition<'static, &[u8], &[u8]>; TABLES] =
    [TableDefinition::new("nodes"), TableDefinition::new("entries"), TableDefinition::new("links")];

/// A store whose commits are atomic, and durable where asked.
#[derive(Clone)]
pub enum Store {
    /// On disk.
    Disk(Arc<DiskStore>),
    /// In memory: what was committed durably outlives the [`super::Catalog`] that wrote it, through this handle.
    Memory(MemoryStore),
}

type ReadTables = [ReadOnlyTable<&'static [u8], &'static [u8]>; TABLES];

/// redb in one file.
///
/// After one failed write (a full disk) redb refuses everything until it is opened again. So the store drops it then and opens it
/// anew: what the failed commit was to write is still in the catalog's overlay and comes again.
pub struct DiskStore {
    path: PathBuf,
    /// `None` while it could not be opened again; the next commit tries.
    opened: RwLock<Option<Opened>>,
}

struct Opened {
    /// Open for reading at the last commit, so that a look-up opens nothing. Dropped before the database.
    tables: ReadTables,
    /// Rows were committed without durability since this place, the last durable commit: they are nowhere else, so the database must
    /// not be dropped, because that would make them durable.
    relieved: Option<Savepoint>,
    database: Database,
}

type MemoryTable = BTreeMap<Box<[u8]>, Box<[u8]>>;

#[derive(Clone, Default)]
struct MemoryState {
    tables: [MemoryTable; TABLES],
    meta: Option<Vec<u8>>,
}

/// See [`Store::Memory`].
#[derive(Clone, Default)]
pub struct MemoryStore {
    current: Arc<Mutex<MemoryState>>,
    durable: Arc<Mutex<MemoryState>>,
}

impl MemoryStore {
    /// What a crash leaves: the last durable commit.
    pub fn after_crash(&self) -> MemoryStore {
        let durable = self.durable.lock().clone();
        MemoryStore { current: Arc::new(Mutex::new(durable.clone())), durable: Arc::new(Mutex::new(durable)) }
    }
}

impl Store {
    /// Opens the store in `directory`, or makes it.
    pub fn open(directory: &Path) -> Result<Self, CatalogError> {
        let path = Self::path(directory);
        DiskStore::open(&path)
            .map(|store| Store::Disk(Arc::new(store)))
            .map_err(|error| CatalogError::new(&path, "opened", error))
    }

    /// Its file.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join("catalog.redb")
    }

    /// Checks all pages of an existing store, and completes what a crash cut short.
    pub fn check(directory: &Path) -> Result<(), CatalogError> {
        let path = Self::path(directory);
        let checked = std::panic::catch_unwind(|| Database::open(&path)?.check_integrity());
        match checked {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(CatalogError::new(&path, "read", error)),
            Err(_) => Err(CatalogError::new(&path, "read", "its store panicked; its pages are damaged")),
        }
    }

    fn failed(&self, action: &'static str, error: impl ToString) -> CatalogError {
        let path = match self {
            Store::Disk(store) => store.path.as_path(),
            Store::Memory(_) => Path::new("(memory)"),
        };
        CatalogError::new(path, action, error)
    }

    /// The value of a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Box<[u8]>>, CatalogError> {
        match self {
            Store::Disk(store) => {
                let opened = store.opened.read();
                let tables = &opened.as_ref().ok_or_else(|| self.failed("read", CLOSED))?.tables;
                let value = tables[table as usize].get(key).map_err(|error| self.failed("read", error))?;
                Ok(value.map(|value| value.value().into()))
            }
            Store::Memory(store) => Ok(store.current.lock().tables[table as usize].get(key).cloned()),
        }
    }

    /// Up to `limit` rows from `from` on whose keys begin with `prefix`.
    pub fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        from: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, CatalogError> {
        let mut rows = Vec::new();
        match self {
            Store::Disk(store) => {
                let opened = store.opened.read();
                let tables = &opened.as_ref().ok_or_else(|| self.failed("read", CLOSED))?.tables;
                let range = tables[table as usize]
                    .range::<&[u8]>((from, Bound::Unbounded))
                    .map_err(|error| self.failed("read", error))?;
                for row in range.take(limit) {
                    let (key, value) = row.map_err(|error| self.failed("read", error))?;
                    if !key.value().starts_with(prefix) {
                        break;
                    }
                    rows.push((key.value().into(), value.value().into()));
                }
            }
            Store::Memory(store) => {
                let state = store.current.lock();
                let range = state.tables[table as usize].range::<[u8], _>((from, Bound::Unbounded));
                let matching = range.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
                rows.extend(matching.map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        Ok(rows)
    }

    /// The row of meta data.
    pub fn meta(&self) -> Result<Option<Vec<u8>>, CatalogError> {
        match self {
            Store::Disk(store) => {
                let opened = store.opened.read();
                let opened = opened.as_ref().ok_or_else(|| self.failed("read", CLOSED))?;
                opened.meta().map_err(|error| self.failed("read", error))
            }
            Store::Memory(store) => Ok(store.current.lock().meta.clone()),
        }
    }

    /// Goes back to the last durable commit.
    pub fn revert(&self) -> Result<(), CatalogError> {
        match self {
            Store::Disk(store) => store.revert().map_err(|error| self.failed("written", error)),
            Store::Memory(store) => {
                *store.current.lock() = store.durable.lock().clone();
                Ok(())
            }
        }
    }

    /// Commits changes. With `meta` the commit is durable; without, it may be lost and is then lost as a whole.
    pub fn commit(&self, changes: &[Overlay; TABLES], meta: Option<&[u8]>) -> Result<(), CatalogError> {
        match self {
            Store::Disk(store) => store.commit(changes, meta).map_err(|error| self.failed("written", error)),
            Store::Memory(store) => {
                let mut state = store.current.lock();
                for (table, overlay) in state.tables.iter_mut().zip(changes) {
                    for (key, value) in overlay {
                        match value {
                            Some(value) => table.insert(key.clone(), value.clone()),
                            None => table.remove(key),
                        };
                    }
                }
                if let Some(meta) = meta {
                    state.meta = Some(meta.to_vec());
                    *store.durable.lock() = state.clone();
                }
                Ok(())
            }
        }
    }
}

/// A full disk keeps the catalog closed; said with the next error, which names the file.
const CLOSED: &str = "closed after a failed write; it is opened again with the next checkpoint";

fn reopen(path: &Path) -> Result<Database, redb::DatabaseError> {
    Builder::new().set_cache_size(CACHE_BYTES).open(path)
}

/// How long a catalog that is still open is waited for: of a volume that was just stopped, to be renamed, some thread may have it for a moment.
const STILL_OPEN_MAX: Duration = Duration::from_secs(5);
/// Between two attempts.
const STILL_OPEN_PAUSE: Duration = Duration::from_millis(20);

fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    let begun = Instant::now();
    loop {
        match Builder::new().set_cache_size(CACHE_BYTES).create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < STILL_OPEN_MAX => {
                thread::sleep(STILL_OPEN_PAUSE);
            }
            answer => return answer,
        }
    }
}

impl DiskStore {
    fn open(path: &Path) -> Result<Self, redb::Error> {
        let database = create(path)?;
        let transaction = database.begin_write()?;
        for definition in DEFINITIONS {
            transaction.open_table(definition)?;
        }
        transaction.open_table(META)?;
        transaction.commit()?;
        let opened = RwLock::new(Some(Opened::new(database)?));
        Ok(DiskStore { path: path.to_owned(), opened })
    }

    fn commit(&self, changes: &[Overlay; TABLES], meta: Option<&[u8]>) -> Result<(), redb::Error> {
        // Readers go on meanwhile; one thread commits.
        let mut guard = self.opened.upgradable_read();
        if guard.is_none() {
            let reopened = Opened::new(reopen(&self.path)?)?;
            guard.with_upgraded(|opened| *opened = Some(reopened));
        }
        let Some(opened) = guard.as_ref() else { return Err(redb::Error::PreviousIo) };
        match opened.commit(changes, meta) {
            Ok((tables, before)) => {
                guard.with_upgraded(|opened| {
                    if let Some(opened) = opened {
                        opened.tables = tables;
                        opened.relieved = if meta.is_some() { None } else { opened.relieved.take().or(before) };
                    }
                });
                Ok(())
            }
            Err(error) => {
                if opened.relieved.is_none() {
                    guard.with_upgraded(|opened| {
                        *opened = None;
                        *opened = reopen(&self.path).ok().and_then(|database| Opened::new(database).ok());
                    });
                }
                Err(error)
            }
        }
    }
}

impl DiskStore {
    fn revert(&self) -> Result<(), redb::Error> {
        let mut guard = self.opened.write();
        let Some(opened) = guard.as_mut() else { return Ok(()) };
        let Some(savepoint) = opened.relieved.take() else { return Ok(()) };
        match opened.restore(&savepoint) {
            Ok(tables) => opened.tables = tables,
            Err(error) => {
                opened.relieved = Some(savepoint);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Drop for DiskStore {
    /// Closing the database makes everything durable; what is ahead of the checkpoint must not become so.
    fn drop(&mut self) {
        if let Err(error) = self.revert()
            && let Some(opened) = self.opened.get_mut().take()
        {
            tracing::warn!(%error, "the catalog is left as a crash would leave it");
            std::mem::forget(opened);
        }
    }
}

impl Opened {
    fn new(database: Database) -> Result<Opened, redb::Error> {
        Ok(Opened { tables: read_tables(&database)?, relieved: None, database })
    }

    fn restore(&self, savepoint: &Savepoint) -> Result<ReadTables, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        transaction.restore_savepoint(savepoint)?;
        transaction.commit()?;
        read_tables(&self.database)
    }

    fn meta(&self) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(META)?;
        Ok(table.get(META_KEY)?.map(|value| value.value().to_vec()))
    }

    /// Also the place before it, if it is the first that is not durable.
    fn commit(
        &self,
        changes: &[Overlay; TABLES],
        meta: Option<&[u8]>,
    ) -> Result<(ReadTables, Option<Savepoint>), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        let first = meta.is_none() && self.relieved.is_none();
        let before = first.then(|| transaction.ephemeral_savepoint()).transpose()?;
        if meta.is_none() {
            transaction.set_durability(Durability::None)?;
        } else {
            // A crash must not cost a walk through the whole catalog at the next start.
            transaction.set_quick_repair(true);
        }
        for (definition, overlay) in DEFINITIONS.into_iter().zip(changes) {
            let mut table = transaction.open_table(definition)?;
            for (key, value) in overlay {
                match value {
                    Some(value) => table.insert(&**key, &**value)?,
                    None => table.remove(&**key)?,
                };
            }
        }
        if let Some(meta) = meta {
            transaction.open_table(META)?.insert(META_KEY, meta)?;
        }
        transaction.commit()?;
        Ok((read_tables(&self.database)?, before))
    }
}

fn read_tables(database: &Database) -> Result<ReadTables, redb::Error> {
    let transaction = database.begin_read()?;
    let [nodes, entries, links] = DEFINITIONS;
    Ok([transaction.open_table(nodes)?, transaction.open_table(entries)?, transaction.open_table(links)?])
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::{Overlay, Store, TABLES, Table};

    fn rows(from: u32, count: u32) -> [Overlay; TABLES] {
        let row = |n: u32| (n.to_be_bytes().as_slice().into(), Some(vec![7; 1000].into()));
        [(from..from + count).map(row).collect(), Overlay::new(), Overlay::new()]
    }

    #[test]
    fn what_is_ahead_of_the_checkpoint_goes_with_a_revert_and_with_the_process() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let has = |store: &Store, n: u32| store.get(Table::Nodes, &n.to_be_bytes()).expect("read").is_some();
        let store = Store::open(dir.path()).expect("made");
        store.commit(&rows(0, 10), Some(b"first")).expect("durable");
        for from in [10, 20] {
            store.commit(&rows(from, 10), None).expect("not durable");
        }
        assert!(has(&store, 25));
        store.revert().expect("went back");
        assert!(has(&store, 9) && !has(&store, 10) && !has(&store, 25));
        store.commit(&rows(30, 10), None).expect("not durable");
        store.commit(&rows(40, 10), Some(b"second")).expect("durable, with what came before");
        store.revert().expect("nothing to go back from");
        assert!(has(&store, 35) && has(&store, 45));
        store.commit(&rows(50, 10), None).expect("not durable");
        drop(store);
        let store = Store::open(dir.path()).expect("opened");
        assert_eq!(store.meta().expect("read").as_deref(), Some(&b"second"[..]));
        assert!(has(&store, 45) && !has(&store, 55), "the log brings it again");
    }

    #[test]
    fn a_disk_that_was_full_is_no_reason_to_start_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        if mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=8m")).is_err() {
            println!("SKIPPED: a small tmpfs cannot be mounted here");
            return;
        }
        let store = Store::open(dir.path()).expect("made");
        store.commit(&rows(0, 10), Some(b"first")).expect("there is room");
        let mut filler = fs::File::create(dir.path().join("filler")).expect("made");
        while filler.write_all(&[1; 65536]).is_ok() {}
        assert!(store.commit(&rows(10, 4000), Some(b"second")).is_err(), "the disk is full");
        assert!(store.commit(&rows(10, 4000), Some(b"second")).is_err(), "and still is");
        drop(filler);
        fs::remove_file(dir.path().join("filler")).expect("removed");
        store.commit(&rows(10, 4000), Some(b"second")).expect("there is room again");
        assert_eq!(store.meta().expect("read").as_deref(), Some(&b"second"[..]));
        for n in [0u32, 9, 10, 4009] {
            assert!(store.get(Table::Nodes, &n.to_be_bytes()).expect("read").is_some(), "row {n}");
        }
        drop(store);
        unmount(dir.path(), UnmountFlags::empty()).expect("unmounted");
    }
}
