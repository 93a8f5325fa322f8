//! The loads at a glance: one word for each worker, and one for the group.
//!
//! What is known of a worker takes a cache line ([`Load`](crate::worker::Load)), and what it has open is a sum over six of
//! its words. A policy that compares workers reads this in place of it: sums that are taken now and then, and kept up
//! by what comes and goes in between. What other CPUs count while a sum is taken may be lost; the next sum has it.

use crate::{assert_layout, limits::MAX_WORKERS};

/// After how many milliseconds the sums are taken anew. For 1,024 workers that takes some microseconds, so it is a few
/// ten-thousandths of one CPU, and for longer than this nothing is counted wrong.
pub const SUM_AGAIN_MS: u32 = 100;

/// The value of the one element of map `SUMS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sums {
    /// Open connections and handshakes of the group, kept up by the program that bounds loads alone. Below zero for a
    /// moment when a lost addition is followed by its subtraction.
    pub group: i64,
    /// When the sums were last taken, in milliseconds of the monotonic clock.
    pub taken_at_ms: u32,
    /// 1 while a program runs that needs them, else 0, and nobody keeps them up.
    pub needed: u32,
    /// The same for the worker in each slot.
    pub workers: [i32; MAX_WORKERS as usize],
}

assert_layout!(Sums, size: 16 + 4 * MAX_WORKERS as usize, align: 8, fields: {
    group: i64,
    taken_at_ms: u32,
    needed: u32,
    workers: [i32; MAX_WORKERS as usize],
});
