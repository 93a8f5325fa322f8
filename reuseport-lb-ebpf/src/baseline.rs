//! Programs that do nothing: what they seem to cost is the kernel's measuring.

use aya_ebpf::{
    bindings::sk_action::SK_PASS,
    macros::{btf_tracepoint, sk_reuseport},
    programs::{BtfTracePointContext, SkReuseportContext},
};

/// Leaves the choice to the kernel.
#[sk_reuseport(migrate)]
fn select_nothing(_: SkReuseportContext) -> u32 {
    SK_PASS
}

/// Counts nothing, at the same tracepoint as the program that counts.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn track_nothing(_: BtfTracePointContext) -> i32 {
    0
}
