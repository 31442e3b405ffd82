//! Looks ahead, as Lustre's statahead does: who asks for the names of a directory one after the other, in the order in which they sort
//! (`git status`, `ls -l *`, `rsync`), finds each of them in the memory of the kernel, as the folder's file system was asked for it while he was busy
//! with the one before. That is all that is done ahead: what he is told is looked up when he asks. Names that the kernel knows already it does not
//! ask for, so nothing is ahead of those.

use std::{
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt as _},
};

use rustix::fs::OFlags;
use tandem_proto::stage::NodeType;

use super::{Journal, Vfs, VfsError, VfsResult};
use crate::backing::sys;

/// So many names in a row that sort after the one before are an order; and so many at most, as each time that it was none doubles it.
const RUN: [u32; 2] = [4, 64];
/// So many looks that were right prove an order.
const PROOF: u32 = 32;
/// Names that are passed over, or answered by another thread meanwhile, keep the order, up to so many.
const STEP: usize = 8;
/// So many names in a row that are out of order end it.
const MISSES: u32 = 8;
/// Directories that are followed at a time: each thread of a program may go through another one.
const DIRECTORIES: usize = 4;
/// The bytes of the names of a directory, at most. In a larger one nothing is looked at ahead.
const NAMES_BYTES: usize = 256 << 10;
/// A directory of this size has more names than that (ext4, the widest: 8 bytes beside each name, half of a block empty).
const SIZE_MAX: u64 = 8 * NAMES_BYTES as u64;

/// What directories are looked through, and how far; one that has been asked about lately comes first.
#[derive(Debug)]
pub(super) struct Ahead {
    tracks: Vec<Track>,
    /// So many names in a row are an order, see [`RUN`].
    run: u32,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead { tracks: Vec::new(), run: RUN[0] }
    }
}

/// A directory that is looked through.
#[derive(Debug)]
struct Track {
    dir: u64,
    /// The name that was asked for last.
    last: Vec<u8>,
    /// So many names in a row that sort after the one before.
    run: u32,
    /// So many names in a row that do not.
    misses: u32,
    /// So many names came when they were expected.
    hits: u32,
    /// All of them, once there is an order.
    names: Option<Names>,
    /// Which one is next.
    next: usize,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Todo<'a> {
    Nothing,
    /// The names of the directory are to be given to [`Ahead::listed`].
    List,
    /// This name is to be looked at.
    Look(&'a [u8]),
}

/// Names of a directory, in order.
#[derive(Debug, Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Names {
    /// Takes one; `false`: there is no room for it.
    fn take(&mut self, name: &[u8]) -> bool {
        if self.bytes.len() + name.len() > NAMES_BYTES {
            return false;
        }
        let begin = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.places.push((begin, self.bytes.len() as u32));
        true
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_unstable_by_key(|place| slice(bytes, *place));
    }

    fn get(&self, at: usize) -> Option<&[u8]> {
        self.places.get(at).map(|place| slice(&self.bytes, *place))
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        self.places.binary_search_by_key(&name, |place| slice(&self.bytes, *place)).ok()
    }
}

fn slice(bytes: &[u8], (begin, end): (u32, u32)) -> &[u8] {
    &bytes[begin as usize..end as usize]
}

impl Ahead {
    /// Somebody asked for a name of a directory that the kernel did not know.
    fn asked(&mut self, dir: u64, name: &[u8]) -> Todo<'_> {
        let Some(at) = self.tracks.iter().position(|track| track.dir == dir) else {
            let oldest = if self.tracks.len() < DIRECTORIES { None } else { self.tracks.pop() };
            let mut last = oldest.map_or_else(Vec::new, |track| track.last);
            last.clear();
            last.extend_from_slice(name);
            self.tracks.insert(0, Track { dir, last, run: 1, misses: 0, hits: 0, names: None, next: 0 });
            return Todo::Nothing;
        };
        self.tracks[..=at].rotate_right(1);
        let Ahead { tracks, run } = self;
        tracks[0].asked(name, run)
    }

    /// What [`Todo::List`] asks for. None: they are not to be had, and not asked for again.
    fn listed(&mut self, dir: u64, mut names: Names) -> Todo<'_> {
        let Some(track) = self.tracks.iter_mut().find(|track| track.dir == dir) else { return Todo::Nothing };
        names.sort();
        track.next = names.find(&track.last).map_or(0, |at| at + 1);
        track.names = Some(names);
        track.look()
    }
}

