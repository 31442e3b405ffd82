//! What a mount keeps of its folder and reads at its next start: marks, shadow, divergence, state.
//!
//! Records have checksums, which no mutation hits. So a program of records is read, each `kind, version, length, payload`, and framed here.

use std::path::Path;

use tandem_mountd::{
    commit::{activity_log, shadow},
    divergence::stored,
    state,
};
use tandem_runtime::frame;

const MARKS: u8 = 0;
const SHADOW: u8 = 1;
const DIVERGENCE: u8 = 2;
const STATE: u8 = 3;
const AS_IT_IS: u8 = 4;

/// A record of a program.
fn record(kind: u8, version: u8, payload: &[u8]) -> Vec<u8> {
    [&[kind, version, payload.len() as u8], payload].concat()
}

/// Good ones.
pub fn seeds() -> Vec<Vec<u8>> {
    let of = |reader: u8, parts: &[&[u8]]| [&[reader], parts.concat().as_slice()].concat();
    // Identities, the floor, the run; then a mark of a directory and of a block, and a clear of the first.
    let header = record(1, 2, &[7; 80]);
    let mark = |generation: u8, tag: u8| {
        record(2, 1, &[&[generation], &[0; 7][..], &[1; 32], &[tag], &[9; 8], b"id"].concat())
    };
    let clear = record(3, 1, &[1, 0, 0, 0, 0, 0, 0, 0]);
    let marks = of(MARKS, &[&header, &mark(1, 0), &mark(2, 1), &clear]);
    // The floor, an op without cells, freeze.
    let shadow = of(SHADOW, &[&record(8, 1, &[3; 32]), &record(1, 1, &[5; 8]), &record(3, 1, &[0])]);
    let divergence =
        br#"{"version":1,"dirs":[{"id":"01","names":["61"]}],"nodes":[{"id":"02","born":true,"whole":false,
        "ranges":[[0,4096]]}],"everything":false,"walk_since":[1,2]}"#;
    let state = br#"{"version":1,"client_id":"00000000000000000000000000000001","volume":"vol","runs":[]}"#;
    let log = of(AS_IT_IS, &[&framed(&header)]);
    vec![marks, shadow, of(DIVERGENCE, &[divergence]), of(STATE, &[state]), log]
}

fn framed(mut program: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let [kind, version, len, rest @ ..] = program {
        let (payload, next) = rest.split_at(rest.len().min(usize::from(*len)));
        frame::append(&mut bytes, 1, *kind, *version, payload);
        program = next;
    }
    bytes
}

/// Reads it.
pub fn run(input: &[u8]) -> u64 {
    let Some((reader, rest)) = input.split_first() else { return 0 };
    match *reader {
        MARKS => {
            let recovered = activity_log::recover(&framed(rest));
            1 + recovered.marks.len() as u64 + u64::from(!recovered.damaged)
        }
        SHADOW => 1 + u64::from(shadow::records(&framed(rest)).is_some()),
        DIVERGENCE => 1 + u64::from(stored::parse(rest).is_some()),
        STATE => 1 + u64::from(state::parse_state(Path::new("state.json"), rest).is_ok()),
        AS_IT_IS => {
            let expected = shadow::Expected { boot: Default::default(), run: Default::default(), place: None };
            1 + u64::from(!activity_log::recover(rest).damaged) + u64::from(shadow::replay(rest, &expected).is_ok())
        }
        _ => 0,
    }
}
