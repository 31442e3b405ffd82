//! `tandem history`: what was done on a volume, when and by whom; with `--deleted`, what can be had back.

use std::path::PathBuf;

use serde::Serialize;
use tandem_proto::pb;

use crate::{
    archive::{Place, Which},
    exit::{Exit, Failure},
    output::{complain, say},
    render, when,
};

/// Options of `tandem history`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem history                          what was done lately on the only mount of this host
  tandem history ~/docs/notes --since 1h  by whom the notes were changed in the last hour
  tandem history --deleted ~/docs         what was deleted and can be had back with tandem restore")]
pub struct Args {
    /// Lists deleted and replaced files that are still kept.
    #[arg(long)]
    deleted: bool,
    /// Only what was done since: an age such as 10min, 1h or 7d, or a time such as "2026-11-21 14:30".
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    since: Option<i64>,
    /// The newest so many.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Prints JSON, one object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    which: Which,
    /// A path on a mount: what is at or below it. It need not exist any more.
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let place = args.which.place(args.path.as_deref()).await?;
    if args.deleted { deleted(&args, &place).await } else { done(&args, &place).await }
}

/// One thing that was done, for programs.
#[derive(Serialize)]
struct Done<'a> {
    time_ns: i64,
    position: String,
    what: &'a str,
    path: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    to: &'a str,
    bytes: u64,
    ops: u64,
    process: &'a str,
    pid: u32,
    uid: u32,
    client: &'a str,
}

async fn done(args: &Args, place: &Place) -> Result<Exit, Failure> {
    let request = pb::HistoryRequest {
        volume: place.volume.clone(),
        path: place.path.clone(),
        since_ns: args.since.unwrap_or(0),
        limit: args.limit,
    };
    let answer = place.connect().await?.history(request).await;
    let mut items = answer.map_err(|status| place.failure(&status))?.into_inner();
    let mut none = true;
    while let Some(item) = items.message().await.map_err(|status| place.failure(&status))? {
        none = false;
        say(&if args.json { json_line(&item) } else { format!("{}\n", line(&item)) })?;
    }
    if none && !args.json {
        complain("nothing is recorded");
    }
    Ok(Exit::InSync)
}

fn json_line(item: &pb::HistoryItem) -> String {
    let done = Done {
        time_ns: item.time_ns,
        position: format!("{}:{}", item.epoch, item.seq),
        what: &item.what,
        path: &item.path,
        to: &item.to,
        bytes: item.bytes,
        ops: item.ops,
        process: &item.process,
        pid: item.pid,
        uid: item.uid,
        client: &item.client,
    };
    format!("{}\n", serde_json::to_string(&done).expect("the keys are strings"))
}

fn line(item: &pb::HistoryItem) -> String {
    let mut text = format!("{}  {:<10}  {}", when::shown(item.time_ns), item.what, item.path);
    if !item.to.is_empty() {
        text.push_str(&format!(" -> {}", item.to));
    }
    if item.bytes > 0 {
        text.push_str(&format!("  {}", render::bytes(item.bytes)));
    }
    match (item.process.as_str(), item.pid) {
        ("", 0) if item.ops > 1 => text.push_str(&format!("  {} changes", item.ops)),
        ("", 0) => {}
        ("", pid) => text.push_str(&format!("  by pid {pid} (uid {})", item.uid)),
        (process, pid) => text.push_str(&format!("  by {process} (pid {pid}, uid {})", item.uid)),
    }
    text
}

/// A deleted file, for programs.
#[derive(Serialize)]
struct Deleted {
    deleted_ns: i64,
    path: String,
    size: u64,
    mtime_ns: i64,
    r#type: &'static str,
    why: String,
}

fn type_name(item: &pb::KeptItem) -> &'static str {
    match item.r#type() {
        pb::FileType::Regular => "file",
        pb::FileType::Directory => "directory",
        pb::FileType::Symlink => "symlink",
        _ => "special",
    }
}

async fn deleted(args: &Args, place: &Place) -> Result<Exit, Failure> {
    let request = pb::KeptRequest { volume: place.volume.clone(), path: place.path.clone(), limit: args.limit };
    let answer = place.connect().await?.kept(request).await;
    let mut items = answer.map_err(|status| place.failure(&status))?.into_inner();
    let mut found = Vec::new();
    while let Some(item) = items.message().await.map_err(|status| place.failure(&status))? {
        if item.deleted_ns >= args.since.unwrap_or(0) {
            found.push(item);
        }
    }
    if args.json {
        for item in found {
            let line = Deleted {
                deleted_ns: item.deleted_ns,
                path: place.shown(&item.path),
                size: item.size,
                mtime_ns: item.mtime_ns,
                r#type: type_name(&item),
                why: item.why,
            };
            say(&format!("{}\n", serde_json::to_string(&line).expect("the keys are strings")))?;
        }
        return Ok(Exit::InSync);
    }
    let row = |item: &pb::KeptItem| {
        let (size, slash) = match item.r#type() {
            pb::FileType::Directory => ("folder".to_owned(), "/"),
            _ => (render::bytes(item.size), ""),
        };
        vec![when::shown(item.deleted_ns), item.why.clone(), size, format!("{}{slash}", place.shown(&item.path))]
    };
    let rows: Vec<_> = found.iter().map(row).collect();
    for line in render::table(&rows) {
        say(&format!("{line}\n"))?;
    }
    complain(if found.is_empty() {
        "nothing that was deleted is kept"
    } else {
        "have one back with: tandem restore PATH"
    });
    Ok(Exit::InSync)
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::HistoryItem;

    use super::line;

    #[test]
    fn a_line_says_what_was_done_and_by_whom() {
        let item = HistoryItem {
            what: "renamed".to_owned(),
            path: "/a".to_owned(),
            to: "/b".to_owned(),
            process: "mv".to_owned(),
            pid: 7,
            uid: 1,
            ..Default::default()
        };
        assert!(line(&item).ends_with("  renamed     /a -> /b  by mv (pid 7, uid 1)"), "{}", line(&item));
    }
}
