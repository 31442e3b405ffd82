//! Reads a file ahead of who reads it in order, where it is not in memory, so that the disk below always has something to do.
//!
//! The kernel reads ahead on both sides of the daemon, by windows, and has the next window of the folder read when the first page of the one before is
//! asked for. Behind a mount that is late: the pages wait until they were copied into its own cache, and the disk waits with them (a quarter
//! of the time, docs/decisions/0057). A thread here asks for each window as soon as the one before has come, copies nothing,
//! and stops where it is far enough ahead. What it reads stays in the cache of the folder, and the answer to the reader comes from there, so nothing can be told
//! that is not true any more.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::{
    fs::{Advice, FileType, Mode, OFlags, makedev},
    io::{Errno, ReadWriteFlags},
};

use crate::backing::sys;

/// Shorter reads are none of a file in order: the kernel makes those long.
const LONG: usize = 64 << 10;
/// So many of them in a row are an order.
const RUN: u32 = 4;
/// Several threads answer, so what was asked for in order comes a little out of order.
const SLACK: u64 = 4 << 20;
/// No further ahead than that, nor than the reads in order are together. Behind it the kernel reads two of its windows more.
const AHEAD: u64 = 16 << 20;
/// Asked for at a time, at most.
const CHUNK: usize = 1 << 20;
/// Handles whose files are read ahead at a time.
const HANDLES: usize = 4;
/// Who reads no further for so long has stopped.
const REST: Duration = Duration::from_secs(2);

/// Where it is decided which files are read ahead.
#[derive(Debug)]
pub(super) struct Readahead {
    /// Takes what is read. `None`: it was not to be had, so nothing is read ahead.
    sink: Option<Arc<OwnedFd>>,
    /// One for each file that is read ahead now.
    places: Arc<AtomicUsize>,
}

/// How a file is read through one handle.
#[derive(Debug, Default)]
pub(super) struct Stream(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    order: Order,
    /// Also of one who is not read ahead for any more, until he reads elsewhere.
    reader: Option<Arc<Reader>>,
}

/// Whether reads are in order.
#[derive(Debug, Default)]
struct Order {
    /// End of the one that went furthest.
    end: u64,
    /// How long the last part of them is, and how much of it was asked for.
    span: u64,
    bytes: u64,
    /// So many in a row.
    run: u32,
    /// How much they are together, up to [`AHEAD`].
    length: u64,
}

/// The one who is read for, as the thread that is ahead of him knows him.
#[derive(Debug)]
struct Reader {
    at: Mutex<At>,
    moved: Condvar,
}

#[derive(Debug)]
struct At {
    /// He has asked for all before this.
    end: u64,
    /// So far ahead of that may be read.
    ahead: u64,
    /// Where the thread goes on; until then it is not woken.
    wanted: u64,
    follows: Follows,
}

/// Whether a thread is ahead of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    Yes,
    /// It is not to be any more: he has closed the file, or reads elsewhere.
    NoMore,
    /// No: he has stopped for a while, or there is no more, or no thread.
    NotNow,
    /// No: it fails, which is told to who reads it.
    Never,
}

/// A place among those files that are read ahead.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Order {
    /// Takes a read; whether it goes on in the order of those before. Who leaves out more than he reads is in none.
    fn goes_on(&mut self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len);
        let near = offset <= self.end.saturating_add(SLACK) && end.saturating_add(SLACK) >= self.end;
        let further = end.saturating_sub(self.end);
        let span = self.span.saturating_add(further);
        let bytes = self.bytes.saturating_add(len).min(span);
        if self.run == 0 || !near || bytes < span / 2 {
            *self = Order { end, span: len, bytes: len, run: 1, length: len };
            return false;
        }
        // What was long ago says nothing of what comes.
        let halves = if span > AHEAD { 2 } else { 1 };
        (self.span, self.bytes) = (span / halves, bytes / halves);
        self.end += further;
        self.run = self.run.saturating_add(u32::from(further > 0));
        self.length = self.length.saturating_add(further).min(AHEAD);
        true
    }
}

