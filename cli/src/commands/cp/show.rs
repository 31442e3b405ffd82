//! What a copy tells while it runs, and at its end.

use std::{
    io,
    time::{Duration, Instant},
};

use tandem_proto::pb;

use crate::{
    bar::Bar,
    exit::{Exit, Failure},
    output::{complain, say},
    render,
};

/// Failures that are told one by one.
const TOLD_MAX: usize = 20;
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Figures of all groups of a copy.
pub struct Shown {
    begin: Instant,
    bar: Bar,
    at: Option<Instant>,
    /// Of the groups before.
    before: pb::CopyProgress,
    /// Of attempts of this group that ended: what came, and what was there before the first of them.
    earlier: u64,
    there: Option<u64>,
    now: pb::CopyProgress,
    failures: usize,
    waited_for: String,
}

impl Default for Shown {
    fn default() -> Self {
        Shown {
            begin: Instant::now(),
            bar: Bar::default(),
            at: None,
            before: pb::CopyProgress::default(),
            earlier: 0,
            there: None,
            now: pb::CopyProgress::default(),
            failures: 0,
            waited_for: String::new(),
        }
    }
}

impl Shown {
    /// News of the group. `done`: files of it that earlier attempts finished, which the news does not count.
    pub fn hear(&mut self, progress: pb::CopyProgress, done: u64) {
        for why in &progress.failed {
            self.failures += 1;
            if self.failures <= TOLD_MAX {
                self.bar.clear();
                complain(why);
            }
        }
        for what in &progress.skipped {
            self.bar.clear();
            complain(&format!("left out: {what}"));
        }
        if progress.waits_for != self.waited_for {
            if !progress.waits_for.is_empty() {
                self.bar.clear();
                complain(&format!("waiting: {}", progress.waits_for));
            }
            self.waited_for.clone_from(&progress.waits_for);
        }
        self.now = progress;
        self.now.files += done;
        self.now.files_done += done;
        if self.at.is_none_or(|at| at.elapsed() >= SHOW_EVERY) {
            self.at = Some(Instant::now());
            let (files, came, there) = self.sum();
            self.bar.show(&pb::Progress {
                what: "copying".to_owned(),
                files_done: self.before.files_done + self.now.files_done,
                files_total: files,
                bytes_done: came + there,
                bytes_total: self.before.bytes + self.now.bytes,
                seconds: self.begin.elapsed().as_secs_f64(),
            });
        }
    }

    /// Files, bytes that came, bytes that were there before this command.
    fn sum(&self) -> (u64, u64, u64) {
        let there = self.there.unwrap_or(self.now.bytes_there);
        let came = self.before.bytes_done + self.earlier + self.now.bytes_done;
        (self.before.files + self.now.files, came, self.before.bytes_there + there)
    }

    /// An attempt broke, and another one follows. What that one finds there was brought by this one.
    pub fn again(&mut self, why: &str) {
        self.earlier += self.now.bytes_done;
        self.there.get_or_insert(self.now.bytes_there);
        self.now.bytes_done = 0;
        if why != self.waited_for {
            self.bar.clear();
            complain(&format!("waiting: {why}"));
            self.waited_for = why.to_owned();
        }
    }

    /// A group is complete.
    pub fn next(&mut self) {
        let (files, came, there) = self.sum();
        let files_done = self.before.files_done + self.now.files_done;
        let bytes = self.before.bytes + self.now.bytes;
        self.before =
            pb::CopyProgress { files, bytes, files_done, bytes_done: came, bytes_there: there, ..Default::default() };
        (self.now, self.earlier, self.there) = (pb::CopyProgress::default(), 0, None);
    }

    /// Says how it ended.
    pub fn end(&mut self) -> Result<Exit, Failure> {
        self.bar.clear();
        let (files, came, there) = self.sum();
        let files_done = self.before.files_done + self.now.files_done;
        let there = match there {
            0 => String::new(),
            there => format!(", {} were there already", render::bytes(there)),
        };
        let took = render::seconds(self.begin.elapsed().as_secs_f64());
        say(&format!("{files_done} of {files} files, {}{there}, {took}\n", render::bytes(came)))
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })?;
        if self.failures > TOLD_MAX {
            complain(&format!("{} more failed", self.failures - TOLD_MAX));
        }
        Ok(if self.failures == 0 { Exit::InSync } else { Exit::Unreachable })
    }

    /// Nothing is left on the line of the bar.
    pub fn clear(&mut self) {
        self.bar.clear();
    }
}
