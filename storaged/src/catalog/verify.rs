//! Looks through a whole catalog: does each row parse, and do the three tables say the same?

use std::{collections::HashMap, ops::Bound, path::Path};

use tandem_proto::ids::InodeId;

use super::{
    Catalog, CatalogError, codec,
    store::{Row, Store, Table},
};
use crate::apply::ObjectIdentity;

/// Rows that are read at once.
const PAGE: usize = 4096;

/// What a catalog holds, in numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize)]
pub struct Figures {
    /// Inodes.
    pub nodes: u64,
    /// Of these, directories.
    pub directories: u64,
    /// Names.
    pub entries: u64,
    /// Inodes of which the file system refused something.
    pub side_records: u64,
}

impl Catalog {
    /// Whether there is a catalog in `directory`.
    pub fn exists(directory: &Path) -> bool {
        Store::path(directory).exists()
    }

    /// Lets the store check all its pages, and complete what a crash cut short. An error says what is wrong with it.
    pub fn check_store(directory: &Path) -> Result<(), CatalogError> {
        Store::check(directory)
    }

    /// Compares the tables with each other and tells what does not fit.
    pub fn verify(&self, found: &mut dyn FnMut(String)) -> Result<Figures, CatalogError> {
        let mut figures = Figures::default();
        let mut identities: HashMap<ObjectIdentity, InodeId> = HashMap::new();
        self.each(Table::Nodes, &mut |(key, value)| {
            figures.nodes += 1;
            let id = codec::split_id(key).filter(|(_, rest)| rest.is_empty()).map(|(id, _)| id);
            let (Some(id), Some(record)) = (id, codec::decode_node(value)) else {
                found("a row of an inode does not parse".to_owned());
                return Ok(());
            };
            figures.directories += u64::from(record.kind.is_directory());
            figures.side_records += u64::from(record.side.is_some());
            let names = self.names(&id, 2)?.len();
            match (id.is_root(), record.kind.is_directory(), names) {
                (true, true, 0) | (false, true, 1) | (false, false, 1..) => {}
                (true, ..) => found("the root is no directory, or has a name".to_owned()),
                (false, _, 0) => found(format!("inode {id} has no name")),
                (false, ..) => found(format!("directory {id} has more than one name")),
            }
            if let Some(other) = identities.insert(record.identity, id) {
                found(format!("inodes {other} and {id} claim the same object of the tree"));
            }
            Ok(())
        })?;
        drop(identities);
        self.verify_names(&mut figures, found)?;
        let meta = self.meta()?;
        if meta.inodes != figures.nodes && self.uncommitted_rows() == 0 {
            found(format!("it counts {} inodes and has {}", meta.inodes, figures.nodes));
        }
        Ok(figures)
    }

    fn verify_names(&self, figures: &mut Figures, found: &mut dyn FnMut(String)) -> Result<(), CatalogError> {
        self.each(Table::Entries, &mut |(key, value)| {
            figures.entries += 1;
            let cell = codec::split_id(key).and_then(|(dir, name)| Some((dir, codec::name(name)?)));
            let (Some((dir, name)), Some(id)) = (cell, InodeId::new(value)) else {
                found("a row of a name does not parse".to_owned());
                return Ok(());
            };
            if !self.node(&dir)?.is_some_and(|record| record.kind.is_directory()) {
                found(format!("name {name} is in {dir}, which is no directory"));
            }
            if !self.has_node(&id)? {
                found(format!("name {name} in {dir} means {id}, which does not exist"));
            }
            let link = codec::link_key(&id, &dir, &name);
            if self.inner.read().get(Table::Links, &link)?.is_none() {
                found(format!("inode {id} does not know its name {name} in {dir}"));
            }
            Ok(())
        })?;
        self.each(Table::Links, &mut |(key, _)| {
            let parsed = codec::split_id(key).and_then(|(id, rest)| {
                let (dir, name) = codec::split_id(rest)?;
                Some((id, dir, codec::name(name)?))
            });
            let Some((id, dir, name)) = parsed else {
                found("a row of an inode's name does not parse".to_owned());
                return Ok(());
            };
            if self.entry(&dir, &name)? != Some(id) {
                found(format!("inode {id} claims the name {name} in {dir}, which means something else"));
            }
            Ok(())
        })
    }

