//! `inspect`: what the files of a volume say, without changing one of them.

use std::{fmt::Write as _, path::Path};

use serde_json::{Value, json};
use tandem_proto::{
    op::{Change, Op},
    position::Position,
};

use super::{InspectArgs, OfflineError, log_check, say};
use crate::{
    apply::Record,
    ingest::receiver::Durable,
    log::{LogPos, codec::decode_raw, disk::DirDisk, image::Image},
    volume::state::{STATE_FILE, State},
};

/// Shows one volume.
pub fn inspect(name: &str, directory: &Path, args: &InspectArgs) -> Result<u8, OfflineError> {
    let path = directory.join(STATE_FILE);
    let bytes = std::fs::read(&path).map_err(|error| error.to_string());
    let state = bytes.and_then(|bytes| State::decode(&bytes).map_err(|error| error.to_string()));
    let log_path = directory.join("log");
    let image = if log_path.is_dir() {
        let disk = DirDisk::open_or_create(&log_path).map_err(OfflineError::io("cannot open", &log_path))?;
        let (start, end) = state.as_ref().map_or((None, LogPos::default()), |s| (Some(s.log_start), s.log_end));
        Image::read(disk, start, end).map_err(|error| error.to_string())
    } else {
        Err("its directory is missing".to_owned())
    };
    let mut durable = state.as_ref().map_or_else(|_| Durable::default(), |state| state.durable.clone());
    let mut out = json!({ "volume": name, "directory": directory.display().to_string() });
    out["state"] = state.as_ref().map_or_else(|error| json!({ "error": error }), state_json);
    out["log"] = match &image {
        Ok(image) => log_json(image, &mut durable),
        Err(error) => json!({ "error": error }),
    };
    out["position"] = json!(durable.tip.to_string());
    out["catalog_bytes"] = json!(size(&directory.join("catalog/catalog.redb")));
    out["repairs"] = json!(std::fs::read_dir(directory.join("damaged")).map_or(0, Iterator::count));
    if args.json {
        if let (Ok(image), true) = (&image, args.records) {
            out["records"] = records(image).collect();
        }
        say(&format!("{out}\n"));
        return Ok(0);
    }
    say(&text(&out));
    if let (Ok(image), true) = (&image, args.records) {
        for record in records(image) {
            say(&format!("  {}\n", record_line(&record)));
        }
    }
    Ok(0)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn position_json(position: &Position) -> Value {
    json!({ "epoch": position.epoch.0, "seq": position.seq.0, "chain": tandem_proto::ids::hex(&position.chain.0) })
}

fn state_json(state: &State) -> Value {
    json!({
        "volume_id": state.identity.volume_id.to_string(),
        "replica_id": state.identity.replica_id.to_string(),
        "position": position_json(&state.durable.tip),
        "published_in_epoch": state.durable.live,
        "empty": state.durable.empty,
        "writer": state.durable.writer.as_ref().map(|writer| writer.name.clone()),
        "attached_ns": state.attached_ns,
        "log_start": state.log_start.to_string(),
        "log_end": state.log_end.to_string(),
        "unproven": state.unproven,
    })
}

fn log_json(image: &Image<DirDisk>, durable: &mut Durable) -> Value {
    let mut problems: Vec<String> = image.harmless.iter().map(|p| format!("{}: {}", p.at, p.problem)).collect();
    problems.extend(image.damage.iter().map(|damage| format!("{}: {}", damage.at, damage.problem)));
    let figures = log_check::follow(image, durable, &mut |problem| problems.push(problem));
    let segments: Vec<Value> = image
        .segments
        .iter()
        .map(|(index, segment)| json!({ "index": index, "bytes": segment.len, "end": segment.end }))
        .collect();
    json!({
        "start": image.start().to_string(),
        "end": image.end().to_string(),
        "segments": segments,
        "free_files": image.free,
        "records": figures.records,
        "ops": figures.ops,
        "unfinished_staging": figures.unfinished_staging,
        "problems": problems,
    })
}

fn text(out: &Value) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!("{}: {}", plain(&out["volume"]), plain(&out["directory"])));
    line(format!("  position    {}", plain(&out["position"])));
    for part in ["state", "log"] {
        let Some(fields) = out[part].as_object() else { continue };
        for (name, value) in fields {
            line(format!("  {part:5} {name:20} {}", plain(value)));
        }
    }
    line(format!("  catalog {} bytes, {} earlier repairs", out["catalog_bytes"], out["repairs"]));
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// The records of a log, each as one object.
fn records(image: &Image<DirDisk>) -> impl Iterator<Item = Value> {
    image.raw_records().map(|raw| match raw {
        Ok(raw) => {
            let (at, bytes) = (raw.at.to_string(), raw.payload.len());
            match decode_raw(raw) {
                Ok(record) => record_json(&record, &at, bytes),
                Err(error) => json!({ "at": at, "bytes": bytes, "error": error.0 }),
            }
        }
        Err(error) => json!({ "error": error.to_string() }),
    })
}

