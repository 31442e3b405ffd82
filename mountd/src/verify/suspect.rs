//! What may differ: it is asked again, exactly; told, counted and sent again if it differs twice; and looked at once more.

use std::time::{Duration, Instant};

use tandem_proto::{
    Digest, InodeId, Name,
    ids::hex,
    pb,
    verify::{Compared, Item},
};

use super::{
    RECENT_MAX,
    desk::Placed,
    look::{Stop, names_digest},
    pass::Pass,
};
use crate::commit::{Commit, dirty::DirtySet};

/// How long a repair may take.
const REPAIR_PATIENCE: Duration = Duration::from_secs(120);

/// What may differ, and how to look again.
#[derive(Clone, Debug)]
pub(super) enum Suspect {
    Names(InodeId),
    Node { place: Option<(InodeId, Name)>, id: InodeId, directory: bool },
    Extent { id: InodeId, offset: u64, len: u64 },
}

impl Suspect {
    /// The cells that are sent again.
    pub(super) fn cells(&self, dirty: &mut DirtySet) {
        match self {
            Suspect::Names(dir) => dirty.insert_directory(*dir),
            Suspect::Node { place, id, directory } => {
                // It may be missing altogether: then the replica asks for it by its name.
                if let Some((dir, name)) = place {
                    dirty.insert_name(*dir, name);
                }
                if *directory { dirty.insert_attributes(*id) } else { dirty.insert_file(*id) }
            }
            Suspect::Extent { id, offset, len } => dirty.insert_range(*id, *offset, offset.saturating_add(*len)),
        }
    }
}

/// What came of asking.
pub(super) enum Asked {
    /// Both sides are equal.
    Equal,
    /// They are not.
    Differs(pb::VerifyFinding, Option<Digest>),
    /// It is gone, or became something else.
    Gone,
}

impl Pass<'_> {
    /// Looks at one thing exactly, and once more if it differs: only what differs twice counts.
    pub(super) fn suspect(&mut self, suspect: Suspect) -> Result<(), Stop> {
        if !matches!(self.ask_exactly(&suspect, false)?, Asked::Differs(..)) {
            return Ok(());
        }
        let Asked::Differs(finding, here) = self.ask_exactly(&suspect, true)? else { return Ok(()) };
        let text = self.describe(&suspect, &finding, here.as_ref());
        tracing::error!(mismatch = text, "the replica is not equal to the folder; it is sent again");
        self.mismatches += 1;
        let mut facts = self.worker.facts.lock();
        facts.recent.push(text.clone());
        let surplus = facts.recent.len().saturating_sub(RECENT_MAX);
        facts.recent.drain(..surplus);
        drop(facts);
        if self.found.len() < RECENT_MAX {
            self.found.push(text.clone());
        }
        self.wrong.push((suspect, text));
        Ok(())
    }

    fn describe(&self, suspect: &Suspect, finding: &pb::VerifyFinding, here: Option<&Digest>) -> String {
        let (what, path) = match suspect {
            Suspect::Names(_) => ("its names differ".to_owned(), self.path.clone()),
            Suspect::Node { place: Some((_, name)), directory: false, .. } => {
                ("it differs".to_owned(), below(&self.path, name))
            }
            Suspect::Node { .. } => ("its attributes differ".to_owned(), self.path.clone()),
            Suspect::Extent { offset, len, .. } => {
                (format!("bytes {offset} to {} differ", offset + len), self.path.clone())
            }
        };
        let short =
            |digest: &[u8]| if digest.is_empty() { "none".to_owned() } else { hex(&digest[..digest.len().min(8)]) };
        let digests = format!(
            "digest {} in the folder, {} on the replica",
            short(here.map_or(&[], |digest| &digest.0)),
            short(&finding.digest)
        );
        let mut text = format!("{path}: {what} ({digests})");
        for more in [&finding.problem, &finding.good] {
            if !more.is_empty() {
                text.push_str("; ");
                text.push_str(more);
            }
        }
        text
    }

    pub(super) fn ask_exactly(&mut self, suspect: &Suspect, confirm: bool) -> Result<Asked, Stop> {
        loop {
            self.worker.wait_open(self.patience())?;
            let (vfs, commit) = (self.worker.vfs.clone(), self.worker.commit.clone());
            let worker = &*self.worker;
            let id = match suspect {
                Suspect::Names(id) | Suspect::Node { id, .. } | Suspect::Extent { id, .. } => id,
            };
            let Some(still) = vfs.still(id)? else { return Ok(Asked::Gone) };
            let (read, _) = still.locked(|untimed| {
                let compared = match suspect {
                    Suspect::Names(dir) => worker
                        .list(dir)?
                        .map(|entries| Compared { item: Item::Names(*dir), digest: Some(names_digest(&entries)) }),
                    Suspect::Node { id, .. } => worker.read_node(id, untimed)?.map(|node| Compared {
                        item: Item::Node { id: *id, untimed: node.untimed },
                        digest: Some(node.digest),
                    }),
                    Suspect::Extent { id, offset, len } => worker.reread_extent(id, *offset, *len)?,
                };
                std::io::Result::Ok(compared.map(|compared| (compared, place_in(&commit))))
            });
            let Some((compared, placed)) = read? else { return Ok(Asked::Gone) };
            let Some(placed) = placed else { continue };
            let mut refused = self.refused.take();
            let answer = worker.ask(placed, std::slice::from_ref(&compared), confirm, &mut refused)?;
            self.refused = refused;
            match answer {
                Some(result) => {
                    return Ok(match result.findings.into_iter().next() {
                        None => Asked::Equal,
                        Some(finding) => Asked::Differs(finding, compared.digest),
                    });
                }
                None if self.worker.is_ending() => return Err(Stop::Ending),
                None => {}
            }
        }
    }

    /// Has everything sent again that differs, waits for it, and looks whether it is equal then.
    pub(super) fn repair(&mut self) -> Result<(), Stop> {
        let wrong = std::mem::take(&mut self.wrong);
        if wrong.is_empty() {
            return Ok(());
        }
        let mut dirty = DirtySet::default();
        wrong.iter().for_each(|(suspect, _)| suspect.cells(&mut dirty));
        self.worker.commit.mismatched(&dirty);
        let begun = Instant::now();
        while !self.worker.commit.is_clean() || !self.worker.commit.desk().is_open() {
            if self.worker.is_ending() {
                return Err(Stop::Ending);
            }
            if begun.elapsed() > REPAIR_PATIENCE {
                return Err(Stop::Failed(
                    "what differs is not repaired yet: its resync goes on, see tandem status".to_owned(),
                ));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for (suspect, text) in wrong {
            match self.ask_exactly(&suspect, false)? {
                Asked::Equal | Asked::Gone => self.repaired += 1,
                Asked::Differs(..) => tracing::error!(mismatch = text, "it differs also after it was sent again"),
            }
        }
        tracing::info!(repaired = self.repaired, of = self.mismatches, "what differed was sent again");
        Ok(())
    }
}

/// A place behind everything that is reserved.
pub(super) fn place_in(commit: &Commit) -> Option<Placed<'_>> {
    commit.desk().place(|| commit.last_reserved())
}

pub(super) fn below(path: &str, name: &Name) -> String {
    if path.ends_with('/') { format!("{path}{name}") } else { format!("{path}/{name}") }
}
