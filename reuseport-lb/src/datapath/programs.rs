//! Which program is whose.

use reuseport_lb_ebpf::names;

use crate::policy::{Policy, Program};

/// The selection programs, by policy.
pub(super) const PROGRAMS: [(Program, &str); 8] = [
    (plain(Policy::Hash), names::SELECT_HASH),
    (plain(Policy::ConsistentHash), names::SELECT_CONSISTENT_HASH),
    (Program { policy: Policy::ConsistentHash, bounded: true }, names::SELECT_BOUNDED_CONSISTENT_HASH),
    (plain(Policy::LeastLoaded), names::SELECT_LEAST_LOADED),
    (plain(Policy::PowerOfTwo), names::SELECT_POWER_OF_TWO),
    (plain(Policy::RoundRobin), names::SELECT_ROUND_ROBIN),
    (plain(Policy::Random), names::SELECT_RANDOM),
    (plain(Policy::CpuLocal), names::SELECT_CPU_LOCAL),
];

const fn plain(policy: Policy) -> Program {
    Program { policy, bounded: false }
}
