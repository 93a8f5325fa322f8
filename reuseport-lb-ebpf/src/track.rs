//! Follows each connection of the group from establishment to close.
//!
//! A child carries a copy of its listener's [`Owner`](reuseport_lb_ebpf::worker::Owner), so the unmodified server's
//! connections are known without asking it. The program runs when a handshake of any socket in the control group
//! ends; the connections that are ours then ask to be told of every change of their state, and no others do.
//!
//! Why not the tracepoint `inet_sock_set_state`: the kernel leaves a tracing program out while it runs on the same CPU
//! already, and it does so whenever a process that changes a socket's state is interrupted by packets. Under load
//! from another CPU that was 1 close in 400, which nothing then counts.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
    },
    helpers::generated::bpf_get_socket_cookie,
    programs::SockOpsContext,
};
use reuseport_lb_ebpf::worker::Owner;

use crate::{
    load::Counters,
    maps::{MOVED, OWNER},
    summing::Sums,
};

/// One thing that has happened to a TCP socket.
#[inline(always)]
pub(crate) fn run(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(ctx),
        _ => {}
    }
}

/// A handshake that a client began has ended in a connection.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let (Some(owner), Some(counters)) = (owner(ctx), Counters::get()) else { return };
    // Other programs may have asked for something too. Who cannot be told of the end is not counted.
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        return;
    }
    // Counted already when the program of an earlier daemon still runs beside this one.
    if owner.counted == 0 {
        owner.counted = 1;
        counters.established(owner.slot);
    }
}

/// A connection that is counted ends.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let (Some(owner), Some(counters)) = (owner(ctx), Counters::get()) else { return };
    if owner.counted == 0 {
        return;
    }
    owner.counted = 0;
    let slot = if counters.has_moved_out(owner.slot) { moved_to(ctx, owner.slot, counters) } else { None };
    let slot = slot.unwrap_or(owner.slot);
    counters.closed(slot);
    Sums::closed(slot);
}

/// The slot that a connection which ends was moved to, and forgets it; none when it is where its listener was.
#[inline(always)]
fn moved_to(ctx: &SockOpsContext, from: u32, counters: Counters) -> Option<u32> {
    // SAFETY: the helper only reads the socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.ops.cast()) };
    // SAFETY: the value is copied at once.
    let slot = unsafe { MOVED.get(cookie).copied() }?;
    // It fails only when it is gone, which is what is wanted.
    let _ = MOVED.remove(cookie);
    counters.moved_ended(from);
    Some(slot)
}

/// What the socket remembers; none when it is not ours, or not yet a socket: a handshake.
#[inline(always)]
fn owner<'a>(ctx: &SockOpsContext) -> Option<&'a mut Owner> {
    // SAFETY: the union has this one field.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: the kernel handed the socket to this run, and has it locked. Its storage lives as long as it does.
    unsafe { OWNER.get(sk.cast()).as_mut() }
}
