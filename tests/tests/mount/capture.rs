//! What somebody on the way hears: everything between two namespaces is captured, as by tcpdump, while a client joins, works and reads.

use std::{fs, sync::Arc};

use tandem_tests::{
    harness::{Lab, MountSpec, Storage, eventually},
    netlab::{
        in_namespace,
        wiretap::{self, Ends, FAR, Wiretap},
    },
    rng::content,
};

use crate::support::{assert_equal_and_unmount, invite};

#[test]
fn wire_between_two_hosts_carries_tls_13_and_no_name_or_byte_of_the_files() {
    if let Err(error) = in_namespace(between_two_hosts) {
        eprintln!("SKIPPED capture: {error}");
    }
}

fn between_two_hosts() {
    let Some(lab) = Lab::new("capture").map(Arc::new) else { return };
    let ends = match Ends::new() {
        Ok(ends) => ends,
        Err(error) => return eprintln!("SKIPPED capture: no wire between two namespaces: {error}"),
    };
    let there = lab.clone();
    let (storage, token, address) = ends.far(move || {
        let storage = Storage::start_open(&there, "storage");
        let address = format!("{FAR}:{}", storage.port());
        let token = invite(&there, &storage, "secretvolume", &address);
        (storage, token, address)
    });
    let tap = match Wiretap::start(wiretap::WIRE) {
        Ok(tap) => tap,
        Err(error) => return eprintln!("SKIPPED capture: no packet socket: {error}"),
    };
    let told = work(&lab, &storage, &token, &address);
    // Whoever listens hears what is in the clear: said to the same port, refused there.
    let said_plainly = b"this is said plainly";
    let mut plain = std::net::TcpStream::connect(&address).expect("it listens");
    let ours = plain.local_addr().expect("connected").port();
    std::io::Write::write_all(&mut plain, said_plainly).expect("sent");
    drop(plain);
    let heard = tap.end().expect("the wire was read");
    assert_eq!(heard.lost, 0, "frames that were not captured prove nothing");
    assert!(heard.tells(said_plainly), "the capture hears nothing");

    let mut records = 0;
    for ((from, to), stream) in &heard.streams {
        if from.1 == ours || to.1 == ours {
            continue;
        }
        assert!(stream.is_whole(), "{from:?} to {to:?}: not all of it was captured");
        assert!([from.1, to.1].contains(&storage.port()), "{from:?} to {to:?}: who is that?");
        let read = wiretap::tls13(&stream.bytes).unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
        records += read.sealed;
    }
    assert!(heard.streams.len() >= 6 && records > 100, "{} streams, {records} records", heard.streams.len());
    assert_eq!(heard.others, 0, "nothing but TCP is needed");
    for secret in told {
        assert!(!heard.tells(&secret), "{:?} was readable on the way", String::from_utf8_lossy(&secret));
    }
}

/// Joins, mounts, works, reads back; what nobody on the way may know.
fn work(lab: &Lab, storage: &Storage, token: &str, address: &str) -> Vec<Vec<u8>> {
    lab.tandem(&["join", address, token, "--name", "telltale-client"]).expect_success("join");
    let folder = lab.new_dir("telltale-folder");
    fs::write(folder.join("telltale-early"), "telltale-first-sync ".repeat(3000)).expect("writable");
    let noise = content(9, 300_000);
    fs::write(folder.join("telltale-noise"), &noise).expect("writable");
    let source = format!("{address}:/secretvolume");
    let mount = lab.mount_with(&MountSpec {
        source,
        mountpoint: folder,
        options: String::new(),
        state: None,
        tracer: Vec::new(),
    });
    mount.settle();
    let at = |name: &str| mount.path().join(name);
    fs::create_dir(at("telltale-dir")).expect("writable");
    fs::write(at("telltale-dir/telltale-live"), "telltale-content ".repeat(3000)).expect("writable");
    std::os::unix::fs::symlink("telltale-target", at("telltale-link")).expect("writable");
    fs::rename(at("telltale-early"), at("telltale-renamed")).expect("writable");
    let path = mount.path().to_str().expect("plain text").to_owned();
    lab.tandem(&["verify", "--now", &path]).expect_success("verify");
    assert!(eventually(std::time::Duration::from_secs(30), || mount.status().state == "live"), "{:#?}", mount.status());
    assert_eq!(mount.status().security, "tls");
    assert_equal_and_unmount(&mount, storage, "secretvolume");
    let copy = lab.path("telltale-copy");
    let arguments = ["clone", "secretvolume", copy.to_str().expect("plain text"), "--server", address];
    lab.tandem(&arguments).expect_success("clone");
    assert_eq!(fs::read(copy.join("telltale-noise")).expect("cloned"), noise);

    let words = ["telltale", "secretvolume", "tandem.v1", "Replicate", "/tmp/"].map(|word| word.as_bytes().to_vec());
    let secret = token.as_bytes()[token.len() - 20..].to_vec();
    let pieces = [0, 100_000, 299_900].map(|at| noise[at..at + 16].to_vec());
    words.into_iter().chain([secret]).chain(pieces).collect()
}
