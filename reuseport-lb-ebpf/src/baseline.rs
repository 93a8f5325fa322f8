//! What the benchmarks compare with, and measure by. Programs that do nothing: what they seem to cost is the kernel's
//! measuring.

use aya_ebpf::{
    Global,
    bindings::sk_action::SK_PASS,
    btf_maps::PerCpuArray,
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_map, raw_tracepoint, sk_reuseport, sock_ops},
    programs::{RawTracePointContext, SkReuseportContext, SockOpsContext},
};

/// Leaves the choice to the kernel.
#[sk_reuseport(migrate)]
fn select_nothing(_: SkReuseportContext) -> u32 {
    SK_PASS
}

/// Counts nothing, wherever the program that counts is called.
#[sock_ops]
fn track_nothing(_: SockOpsContext) -> u32 {
    1
}

/// The process whose system calls are counted, as the host's PID namespace numbers it.
#[unsafe(no_mangle)]
static COUNTED_PROCESS: Global<u32> = Global::new(0);

/// How many system calls it has begun.
#[btf_map]
static SYSCALLS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Counts the system calls of one process.
#[raw_tracepoint(tracepoint = "sys_enter")]
fn count_syscalls(_: RawTracePointContext) -> i32 {
    if (bpf_get_current_pid_tgid() >> 32) as u32 == COUNTED_PROCESS.load()
        && let Some(count) = SYSCALLS.get_ptr_mut(0)
    {
        // SAFETY: an element of the map, and this CPU's own copy. Should a task be preempted here, one is lost.
        unsafe { *count += 1 };
    }
    0
}
