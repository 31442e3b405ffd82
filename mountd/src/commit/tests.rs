//! Situations of the commit as a whole.
