//! Both ends of a copy over nothing but memory: cut anywhere, begun again, disturbed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tandem_proto::pb::{CopyFrame, CopyItem, CopyWant, PullNode};

use super::{Destination, Failed, Readable, Receiver, Taken, Whole};
use crate::{FRAME_BYTES, LocalFile, send_file};

/// A directory of plain files.
struct Folder {
    at: PathBuf,
    names: HashMap<u32, PathBuf>,
    done: Vec<u32>,
}

impl Folder {
    fn new(at: &Path) -> Folder {
        Folder { at: at.to_owned(), names: HashMap::new(), done: Vec::new() }
    }
}

impl Destination for Folder {
    fn take(&mut self, key: u32, node: &PullNode) -> Result<Taken, Failed> {
        self.names.insert(key, self.at.join(std::str::from_utf8(&node.path[0]).expect("text")));
        Ok(Taken::File)
    }

    fn partial(&self, key: u32) -> PathBuf {
        self.names[&key].with_extension("part")
    }

    fn there(&self, key: u32, size: u64) -> Option<Box<dyn Readable>> {
        let file = LocalFile::open(&self.names[&key]).ok()?;
        (file.size() == size).then(|| Box::new(file) as Box<dyn Readable>)
    }

    fn whole(&mut self, key: u32, how: Whole) -> Result<(), Failed> {
        if let Whole::Arrived(path) = how {
            fs::rename(path, &self.names[&key]).expect("renamed");
        }
        self.done.push(key);
        Ok(())
    }

    fn settle(&mut self, _last: bool) -> Result<Vec<u32>, Failed> {
        Ok(std::mem::take(&mut self.done))
    }
}

fn item(name: &str, size: u64) -> CopyItem {
    let node = PullNode { path: vec![Bytes::copy_from_slice(name.as_bytes())], size, ..Default::default() };
    CopyItem { node: Some(node), ..Default::default() }
}

fn open(path: &Path) -> Result<Box<dyn Readable>, String> {
    LocalFile::open(path).map(|file| Box::new(file) as Box<dyn Readable>).map_err(|error| error.to_string())
}

/// Lists the files, and answers until so many frames with bytes were sent.
fn run(receiver: &mut Receiver<Folder>, from: &Path, names: &[&str], frames: usize) {
    receiver.begin_again();
    for name in names {
        receiver.item(item(name, fs::metadata(from.join(name)).map_or(0, |is| is.len()))).expect("taken");
    }
    receiver.listed();
    let mut sent = 0;
    while let Some(want) = receiver.want().expect("asked") {
        let mut out = |frame: CopyFrame| {
            sent += usize::from(!frame.data.is_empty());
            sent <= frames && receiver.frame(frame).is_ok()
        };
        if !send_file(&want, open(&from.join(names[want.item as usize])), &mut out) {
            return;
        }
        receiver.settle(false).expect("settled");
    }
    receiver.settle(true).expect("settled");
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at % 251) as u8 | 1).collect()
}

#[test]
fn a_copy_that_is_cut_after_each_frame_sends_no_byte_twice() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for dir in [&from, &to] {
        fs::create_dir(dir).expect("mkdir");
    }
    let sizes = [("a", 5 * FRAME_BYTES + 17), ("b", 0), ("c", 3), ("d", FRAME_BYTES)];
    for (name, size) in sizes {
        fs::write(from.join(name), content(size)).expect("written");
    }
    let names = sizes.map(|(name, _)| name);
    // Each attempt is another process: nothing is remembered but what is on the disk.
    let (mut came, mut attempts) = (0, 0);
    loop {
        let mut receiver = Receiver::new(Folder::new(&to));
        run(&mut receiver, &from, &names, 1);
        came += receiver.counted().bytes_done;
        attempts += 1;
        if receiver.is_complete() && receiver.counted().files_done == 4 {
            break;
        }
        assert!(attempts < 50);
    }
    assert_eq!(came, sizes.iter().map(|(_, size)| *size as u64).sum::<u64>());
    for (name, size) in sizes {
        assert!(fs::read(to.join(name)).expect("there") == content(size), "{name}");
    }
    assert_eq!(fs::read_dir(&to).expect("listed").count(), 4);
}

