//! Frames of a copy whose bytes are not moved in memory on their way between network and disk.
//!
//! What travels is what [`crate::codec`] makes of a [`pb::CopyDown`]: nothing here is another protocol, and either end may be a generic
//! gRPC client or server. But a message that is encoded as a whole is one more pass over its bytes, and so is one that is put together
//! before it is decoded; of a copy on a machine with two processors these two passes were a seventh of the processors' time.
//!
//! ```text
//!   flag, length │ tag of `frame`, its length, item, offset, tag of `data`, its length │ data
//!   └────────────────────────────── [`head`] ───────────────────────────────────────┘   as it was read from the file
//! ```
//! Bulk is what the codec sends without a checksum (decision 0016): data of 64 KiB or more, and nothing behind it. Its data is handed on in
//! the pieces that the network delivers, each as a frame of its own. Everything else is put together, checked and decoded as ever.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};
use tonic::Status;

use crate::{
    codec::{COVERED_BYTES, decode},
    limits::MESSAGE_MAX_BYTES,
    pb::{self, copy_down::Body},
};

/// Of a gRPC message: compressed or not, and its length.
const PREFIX: usize = 5;
/// What is in front of the data of a bulk message takes no more.
const HEAD_MAX: usize = 32;
/// `CopyDown.frame`, `CopyFrame.item`, `.offset` and `.data` with their wire types.
const FRAME: u8 = 4 << 3 | 2;
const ITEM: u8 = 1 << 3;
const OFFSET: u8 = 2 << 3;
const DATA: u8 = 3 << 3 | 2;

fn is_bulk(frame: &pb::CopyFrame) -> bool {
    let pb::CopyFrame { item: _, offset: _, data, zeroes, last, digest, error, again } = frame;
    data.len() >= COVERED_BYTES && *zeroes == 0 && !last && digest.is_empty() && error.is_empty() && !again
}

/// What is sent before the data of this message; `None`: it is no bulk message.
pub fn head(down: &pb::CopyDown) -> Option<Bytes> {
    let Some(Body::Frame(frame)) = down.body.as_ref().filter(|body| matches!(body, Body::Frame(f) if is_bulk(f)))
    else {
        return None;
    };
    let number = |value: u64| if value == 0 { 0 } else { 1 + encoded_len_varint(value) };
    let data = frame.data.len() as u64;
    let inner = number(frame.item.into()) + number(frame.offset) + 1 + encoded_len_varint(data) + frame.data.len();
    let whole = 1 + encoded_len_varint(inner as u64) + inner;
    let mut head = BytesMut::with_capacity(PREFIX + HEAD_MAX);
    head.put_u8(0);
    head.put_u32(u32::try_from(whole).ok()?);
    head.put_u8(FRAME);
    encode_varint(inner as u64, &mut head);
    for (tag, value) in [(ITEM, u64::from(frame.item)), (OFFSET, frame.offset)] {
        if value != 0 {
            head.put_u8(tag);
            encode_varint(value, &mut head);
        }
    }
    head.put_u8(DATA);
    encode_varint(data, &mut head);
    Some(head.freeze())
}

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    item: u32,
    offset: u64,
    /// Bytes of it, and of the data behind it.
    len: usize,
    data: usize,
}

/// Reads the beginning of a message of so many bytes; `None`: it is no bulk message.
fn read_head(begin: &[u8], message: usize) -> Option<Head> {
    let mut rest = begin;
    let (mut item, mut offset, mut tag_before) = (0, 0, 0);
    if rest.first() != Some(&FRAME) {
        return None;
    }
    rest.advance(1);
    let inner = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    if (begin.len() - rest.len()).checked_add(inner)? != message {
        return None;
    }
    loop {
        let tag = *rest.first()?;
        if tag <= tag_before {
            return None;
        }
        tag_before = tag;
        rest.advance(1);
        let value = decode_varint(&mut rest).ok()?;
        match tag {
            ITEM => item = u32::try_from(value).ok()?,
            OFFSET => offset = value,
            DATA => {
                let (len, data) = (begin.len() - rest.len(), usize::try_from(value).ok()?);
                let is_all = len.checked_add(data)? == message && data >= COVERED_BYTES;
                return is_all.then_some(Head { item, offset, len, data });
            }
            _ => return None,
        }
    }
}

