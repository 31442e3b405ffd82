//! The table of mounts, as the kernel tells it.

use std::{ffi::OsString, fs, io, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountLine {
    /// Where.
    pub mountpoint: PathBuf,
    /// Type, with its subtype.
    pub fs_type: String,
    /// Source.
    pub source: String,
    /// The device number as `major:minor`, which names a FUSE connection.
    pub device: String,
}

/// All mounts that this process sees, in the order in which they lie on each other.
pub fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

fn parse(table: &[u8]) -> Vec<MountLine> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
fn parse_line(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (fs_type, source) = (rest.next()?, rest.next()?);
    let text = |bytes: &[u8]| String::from_utf8_lossy(&unescape(bytes)).into_owned();
    Some(MountLine {
        mountpoint: OsString::from_vec(unescape(mountpoint)).into(),
        fs_type: text(fs_type),
        source: text(source),
        device: text(device),
    })
}

/// Blanks, tabs, newlines and backslashes are written as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match (field[at], octal) {
            (b'\\', Some(digits)) => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::parse;

    #[test]
    fn lines_with_blanks_and_optional_fields_are_understood() {
        let table = b"36 35 0:52 / /mnt/with\\040blank rw,nosuid shared:3 master:1 - fuse.tandem [::1]:7440:/vol rw\n\
                      1 0 98:0 / / rw - ext4 /dev/root rw\nbroken\n";
        let lines = parse(table);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].mountpoint, Path::new("/mnt/with blank"));
        assert_eq!((lines[0].fs_type.as_str(), lines[0].device.as_str()), ("fuse.tandem", "0:52"));
        assert_eq!(lines[0].source, "[::1]:7440:/vol");
        assert_eq!(lines[1].mountpoint, Path::new("/"));
    }
}
