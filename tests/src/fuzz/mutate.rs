//! Changes of good input that break decoders: flips, interesting numbers, cuts, repetitions, and pieces of other inputs.

use crate::rng::Rng;

/// Bytes that lengths and tags like to choke on.
const NASTY: [u8; 9] = [0, 1, 0x7f, 0x80, 0xff, b'/', b'.', b'-', b'\n'];
/// Changes of one input at most.
const CHANGES_MAX: u64 = 6;

/// A changed input.
pub fn mutate(rng: &mut Rng, corpus: &[Vec<u8>], max: usize) -> Vec<u8> {
    let mut input = if corpus.is_empty() { Vec::new() } else { rng.pick(corpus).clone() };
    for _ in 0..1 + rng.below(CHANGES_MAX) {
        change(rng, &mut input, corpus);
    }
    input.truncate(max);
    input
}

fn change(rng: &mut Rng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.index(input.len() + 1);
    let there = at < input.len();
    match rng.below(9) {
        0 if there => input[at] ^= 1 << rng.below(8),
        1 if there => input[at] = *rng.pick(&NASTY),
        2 if there => input[at] = rng.bits() as u8,
        3 => input.truncate(at),
        4 => {
            let end = (at + 1 + rng.index(32)).min(input.len());
            if there {
                input.drain(at..end);
            }
        }
        5 => {
            let bytes = vec![*rng.pick(&NASTY); 1 + rng.index(12)];
            input.splice(at..at, bytes);
        }
        6 if there => {
            // A varint that claims the world.
            let len = 1 + rng.index(9);
            let bytes = std::iter::repeat_n(0xff, len).chain([rng.below(128) as u8]);
            let end = (at + len).min(input.len());
            input.splice(at..end, bytes);
        }
        7 if there => {
            let word = [0u64, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63][rng.index(6)].to_le_bytes();
            for (byte, new) in input[at..].iter_mut().zip(&word[..1 << rng.below(4)]) {
                *byte = *new;
            }
        }
        _ if !corpus.is_empty() => {
            let other = rng.pick(corpus);
            let from = rng.index(other.len() + 1);
            let to = (from + rng.index(64)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
        _ => input.push(rng.bits() as u8),
    }
}
