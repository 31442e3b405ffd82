//! Requests taken apart and answers put together, field by field in the order of the kernel's structures. What is too short is an
//! error, never a panic: the kernel is trusted, a proxy of it need not be.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

use super::abi::{IN_HEADER_BYTES, OUT_HEADER_BYTES};

/// The request ends before what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request of the kernel is shorter than its kind")]
pub struct Short;

/// `struct fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What is asked for.
    pub opcode: u32,
    /// Names the request.
    pub unique: u64,
    /// The inode that it is about.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// His group.
    pub gid: u32,
    /// His thread; 0 in another pid namespace.
    pub pid: u32,
}

/// What follows the header.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// Takes a request apart.
pub fn request(bytes: &[u8]) -> Result<(Header, Fields<'_>), Short> {
    let mut fields = Fields { rest: bytes };
    let len = fields.u32()? as usize;
    let opcode = fields.u32()?;
    let (unique, node) = (fields.u64()?, fields.u64()?);
    let (uid, gid, pid) = (fields.u32()?, fields.u32()?, fields.u32()?);
    // Extensions, which nobody asked for.
    fields.u32()?;
    let body = bytes.get(IN_HEADER_BYTES..len).ok_or(Short)?;
    Ok((Header { opcode, unique, node, uid, gid, pid }, Fields { rest: body }))
}

impl<'a> Fields<'a> {
    /// The next bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next field.
    pub fn u32(&mut self) -> Result<u32, Short> {
        Ok(u32::from_ne_bytes(self.bytes(4)?.try_into().map_err(|_| Short)?))
    }

    /// The next field.
    pub fn u64(&mut self) -> Result<u64, Short> {
        Ok(u64::from_ne_bytes(self.bytes(8)?.try_into().map_err(|_| Short)?))
    }

    /// A text that ends with NUL.
    pub fn name(&mut self) -> Result<&'a OsStr, Short> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(Short)?;
        let name = OsStr::from_bytes(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }
}

/// Length of the longest structure, `struct fuse_statx_out`.
const OUT_MAX: usize = 288;

/// An answer, or a part of one. Its header lies before it, and both in one page of memory: the kernel fetches each page that an answer lies in by
/// itself. So the alignment is as long as it is.
#[derive(Debug)]
#[repr(align(512))]
pub struct Out {
    len: usize,
    bytes: [u8; OUT_HEADER_BYTES + OUT_MAX],
}

impl Default for Out {
    fn default() -> Out {
        Out { len: OUT_HEADER_BYTES, bytes: [0; OUT_HEADER_BYTES + OUT_MAX] }
    }
}

#[allow(clippy::inline_always, reason = "out of line each field would copy all of it")]
impl Out {
    #[inline(always)]
    fn put<const N: usize>(mut self, field: [u8; N]) -> Out {
        let room = self.bytes.get_mut(self.len..self.len + N);
        debug_assert!(room.is_some(), "no structure is as long");
        if let Some(room) = room {
            room.copy_from_slice(&field);
            self.len += N;
        }
        self
    }

    /// One more field.
    #[inline(always)]
    pub fn u16(self, value: u16) -> Out {
        self.put(value.to_ne_bytes())
    }

    /// One more field.
    #[inline(always)]
    pub fn u32(self, value: u32) -> Out {
        self.put(value.to_ne_bytes())
    }

    /// One more field.
    #[inline(always)]
    pub fn u64(self, value: u64) -> Out {
        self.put(value.to_ne_bytes())
    }

    /// Fields that are 0.
    #[inline(always)]
    pub fn zeroes(mut self, len: usize) -> Out {
        debug_assert!(self.len + len <= self.bytes.len(), "no structure is as long");
        // They are already.
        self.len = (self.len + len).min(self.bytes.len());
        self
    }

    /// All of it, without a header.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[OUT_HEADER_BYTES..self.len]
    }

    /// A message of it (`struct fuse_out_header`), and of so many bytes that follow: an answer, or with `unique` 0 something that nobody asked for.
    pub fn message(&mut self, unique: u64, code: i32, more: usize) -> &[u8] {
        let len = (self.len + more) as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[4..8].copy_from_slice(&code.to_ne_bytes());
        self.bytes[8..OUT_HEADER_BYTES].copy_from_slice(&unique.to_ne_bytes());
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::{Out, Short, request};

    fn bytes(len: u32, body: &[u8]) -> Vec<u8> {
        let header = Out::default().u32(len).u32(1).u64(7).u64(1).u32(1000).u32(100).u32(42).u32(0);
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_request_is_taken_apart() {
        let bytes = bytes(50, b"\x05\0\0\0name\0x");
        let (header, mut fields) = request(&bytes).expect("whole");
        assert_eq!((header.opcode, header.unique, header.node), (1, 7, 1));
        assert_eq!((header.uid, header.gid, header.pid), (1000, 100, 42));
        assert_eq!(fields.u32(), Ok(5));
        assert_eq!(fields.name(), Ok("name".as_ref()));
        assert_eq!(fields.bytes(2), Err(Short));
        assert_eq!(fields.name(), Err(Short));
    }

    #[test]
    fn what_is_cut_is_refused() {
        assert!(request(&bytes(41, b"")).is_err());
        assert!(request(&bytes(39, b"")).is_err());
        assert!(request(&bytes(40, b"")[..39]).is_err());
        assert!(request(&bytes(40, b"")).is_ok());
    }

    #[test]
    fn an_answer_lies_behind_its_header_in_one_page() {
        let mut out = Out::default().u16(1).u16(2).u32(3).u64(4).zeroes(8);
        assert_eq!(out.as_bytes().len(), 24);
        let message = out.message(7, -5, 100).to_vec();
        let header = [140_u32.to_ne_bytes(), (-5_i32).to_ne_bytes()].concat();
        assert_eq!((&message[..8], &message[8..16]), (&header[..], &7_u64.to_ne_bytes()[..]));
        assert_eq!(&message[16..], out.as_bytes());
        assert!(size_of::<Out>() <= align_of::<Out>(), "so it crosses no page");
        assert_eq!(4096 % align_of::<Out>(), 0);
    }
}
