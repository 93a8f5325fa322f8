//! The sizes of everything that has one, and why.

/// The most workers in one group, and so the slots of the socket array.
///
/// A power of two, so that the programs bound a slot with a mask, which the verifier understands at once.
pub const MAX_WORKERS: u32 = 1024;

/// The most CPUs that workers can be local to: those with lower numbers. A group has no workers for more.
pub const MAX_CPUS: u32 = 1024;

/// The most entries of the consistent-hash ring.
///
/// Maglev's small table size: a prime, and at 1,024 workers still 64 entries for each, which keeps the shares
/// within 1.6 % of each other.
pub const MAX_RING: u32 = 65_537;

/// The most entries of the list of weighted shares: at 1,024 workers weights are exact up to 16 on average.
pub const MAX_SHARES: u32 = 16_384;

/// The largest group in which `least-loaded` looks at every worker.
///
/// A scan costs about 3 ns a worker.
pub const MAX_SCAN: u32 = 64;

/// How many workers `least-loaded` compares in a larger group.
///
/// The expected excess of the fullest worker over the mean shrinks with the logarithm of this number (Mitzenmacher,
/// "The Power of Two Choices in Randomized Load Balancing"), while the cost grows with the number itself.
pub const SAMPLES: u32 = 8;

/// How many workers a program tries before it leaves the choice to the kernel.
pub const ATTEMPTS: u32 = 8;

/// How many of the attempts are the policy's own choices, which pass over a worker that is stalled or full. With half of
/// the workers stalled these miss once in 64 connections. Then [`SEARCH`] members are searched for another.
pub const HEALTHY_ATTEMPTS: u32 = 6;

/// How many members the last attempts search for one that is neither stalled nor full, from a place on that the policy's
/// choice decides. Where they find none, all are held to be so, and the choice is taken as it is. So in a group of up
/// to this many a stalled worker gets nothing while there is another one.
pub const SEARCH: u32 = 64;

/// The room for news of stalls that the daemon has not read yet: a page, the least there is, holds hundreds.
pub const STALLS_BYTES: usize = 4096;

/// The room for news of sockets that begin and cease to listen: four pages hold what a server with some hundred sockets
/// does at once.
pub const LISTENED_BYTES: usize = 16_384;

/// For how many milliseconds a handshake counts as load at a worker that is not picked any more.
///
/// Longer than one lost SYN-ACK takes (the kernel sends it again after 1 s, and then after 2 s more), shorter than
/// the minute for which the kernel keeps a handshake that nobody will finish: else a worker that a flood of them has
/// made look loaded would be passed over for that long, since only a worker that is picked is looked at.
pub const HANDSHAKE_MS: u32 = 4_000;

/// The pause between two looks at an accept queue, in milliseconds, while stalls are not watched for: as with the
/// stall time's default.
pub const LOOK_MS: u32 = 12;

/// The pause between two looks at the accept queue of a worker without connections, in milliseconds: a look is what
/// lets its handshakes count for [`HANDSHAKE_MS`] more.
pub const IDLE_LOOK_MS: u32 = HANDSHAKE_MS / 2;

/// The most children that are remembered as moved out of an accept queue and are still open.
///
/// Allocated one by one, when needed. 1,024 queues of 256 connections.
pub const MAX_MOVED: u32 = 262_144;
