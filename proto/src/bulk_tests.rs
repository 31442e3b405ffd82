//! What is sent without a copy is what the codec would have sent, and whatever pieces it comes in, the same messages come out.

use bytes::{Bytes, BytesMut};
use proptest::prelude::{ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};
use prost::Message as _;

use super::{HEAD_MAX, PREFIX, Unframer, head};
use crate::{
    codec::{COVERED_BYTES, framed},
    pb::{self, copy_down::Body},
};

fn frame(item: u32, offset: u64, data: usize) -> pb::CopyDown {
    let data: Vec<u8> = (0..data).map(|at| (at * 7 + at / 251) as u8).collect();
    let frame = pb::CopyFrame { item, offset, data: data.into(), ..Default::default() };
    pb::CopyDown { body: Some(Body::Frame(frame)) }
}

fn last(mut down: pb::CopyDown) -> pb::CopyDown {
    if let Some(Body::Frame(frame)) = &mut down.body {
        (frame.last, frame.digest) = (true, Bytes::from_static(&[3; 32]));
    }
    down
}

fn data(down: &pb::CopyDown) -> Bytes {
    match &down.body {
        Some(Body::Frame(frame)) => frame.data.clone(),
        _ => Bytes::new(),
    }
}

/// As the server sends it.
fn sent(down: &pb::CopyDown) -> Vec<u8> {
    match head(down) {
        Some(head) => [&head[..], &data(down)].concat(),
        None => framed(down).to_vec(),
    }
}

#[test]
fn a_head_and_its_data_are_what_prost_encodes() {
    for (item, offset) in [(0, 0), (1, 0), (0, 1 << 18), (u32::MAX, u64::MAX), (300, 1 << 40)] {
        let down = frame(item, offset, COVERED_BYTES + 1);
        let bytes = sent(&down);
        assert_eq!(bytes[PREFIX..], down.encode_to_vec(), "{item} {offset}");
        assert_eq!(bytes[..PREFIX], [&[0][..], &(down.encoded_len() as u32).to_be_bytes()].concat());
        assert!(bytes.len() - data(&down).len() - PREFIX <= HEAD_MAX);
        assert_eq!(framed(&down)[..], bytes[..], "the codec sends the same");
    }
    assert_eq!(head(&frame(1, 1, COVERED_BYTES - 1)), None);
    assert_eq!(head(&last(frame(1, 1, COVERED_BYTES))), None);
    assert_eq!(head(&pb::CopyDown::default()), None);
}

#[test]
fn a_flipped_bit_of_what_is_no_bulk_ends_the_stream() {
    let mut bytes = sent(&last(frame(1, 5, COVERED_BYTES)));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut unframer = Unframer::default();
    unframer.push(bytes.into());
    assert_eq!(unframer.message().map_err(|status| status.code()), Err(tonic::Code::DataLoss));
}

#[test]
fn nobody_makes_it_wait_for_more_than_a_message_may_have() {
    for bytes in [&[0, 0xff, 0xff, 0xff, 0xff][..], &[1, 0, 0, 0, 1]] {
        let mut unframer = Unframer::default();
        unframer.push(Bytes::copy_from_slice(bytes));
        assert!(unframer.message().is_err(), "{bytes:?}");
    }
}

fn message() -> impl Strategy<Value = pb::CopyDown> {
    let size = prop::sample::select(vec![0, 1, 100, COVERED_BYTES - 1, COVERED_BYTES, 3 * COVERED_BYTES + 17]);
    (any::<u32>(), any::<u32>(), size, any::<bool>()).prop_map(|(item, offset, size, is_last)| {
        let down = frame(item, offset.into(), size);
        if is_last { last(down) } else { down }
    })
}

/// Pieces of a bulk message follow each other: as one frame again.
fn joined(frames: Vec<pb::CopyDown>) -> Vec<(u32, u64, Vec<u8>, bool)> {
    let mut out: Vec<(u32, u64, Vec<u8>, bool)> = Vec::new();
    for down in frames {
        let Some(Body::Frame(frame)) = down.body else { continue };
        match out.last_mut() {
            Some((item, offset, data, false))
                if *item == frame.item && *offset + data.len() as u64 == frame.offset && !data.is_empty() =>
            {
                data.extend_from_slice(&frame.data);
                out.last_mut().expect("just seen").3 = frame.last;
            }
            _ => out.push((frame.item, frame.offset, frame.data.to_vec(), frame.last)),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_network_makes_of_them(
        messages in prop::collection::vec(message(), 1..6),
        cuts in prop::collection::vec(1usize..100_000, 1..40),
    ) {
        let mut all = BytesMut::new();
        messages.iter().for_each(|down| all.extend_from_slice(&sent(down)));
        let (mut all, mut unframer, mut out, mut cut) = (all.freeze(), Unframer::default(), Vec::new(), cuts.iter().cycle());
        while !all.is_empty() {
            let len = all.len().min(*cut.next().expect("a cycle"));
            unframer.push(all.split_to(len));
            while let Some(down) = unframer.message().expect("sound") {
                out.push(down);
            }
        }
        prop_assert!(unframer.is_empty());
        prop_assert_eq!(joined(out), joined(messages));
    }

    #[test]
    fn hostile_bytes_do_no_harm(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut unframer = Unframer::default();
        for chunk in chunks {
            unframer.push(chunk.into());
            while let Ok(Some(_)) = unframer.message() {}
        }
    }
}
