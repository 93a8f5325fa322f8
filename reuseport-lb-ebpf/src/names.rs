//! The names of programs and maps, as the kernel, `bpftool` and the pins show them.

/// The active tables: [`Tables`](crate::tables::Tables).
pub const TABLES: &str = "TABLES";
/// The sockets by slot.
pub const SOCKETS: &str = "SOCKETS";
/// The load by slot: [`Workers`](crate::worker::Workers).
pub const WORKERS: &str = "WORKERS";
/// The outcomes: one counter each of [`Outcome`](crate::outcome::Outcome).
pub const OUTCOMES: &str = "OUTCOMES";
/// The slot that a socket belongs to: [`Owner`](crate::worker::Owner).
pub const OWNER: &str = "OWNER";
/// Tells the daemon that a worker has begun or ceased to be stalled: the slot, as a `u32`.
pub const STALLS: &str = "STALLS";
/// Whose beginning and end to listen is told: [`Watched`](crate::listen::Watched).
pub const WATCHED: &str = "WATCHED";
/// Tells the daemon that a socket has begun or ceased to listen: [`ListenEvent`](crate::listen::ListenEvent).
pub const LISTENED: &str = "LISTENED";
/// What workers and the group have open: [`Sums`](crate::sums::Sums).
pub const SUMS: &str = "SUMS";
/// The slot of a listener, by socket cookie.
pub const LISTENERS: &str = "LISTENERS";
/// The slot that a child was moved to, by socket cookie.
pub const MOVED: &str = "MOVED";

/// The program that follows connections from establishment to close.
pub const TRACK_CONNECTIONS: &str = "track_connections";

/// The program that tells of listening sockets.
pub const WATCH_LISTENERS: &str = "watch_listeners";
/// The tracepoint that it is attached to.
pub const INET_SOCK_SET_STATE: &str = "inet_sock_set_state";

/// The program that lists which programs pick among sockets.
pub const LIST_ATTACHED: &str = "list_attached";

/// The program that counts connections which are older than the daemon.
pub const COUNT_OLDER: &str = "count_older";

/// The program of policy `hash`.
pub const SELECT_HASH: &str = "select_hash";
/// The program of policy `consistent-hash`.
pub const SELECT_CONSISTENT_HASH: &str = "select_consistent_hash";
/// The program of policy `consistent-hash` with a balance factor.
pub const SELECT_BOUNDED_CONSISTENT_HASH: &str = "select_bounded_consistent_hash";
/// The program of policy `cpu-local`.
pub const SELECT_CPU_LOCAL: &str = "select_cpu_local";
/// The program of policy `least-loaded`.
pub const SELECT_LEAST_LOADED: &str = "select_least_loaded";
/// The program of policy `power-of-two`.
pub const SELECT_POWER_OF_TWO: &str = "select_power_of_two";
/// The program of policy `round-robin`.
pub const SELECT_ROUND_ROBIN: &str = "select_round_robin";
/// The program of policy `random`.
pub const SELECT_RANDOM: &str = "select_random";
