//! The BPF programs: one that selects for each policy, and one that counts connections.
//!
//! A selection program runs in the kernel's `reuseport_select_sock` ([`sock_reuseport.c`]) for the first packet of
//! each connection, under RCU, and again when a closing listener leaves connections behind.
//!
//! # Minimum kernel version
//!
//! 5.14, for `BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`.
//!
//! [`sock_reuseport.c`]: https://github.com/torvalds/linux/blob/v6.18/net/core/sock_reuseport.c

#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

use aya_ebpf::{
    macros::{btf_tracepoint, sk_reuseport, sock_ops},
    programs::{BtfTracePointContext, SkReuseportContext, SockOpsContext},
};

mod attached;
#[cfg(feature = "bench")]
mod baseline;
mod iterator;
mod kernel;
mod key;
mod load;
mod maps;
mod older;
mod policy;
mod steer;
mod summing;
mod track;
mod watch;

use policy::{
    BoundedConsistentHash, ConsistentHash, CpuLocal, Hash, LeastLoaded, PowerOfTwo, Random, RoundRobin,
};

/// Declares the selection program of a policy.
macro_rules! selection_program {
    ($($name:ident: $policy:ty;)+) => {
        $(
            /// Selects by the policy of the same name.
            #[sk_reuseport(migrate)]
            fn $name(ctx: SkReuseportContext) -> u32 {
                steer::run::<$policy>(&ctx)
            }
        )+
    };
}

selection_program! {
    select_hash: Hash;
    select_consistent_hash: ConsistentHash;
    select_bounded_consistent_hash: BoundedConsistentHash;
    select_least_loaded: LeastLoaded;
    select_power_of_two: PowerOfTwo;
    select_round_robin: RoundRobin;
    select_random: Random;
    select_cpu_local: CpuLocal;
}

/// Counts the open connections of each worker.
#[sock_ops]
fn track_connections(ctx: SockOpsContext) -> u32 {
    track::run(&ctx);
    1
}

/// Tells when a socket begins or ceases to listen.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn watch_listeners(ctx: BtfTracePointContext) -> i32 {
    watch::run(&ctx);
    0
}

/// Lists the listening sockets, each with the program that picks for it. aya has no macro for iterators.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn list_attached(ctx: *mut aya_ebpf::cty::c_void) -> i32 {
    attached::run(ctx);
    0
}

/// Counts the connections that the daemon has marked since they are older than it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
fn count_older(ctx: *mut aya_ebpf::cty::c_void) -> i32 {
    older::run(ctx);
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