impl Track {
    /// `run`: so many names in a row are an order.
    fn asked(&mut self, name: &[u8], run: &mut u32) -> Todo<'_> {
        let Some(names) = &self.names else {
            self.run = if name > &*self.last { self.run + 1 } else { 1 };
            self.last.clear();
            self.last.extend_from_slice(name);
            return if self.run >= *run { Todo::List } else { Todo::Nothing };
        };
        let found = if names.get(self.next) == Some(name) { Some(self.next) } else { names.find(name) };
        if let Some(at) = found
            && at.abs_diff(self.next) <= STEP
        {
            (self.misses, self.hits) = (0, self.hits + 1);
            if self.hits == PROOF {
                *run = RUN[0];
            }
            self.next = self.next.max(at + 1);
            return self.look();
        }
        self.misses += 1;
        self.next = found.map_or(self.next, |at| at + 1);
        if self.misses >= MISSES && !names.is_empty() {
            // Another order, or other names by now: from the beginning.
            if self.hits < PROOF {
                *run = (*run * 2).min(RUN[1]);
            }
            (self.names, self.run, self.misses, self.hits) = (None, 0, 0, 0);
        }
        Todo::Nothing
    }

    fn look(&self) -> Todo<'_> {
        self.names.as_ref().and_then(|names| names.get(self.next)).map_or(Todo::Nothing, Todo::Look)
    }
}

impl<J: Journal> Vfs<J> {
    /// A name was asked for that the kernel did not know, and is answered; now there is time to look at what may be asked for next. If another
    /// thread does so, it is left out.
    pub(super) fn look_ahead(&self, dir: u64, dir_fd: impl AsFd, name: &OsStr) {
        let Some(mut ahead) = self.ahead.try_lock() else { return };
        let todo = match ahead.asked(dir, name.as_bytes()) {
            Todo::List => {
                let names = self.names_of(dir, &dir_fd).unwrap_or_else(|error| {
                    tracing::debug!(%error, node = dir, "the names of a directory cannot be looked at ahead");
                    Names::default()
                });
                ahead.listed(dir, names)
            }
            todo => todo,
        };
        if let Todo::Look(next) = todo {
            // Whether it is there is told to who asks for it.
            let _ = sys::stat_at(dir_fd, OsStr::from_bytes(next));
        }
    }

    /// None if there are too many. Without directories, which may be where something else is mounted that does not answer. The directory's own times
    /// are left as they are.
    fn names_of(&self, dir: u64, dir_fd: impl AsFd) -> VfsResult<Names> {
        let mut names = Names::default();
        let mut fits = sys::size(dir_fd)? <= SIZE_MAX;
        if !fits {
            return Ok(names);
        }
        self.list(dir, 0, OFlags::NOATIME, &mut |_, listed| {
            let is_dir = matches!(listed.node_type, None | Some(NodeType::Directory));
            fits = is_dir || names.take(listed.name.as_bytes());
            Ok::<_, VfsError>(!fits)
        })?;
        Ok(if fits { names } else { Names::default() })
    }