impl Reader {
    fn new(order: &Order) -> Arc<Reader> {
        let at = At { end: order.end, ahead: order.length, wanted: u64::MAX, follows: Follows::Yes };
        Arc::new(Reader { at: Mutex::new(at), moved: Condvar::new() })
    }

    /// He asks for all before this. Whether a thread is ahead of him.
    fn has_moved(&self, order: &Order) -> Follows {
        let mut at = self.at.lock();
        (at.end, at.ahead) = (order.end, order.length);
        if at.end >= at.wanted {
            self.moved.notify_one();
        }
        at.follows
    }

    fn end(&self, why: Follows) {
        self.at.lock().end_with(why);
        self.moved.notify_one();
    }

    /// Where to go on from here, and how far, once that is not too far ahead. `None`: nobody reads there any more.
    fn next(&self, from: u64) -> Option<(u64, usize)> {
        let mut at = self.at.lock();
        if from >= at.end.saturating_add(at.ahead) {
            // Not for every read: half of the way at a time.
            at.wanted = from - at.ahead / 2;
            let waits = |at: &mut At| at.follows == Follows::Yes && at.end < at.wanted;
            let mut end = at.end;
            while self.moved.wait_while_for(&mut at, waits, REST).timed_out() {
                if std::mem::replace(&mut end, at.end) == at.end {
                    at.end_with(Follows::NotNow);
                    break;
                }
            }
            at.wanted = u64::MAX;
        }
        let len = at.ahead.min(CHUNK as u64) as usize;
        (at.follows == Follows::Yes).then(|| (from.max(at.end), len))
    }
}

impl At {
    /// The first reason counts.
    fn end_with(&mut self, why: Follows) {
        if self.follows == Follows::Yes {
            self.follows = why;
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.leave();
    }
}

impl State {
    fn leave(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.end(Follows::NoMore);
        }
    }
}

impl Readahead {
    /// Where nothing is read yet.
    pub(super) fn new() -> Readahead {
        let sink = open_sink().inspect_err(|error| tracing::debug!(%error, "/dev/null, so nothing is read ahead")).ok();
        Readahead { sink: sink.map(Arc::new), places: Arc::default() }
    }

    /// How many files are read ahead now.
    pub(super) fn files(&self) -> usize {
        self.places.load(Ordering::Relaxed)
    }

    /// A file is read through a handle, of which this is the descriptor.
    pub(super) fn is_read(&self, file: &Arc<OwnedFd>, stream: &Stream, offset: u64, len: usize) {
        if len < LONG {
            return;
        }
        // Another thread answers the one beside it, and may be waiting for the disk.
        let Some(mut state) = stream.0.try_lock() else { return };
        if !state.order.goes_on(offset, len as u64) {
            state.leave();
            return;
        }
        match state.reader.as_ref().map(|reader| reader.has_moved(&state.order)) {
            None | Some(Follows::NotNow) => {}
            Some(_) => return,
        }
        if state.order.run >= RUN
            && let Some(sink) = &self.sink
            && self.files() < HANDLES
            && is_awaited(file, state.order.end)
            && let Some(place) = self.room()
        {
            state.reader = Some(follow(file.clone(), sink.clone(), place, &state.order));
        }
    }

    /// A place for one more, if there is any.
    fn room(&self) -> Option<Place> {
        let taken = |places| (places < HANDLES).then_some(places + 1);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).ok()?;
        Some(Place(self.places.clone()))
    }
}

