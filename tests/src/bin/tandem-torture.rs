//! The tools of the tests for use by hand, by scripts and as processes of their own.
//!
//! `tandem-torture storm DIR SEED SECONDS WORKERS` changes a tree at random, `twin LEFT RIGHT SEED STEPS` does the same to two trees and
//! compares each result, `compare LEFT RIGHT [--no-mtime]` compares two trees exactly, `figures MOUNT TREE` measures lag and renames,
//! `reflect SOCKET|PORT` is a generic gRPC client. Exit code 1: a difference, an unexpected error, or a figure that is out of its bound.

use std::{env, io, path::Path, process::ExitCode, sync::atomic::AtomicBool, thread, time::Duration};

use tandem_runtime::{dirs, secret};
use tandem_tests::{
    compare, figures, generic,
    harness::rpc,
    storm::{self, Shape, differential},
};

const USAGE: &str = "usage: tandem-torture storm DIR SEED SECONDS WORKERS | twin LEFT RIGHT SEED STEPS | compare LEFT RIGHT [--no-mtime]
       | figures MOUNT TREE | reflect SOCKET|PORT";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["storm", dir, seed, seconds, workers] => match (seed.parse(), seconds.parse(), workers.parse()) {
            (Ok(seed), Ok(seconds), Ok(workers)) => run_storm(Path::new(dir), seed, seconds, workers),
            _ => Err(USAGE.to_owned()),
        },
        ["twin", left, right, seed, steps] => match (seed.parse(), steps.parse()) {
            (Ok(seed), Ok(steps)) => run_twin(Path::new(left), Path::new(right), seed, steps),
            _ => Err(USAGE.to_owned()),
        },
        ["compare", left, right] => run_compare(left, right, true),
        ["compare", left, right, "--no-mtime"] => run_compare(left, right, false),
        ["figures", mount, tree] => run_figures(Path::new(mount), Path::new(tree)).map_err(|error| error.to_string()),
        ["reflect", target] => run_reflect(target),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run_storm(dir: &Path, seed: u64, seconds: u64, workers: u64) -> Result<String, String> {
    let stop = AtomicBool::new(false);
    let work =
        |worker: u64| storm::run(dir, seed.wrapping_add(worker), Shape::default(), Duration::from_secs(seconds), &stop);
    let reports: Vec<storm::Report> = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    });
    let actions: u64 = reports.iter().map(|report| report.actions).sum();
    let succeeded: u64 = reports.iter().map(|report| report.succeeded).sum();
    let slowest = reports.iter().max_by_key(|report| report.slowest);
    let slowest = slowest.map(|report| format!("{:?} ({})", report.slowest, report.slowest_action)).unwrap_or_default();
    let text = format!("{actions} actions, {succeeded} succeeded; slowest {slowest}");
    let bad: Vec<String> = reports.iter().flat_map(|report| report.unexpected.values().cloned()).collect();
    if bad.is_empty() { Ok(text) } else { Err(format!("{text}\nunexpected:\n{}", bad.join("\n"))) }
}

fn run_twin(left: &Path, right: &Path, seed: u64, steps: u64) -> Result<String, String> {
    differential::run(left, right, seed, steps, Shape::default()).map_err(|divergence| divergence.to_string())?;
    Ok(format!("{steps} actions with equal results"))
}

fn run_compare(left: &str, right: &str, mtime: bool) -> Result<String, String> {
    let options = compare::Options { mtime, ..compare::Options::default() };
    let seen = compare::trees(Path::new(left), Path::new(right), &options).map_err(|error| error.to_string())?;
    if seen.differences.is_empty() {
        Ok(format!("equal: {} objects, {} bytes of data", seen.objects, seen.bytes))
    } else {
        Err(format!("{}{} differences", seen.report(), seen.differences.len()))
    }
}

/// What the issue asks for: 10 ms for each, 1 KiB on the wire for a rename.
fn run_figures(mount: &Path, tree: &Path) -> io::Result<String> {
    let bound = Duration::from_millis(10);
    let socket = figures::socket_of(&dirs::runtime_dir(), mount)?;
    figures::settle(&socket)?;
    let lags = figures::lags(mount, tree, 200)?;
    let median = lags[lags.len() / 2];
    println!(
        "lag from close() of a new 4 KiB file to its bytes on the replica: median {median:?}, longest {:?}",
        lags[lags.len() - 1]
    );
    let mut good = median < bound;
    figures::write_large(&mount.join("figures-large"), 1 << 30)?;
    figures::write_many(&mount.join("figures-many"), 5000)?;
    for (what, from, to) in [
        ("1 GiB file", "figures-large", "figures-large-2"),
        ("directory of 5,000 files", "figures-many", "figures-many-2"),
    ] {
        let seen = figures::rename(&socket, mount, tree, from, to)?;
        println!("rename of a {what}: {:?}, {} bytes sent", seen.took, seen.sent_bytes);
        good &= seen.took < bound && seen.sent_bytes < 1024;
    }
    if good { Ok("all within their bounds".to_owned()) } else { Err(io::Error::other("a figure is out of its bound")) }
}

fn run_reflect(target: &str) -> Result<String, String> {
    let reply = rpc::block_on(async {
        let (channel, secret) = match target.parse::<u16>() {
            Ok(port) => (rpc::tcp(port).await?, secret::read(port)),
            Err(_) => (rpc::unix(Path::new(target)).await?, None),
        };
        let services = generic::services(channel.clone()).await?;
        let schema = generic::schema(channel.clone(), "tandem.v1.Admin").await?;
        let status = generic::call(channel, "/tandem.v1.Admin/Status", secret.as_deref()).await?;
        Ok(format!("services {services:?}; schema of Admin {} bytes; status {} bytes", schema.len(), status.len()))
    });
    reply.map_err(|error| error.to_string())
}
