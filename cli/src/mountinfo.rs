//! Our mounts as the kernel knows them: where a daemon died, only the kernel still does.

use std::{
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

/// Type of our mounts.
const FS_TYPE: &str = "fuse.tandem";
/// How long a mount may take to say that it lives.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Mountpoints of all mounts of TandemFS that this process sees.
pub fn mountpoints() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Whether the daemon of the mount at `path` is gone. One that hangs is not gone.
pub fn is_dead(path: &Path) -> bool {
    let (send, answer) = mpsc::channel();
    let path = path.to_owned();
    // In a thread of its own, which is left behind if the daemon hangs. statfs is never answered from a cache.
    std::thread::spawn(move || send.send(rustix::fs::statfs(&path).err()));
    matches!(answer.recv_timeout(PROBE_TIMEOUT), Ok(Some(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)))
}

fn parse(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn parse_line(line: &[u8]) -> Option<PathBuf> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let fs_type = fields.get(separator + 1)?;
    (*fs_type == FS_TYPE.as_bytes()).then(|| unescape(fields.get(4).copied().unwrap_or_default()))
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = (*byte == b'\\').then(|| tail.get(..3)).flatten();
        let value = octal
            .filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)))
            .map(|digits| digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0')));
        match value.and_then(|value| u8::try_from(value).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::parse;

    #[test]
    fn only_our_mounts_are_found_and_their_names_are_unescaped() {
        let text = b"29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            40 29 0:50 / /home/u/my\\040files\\134x rw,nosuid - fuse.tandem 127.0.0.1:7440:/work rw,user_id=0\n\
            41 29 0:51 / /other rw - fuse.sshfs host rw\n\
            42 29 0:50 / /home/u/my\\040files\\134x rw shared:3 master:2 - fuse.tandem a rw\n\
            garbage\n";
        assert_eq!(parse(text), [PathBuf::from("/home/u/my files\\x")]);
    }
}