    fn each(&self, table: Table, look: &mut dyn FnMut(&Row) -> Result<(), CatalogError>) -> Result<(), CatalogError> {
        let mut after: Option<Box<[u8]>> = None;
        loop {
            let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let rows = self.inner.read().scan(table, &[], from, PAGE)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = Some(last.clone());
            rows.iter().try_for_each(&mut *look)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::{
        ids::{InodeId, Name},
        op::NodeKind,
        position::Position,
    };

    use super::{Catalog, Table, codec};
    use crate::{
        apply::ObjectIdentity,
        catalog::{NodeRecord, store::MemoryStore},
    };

    fn id(text: &str) -> InodeId {
        InodeId::new(text.as_bytes()).expect("short")
    }

    fn name(text: &str) -> Name {
        Name::new(text.to_owned()).expect("legal")
    }

    fn record(kind: NodeKind, object: u8) -> NodeRecord {
        let identity = ObjectIdentity::new(&[object]).expect("short");
        NodeRecord { kind, identity, born: Position::default(), dir_mtime: None, side: None }
    }

    fn catalog() -> Catalog {
        let catalog = Catalog::in_memory(MemoryStore::default()).expect("made");
        catalog.put_node(&InodeId::ROOT, &record(NodeKind::Directory, 0)).expect("put");
        catalog.put_node(&id("d"), &record(NodeKind::Directory, 1)).expect("put");
        catalog.put_node(&id("f"), &record(NodeKind::Regular, 2)).expect("put");
        catalog.set_entry(&InodeId::ROOT, &name("d"), Some(&id("d"))).expect("set");
        for text in ["one", "two"] {
            catalog.set_entry(&id("d"), &name(text), Some(&id("f"))).expect("set");
        }
        catalog.checkpoint_durably(Position::default(), 1).expect("made");
        catalog
    }

    fn problems(catalog: &Catalog) -> Vec<String> {
        let mut problems = Vec::new();
        catalog.verify(&mut |problem| problems.push(problem)).expect("read");
        problems
    }

    #[test]
    fn a_sound_catalog_is_counted() {
        let mut problems = Vec::new();
        let figures = catalog().verify(&mut |problem| problems.push(problem)).expect("read");
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((figures.nodes, figures.directories, figures.entries), (3, 2, 3));
    }

    #[test]
    fn each_contradiction_between_the_tables_is_told() {
        type Break = fn(&Catalog);
        let breaks: [(&str, Break); 6] = [
            ("has no name", |c| c.put_node(&id("lost"), &record(NodeKind::Regular, 9)).expect("put")),
            ("same object", |c| c.put_node(&id("f"), &record(NodeKind::Regular, 1)).expect("put")),
            ("which does not exist", |c| c.remove_node(&id("f")).expect("removed")),
            ("more than one name", |c| {
                c.set_entry(&InodeId::ROOT, &name("again"), Some(&id("d"))).expect("set");
            }),
            ("does not know its name", |c| {
                let key = codec::link_key(&id("f"), &id("d"), &name("one"));
                c.inner.write().set(Table::Links, key, None);
            }),
            ("which means something else", |c| {
                let key = codec::entry_key(&id("d"), &name("two"));
                c.inner.write().set(Table::Entries, key, None);
            }),
        ];
        for (says, break_it) in breaks {
            let catalog = catalog();
            break_it(&catalog);
            let problems = problems(&catalog);
            assert!(problems.iter().any(|problem| problem.contains(says)), "{says}: {problems:?}");
        }
    }
}
