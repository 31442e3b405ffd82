//! Progress on a terminal: one line that is written over. Where output goes elsewhere, nothing is shown.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use ratatui::crossterm::terminal;
use tandem_proto::pb::Progress;

use crate::render;

/// Cells of the bar, from the widest that fits on the terminal.
const WIDTHS: [usize; 3] = [24, 12, 6];
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;
/// The rate that is shown is that of so much time.
const RATE_OVER: Duration = Duration::from_secs(4);

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

/// Files and bytes a second since the beginning; `None`: it has only just begun.
fn mean(progress: &Progress) -> Option<(f64, f64)> {
    let seconds = progress.seconds;
    (seconds > 0.5).then(|| (progress.files_done as f64 / seconds, progress.bytes_done as f64 / seconds))
}

/// Files and bytes, mean rate, and time left, in words.
pub fn figures(progress: &Progress) -> String {
    figures_at(progress, mean(progress))
}

/// The same with this rate, in files and bytes a second.
fn figures_at(progress: &Progress, rate: Option<(f64, f64)>) -> String {
    let mut parts = vec![match progress.files_total {
        total if total > progress.files_done => format!("{} of {total} files", progress.files_done),
        _ => format!("{} files", progress.files_done),
    }];
    match progress.bytes_total {
        0 if progress.bytes_done == 0 => {}
        0 => parts.push(render::bytes(progress.bytes_done)),
        total => parts.push(format!("{} of {}", render::bytes(progress.bytes_done), render::bytes(total))),
    }
    if let Some((files, bytes)) = rate {
        parts.push(match progress.files_total {
            1 => format!("{}/s", render::bytes(bytes as u64)),
            _ => format!("{}/s, {files:.0} files/s", render::bytes(bytes as u64)),
        });
    }
    if let Some(left) = seconds_left(progress) {
        parts.push(format!("{} left", render::seconds(left)));
    }
    parts.join(", ")
}

/// The line, on a terminal of so many columns: a line that wrapped could not be written over.
fn line(progress: &Progress, rate: Option<(f64, f64)>, columns: usize) -> String {
    let figures = figures_at(progress, rate);
    let Some(share) = share(progress) else { return format!("{}  {figures}", progress.what) };
    let with = |width: usize| {
        let full = (share * width as f64) as usize;
        let bar = format!("{}{}", "#".repeat(full), ".".repeat(width - full));
        format!("{} [{bar}] {:3.0} %  {figures}", progress.what, share * 100.0)
    };
    let fits = WIDTHS.into_iter().map(with).find(|line| line.chars().count() < columns);
    fits.unwrap_or_else(|| format!("{} {:.0} %  {figures}", progress.what, share * 100.0))
}

/// A line of standard error that is written over.
#[derive(Debug, Default)]
pub struct Bar {
    shown: usize,
    /// When how many files and bytes were done, lately.
    lately: VecDeque<(Instant, u64, u64)>,
}

impl Bar {
    /// Whether somebody sees it.
    pub fn is_seen() -> bool {
        io::stderr().is_terminal()
    }

    /// Shows how far it is.
    pub fn show(&mut self, progress: &Progress) {
        let (rate, columns) = (self.rate(progress, Instant::now()), columns());
        self.put(&line(progress, rate, columns), columns);
    }

    /// The same, of one of several.
    pub fn show_of(&mut self, whose: &str, progress: &Progress) {
        let columns = columns();
        let text = line(progress, mean(progress), columns.saturating_sub(whose.chars().count() + 2));
        self.put(&format!("{whose}  {text}"), columns);
    }

    /// Files and bytes a second lately: since the beginning says little once the speed has changed.
    fn rate(&mut self, progress: &Progress, now: Instant) -> Option<(f64, f64)> {
        if self
            .lately
            .back()
            .is_some_and(|(_, files, bytes)| *files > progress.files_done || *bytes > progress.bytes_done)
        {
            self.lately.clear();
        }
        self.lately.push_back((now, progress.files_done, progress.bytes_done));
        while self.lately.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= RATE_OVER) {
            self.lately.pop_front();
        }
        let (since, files, bytes) = *self.lately.front()?;
        let seconds = now.duration_since(since).as_secs_f64();
        let rate = |done: u64, before: u64| (done - before) as f64 / seconds;
        if seconds < 0.5 {
            return mean(progress);
        }
        Some((rate(progress.files_done, files), rate(progress.bytes_done, bytes)))
    }

    fn put(&mut self, text: &str, columns: usize) {
        if Bar::is_seen() {
            let text: String = text.chars().take(columns.saturating_sub(1)).collect();
            let _ = write!(io::stderr().lock(), "\r{text:<width$}", width = self.shown.min(columns.saturating_sub(1)));
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

fn columns() -> usize {
    match terminal::size() {
        Ok((columns, _)) if columns > 1 => usize::from(columns),
        _ => COLUMNS,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tandem_proto::pb::Progress;

    use super::{Bar, line, mean, seconds_left, share};

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
            line(&progress, mean(&progress), 200),
            "verify [######..................]  25 %  250 of 1000 files, 50.0 MiB, 10.0 MiB/s, 50 files/s, 15.0 s left"
        );
        assert_eq!(share(&Progress::default()), None);
        let short = Progress { what: "resync".into(), files_done: 3, ..Default::default() };
        assert_eq!(line(&short, mean(&short), 80), "resync  3 files");
    }

    #[test]
    fn a_line_fits_on_the_terminal_as_long_as_there_is_room_for_its_figures() {
        let progress = Progress {
            what: "copying".into(),
            files_total: 1,
            bytes_done: 600 << 20,
            bytes_total: 1400 << 20,
            seconds: 3.0,
            ..Default::default()
        };
        let rate = mean(&progress);
        let full = line(&progress, rate, 200).len();
        assert!(line(&progress, rate, full).len() < full, "the last column stays free: a terminal would wrap");
        for columns in [80, 90, 100] {
            assert!(line(&progress, rate, columns).len() < columns);
        }
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds_and_begins_anew_with_another_count() {
        let (mut bar, begin) = (Bar::default(), Instant::now());
        let at = |seconds: u64, bytes: u64| {
            let progress = Progress { bytes_done: bytes, seconds: seconds as f64, ..Default::default() };
            (progress, begin + Duration::from_secs(seconds))
        };
        let mut last = None;
        for (second, bytes) in [(0, 0), (10, 0), (12, 200), (14, 400)] {
            let (progress, now) = at(second, bytes);
            last = bar.rate(&progress, now);
        }
        assert_eq!(last, Some((0.0, 100.0)));
        let (progress, now) = at(16, 32);
        assert_eq!(bar.rate(&progress, now), Some((0.0, 2.0)), "less than before: the mean, as at a beginning");
    }
}
