//! `tandem volume scrub`: a storage daemon reads all of a replica from its disk, and compares it with what its index read after each op.

use tandem_proto::{
    VolumeName,
    pb::{Progress, ScrubReply, ScrubRequest, volumes_client::VolumesClient},
};

use crate::{
    bar::Bar,
    exit::{Exit, Failure},
    output::{complain, say},
    render,
    storage::{Which, connect},
};

/// Runs it. `rate_bytes`: a second, at most; 0: as fast as the disk is.
pub async fn run(volume: &VolumeName, rate_bytes: u64, which: &Which) -> Result<Exit, Failure> {
    let mut client = VolumesClient::new(connect(which.server()).await?);
    let request = ScrubRequest { volume: volume.to_string(), rate_bytes };
    let mut replies = which.call(client.scrub(request)).await?;
    let mut bar = Bar::default();
    let last = loop {
        match replies.message().await {
            Ok(Some(reply)) if reply.done => break reply,
            Ok(Some(reply)) if !reply.found.is_empty() => {
                bar.clear();
                complain(&format!("volume {volume}: {}", reply.found));
            }
            Ok(Some(reply)) => bar.show(&progress(&reply)),
            Ok(None) | Err(_) => {
                bar.clear();
                let message = format!("volume {volume}: the storage daemon ended before it was done; see its log");
                return Err(Failure::new(Exit::NoAnswer, message));
            }
        }
    };
    bar.clear();
    say(&words(volume, &last))?;
    Ok(match (last.reason.is_empty(), last.damaged) {
        (false, _) => Exit::Behind,
        (true, 0) => Exit::InSync,
        (true, _) => Exit::Unreachable,
    })
}

fn progress(reply: &ScrubReply) -> Progress {
    Progress {
        what: "scrub".to_owned(),
        files_done: reply.files_done,
        files_total: reply.files_total,
        bytes_done: reply.bytes_done,
        bytes_total: 0,
        seconds: reply.seconds,
    }
}

fn words(volume: &VolumeName, last: &ScrubReply) -> String {
    let (files, bytes) = (last.files_done, render::bytes(last.bytes_done));
    let read = format!("{files} inodes, {bytes} read in {}", render::seconds(last.seconds));
    let mut text = match last.damaged {
        0 => format!("volume {volume}: no damage found; {read}"),
        damaged => format!("volume {volume}: {damaged} files are damaged; {read}"),
    };
    if last.unindexed > 0 {
        text.push_str(&format!("; {} files could not be judged: the index has not read them yet", last.unindexed));
    }
    if !last.reason.is_empty() {
        text.push_str(&format!("; it did not come to its end: {}", last.reason));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::ScrubReply;

    use super::words;

    #[test]
    fn the_result_is_said_in_one_line() {
        let volume = "v".parse().expect("a name");
        let mut reply = ScrubReply { files_done: 3, bytes_done: 2048, seconds: 2.0, ..Default::default() };
        assert_eq!(words(&volume, &reply), "volume v: no damage found; 3 inodes, 2.0 KiB read in 2.0 s\n");
        (reply.damaged, reply.unindexed, reply.reason) = (1, 2, "the volume has stopped".into());
        let text = words(&volume, &reply);
        assert!(text.starts_with("volume v: 1 files are damaged;") && text.contains("2 files could not"), "{text}");
        assert!(text.ends_with("its end: the volume has stopped\n"), "{text}");
    }
}
