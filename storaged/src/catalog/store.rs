//! Where a catalog's bytes lie: redb on disk, or memory for the simulation. Three sorted tables and one row of meta data, changed
//! by whole commits only.

use std::{
    collections::BTreeMap,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase as _, TableDefinition};

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
    database: Database,
    /// Rows were committed without durability since the last durable commit: they are nowhere else, so it must not be dropped.
    relieved: bool,
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

impl DiskStore {
    fn open(path: &Path) -> Result<Self, redb::Error> {
        let database = Database::create(path)?;
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
            let reopened = Opened::new(Database::open(&self.path)?)?;
            guard.with_upgraded(|opened| *opened = Some(reopened));
        }
        let Some(opened) = guard.as_ref() else { return Err(redb::Error::PreviousIo) };
        match opened.commit(changes, meta) {
            Ok(tables) => {
                guard.with_upgraded(|opened| {
                    if let Some(opened) = opened {
                        (opened.tables, opened.relieved) = (tables, meta.is_none());
                    }
                });
                Ok(())
            }
            Err(error) => {
                if !opened.relieved {
                    guard.with_upgraded(|opened| {
                        *opened = None;
                        *opened = Database::open(&self.path).ok().and_then(|database| Opened::new(database).ok());
                    });
                }
                Err(error)
            }
        }
    }
}

impl Opened {
    fn new(database: Database) -> Result<Opened, redb::Error> {
        Ok(Opened { tables: read_tables(&database)?, database, relieved: false })
    }

    fn meta(&self) -> Result<Option<Vec<u8>>, redb::Error> {
        let table = self.database.begin_read()?.open_table(META)?;
        Ok(table.get(META_KEY)?.map(|value| value.value().to_vec()))
    }

    fn commit(&self, changes: &[Overlay; TABLES], meta: Option<&[u8]>) -> Result<ReadTables, redb::Error> {
        let mut transaction = self.database.begin_write()?;
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
        read_tables(&self.database)
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