#[test]
fn what_is_there_counts_only_if_it_is_the_beginning() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for dir in [&from, &to] {
        fs::create_dir(dir).expect("mkdir");
    }
    let all = content(2 * FRAME_BYTES);
    fs::write(from.join("a"), &all).expect("written");
    fs::write(to.join("a.part"), vec![9; FRAME_BYTES]).expect("written");
    let mut receiver = Receiver::new(Folder::new(&to));
    run(&mut receiver, &from, &["a"], usize::MAX);
    assert_eq!((receiver.counted().bytes_done, receiver.counted().bytes_there), (all.len() as u64, 0));
    assert!(fs::read(to.join("a")).expect("there") == all);
    // Whole under its name: nothing comes. Of the same size, and another one: all of it.
    let mut receiver = Receiver::new(Folder::new(&to));
    run(&mut receiver, &from, &["a"], usize::MAX);
    assert_eq!((receiver.counted().bytes_done, receiver.counted().files_done), (0, 1));
    let mut other = all.clone();
    other[FRAME_BYTES] ^= 1;
    fs::write(to.join("a"), &other).expect("written");
    let mut receiver = Receiver::new(Folder::new(&to));
    run(&mut receiver, &from, &["a"], usize::MAX);
    assert_eq!(receiver.counted().bytes_done, all.len() as u64);
    assert!(fs::read(to.join("a")).expect("there") == all);
}

#[test]
fn holes_are_not_sent_and_stay_holes() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let dir = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for dir in [&from, &to] {
        fs::create_dir(dir).expect("mkdir");
    }
    let file = fs::File::create(from.join("a")).expect("created");
    file.set_len(8 << 20).expect("grown");
    file.write_all_at(b"in the middle", 3 << 20).expect("written");
    let mut receiver = Receiver::new(Folder::new(&to));
    run(&mut receiver, &from, &["a"], usize::MAX);
    assert_eq!(receiver.counted().bytes_done, FRAME_BYTES as u64);
    assert!(fs::read(to.join("a")).expect("there") == fs::read(from.join("a")).expect("there"));
    assert!(fs::metadata(to.join("a")).expect("there").blocks() * 512 <= 2 * FRAME_BYTES as u64);
}

#[test]
fn bytes_that_lie_are_asked_for_again_and_nonsense_ends_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut receiver = Receiver::new(Folder::new(dir.path()));
    receiver.item(item("a", 3)).expect("taken");
    receiver.listed();
    let frame = |digest: &[u8]| CopyFrame {
        data: Bytes::from_static(b"abc"),
        last: true,
        digest: Bytes::copy_from_slice(digest),
        ..Default::default()
    };
    assert_eq!(receiver.want().expect("asked"), Some(CopyWant::default()));
    receiver.frame(frame(&[1; 32])).expect("asked for again");
    assert_eq!(receiver.want().expect("asked"), Some(CopyWant::default()));
    receiver.frame(frame(blake3::hash(b"abc").as_bytes())).expect("taken");
    receiver.settle(true).expect("settled");
    assert_eq!((receiver.counted().files_done, receiver.failures()), (1, 0));
    assert!(matches!(receiver.frame(frame(&[1; 32])), Err(Failed::All(_))));
    let mut receiver = Receiver::new(Folder::new(dir.path()));
    for name in ["..", "a/b", ""] {
        assert!(matches!(receiver.item(item(name, 1)), Err(Failed::All(_))), "{name:?}");
    }
}

#[test]
fn a_file_that_changes_all_the_time_fails_and_the_others_do_not() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut receiver = Receiver::new(Folder::new(dir.path()));
    receiver.item(item("a", 0)).expect("taken");
    receiver.item(item("b", 0)).expect("taken");
    receiver.listed();
    while let Some(want) = receiver.want().expect("asked") {
        let digest = Bytes::copy_from_slice(blake3::hash(b"").as_bytes());
        let error = if want.item == 0 { "it was changed" } else { "" };
        let frame =
            CopyFrame { item: want.item, last: true, digest, error: error.into(), again: true, ..Default::default() };
        receiver.frame(frame).expect("taken");
    }
    receiver.settle(true).expect("settled");
    assert_eq!((receiver.counted().files_done, receiver.failures()), (1, 1));
    assert!(receiver.is_complete());
}
