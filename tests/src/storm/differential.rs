//! The same actions on two trees at once: each result must be the same, and so must the trees be at the end.

use std::path::Path;

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

/// Actions that are shown before a divergence.
const CONTEXT: usize = 25;

/// Does `steps` actions of `seed` on both trees. Stops at the first difference; closes all files at the end.
///
/// # Errors
/// The first action whose results differ; also if a root cannot be opened.
pub fn run(left: &Path, right: &Path, seed: u64, steps: u64, shape: Shape) -> Result<(), Box<Divergence>> {
    let open = |root: &Path| {
        Performer::new(root).map_err(|error| {
            let action = Action::List { path: crate::storm::Path::default() };
            Box::new(Divergence { step: 0, action, left: Err(error), right: Err(error), before: Vec::new() })
        })
    };
    let (mut on_left, mut on_right) = (open(left)?, open(right)?);
    let mut generator = Generator::new(seed, shape);
    let mut before = Vec::new();
    for step in 0..steps {
        let action = generator.next_action();
        let (left, right) = (on_left.perform(&action), on_right.perform(&action));
        if left != right {
            return Err(Box::new(Divergence { step, action, left, right, before }));
        }
        generator.learn(&action, &left);
        if before.len() == CONTEXT {
            before.remove(0);
        }
        let shown: String = format!("{action:?} = {left:?}").chars().take(200).collect();
        before.push(shown);
    }
    on_left.close_all();
    on_right.close_all();
    Ok(())
}
