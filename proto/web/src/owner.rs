//! Whose the other end of a connection on loopback is, as the kernel tells in `/proc/net/tcp`.
//!
//! Loopback keeps other machines out, and lets every user of this one in. The page has names of files in it, so it is for the user whose
//! daemon it is, for root, and for who has the token.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

/// Column of the user's number, counted from 0: number, local address, remote address, state, queues, timer, retransmissions, user.
const UID_COLUMN: usize = 7;

/// The user whose socket is connected from `peer` to `own`; `None`: it is not known, as of another network namespace.
pub fn of(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let table = if peer.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    find(&fs::read_to_string(table).ok()?, peer, own)
}

fn find(table: &str, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let (local, remote) = (written(peer), written(own));
    table.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next() != Some(&local) || words.next() != Some(&remote) {
            return None;
        }
        words.nth(UID_COLUMN - 3)?.parse().ok()
    })
}

/// An address as the kernel writes it: its words in the byte order of this machine, in hexadecimal.
fn written(address: SocketAddr) -> String {
    let words = |bytes: &[u8]| -> String {
        bytes
            .chunks_exact(4)
            .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
            .collect()
    };
    let host = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{host}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use super::{find, of, written};

    #[test]
    fn the_user_at_the_other_end_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     \x20  0: 0100007F:1D1A 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n\
                     \x20  1: 0100007F:C001 0100007F:1D1A 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0\n";
        let at = |port: u16| format!("127.0.0.1:{port}").parse().expect("an address");
        if cfg!(target_endian = "little") {
            assert_eq!(find(table, at(0xC001), at(0x1D1A)), Some(1000));
            assert_eq!(find(table, at(0x1D1A), at(0xC001)), Some(0));
        }
        assert_eq!(find(table, at(1), at(2)), None);
        assert_eq!(written((Ipv6Addr::UNSPECIFIED, 255).into()), format!("{}:00FF", "0".repeat(32)));
    }

    #[test]
    fn a_connection_of_our_own_is_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(own).expect("connected");
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(of(stream.local_addr().expect("connected"), own), Some(ours));
    }
}