fn record_json(record: &Record, at: &str, bytes: usize) -> Value {
    let mut out = json!({ "at": at, "bytes": bytes, "kind": log_check::kind(record) });
    match record {
        Record::Epoch { position, writer } => {
            out["end"] = json!(position.to_string());
            out["writer"] = json!(writer.name);
        }
        Record::Ops { ops, end } | Record::StagedOps { ops, end } => {
            out["end"] = json!(end.to_string());
            out["ops"] = ops.iter().map(op_json).collect();
        }
        Record::StageBegin { serial, round, full, s0 } => {
            out["serial"] = json!(serial);
            out["round"] = json!(round);
            out["full"] = json!(full);
            out["s0"] = json!(s0.to_string());
        }
        Record::StagedFile { id, .. } => out["id"] = json!(id.to_hex()),
        Record::StagedExtent { id, offset, len, .. } => {
            out["id"] = json!(id.to_hex());
            out["offset"] = json!(offset);
            out["len"] = json!(len);
        }
        Record::Publish { serial, position } => {
            out["serial"] = json!(serial);
            out["end"] = json!(position.to_string());
        }
        Record::Stage(_) | Record::StageDropped => {}
    }
    out
}

fn op_json(op: &Op) -> Value {
    let changes: Vec<Value> = op.changes.iter().map(change_json).collect();
    json!({ "seq": op.seq.0, "process": String::from_utf8_lossy(&op.origin.process), "changes": changes })
}

fn change_json(change: &Change) -> Value {
    match change {
        Change::Birth { id, .. } => json!({ "birth": id.to_hex() }),
        Change::Entry { dir, name, old, new } => json!({
            "dir": dir.to_hex(),
            "name": String::from_utf8_lossy(name.as_bytes()),
            "old": old.as_ref().map(|id| id.to_hex()),
            "new": new.as_ref().map(|id| id.to_hex()),
        }),
        Change::Attr { id, .. } => json!({ "attr": id.to_hex() }),
        Change::Xattr { id, name, .. } => json!({ "xattr": id.to_hex(), "name": String::from_utf8_lossy(name) }),
        Change::Data { id, offset, data } => json!({ "data": id.to_hex(), "offset": offset, "len": data.len() }),
        Change::Copy { id, offset, from, from_offset, len, .. } => json!({
            "copy": id.to_hex(), "offset": offset, "from": from.to_hex(), "from_offset": from_offset, "len": len
        }),
        Change::Hole { id, offset, len } => json!({ "hole": id.to_hex(), "offset": offset, "len": len }),
        Change::Size { id, size } => json!({ "size": id.to_hex(), "is": size }),
    }
}

fn record_line(record: &Value) -> String {
    let Some(fields) = record.as_object() else { return String::new() };
    let mut line = format!("{} {}", plain(&record["at"]), plain(&record["kind"]));
    for (name, value) in fields.iter().filter(|(name, _)| !matches!(name.as_str(), "at" | "kind")) {
        // Writing to a string cannot fail.
        let _ = write!(line, " {name}={}", plain(value));
    }
    line
}
