//! The replica's durable truth beside the tree: inode id ↔ object, names by id, and what the file system refused to keep.

/// The catalog's store failed.
#[derive(Debug, thiserror::Error)]
#[error("the catalog {path} cannot be {action}: {problem}")]
pub struct CatalogError {
    /// Which store.
    pub path: String,
    /// What was tried: `read`, `written`, `opened`.
    pub action: &'static str,
    /// The store's answer.
    pub problem: String,
}

/// Catalog of one volume.
pub struct Catalog {}

impl Catalog {
    /// Opens the catalog in `directory`, or makes it.
    pub fn open(_directory: &std::path::Path) -> Result<Self, CatalogError> {
        unimplemented!()
    }
}
