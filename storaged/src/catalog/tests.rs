//! The catalog against a plain map, over both stores.

use std::collections::BTreeMap;

use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};
use tandem_proto::{
    ids::{InodeId, Name},
    op::NodeKind,
    position::{Epoch, Position},
};

use super::{Catalog, NodeRecord, SideRecord, codec, store::MemoryStore};
use crate::apply::ObjectIdentity;

fn id(number: u8) -> InodeId {
    if number == 0 { InodeId::ROOT } else { InodeId::new(&vec![number; usize::from(number % 3) + 1]).expect("short") }
}

fn name(number: u8) -> Name {
    Name::new(vec![b'a' + number; usize::from(number % 4) + 1]).expect("a legal name")
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8, Option<u8>),
    Relieve,
    Checkpoint,
}

fn step() -> impl Strategy<Value = Step> {
    let set = (0..6u8, 0..6u8, prop::option::of(0..8u8)).prop_map(|(dir, name, id)| Step::Set(dir, name, id));
    prop::strategy::Union::new_weighted(vec![
        (8, set.boxed()),
        (1, any::<()>().prop_map(|()| Step::Relieve).boxed()),
        (1, any::<()>().prop_map(|()| Step::Checkpoint).boxed()),
    ])
}

fn check(catalog: &Catalog, twin: &BTreeMap<(u8, u8), u8>) {
    for dir in 0..6 {
        let want: BTreeMap<Name, InodeId> =
            twin.iter().filter(|((of, _), _)| *of == dir).map(|((_, at), to)| (name(*at), id(*to))).collect();
        let all: Vec<_> = catalog.entries(&id(dir), None, 100).expect("scan");
        assert_eq!(all, want.into_iter().collect::<Vec<_>>());
        let (mut paged, mut after) = (Vec::new(), None);
        loop {
            let page = catalog.entries(&id(dir), after.as_ref(), 2).expect("page");
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            paged.extend(page);
        }
        assert_eq!(paged, all);
    }
    for to in 0..8 {
        let mut found = catalog.names(&id(to), 100).expect("names");
        let mut want: Vec<_> =
            twin.iter().filter(|(_, of)| **of == to).map(|((dir, at), _)| (id(*dir), name(*at))).collect();
        found.sort();
        want.sort();
        assert_eq!(found, want);
    }
}

proptest! {
    #[test]
    fn entries_and_links_follow_a_plain_map_through_checkpoints_and_crashes(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let disk = Catalog::open(directory.path()).expect("open");
        let store = MemoryStore::default();
        let memory = Catalog::in_memory(store.clone()).expect("open");
        let (mut twin, mut durable) = (BTreeMap::new(), BTreeMap::new());
        for step in &steps {
            for catalog in [&disk, &memory] {
                match step {
                    Step::Set(dir, at, to) => {
                        let before = catalog.set_entry(&id(*dir), &name(*at), to.map(id).as_ref()).expect("set");
                        prop_assert_eq!(before, twin.get(&(*dir, *at)).map(|to| id(*to)));
                    }
                    Step::Relieve => catalog.inner.write().commit(None).expect("relieve"),
                    Step::Checkpoint => {
                        let position = Position { epoch: Epoch(3), ..Position::default() };
                        catalog.checkpoint_durably(position, 7).expect("checkpoint");
                    }
                }
            }
            match step {
                Step::Set(dir, at, Some(to)) => _ = twin.insert((*dir, *at), *to),
                Step::Set(dir, at, None) => _ = twin.remove(&(*dir, *at)),
                Step::Checkpoint => durable = twin.clone(),
                Step::Relieve => {}
            }
            check(&disk, &twin);
            check(&memory, &twin);
        }
        check(&Catalog::in_memory(store.after_crash()).expect("reopen"), &durable);
    }
}

#[test]
fn a_record_survives_its_bytes() {
    let side = SideRecord {
        uid: Some(1),
        gid: None,
        mode: Some(0o4755),
        placeholder: true,
        xattrs: [(b"trusted.a".as_slice().into(), Some(b"v".as_slice().into())), (b"b".as_slice().into(), None)].into(),
    };
    for kind in
        [NodeKind::Directory, NodeKind::Symlink(b"/x".as_slice().into()), NodeKind::BlockDevice { major: 8, minor: 1 }]
    {
        let node = NodeRecord {
            kind,
            identity: ObjectIdentity::new(&[1, 2, 3]).expect("short"),
            born: Position { epoch: Epoch(9), ..Position::default() },
            dir_mtime: Some(tandem_proto::op::Timestamp { seconds: -5, nanos: 3 }),
            side: Some(Box::new(side.clone())),
        };
        let bytes = codec::encode_node(&node);
        assert_eq!(codec::decode_node(&bytes), Some(node));
        for cut in 0..bytes.len() {
            let _ = codec::decode_node(&bytes[..cut]);
        }
    }
}

#[test]
fn a_catalog_reopens_at_its_checkpoint() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let position = Position { epoch: Epoch(4), ..Position::default() };
    {
        let catalog = Catalog::open(directory.path()).expect("open");
        catalog.set_entry(&InodeId::ROOT, &name(1), Some(&id(1))).expect("set");
        catalog.checkpoint_durably(position, 2).expect("checkpoint");
        catalog.set_entry(&InodeId::ROOT, &name(2), Some(&id(2))).expect("set");
    }
    let catalog = Catalog::open(directory.path()).expect("reopen");
    let meta = catalog.meta().expect("meta");
    assert_eq!((meta.position, meta.serial), (position, 2));
    assert_eq!(catalog.entry(&InodeId::ROOT, &name(1)).expect("get"), Some(id(1)));
    assert_eq!(catalog.entry(&InodeId::ROOT, &name(2)).expect("get"), None);
}

#[test]
fn a_catalog_that_somebody_still_has_is_opened_when_he_lets_it_go() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let first = Catalog::open(directory.path()).expect("open");
    first.set_entry(&InodeId::ROOT, &name(1), Some(&id(1))).expect("set");
    first.checkpoint_durably(Position::default(), 1).expect("checkpoint");
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(first);
    });
    let second = Catalog::open(directory.path()).expect("it is waited for");
    assert_eq!(second.entry(&InodeId::ROOT, &name(1)).expect("get"), Some(id(1)));
    holder.join().expect("it ends");
}
