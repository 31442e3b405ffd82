//! The network between both sides swallows everything, or cuts: noticed in time, told, and made good.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tandem_tests::harness::{Lab, MountSpec, Storage, eventually};

use crate::support::assert_equal_and_unmount;

/// Passes bytes on, or swallows them without a word.
struct Proxy {
    port: u16,
    swallow: Arc<AtomicBool>,
}

impl Proxy {
    fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let swallow = Arc::new(AtomicBool::new(false));
        let hole = swallow.clone();
        thread::spawn(move || {
            for inner in listener.incoming().flatten() {
                let Ok(outer) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
                let (Ok(inner_back), Ok(outer_back)) = (inner.try_clone(), outer.try_clone()) else { continue };
                let (there, back) = (hole.clone(), hole.clone());
                thread::spawn(move || pass(inner, outer, &there));
                thread::spawn(move || pass(outer_back, inner_back, &back));
            }
        });
        Proxy { port, swallow }
    }

    fn swallow(&self, swallow: bool) {
        self.swallow.store(swallow, Ordering::SeqCst);
    }

    /// A volume behind it. The secret goes by the port.
    fn spec(&self, lab: &Lab, storage: &Storage, dir: &std::path::Path) -> MountSpec {
        fs::write(tandem_runtime::secret::path(&lab.runtime_dir(), self.port), storage.secret()).expect("writable");
        let source = format!("127.0.0.1:{}:/vol", self.port);
        MountSpec { source, ..MountSpec::new(storage, "vol", dir) }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, swallow: &AtomicBool) {
    let mut piece = [0; 64 << 10];
    let mut swallowed = false;
    loop {
        match from.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(len) => {
                // What was swallowed is missing for ever, so nothing after it gets through either.
                swallowed |= swallow.load(Ordering::SeqCst);
                if !swallowed && to.write_all(&piece[..len]).is_err() {
                    break;
                }
            }
        }
    }
    if !swallowed {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn black_hole_is_noticed_by_both_sides_and_made_good() {
    let Some(lab) = Lab::new("black-hole") else { return };
    lab.impatient();
    lab.allow_lost_peers();
    let storage = lab.storage();
    let dir = lab.new_dir("folder");
    let proxy = Proxy::start(storage.port());
    let mount = lab.mount_with(&proxy.spec(&lab, &storage, &dir));
    fs::write(dir.join("a"), "1").expect("writable");
    mount.settle();
    assert!(!storage.volume("vol").client.is_empty(), "{:#?}", storage.volume("vol"));

    proxy.swallow(true);
    let begun = Instant::now();
    let limit = Duration::from_secs(20);
    assert!(eventually(limit, || mount.status().state == "offline"), "{:#?}", mount.status());
    let client = begun.elapsed();
    assert!(eventually(limit, || storage.volume("vol").client.is_empty()), "{:#?}", storage.volume("vol"));
    eprintln!(
        "a black hole was noticed after {client:?} by the mount, after {:?} by the storage daemon",
        begun.elapsed()
    );
    fs::write(dir.join("b"), "local work goes on").expect("writable");

    proxy.swallow(false);
    let back = Instant::now();
    assert!(eventually(limit, || mount.status().state == "live"), "{:#?}", mount.status());
    eprintln!("and it was live again {:?} after it ended", back.elapsed());
    assert_equal_and_unmount(&mount, &storage, "vol");
}
