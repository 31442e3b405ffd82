//! The tree of plain files, behind a trait so that apply also runs on a simulated one.

/// Tree, staging area and history of one volume.
pub trait ReplicaTree: Clone + Send + Sync + 'static {}

/// The real tree: `tree/`, `staging/` and `history/` in a volume's directory.
#[derive(Clone)]
pub struct FsTree {}

impl FsTree {
    /// Opens the areas below a volume's directory, and makes those that are missing.
    pub fn open(_volume: &std::path::Path) -> std::io::Result<Self> {
        unimplemented!()
    }
}

impl ReplicaTree for FsTree {}
