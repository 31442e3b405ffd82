//! What a mount costs: the same work on the backing file system and on mounts beside it, in turns, so that their ratio holds on any
//! machine. Each repetition does all kinds once, in another order; the table shows the median of the ratios and their spread.

pub mod report;
pub mod rows;
pub mod work;

mod bare;
mod memory;
mod peers;
mod places;

use std::{fs, io, path::Path};

pub use self::{peers::Peer, work::Scale};
use self::{
    places::{Measured, Places},
    report::{Kind, Samples},
    work::{Place, Record, Took},
};
use crate::{
    databases::postgres::{Programs, pgbench},
    harness::Lab,
};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How much is done.
    pub scale: Scale,
    /// Repetitions.
    pub runs: usize,
    /// Kinds of mounts beside native: state and options.
    pub kinds: Vec<Kind>,
    /// Families of work: `data`, `names`, `programs`, `pgbench`; empty: all.
    pub families: Vec<String>,
}

impl Plan {
    fn has(&self, family: &str) -> bool {
        self.families.is_empty() || self.families.iter().any(|chosen| chosen == family)
    }
}

/// Measures in a lab. The kinds that could be measured, native first, and their samples.
pub fn measure(lab: &Lab, plan: &Plan) -> io::Result<(Vec<Kind>, Samples)> {
    let archive = work::make_archive(&lab.new_dir("archive"), plan.scale.tree_files)?;
    let places = Places::make(lab, &plan.kinds)?;
    let mut kinds: Vec<Kind> = places.all.iter().map(|place| place.kind.clone()).collect();
    let (mut samples, bare) = (Samples::of_bursts(plan.scale.large_bytes), lab.new_dir("bare"));
    let databases = Programs::find().filter(|_| plan.has("pgbench") && plan.scale.pgbench_seconds > 0);
    for run in 0..plan.runs {
        let mut done: Vec<(&'static str, usize, Took)> = Vec::new();
        let mut record = |row, took| done.push((row, places.all.len(), took));
        samples.add_request(bare::measure(&bare, plan, &archive, &mut record)?);
        let mut record = |row, took| done.push((row, places.all.len() + 1, took));
        bare::measure_within(&bare, plan, &archive, &mut record)?;
        for turn in 0..places.all.len() {
            let at = (turn + run) % places.all.len();
            let place = &places.all[at];
            let dir = place.dir.join(format!("run-{run}"));
            fs::create_dir(&dir)?;
            let mut record = |row, took| done.push((row, at, took));
            families(place, &dir, plan, &archive, &mut record)?;
            if let Some(programs) = &databases {
                place.quiet()?;
                let seconds = transaction(lab, programs, place, plan.scale.pgbench_seconds);
                place.forgive(seconds.map(|seconds| record(rows::name::PGBENCH, Took { seconds, requests: None })))?;
            }
            place.quiet()?;
        }
        done.into_iter().for_each(|(row, at, took)| samples.add(row, at, took));
        eprintln!("repetition {} of {}", run + 1, plan.runs);
    }
    kinds.extend([report::BARE, report::MEMORY].map(|state| Kind { state: state.to_owned(), options: String::new() }));
    Ok((kinds, samples))
}

/// The chosen families of work in a directory of a place.
fn families(place: &Measured, dir: &Path, plan: &Plan, archive: &Path, record: Record<'_>) -> io::Result<()> {
    let (quiet, settle, requests) = (|| place.quiet(), || place.settle(), || place.requests());
    let work_place = Place { dir, quiet: &quiet, settle: &settle, requests: &requests };
    if plan.has("data") {
        place.forgive(work::data(&work_place, &plan.scale, record))?;
    }
    if plan.has("names") {
        place.forgive(work::names(&work_place, &plan.scale, record))?;
    }
    if plan.has("programs") {
        place.forgive(work::programs(&work_place, archive, record))?;
    }
    Ok(())
}

/// Seconds of a transaction of pgbench.
fn transaction(lab: &Lab, programs: &Programs, place: &Measured, seconds: u64) -> io::Result<f64> {
    let scratch = lab.new_dir(&format!("sockets-{}", place.number));
    let rate = pgbench(programs, &place.dir.join("database"), &scratch, seconds).map_err(io::Error::other)?;
    Ok(1.0 / rate)
}
