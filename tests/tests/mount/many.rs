//! Many clients of one storage daemon, each with a volume of its own, over TLS.

use std::{
    fs,
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tandem_tests::{
    harness::{Lab, Mount, MountSpec, Storage, eventually},
    rng::content,
};

use crate::support::{assert_equal_and_unmount, assert_replica_equal, fill_mixed, invite, join};

const CLIENTS: usize = 10;
/// The one that is revoked.
const REVOKED: usize = 7;
const SOON: Duration = Duration::from_secs(30);
/// Changes that each of the others makes while the streams run.
const CHANGES: u64 = 60;

fn volume(at: usize) -> String {
    format!("vol{at}")
}

fn client(at: usize) -> String {
    format!("client{at}@test")
}

/// Joins under a name and mounts, with a state of its own, as on a host of its own.
fn mount(lab: &Lab, storage: &Storage, at: usize) -> Mount {
    let address = format!("127.0.0.1:{}", storage.port());
    let token = invite(lab, storage, &volume(at), &address);
    let identity = join(lab, &address, &token, &client(at));
    let folder = lab.new_dir(&format!("folder{at}"));
    if fs::read_dir(&folder).expect("readable").next().is_none() {
        fill_mixed(&folder, 40, at as u64);
    }
    let options = format!("identity={}", identity.display());
    let state = lab.new_dir(&format!("state{at}"));
    lab.mount_with(&MountSpec::new(storage, &volume(at), &folder).options(&options).state(&state))
}

/// Files that are made, changed, renamed and deleted.
fn work(folder: &Path, seed: u64) {
    for round in 0..CHANGES {
        let path = folder.join(format!("live{}", round % 7));
        fs::write(&path, content(seed * 1000 + round, 1 + (round as usize * 1709) % 90_000)).expect("writable");
        match round % 5 {
            0 => fs::rename(&path, folder.join(format!("renamed{round}"))).expect("renamable"),
            1 => fs::create_dir(folder.join(format!("made{round}"))).expect("a new name"),
            2 => fs::remove_file(&path).expect("removable"),
            _ => {}
        }
    }
}

/// Writes files with rising numbers until it is told to stop; how many there are is in `written`.
fn stream(folder: &Path, stop: &AtomicBool, written: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let number = written.load(Ordering::Relaxed);
        fs::write(folder.join(format!("stream{number}")), content(number as u64, 4000)).expect("local work goes on");
        written.store(number + 1, Ordering::Release);
        thread::sleep(Duration::from_millis(1));
    }
}

fn arrived(storage: &Storage, number: usize) -> bool {
    storage.tree(&volume(REVOKED)).join(format!("stream{number}")).exists()
}

/// Revokes the client whose stream is running: it hears so, and nothing that it writes from then on arrives.
fn revoke_in_mid_stream(lab: &Lab, storage: &Storage, revoked: &Mount, written: &AtomicUsize) {
    assert!(eventually(SOON, || arrived(storage, 20)), "the stream runs: {:#?}", revoked.status());
    let server = format!("127.0.0.1:{}", storage.port());
    lab.tandem(&["revoke", &client(REVOKED), "--server", &server]).expect_success("revoke");
    let begun = Instant::now();
    let is_cut = || !storage.volume(&volume(REVOKED)).client.contains('@') && revoked.status().state == "offline";
    assert!(eventually(SOON, is_cut), "{:#?}", revoked.status());
    println!("the stream was cut {:?} after `tandem revoke`", begun.elapsed());
    assert!(eventually(SOON, || revoked.status().reason.contains("revoked")), "{:#?}", revoked.status());
    let after = written.load(Ordering::Acquire);
    assert!(eventually(SOON, || written.load(Ordering::Acquire) > after + 20), "local work goes on");
    assert!(!arrived(storage, after + 10), "something arrived after the client was revoked");
}

#[test]
fn ten_clients_with_ten_volumes_are_equal_at_the_end_and_one_is_revoked_in_the_middle_of_its_stream() {
    let Some(lab) = Lab::new("many") else { return };
    lab.allow_lost_peers();
    let storage = lab.storage();
    let mounts: Vec<Mount> = (0..CLIENTS).map(|at| mount(&lab, &storage, at)).collect();
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let revoked = &mounts[REVOKED];
        scope.spawn(|| stream(revoked.path(), &stop, &written));
        let (done, ended) = mpsc::channel();
        for (at, mount) in mounts.iter().enumerate().filter(|(at, _)| *at != REVOKED) {
            let done = done.clone();
            scope.spawn(move || {
                work(mount.path(), at as u64);
                let _ = done.send(());
            });
        }
        drop(done);
        // A failure here must end the stream, too, or the scope never ends.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            revoke_in_mid_stream(&lab, &storage, revoked, &written);
        }));
        while ended.recv().is_ok() {}
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    for (at, mount) in mounts.iter().enumerate().filter(|(at, _)| *at != REVOKED) {
        assert_replica_equal(mount, &storage, &volume(at));
        assert_eq!(mount.status().security, "tls");
    }
    // Nobody reaches another's volume, whoever it is.
    let stolen = lab.path(&format!("{}.pem", client(0)));
    let options = format!("identity={}", stolen.display());
    let spec = MountSpec::new(&storage, &volume(1), &lab.new_dir("elsewhere")).options(&options);
    assert!(lab.mount_refused(&spec).text().contains("no role"));
    // What was written meanwhile arrives once it has joined anew, under its old identity's path.
    let last = written.load(Ordering::Acquire) - 1;
    assert!(!arrived(&storage, last), "it is still out");
    let address = format!("127.0.0.1:{}", storage.port());
    join(&lab, &address, &invite(&lab, &storage, &volume(REVOKED), &address), &client(REVOKED));
    mounts[REVOKED].settle();
    for (at, mount) in mounts.iter().enumerate() {
        assert_equal_and_unmount(mount, &storage, &volume(at));
    }
}
