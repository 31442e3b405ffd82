//! What encryption costs: the same first sync and the same small files over mutual TLS and in plaintext, by turns, in one run.

use std::{
    fmt, fs, io,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    figures,
    harness::{Lab, MountSpec, Storage, median},
    hostile,
};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Length of the file of the first sync.
    pub bytes: u64,
    /// Rounds, each of which is done both ways.
    pub rounds: u64,
    /// Files of 4 KiB in a round.
    pub files: u64,
}

/// Medians of one way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    /// From the start of the mount to an equal replica.
    pub first_sync: Duration,
    /// From the close of a file of 4 KiB to its bytes on the replica.
    pub lag: Duration,
}

/// What one run showed.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// In the clear, over loopback.
    pub plain: Way,
    /// TLS 1.3, both sides with certificates.
    pub tls: Way,
}

impl Figures {
    /// The first sync over TLS as a multiple of the one in the clear.
    pub fn ratio(&self) -> f64 {
        self.tls.first_sync.as_secs_f64() / self.plain.first_sync.as_secs_f64()
    }

    /// What TLS adds to the lag.
    pub fn more_lag(&self) -> Duration {
        self.tls.lag.saturating_sub(self.plain.lag)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "first sync: plaintext {:.2} s, TLS {:.2} s, ratio {:.2}; median lag of 4 KiB: plaintext {:.2} ms, TLS {:.2} ms",
            self.plain.first_sync.as_secs_f64(),
            self.tls.first_sync.as_secs_f64(),
            self.ratio(),
            ms(self.plain.lag),
            ms(self.tls.lag)
        )
    }
}

/// Measures in a lab of its own.
pub fn measure(lab: &Lab, scale: &Scale) -> io::Result<Figures> {
    let folder = lab.new_dir("folder");
    figures::write_large(&folder.join("large"), scale.bytes)?;
    let (mut syncs, mut lags) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..scale.rounds * 2 {
        let way = (round % 2) as usize;
        // What the round before wrote is no part of this one.
        rustix::fs::sync();
        let (sync, lag) = once(lab, &folder, round, way == 1, scale.files)?;
        eprintln!("{}: {:.2} s, lag {:.2} ms", ["plaintext", "TLS"][way], sync.as_secs_f64(), lag.as_secs_f64() * 1e3);
        syncs[way].push(sync);
        lags[way].push(lag);
    }
    let mut of = |way: usize| Way { first_sync: median(&mut syncs[way]), lag: median(&mut lags[way]) };
    Ok(Figures { plain: of(0), tls: of(1) })
}

/// One way: the time of its first sync, and its median lag.
fn once(lab: &Lab, folder: &Path, round: u64, tls: bool, files: u64) -> io::Result<(Duration, Duration)> {
    let name = format!("storage{round}");
    let storage = Storage::start(lab, &name);
    let state = lab.new_dir(&format!("state{round}"));
    let mut spec = MountSpec::new(&storage, hostile::VOLUME, folder).state(&state);
    if tls {
        let identity = hostile::join(lab, &storage, &format!("client{round}"));
        spec = spec.options(&format!("identity={}", identity.display()));
    }
    let begun = Instant::now();
    let mount = lab.mount_with(&spec);
    mount.settle();
    let sync = begun.elapsed();
    let security = mount.status().security;
    if (security == "tls") != tls {
        return Err(io::Error::other(format!("the connection is {security}")));
    }
    let small = folder.join("small");
    fs::create_dir(&small)?;
    let tree = storage.tree(hostile::VOLUME).join("small");
    mount.settle();
    let lag = median(&mut figures::lags(&small, &tree, files)?);
    fs::remove_dir_all(&small)?;
    mount.settle();
    mount.unmount();
    storage.daemon().terminate(Duration::from_secs(60));
    fs::remove_dir_all(storage.data())?;
    Ok((sync, lag))
}
