//! Identities: inode ids, names, and 128-bit ids of volumes, replicas, clients and runs.

use std::fmt;

use bytes::Bytes;

use crate::limits::{INODE_ID_MAX, NAME_MAX};

/// Stable identity of a file across renames and remounts, never reused. Made by mountd, opaque to everybody else.
///
/// At most 31 bytes, so that it is `Copy` and fits a cache line; the empty id is the volume's root on every machine.
/// mountd encodes the scope (which backing directory) and the kernel's file handle in it, so that an id alone reopens its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId {
    // Unused bytes are zero, so that derived comparison and hashing are those of the value.
    bytes: [u8; INODE_ID_MAX],
    len: u8,
}

impl InodeId {
    /// The volume's root directory.
    pub const ROOT: InodeId = InodeId { bytes: [0; INODE_ID_MAX], len: 0 };

    /// An id of these bytes; `None` if they are more than [`INODE_ID_MAX`].
    pub fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; INODE_ID_MAX];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        Some(InodeId { bytes, len: id.len() as u8 })
    }

    /// The bytes of the id.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether this is the volume's root.
    pub fn is_root(&self) -> bool {
        self.len == 0
    }

    /// Lower-case hexadecimal, as used in file names of the replica; "root" for the root.
    pub fn to_hex(&self) -> String {
        if self.is_root() { "root".to_owned() } else { hex(self.as_bytes()) }
    }

    /// The reverse of [`Self::to_hex`].
    pub fn from_hex(text: &str) -> Option<Self> {
        if text == "root" {
            return Some(Self::ROOT);
        }
        if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
            return None;
        }
        let bytes: Option<Vec<u8>> =
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect();
        Self::new(&bytes?)
    }
}

impl fmt::Debug for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode:{}", self.to_hex())
    }
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

/// One file name: 1..=255 bytes, no `/`, no NUL, neither `.` nor `..`. It cannot lead out of its directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

impl Name {
    /// A checked name; `None` if it breaks a rule above.
    pub fn new(name: impl Into<Bytes>) -> Option<Self> {
        let name = name.into();
        let legal = !name.is_empty()
            && name.len() <= NAME_MAX
            && !name.contains(&b'/')
            && !name.contains(&0)
            && &name[..] != b"."
            && &name[..] != b"..";
        legal.then_some(Name(name))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name without a copy.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A random 128-bit id: of a volume, a replica, a client or a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// From raw bytes; `None` unless there are 16.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Uuid)
    }

    /// The reverse of `Display`.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Uuid(bytes))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use super::{InodeId, Name, Uuid};

    #[test]
    fn names_that_lead_out_of_a_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b"] {
            assert!(Name::new(bad.as_bytes().to_vec()).is_none(), "{bad:?}");
        }
        assert!(Name::new(vec![b'x'; 256]).is_none());
        assert!(Name::new(vec![b'x'; 255]).is_some());
        assert!(Name::new(vec![0xff, b'\n']).is_some());
    }

    #[test]
    fn ids_survive_hexadecimal() {
        for bytes in [&b""[..], b"a", &[0, 255, 1], &[7; 31]] {
            let id = InodeId::new(bytes).expect("short enough");
            assert_eq!(InodeId::from_hex(&id.to_hex()), Some(id));
        }
        assert!(InodeId::new(&[0; 32]).is_none());
        let uuid = Uuid([9; 16]);
        assert_eq!(Uuid::from_hex(&uuid.to_string()), Some(uuid));
    }

    #[test]
    fn ids_of_different_length_differ_even_with_zero_bytes() {
        assert_ne!(InodeId::new(&[0]), InodeId::new(&[0, 0]));
        assert_ne!(InodeId::new(&[0]), Some(InodeId::ROOT));
    }
}
