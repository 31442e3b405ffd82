//! Cuts an open file into chunks: one pass, bounded memory, holes and zeroes left out.
//!
//! Each run of data between holes is cut by itself, as the sender of a resync does, so that both find the same digests.

use std::{io, ops::ControlFlow};

use tandem_proto::{
    Digest,
    chunk::{CHUNK_MAX, chunks},
};

use super::{IndexedFile, recipe::Chunk};

/// Bytes that are read at a time, and all that cutting keeps in memory. Four of the longest chunks, so that three quarters of
/// what is read is cut at once.
const READ_BYTES: usize = 4 * CHUNK_MAX;

/// Why cutting ended early.
#[derive(Debug, thiserror::Error)]
pub enum CutError<E> {
    /// The file cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The caller's step failed.
    #[error("{0}")]
    Step(E),
}

/// Takes the chunks of one read; may end the cutting.
pub type Step<'a, E> = dyn FnMut(&[Chunk]) -> Result<ControlFlow<()>, E> + 'a;

/// Cuts `file`, handing over the chunks of each read in order. `step` may end it. Returns whether it came to the end.
pub fn cut<E>(file: &dyn IndexedFile, step: &mut Step<'_, E>) -> Result<bool, CutError<E>> {
    let mut buffer = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = file.next_data(at)? {
        // Most files are short: no more of it is cleared than is read.
        let most = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(READ_BYTES);
        buffer.resize(most.max(buffer.len()), 0);
        if cut_run(file, start, end, &mut buffer, step)?.is_break() {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

fn cut_run<E>(
    file: &dyn IndexedFile,
    start: u64,
    end: u64,
    buffer: &mut [u8],
    step: &mut Step<'_, E>,
) -> Result<ControlFlow<()>, CutError<E>> {
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let have = file.read_at(at, &mut buffer[..want])?;
        let last = have < want || at + have as u64 == end;
        let bytes = &buffer[..have];
        found.clear();
        let mut used = 0;
        let mut cuts = chunks(bytes).peekable();
        while let Some((offset, len)) = cuts.next() {
            if cuts.peek().is_none() && !last {
                break;
            }
            used = offset + len;
            let chunk = &bytes[offset..used];
            if chunk.iter().any(|byte| *byte != 0) {
                found.push(Chunk { offset: at + offset as u64, len: len as u32, digest: Digest::of(chunk) });
            }
        }
        if step(&found).map_err(CutError::Step)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if last {
            break;
        }
        at += used as u64;
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, fs::File, ops::ControlFlow, os::unix::fs::FileExt as _};

    use tandem_proto::{Digest, chunks};

    use super::{READ_BYTES, cut};
    use crate::index::{recipe::Chunk, testing::PlainFile};

    fn cut_all(file: &File) -> Vec<Chunk> {
        let mut all = Vec::new();
        let mut step = |found: &[Chunk]| {
            all.extend_from_slice(found);
            Ok::<_, Infallible>(ControlFlow::Continue(()))
        };
        let file = PlainFile(file.try_clone().expect("duplicate"));
        assert!(cut(&file, &mut step).expect("readable"));
        all
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_cut_like_the_whole() {
        let bytes = noise(3 * READ_BYTES + 12345);
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(&bytes, 0).expect("write");
        let expected: Vec<Chunk> = chunks(&bytes)
            .map(|(at, len)| Chunk { offset: at as u64, len: len as u32, digest: Digest::of(&bytes[at..at + len]) })
            .collect();
        assert_eq!(cut_all(&file), expected);
    }

    #[test]
    fn holes_and_zeroes_are_left_out() {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(1 << 40).expect("sparse");
        file.write_all_at(&noise(5000), 1 << 39).expect("write");
        file.write_all_at(&[0; 5000], 1 << 20).expect("write");
        let found = cut_all(&file);
        assert!(!found.is_empty() && found.iter().all(|chunk| chunk.offset >= 1 << 39), "{found:?}");
    }

    #[test]
    fn an_empty_file_has_no_chunks() {
        assert_eq!(cut_all(&tempfile::tempfile().expect("temporary file")), []);
    }
}
