//! The sizes of everything that has one.

/// The most workers in one group, and so the slots of the socket array.
pub const MAX_WORKERS: u32 = 1024;

/// The most entries of the weighted list that all policies but the consistent hash pick from. On average 16 for
/// each of [`MAX_WORKERS`] workers, so weights are kept to a few per cent even there, and 32 KiB stay in the cache.
pub const MAX_SHARES: u32 = 16_384;
