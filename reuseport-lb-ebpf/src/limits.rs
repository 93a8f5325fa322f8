//! The sizes of everything that has one, and why.

/// The most workers in one group, and so the slots of the socket array.
///
/// A power of two, so that the programs bound a slot with a mask, which the verifier understands at once.
pub const MAX_WORKERS: u32 = 1024;

/// The most entries of the consistent-hash ring.
///
/// Maglev's small table size: a prime, and at 1,024 workers still 64 entries for each, which keeps the shares
/// within 1.6 % of each other.
pub const MAX_RING: u32 = 65_537;

/// The most entries of the list of weighted shares: at 1,024 workers weights are exact up to 16 on average.
pub const MAX_SHARES: u32 = 16_384;

/// The largest group in which `least-loaded` looks at every worker.
///
/// A scan costs about 2 ns a worker, and an unrolled one of more than 64 comes near the verifier's million of
/// instructions.
pub const MAX_SCAN: u32 = 64;

/// How many workers `least-loaded` compares in a larger group.
///
/// The expected excess of the fullest worker over the mean shrinks with the logarithm of this number (Mitzenmacher,
/// "The Power of Two Choices in Randomized Load Balancing"), while the cost grows with the number itself.
pub const SAMPLES: u32 = 8;

/// How many workers a program tries before it leaves the choice to the kernel.
pub const ATTEMPTS: u32 = 10;

/// How many of the attempts pass a stalled worker over. With half of the workers stalled, one connection in 256 still
/// finds one; with all of them stalled, that is what must happen.
pub const HEALTHY_ATTEMPTS: u32 = 8;

/// The room for news of stalls that the daemon has not read yet: a page, the least there is, holds hundreds.
pub const STALLS_BYTES: usize = 4096;

/// The room for news of sockets that begin and cease to listen: four pages hold what a server with some hundred sockets
/// does at once.
pub const LISTENED_BYTES: usize = 16_384;

/// The sets of the table of handshakes in flight, a power of two.
///
/// With [`PENDING_WAYS`] that is room for 4,096 handshakes, twice the kernel's usual `tcp_max_syn_backlog`. What finds
/// no room counts until it has aged. Larger is slower: the table is hit at random for each connection, and with 512
/// KiB in place of 32 a selection took 420 ns in place of 300, all of it misses of caches and TLB.
pub const PENDING_SETS: u32 = 1_024;

/// The entries of one set. Four of eight bytes are half a cache line, and make it unlikely that a handshake finds
/// its set full of others.
pub const PENDING_WAYS: usize = 4;

/// The binary logarithm of the length of an epoch in nanoseconds: 2.1 s.
///
/// A handshake counts as pending in the epoch in which it was selected and in the next one, so for 2.1 to 4.3 s:
/// longer than one lost SYN-ACK takes (the kernel sends it again after 1 s), shorter than the minute for which
/// the kernel keeps a handshake that nobody will finish.
pub const EPOCH_SHIFT: u32 = 31;

/// The most children that are remembered as moved out of an accept queue and are still open.
///
/// Allocated one by one, when needed. 1,024 queues of 256 connections.
pub const MAX_MOVED: u32 = 262_144;