    /// Nobody asks for anything: what is kept to look ahead is let go of.
    pub fn rest(&self) {
        if let Some(mut ahead) = self.ahead.try_lock() {
            *ahead = Ahead::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Ahead, DIRECTORIES, MISSES, NAMES_BYTES, Names, PROOF, RUN, STEP, Todo};

    fn name(at: usize) -> Vec<u8> {
        format!("file-{at:05}").into_bytes()
    }

    fn names(count: usize) -> Names {
        let mut names = Names::default();
        // As a file system lists them: in no order.
        (0..count).for_each(|at| assert!(names.take(&name(at * 7 % count))));
        names
    }

    /// One that follows a directory of so many names, of which the first few were asked for.
    fn following(count: usize) -> Ahead {
        let mut ahead = Ahead::default();
        for at in 0..RUN[0] as usize - 1 {
            assert_eq!(ahead.asked(1, &name(at)), Todo::Nothing);
        }
        assert_eq!(ahead.asked(1, &name(RUN[0] as usize - 1)), Todo::List);
        assert_eq!(ahead.listed(1, names(count)), Todo::Look(&name(RUN[0] as usize)));
        ahead
    }

    #[test]
    fn each_name_in_order_is_followed_by_a_look_at_the_next_one() {
        let mut ahead = following(1000);
        for at in RUN[0] as usize..999 {
            assert_eq!(ahead.asked(1, &name(at)), Todo::Look(&name(at + 1)));
        }
        assert_eq!(ahead.asked(1, &name(999)), Todo::Nothing, "it was the last one");
    }

    #[test]
    fn names_that_are_passed_over_or_come_late_keep_the_order() {
        let mut ahead = following(1000);
        assert_eq!(ahead.asked(1, &name(4 + STEP)), Todo::Look(&name(5 + STEP)));
        assert_eq!(ahead.asked(1, &name(3 + STEP)), Todo::Look(&name(5 + STEP)), "nothing is looked at again");
        assert_eq!(ahead.asked(1, b"file-99999"), Todo::Nothing, "one that was not there");
        assert_eq!(ahead.asked(1, &name(5 + STEP)), Todo::Look(&name(6 + STEP)));
        assert_eq!(ahead.asked(1, &name(500)), Todo::Nothing);
        assert_eq!(ahead.asked(1, &name(501)), Todo::Look(&name(502)), "it goes on from there");
    }

    #[test]
    fn who_asks_in_no_order_has_nothing_looked_at() {
        let mut ahead = Ahead::default();
        for at in (0..100).rev() {
            assert_eq!(ahead.asked(1, &name(at)), Todo::Nothing);
        }
        let mut ahead = following(1000);
        for at in 0..MISSES as usize {
            assert_eq!(ahead.asked(1, &name(900 - at * 100)), Todo::Nothing);
        }
        assert!(ahead.tracks[0].names.is_none(), "the names are let go of");
        // The next time it takes more to be an order.
        (0..2 * RUN[0] as usize - 1).for_each(|at| assert_eq!(ahead.asked(1, &name(at)), Todo::Nothing));
        assert_eq!(ahead.asked(1, &name(900)), Todo::List);
    }

    #[test]
    fn what_is_asked_for_at_random_is_hardly_ever_listed() {
        let (mut ahead, mut at, mut listed) = (Ahead::default(), 1, 0);
        for _ in 0..100_000 {
            // All numbers below 4999, which is prime, as the powers of 3.
            at = at * 3 % 4999;
            if ahead.asked(1, &name(at)) == Todo::List {
                listed += 1;
                ahead.listed(1, names(5000));
            }
        }
        assert!(listed <= 3, "{listed}");
        // Who asks in order after that is followed again, and the next one at once.
        assert!((0..=RUN[1] as usize).any(|at| ahead.asked(2, &name(at)) == Todo::List));
        ahead.listed(2, names(5000));
        let from = ahead.tracks[0].next;
        (from..from + PROOF as usize).for_each(|at| assert_eq!(ahead.asked(2, &name(at)), Todo::Look(&name(at + 1))));
        assert_eq!(ahead.run, RUN[0]);
    }

    #[test]
    fn few_directories_are_followed_and_a_large_one_is_not_at_all() {
        let mut ahead = following(100);
        for dir in 2..=DIRECTORIES as u64 {
            assert_eq!(ahead.asked(dir, b"a"), Todo::Nothing);
            assert_eq!(ahead.asked(1, &name(dir as usize + 2)), Todo::Look(&name(dir as usize + 3)));
        }
        for dir in 10..10 + DIRECTORIES as u64 {
            ahead.asked(dir, b"a");
        }
        assert_eq!(ahead.tracks.len(), DIRECTORIES);
        assert!(ahead.tracks.iter().all(|track| track.names.is_none()), "the least lately used one went");
        assert_eq!(ahead.listed(1, names(10)), Todo::Nothing, "nobody follows it any more");
        let mut large = Names::default();
        while large.take(&[b'x'; 255]) {}
        assert!(large.bytes.len() <= NAMES_BYTES);
        // What is too large comes empty.
        let mut ahead = Ahead::default();
        for at in 0..RUN[0] as usize {
            ahead.asked(1, &name(at));
        }
        assert_eq!(ahead.listed(1, Names::default()), Todo::Nothing);
        for at in RUN[0] as usize..100 {
            assert_eq!(ahead.asked(1, &name(at)), Todo::Nothing, "nor is it listed again");
        }
    }
}
