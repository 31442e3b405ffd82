//! Progress on a terminal: one line that is written over. Where output goes elsewhere, nothing is shown.

use std::io::{self, IsTerminal as _, Write as _};

use tandem_proto::pb::Progress;

use crate::render;

/// Cells of the bar.
const WIDTH: usize = 24;

/// How much is done, from 0 to 1; `None`: the whole is not known.
pub fn share(progress: &Progress) -> Option<f64> {
    let (done, total) = match progress.bytes_total {
        0 => (progress.files_done, progress.files_total),
        total => (progress.bytes_done, total),
    };
    (total > 0).then(|| (done as f64 / total as f64).clamp(0.0, 1.0))
}

/// Seconds that are left if it goes on as it went; `None`: not known.
pub fn seconds_left(progress: &Progress) -> Option<f64> {
    let share = share(progress).filter(|share| *share > 0.01)?;
    (progress.seconds > 0.5).then(|| progress.seconds * (1.0 - share) / share)
}

/// Files and bytes, rate, and time left, in words.
pub fn figures(progress: &Progress) -> String {
    let mut parts = vec![match progress.files_total {
        total if total > progress.files_done => format!("{} of {total} files", progress.files_done),
        _ => format!("{} files", progress.files_done),
    }];
    match progress.bytes_total {
        0 if progress.bytes_done == 0 => {}
        0 => parts.push(render::bytes(progress.bytes_done)),
        total => parts.push(format!("{} of {}", render::bytes(progress.bytes_done), render::bytes(total))),
    }
    if progress.seconds > 0.5 {
        let files = progress.files_done as f64 / progress.seconds;
        let bytes = (progress.bytes_done as f64 / progress.seconds) as u64;
        parts.push(format!("{}/s, {files:.0} files/s", render::bytes(bytes)));
    }
    if let Some(left) = seconds_left(progress) {
        parts.push(format!("{} left", render::seconds(left)));
    }
    parts.join(", ")
}

/// The line.
pub fn line(progress: &Progress) -> String {
    match share(progress) {
        Some(share) => {
            let full = (share * WIDTH as f64) as usize;
            let bar = format!("{}{}", "#".repeat(full), ".".repeat(WIDTH - full));
            format!("{} [{bar}] {:3.0} %  {}", progress.what, share * 100.0, figures(progress))
        }
        None => format!("{}  {}", progress.what, figures(progress)),
    }
}

/// A line of standard error that is written over.
#[derive(Debug, Default)]
pub struct Bar {
    shown: usize,
}

impl Bar {
    /// Whether somebody sees it.
    pub fn is_seen() -> bool {
        io::stderr().is_terminal()
    }

    /// Shows how far it is.
    pub fn show(&mut self, progress: &Progress) {
        self.put(&line(progress));
    }

    /// The same, of one of several.
    pub fn show_of(&mut self, whose: &str, progress: &Progress) {
        self.put(&format!("{whose}  {}", line(progress)));
    }

    fn put(&mut self, text: &str) {
        if Bar::is_seen() {
            let _ = write!(io::stderr().lock(), "\r{text:<width$}", width = self.shown);
            self.shown = text.chars().count();
        }
    }

    /// Takes the line away, for other output.
    pub fn clear(&mut self) {
        if self.shown > 0 {
            let _ = write!(io::stderr().lock(), "\r{:width$}\r", "", width = self.shown);
            self.shown = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::Progress;

    use super::{line, seconds_left, share};

    #[test]
    fn a_line_says_how_much_is_done_and_what_is_left() {
        let progress = Progress {
            what: "verify".into(),
            files_done: 250,
            files_total: 1000,
            bytes_done: 50 << 20,
            bytes_total: 0,
            seconds: 5.0,
        };
        assert_eq!(share(&progress), Some(0.25));
        assert_eq!(seconds_left(&progress), Some(15.0));
        assert_eq!(
            line(&progress),
            "verify [######..................]  25 %  250 of 1000 files, 50.0 MiB, 10.0 MiB/s, 50 files/s, 15.0 s left"
        );
        assert_eq!(share(&Progress::default()), None);
        assert_eq!(line(&Progress { what: "resync".into(), files_done: 3, ..Default::default() }), "resync  3 files");
    }
}
