//! The same actions on two trees at once: each result must be the same, and so must the trees be at the end.

use std::path::Path;

use rustix::io::Errno;

use crate::storm::{Action, Generator, Outcome, Performer, Shape};

/// The first action that two trees answered differently.
#[derive(Debug)]
pub struct Divergence {
    /// How many actions went before it.
    pub step: u64,
    /// The action.
    pub action: Action,
    /// What the left tree answered.
    pub left: Outcome,
    /// What the right tree answered.
    pub right: Outcome,
    /// The actions before it, newest last.
    pub before: Vec<String>,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "step {}: {:?}\n  left:  {:?}\n  right: {:?}\nbefore it:",
            self.step, self.action, self.left, self.right
        )?;
        self.before.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// The left tree may be a mount: of what inode flags protect, the kernel's FUSE says first whether the type would do (SEMANTICS, P5).
/// A copy from behind the end of a file copies nothing, and one within a file onto itself is wrong (EINVAL), so FUSE is not asked.
fn knows_too_little(action: &Action, left: Outcome, right: Outcome) -> bool {
    let first = match (left, action) {
        (Err(Errno::ISDIR | Errno::NOTDIR | Errno::ACCESS), _) | (Ok(0), Action::Copy { .. }) => true,
        (Err(Errno::INVAL), Action::Copy { from_offset, to_offset, len, .. }) => {
            from_offset.abs_diff(*to_offset) < *len as u64
        }
        _ => false,
    };
    right == Err(Errno::PERM) && first
}

/// Actions that are shown before a divergence.
const CONTEXT: usize = 25;

/// Does `steps` actions of `seed` on both trees. Stops at the first difference; at the end closes all files and clears inode flags.
///
/// # Errors
/// The first action whose results differ; also if a root cannot be opened, or an inode flag not be cleared.
pub fn run(left: &Path, right: &Path, seed: u64, steps: u64, shape: Shape) -> Result<(), Box<Divergence>> {
    let failed = |error| {
        let action = Action::List { path: crate::storm::Path::default() };
        Box::new(Divergence { step: 0, action, left: Err(error), right: Err(error), before: Vec::new() })
    };
    let mut on_left = Performer::new(left).map_err(failed)?;
    let mut on_right = Performer::new(right).map_err(failed)?;
    let flags = !shape.inode_flags.is_empty();
    let outcome = steps_on_both(&mut on_left, &mut on_right, Generator::new(seed, shape), steps);
    on_left.close_all();
    on_right.close_all();
    // Also after a difference: what is immutable could not be removed.
    let cleared = if flags { on_left.clear_flags().and(on_right.clear_flags()) } else { Ok(()) };
    outcome?;
    cleared.map_err(failed)
}

fn steps_on_both(
    on_left: &mut Performer,
    on_right: &mut Performer,
    mut generator: Generator,
    steps: u64,
) -> Result<(), Box<Divergence>> {
    let mut before = Vec::new();
    for step in 0..steps {
        let action = generator.next_action();
        let (left, right) = (on_left.perform(&action), on_right.perform(&action));
        if left != right && !knows_too_little(&action, left, right) {
            return Err(Box::new(Divergence { step, action, left, right, before }));
        }
        generator.learn(&action, &left);
        if before.len() == CONTEXT {
            before.remove(0);
        }
        let shown: String = format!("{action:?} = {left:?}").chars().take(200).collect();
        before.push(shown);
    }
    Ok(())
}