/// `/dev/null`, if it is what it should be.
fn open_sink() -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let sink = rustix::fs::open("/dev/null", flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&sink)?;
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if is_null { Ok(sink) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// A reader with a thread that is ahead of him from here on.
fn follow(file: Arc<OwnedFd>, sink: Arc<OwnedFd>, place: Place, order: &Order) -> Arc<Reader> {
    let (reader, end) = (Reader::new(order), order.end);
    let follows = reader.clone();
    let started = thread::Builder::new().name("readahead".into()).spawn(move || {
        let _place = place;
        // At the end of the file there may be more in a while.
        let ended = read_ahead(file, &sink, &follows, end).map(|()| Follows::NotNow).unwrap_or_else(|error| {
            tracing::debug!(%error, "reading ahead");
            Follows::Never
        });
        follows.end(ended);
    });
    if let Err(error) = started {
        tracing::debug!(%error, "no thread to read ahead");
        reader.end(Follows::NotNow);
    }
    reader
}

/// Until the end of the file, or nobody reads there any more.
fn read_ahead(file: Arc<OwnedFd>, sink: &OwnedFd, reader: &Reader, from: u64) -> io::Result<()> {
    // By a descriptor of its own: the other one's times are those of the reader, and so is when it is closed.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let own = sys::reopen(&file, flags | OFlags::NOATIME).or_else(|_| sys::reopen(&file, flags))?;
    drop(file);
    // Windows of twice the length; without them it is a little slower.
    let _ = rustix::fs::fadvise(&own, 0, None, Advice::Sequential);
    let mut from = from;
    while let Some((mut at, len)) = reader.next(from) {
        // The pages are not copied.
        match rustix::fs::sendfile(sink, &own, Some(&mut at), len) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => from = at,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a page is still to come; if it was not asked for yet, it is now. Where the file system cannot say so, nothing is read ahead.
fn is_awaited(file: impl AsFd, offset: u64) -> bool {
    if i64::try_from(offset).is_err() {
        return false;
    }
    let mut byte = [0];
    let read = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
    matches!(read, Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write as _,
        os::fd::{AsFd, AsRawFd as _, OwnedFd},
        sync::Arc,
        thread,
        time::{Duration, Instant},
    };

    use super::{AHEAD, CHUNK, Follows, HANDLES, LONG, Order, RUN, Readahead, Reader, SLACK, Stream, is_awaited};

    const MIB: u64 = 1 << 20;
    /// Longer than what the kernel reads ahead by itself behind [`AHEAD`].
    const LEN: u64 = 192 << 20;
    const SHORT: u64 = 24 << 20;
    /// Its number, on all processors.
    const CACHESTAT: libc::c_long = 451;

    fn eventually(mut holds: impl FnMut() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds() {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// A file that is on the disk and not in memory. None where there is no disk.
    fn cold(dir: &tempfile::TempDir, name: &str, len: u64) -> Option<Arc<OwnedFd>> {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![7; len as usize]).expect("written");
        let file = File::open(&path).expect("there");
        forget(&file);
        let there = is_awaited(&file, 0);
        if !there {
            eprintln!("SKIPPED: {} is in memory", dir.path().display());
        }
        there.then(|| Arc::new(file.into()))
    }

    fn forget(file: impl AsFd) {
        rustix::fs::fsync(&file).expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    }

    /// Whether most from here on is in memory; to ask leaves it as it is (`cachestat(2)`). None before Linux 6.5.
    fn in_memory(file: &OwnedFd, offset: u64, len: u64) -> Option<bool> {
        let range = [offset, len];
        // In memory, dirty, under writeback, evicted, lately so.
        let mut pages = [0u64; 5];
        // SAFETY: both pointers are to live arrays of the lengths of `struct cachestat_range` and `struct cachestat`.
        let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), pages.as_mut_ptr(), 0) };
        // SAFETY: no pointers are involved.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned();
        (result == 0).then_some(pages[0] * page > len / 2)
    }

    /// So much is asked for in order, from here on; where it ends.
    fn ask(readahead: &Readahead, file: &Arc<OwnedFd>, stream: &Stream, from: u64, reads: u64) -> u64 {
        for at in 0..reads {
            readahead.is_read(file, stream, from + at * MIB, MIB as usize);
        }
        from + reads * MIB
    }

    /// The same, until it is read ahead; a disk may be so fast that what is asked for is there at once.
    fn ask_until(readahead: &Readahead, file: &Arc<OwnedFd>, stream: &Stream, from: u64, files: usize) -> u64 {
        let mut end = from;
        assert!(eventually(|| {
            end = if end + MIB < len(file) { ask(readahead, file, stream, end, 1) } else { from };
            readahead.files() == files
        }));
        end
    }

    fn len(file: &OwnedFd) -> u64 {
        rustix::fs::fstat(file).expect("open").st_size.cast_unsigned()
    }

    #[test]
    fn reads_are_in_order_if_they_go_on_where_others_end_also_when_threads_swap_them() {
        let mut order = Order::default();
        assert!(!order.goes_on(0, MIB), "nothing was before");
        for at in [1, 3, 2, 4] {
            assert!(order.goes_on(at * MIB, MIB));
        }
        assert_eq!((order.end, order.run), (5 * MIB, 4), "what came late is not one more");
        assert!(!order.goes_on(5 * MIB + SLACK + 1, MIB), "too far on");
        assert_eq!(order.run, 1);
        assert!(order.goes_on(6 * MIB + SLACK + 1, MIB));
        assert!(!order.goes_on(0, MIB), "back");
        assert!(!order.goes_on(u64::MAX, u64::MAX) && order.run == 1);
        assert!(!is_awaited(File::open("/proc/self/exe").expect("there"), u64::MAX));
        // Every fourth piece only: the rest is not read for nothing.
        let mut order = Order::default();
        for at in 0..100 {
            order.goes_on(at * MIB, MIB / 4);
            assert!(order.run < RUN);
        }
        // Nor if he read all before, or reads some of it again and again.
        let mut order = Order::default();
        (0..1000).for_each(|at| assert_eq!(order.goes_on(at * MIB, MIB), at > 0));
        assert_eq!(order.length, AHEAD);
        (0..1000).for_each(|_| assert!(order.goes_on(999 * MIB, MIB)));
        let steps = (0..100).take_while(|at| order.goes_on((1000 + 4 * at) * MIB, MIB / 16)).count();
        assert!(steps as u64 * 4 * MIB <= AHEAD, "{steps}");
    }

    #[test]
    fn who_reads_in_order_is_read_for_and_not_too_far() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(file) = cold(&dir, "file", LEN) else { return };
        let (readahead, stream) = (Readahead::new(), Stream::default());
        let end = ask(&readahead, &file, &stream, 0, u64::from(RUN) - 1);
        assert_eq!(readahead.files(), 0, "not an order yet");
        let end = ask_until(&readahead, &file, &stream, end, 1);
        if in_memory(&file, 0, 1).is_none() {
            eprintln!("SKIPPED: what is in memory is not told");
            return;
        }
        assert!(eventually(|| in_memory(&file, end, end.min(AHEAD)) == Some(true)), "as far again as he has come");
        assert_eq!(in_memory(&file, LEN - MIB, MIB), Some(false), "and no further");
        // He goes on: so does it, or another one.
        let mut end = end;
        assert!(eventually(|| {
            end = if end < LEN / 4 { ask(&readahead, &file, &stream, end, 1) } else { end };
            in_memory(&file, LEN / 4, AHEAD / 2) == Some(true)
        }));
        // He reads elsewhere.
        readahead.is_read(&file, &stream, LEN / 2, CHUNK);
        assert!(eventually(|| readahead.files() == 0));
        ask_until(&readahead, &file, &stream, LEN / 2, 1);
        drop(stream);
        assert!(eventually(|| readahead.files() == 0), "it is closed");
    }

    #[test]
    fn who_stops_is_not_waited_for_and_read_for_again_when_he_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(file) = cold(&dir, "file", LEN) else { return };
        let (readahead, stream) = (Readahead::new(), Stream::default());
        let end = ask_until(&readahead, &file, &stream, 0, 1);
        assert!(eventually(|| readahead.files() == 0), "rests");
        // What was read meanwhile is in memory; behind that he is ahead again.
        ask_until(&readahead, &file, &stream, end, 1);
    }

    #[test]
    fn what_is_in_memory_or_short_is_not_read_ahead_nor_are_too_many() {
        let dir = tempfile::tempdir().expect("a directory");
        let readahead = Readahead::new();
        let streams: Vec<Stream> = (0..HANDLES + 2).map(|_| Stream::default()).collect();
        let Some(file) = cold(&dir, "file", LEN) else { return };
        let mut most = 0;
        // A thread rests after two seconds, so the first may be gone on a slow machine.
        for (at, stream) in streams.iter().enumerate() {
            let from = at as u64 * SHORT;
            (0..100).for_each(|at| readahead.is_read(&file, stream, from + at * (LONG as u64 - 1), LONG - 1));
            assert!(readahead.files() <= most, "short reads");
            ask(&readahead, &file, stream, from, u64::from(RUN) + 2);
            most = most.max(readahead.files());
        }
        assert!((1..=HANDLES).contains(&most), "{most}");
        drop(streams);
        assert!(eventually(|| readahead.files() == 0));
        let path = dir.path().join("warm");
        std::fs::write(&path, vec![0; SHORT as usize]).expect("written");
        let (file, stream) = (Arc::new(File::open(&path).expect("there").into()), Stream::default());
        ask(&readahead, &file, &stream, 0, SHORT / MIB);
        assert_eq!(readahead.files(), 0, "in memory");
    }

    #[test]
    fn where_there_is_no_more_it_ends_and_begins_again_where_more_came() {
        let dir = tempfile::tempdir().expect("a directory");
        let Some(file) = cold(&dir, "file", SHORT) else { return };
        let (readahead, stream) = (Readahead::new(), Stream::default());
        let begun = ask_until(&readahead, &file, &stream, 0, 1);
        ask(&readahead, &file, &stream, begun, (SHORT - begun) / MIB);
        assert!(eventually(|| readahead.files() == 0), "the end of the file");
        ask(&readahead, &file, &stream, SHORT - MIB, 3);
        assert_eq!(readahead.files(), 0);
        // More came, and is not in memory.
        let path = dir.path().join("file");
        let more = File::options().append(true).open(path).expect("there");
        (&more).write_all(&vec![7; SHORT as usize]).expect("written");
        forget(&more);
        ask_until(&readahead, &file, &stream, SHORT, 1);
    }

    #[test]
    fn it_waits_until_the_reader_is_half_of_the_way_further() {
        let order = |end| Order { end, length: AHEAD, ..Order::default() };
        let reader = Reader::new(&Order { end: 0, length: MIB / 2, ..Order::default() });
        assert_eq!(reader.next(0), Some((0, CHUNK / 2)), "no more than he reads himself");
        reader.has_moved(&order(0));
        assert_eq!(reader.next(AHEAD - 1), Some((AHEAD - 1, CHUNK)));
        thread::scope(|scope| {
            let waits = scope.spawn(|| reader.next(AHEAD));
            assert!(eventually(|| reader.at.lock().wanted == AHEAD / 2));
            reader.has_moved(&order(AHEAD / 2 - 1));
            assert_eq!(reader.at.lock().wanted, AHEAD / 2, "not yet");
            reader.has_moved(&order(AHEAD / 2));
            assert_eq!(waits.join().expect("no panic"), Some((AHEAD, CHUNK)));
        });
        assert_eq!(reader.next(0), Some((AHEAD / 2, CHUNK)), "not behind him");
        reader.end(Follows::NoMore);
        reader.end(Follows::NotNow);
        assert_eq!((reader.next(AHEAD), reader.has_moved(&order(AHEAD))), (None, Follows::NoMore));
    }
}