/// Bulk data of which more is to come.
struct Bulk {
    item: u32,
    offset: u64,
    left: usize,
}

/// Messages out of what a network delivers. Bounded: it holds no more than one message that is not bulk, and what was pushed last.
#[derive(Default)]
pub struct Unframer {
    chunks: VecDeque<Bytes>,
    len: usize,
    bulk: Option<Bulk>,
    /// Length of the message that comes.
    expected: Option<usize>,
}

impl Unframer {
    /// What came.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Whether nothing of a message is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0 && self.bulk.is_none() && self.expected.is_none()
    }

    /// The next message, or part of a bulk one, if it has come.
    pub fn message(&mut self) -> Result<Option<pb::CopyDown>, Status> {
        if let Some(piece) = self.piece() {
            return Ok(Some(piece));
        }
        if self.bulk.is_some() {
            return Ok(None);
        }
        let message = match self.expected {
            Some(message) => message,
            None if self.len < PREFIX => return Ok(None),
            None => {
                let mut prefix = self.take(PREFIX);
                if prefix.get_u8() != 0 {
                    return Err(Status::unimplemented("a compressed message"));
                }
                let message = prefix.get_u32() as usize;
                if message > MESSAGE_MAX_BYTES {
                    return Err(Status::out_of_range(format!("a message of {message} bytes")));
                }
                *self.expected.insert(message)
            }
        };
        if message >= COVERED_BYTES {
            if self.len < HEAD_MAX {
                return Ok(None);
            }
            let (mut begin, mut at) = ([0; HEAD_MAX], 0);
            for chunk in &self.chunks {
                let part = chunk.len().min(HEAD_MAX - at);
                begin[at..at + part].copy_from_slice(&chunk[..part]);
                at += part;
            }
            if let Some(head) = read_head(&begin, message) {
                self.take(head.len);
                self.expected = None;
                self.bulk = Some(Bulk { item: head.item, offset: head.offset, left: head.data });
                return Ok(self.piece());
            }
        }
        if self.len < message {
            return Ok(None);
        }
        self.expected = None;
        decode(self.take(message)).map(Some)
    }

    /// What has come of a bulk message, at most a chunk.
    fn piece(&mut self) -> Option<pb::CopyDown> {
        let bulk = self.bulk.as_mut()?;
        let mut chunk = self.chunks.pop_front()?;
        let data = chunk.split_to(chunk.len().min(bulk.left));
        let frame = pb::CopyFrame { item: bulk.item, offset: bulk.offset, data, ..Default::default() };
        bulk.left -= frame.data.len();
        bulk.offset = bulk.offset.saturating_add(frame.data.len() as u64);
        self.len -= frame.data.len();
        if bulk.left == 0 {
            self.bulk = None;
        }
        if !chunk.is_empty() {
            self.chunks.push_front(chunk);
        }
        Some(pb::CopyDown { body: Some(Body::Frame(frame)) })
    }

    /// The first `len` bytes of what is there, in one piece.
    fn take(&mut self, len: usize) -> Bytes {
        self.len -= len;
        if let Some(first) = self.chunks.front_mut()
            && first.len() >= len
        {
            let taken = first.split_to(len);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            return taken;
        }
        let mut whole = BytesMut::with_capacity(len);
        while whole.len() < len
            && let Some(mut chunk) = self.chunks.pop_front()
        {
            whole.put(chunk.split_to(chunk.len().min(len - whole.len())));
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
        }
        whole.freeze()
    }
}

#[cfg(test)]
#[path = "bulk_tests.rs"]
mod tests;
