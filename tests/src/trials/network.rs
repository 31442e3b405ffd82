//! Network trials: a network that loses packets, goes away, swallows everything, or harms bytes, under load.
//!
//! While the network is bad, local work goes on and status tells; when it is good again, acknowledgements come again by themselves, and
//! both sides become equal. After each harm the replica alone is held against the ledgers, as in [`crate::trials::crash`].

use std::{fs, thread, time::Duration};

use crate::{
    harness::{Lab, MountSpec, eventually},
    netlab::{
        Rules, in_namespace,
        proxy::{Harm, Proxy},
    },
    rng::Rng,
    trials::{
        Outcome, PATIENCE,
        crash::{Rig, Stopped, VOLUME, random_pause},
        load::{Load, Mix, Tolerated},
    },
};

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 5 of 100 packets are lost.
    Loss,
    /// Connections are refused for seconds.
    Cut,
    /// Nothing arrives for seconds, and nobody is told.
    BlackHole,
    /// Everything arrives later.
    Delay,
    /// A slow line, over which the writer falls behind.
    Slow,
    /// Bits flip.
    Flip,
    /// The stream is cut in the middle of a message.
    Truncate,
    /// Bytes of a dead connection arrive after the client has come again.
    Late,
}

/// All of them, with their names on a command line.
pub const FAULTS: [(&str, Fault); 8] = [
    ("loss", Fault::Loss),
    ("cut", Fault::Cut),
    ("black-hole", Fault::BlackHole),
    ("delay", Fault::Delay),
    ("slow", Fault::Slow),
    ("flip", Fault::Flip),
    ("truncate", Fault::Truncate),
    ("late", Fault::Late),
];

impl Fault {
    fn harm(self, rng: &mut Rng) -> Option<Harm> {
        let none = Harm::default();
        match self {
            Fault::Loss | Fault::Cut | Fault::BlackHole => None,
            Fault::Delay => Some(Harm { delay: Duration::from_millis(5 + rng.below(60)), ..none }),
            Fault::Slow => Some(Harm { rate: 512 << 10, delay: Duration::from_millis(10), ..none }),
            Fault::Flip => Some(Harm { flip_one_in: 10 + rng.below(60), ..none }),
            Fault::Truncate => Some(Harm { cut_one_in: 10 + rng.below(60), ..none }),
            Fault::Late => Some(Harm { late: true, ..none }),
        }
    }

    /// Whether nothing at all gets through, so that status has to say so.
    fn is_outage(self) -> bool {
        matches!(self, Fault::Cut | Fault::BlackHole)
    }
}

/// What stands between the two.
enum Line {
    Rules(Rules),
    Proxy(Proxy),
}

impl Line {
    fn begin(&self, fault: Fault, rng: &mut Rng) {
        match self {
            Line::Rules(rules) => match fault {
                Fault::Loss => rules.lose(5),
                Fault::Cut => rules.refuse(),
                _ => rules.swallow(),
            },
            Line::Proxy(proxy) => proxy.harm(fault.harm(rng).unwrap_or_default()),
        }
    }

    fn end(&self, fault: Fault) {
        match self {
            Line::Rules(rules) => rules.heal(),
            Line::Proxy(proxy) => {
                proxy.harm(Harm::default());
                // A flipped bit in a length or a window of HTTP/2 can leave a stream that stands still, on a connection that answers its
                // pings. That is noticed, but only after a minute.
                if fault == Fault::Flip {
                    proxy.cut();
                }
            }
        }
    }
}

fn rig(fault: Fault, seed: u64) -> Result<(Line, Rig), String> {
    let lab = Lab::new("network").ok_or("no mounts here")?;
    for part in ["refused", "checksum", "decode", "chain", "frame", "h2", "protocol", "mistake", "invalid", "timed out"]
    {
        lab.allow(part, "the network harms what is sent");
    }
    lab.impatient();
    let storage = lab.storage();
    let (line, port) = match fault {
        Fault::Loss | Fault::Cut | Fault::BlackHole => (Line::Rules(Rules::new(storage.port())?), storage.port()),
        _ => {
            let proxy = Proxy::new(storage.port(), seed).map_err(|error| error.to_string())?;
            // A client finds the secret by the port that it connects to.
            let secret = |port| tandem_runtime::secret::path(&lab.runtime_dir(), port);
            fs::copy(secret(storage.port()), secret(proxy.port())).map_err(|error| error.to_string())?;
            let port = proxy.port();
            (Line::Proxy(proxy), port)
        }
    };
    let mut spec = MountSpec::new(&storage, VOLUME, &lab.new_dir("folder")).options("fsync=durable");
    spec.source = format!("127.0.0.1:{port}:/{VOLUME}");
    Ok((line, Rig::with(lab, storage, &spec)))
}

/// Waits until status says that nothing reaches the replica, and why.
fn wait_until_told(rig: &Rig, fault: Fault) {
    let told = eventually(Duration::from_secs(30), || {
        let status = rig.mount.status();
        status.state == "offline" && !status.reason.is_empty()
    });
    assert!(told, "status does not tell of {fault:?}: {:#?}", rig.mount.status());
    let path = rig.mount.path().join("meanwhile");
    fs::write(path, "local work goes on").expect("local work goes on");
}

fn harm(rig: &mut Rig, line: &Line, fault: Fault, point: u64, rng: &mut Rng) -> Load {
    let load = rig.load(&format!("{point}"), rng.bits(), Mix::any(rng));
    let promises = load.promises();
    eventually(PATIENCE, || promises.acked() > 5);
    random_pause(rng, Duration::from_millis(1000));
    line.begin(fault, rng);
    if fault.is_outage() {
        wait_until_told(rig, fault);
    }
    thread::sleep(Duration::from_millis(500));
    random_pause(rng, Duration::from_millis(4000));
    line.end(fault);
    load
}

fn run(seed: u64, fault: Fault, points: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let (line, mut rig) = match rig(fault, seed) {
        Ok(ready) => ready,
        Err(why) => return Outcome::Skipped(why),
    };
    let mut acked = 0;
    for point in 0..points {
        let load = harm(&mut rig, &line, fault, point, &mut rng);
        rig.wait_for_acks(&load);
        {
            let _stopped = Stopped::new(&rig.mount);
            // What was on its way arrives; then the replica stands still.
            thread::sleep(Duration::from_millis(200));
            rig.check_replica(&format!("after {fault:?} {point}"));
        }
        acked += load.promises().acked();
        let errors = load.stop(Tolerated::Nothing);
        assert!(errors.is_empty(), "the load met errors: {errors:?}");
        rig.check_equal();
        rig.assert_monotonic();
    }
    let answers = rig.finish();
    let harmed = match &line {
        Line::Proxy(proxy) => format!("{} connections, {} chunks harmed", proxy.connections(), proxy.harmed()),
        Line::Rules(_) => "real packets".to_owned(),
    };
    Outcome::Held(format!("{points} times {fault:?}, {acked} acknowledged calls, {answers} positions seen; {harmed}"))
}

/// `points` times the fault on one volume. Those of packets run in a network namespace of their own.
pub fn trial(seed: u64, fault: Fault, points: u64) -> Outcome {
    if !matches!(fault, Fault::Loss | Fault::Cut | Fault::BlackHole) {
        return run(seed, fault, points);
    }
    in_namespace(move || run(seed, fault, points)).unwrap_or_else(Outcome::Skipped)
}
