//! What a check found, for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;
use tandem_proto::position::Position;

use crate::catalog::verify::Figures;

/// Findings that are told one by one; the rest is counted.
const TOLD_MAX: usize = 50;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is wrong; good to know.
    Note,
    /// Something that was relied on is lost or changed.
    Damage,
}

/// Which part of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The file `state`.
    State,
    /// `log/`.
    Log,
    /// `catalog/`.
    Catalog,
    /// `tree/`.
    Tree,
    /// `index/`.
    Index,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Part::State => "state",
            Part::Log => "log",
            Part::Catalog => "catalog",
            Part::Tree => "tree",
            Part::Index => "index",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where.
    pub part: Part,
    /// How bad.
    pub severity: Severity,
    /// What.
    pub what: String,
}

/// How a volume was repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Where what was damaged is kept.
    pub kept_in: String,
    /// Nothing that was acknowledged is lost: its mount goes on as if nothing had happened. Else everything must be compared.
    pub exact: bool,
    /// What was done, and what to do next.
    pub what: String,
}

/// What is known of one volume.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Its name.
    pub volume: String,
    /// Its directory.
    pub directory: String,
    /// What was found, the first ones.
    pub findings: Vec<Finding>,
    /// More of the same.
    pub more_findings: u64,
    /// How many of all are damage.
    pub damage: u64,
    /// Position of tree and catalog, `EPOCH:SEQ`.
    pub position: Option<String>,
    /// What the catalog holds.
    pub catalog: Option<Figures>,
    /// Names of the tree that were looked at.
    pub names_compared: u64,
    /// Files whose content was compared with the index.
    pub files_read: u64,
    /// What was done about it.
    pub repaired: Option<Repaired>,
    #[serde(skip)]
    damaged_parts: Vec<Part>,
}

impl Report {
    /// Nothing found yet.
    pub fn new(volume: &str, directory: &std::path::Path) -> Report {
        Report { volume: volume.to_owned(), directory: directory.display().to_string(), ..Default::default() }
    }

    /// Adds a finding.
    pub fn add(&mut self, part: Part, severity: Severity, what: impl Into<String>) {
        if severity == Severity::Damage {
            self.damage += 1;
            if !self.damaged_parts.contains(&part) {
                self.damaged_parts.push(part);
            }
        }
        if self.findings.len() < TOLD_MAX {
            self.findings.push(Finding { part, severity, what: what.into() });
        } else {
            self.more_findings += 1;
        }
    }

    /// Adds damage.
    pub fn damage(&mut self, part: Part, what: impl Into<String>) {
        self.add(part, Severity::Damage, what);
    }

    /// Adds a note.
    pub fn note(&mut self, part: Part, what: impl Into<String>) {
        self.add(part, Severity::Note, what);
    }

    /// Whether damage was found in this part.
    pub fn is_damaged(&self, part: Part) -> bool {
        self.damaged_parts.contains(&part)
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage == 0
    }

    /// Notes where tree and catalog are.
    pub fn at(&mut self, position: Position) {
        self.position = Some(position.to_string());
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let verdict = match (&self.repaired, self.is_sound()) {
            (Some(_), _) => "damaged, repaired",
            (None, true) => "sound",
            (None, false) => "DAMAGED",
        };
        let mut line = |text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{text}");
        };
        line(format!("{}: {verdict}", self.volume));
        if let Some(position) = &self.position {
            line(format!("  position {position}"));
        }
        if let Some(catalog) = &self.catalog {
            line(format!(
                "  {} inodes, {} of them directories, {} names; {} names of the tree compared",
                catalog.nodes, catalog.directories, catalog.entries, self.names_compared
            ));
        }
        if self.files_read > 0 {
            line(format!("  {} files read and compared with the index", self.files_read));
        }
        for finding in &self.findings {
            let severity = if finding.severity == Severity::Damage { "damage" } else { "note" };
            line(format!("  {} {severity}: {}", finding.part.as_str(), finding.what));
        }
        if self.more_findings > 0 {
            line(format!("  and {} more of these", self.more_findings));
        }
        match &self.repaired {
            Some(repaired) => {
                line(format!("  repaired: {}", repaired.what));
                line(format!("  what was damaged is kept in {}", repaired.kept_in));
            }
            None if !self.is_sound() => {
                line(
                    "  nothing was repaired: run it again with --repair, or restore the volume from a copy".to_owned(),
                );
            }
            None => {}
        }
        out
    }
}
