//! Programs that do nothing: what they seem to cost is the kernel's measuring.

use aya_ebpf::{
    bindings::sk_action::SK_PASS,
    macros::{sk_reuseport, sock_ops},
    programs::{SkReuseportContext, SockOpsContext},
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
