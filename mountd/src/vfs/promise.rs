//! What fsync promises where: rules for the mount and for paths of it ([`super::rules`]).

use std::fmt;

use super::rules::{Mode, PathRules};

/// What fsync promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum FsyncMode {
    /// On the local disk.
    #[default]
    Local,
    /// On the local disk and in the replica's durable log.
    Durable,
}

impl FsyncMode {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            FsyncMode::Local => "local",
            FsyncMode::Durable => "durable",
        }
    }
}

impl Mode for FsyncMode {}

/// What fsync promises on a mount.
pub type FsyncRules = PathRules<FsyncMode>;

impl fmt::Display for FsyncRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mount().as_str())?;
        self.below().try_for_each(|(path, mode)| write!(f, ",{}:{path}", mode.as_str()))
    }
}
