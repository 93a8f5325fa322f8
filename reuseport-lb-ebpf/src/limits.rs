//! The sizes of everything that has one.

/// The most workers in one group, and so the slots of the socket array.
pub const MAX_WORKERS: u32 = 1024;
