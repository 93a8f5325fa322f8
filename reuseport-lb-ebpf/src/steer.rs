//! The run of a selection program, the same for each policy.

use aya_ebpf::{
    bindings::{
        bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::generated::bpf_get_socket_cookie,
    programs::SkReuseportContext,
};
use aya_log_ebpf::debug;
use reuseport_lb_ebpf::{
    limits::{ATTEMPTS, HEALTHY_ATTEMPTS},
    outcome::Outcome,
};

use crate::{
    key::{self, Arrival},
    load::{Counters, Loads},
    maps::{LISTENERS, MOVED, OUTCOMES, SOCKETS},
    policy::{Bank, Policy},
};

const TCP_SYN_RECV: u32 = 3;
const TCP_CLOSE: u32 = 7;
const TCP_NEW_SYN_RECV: u32 = 12;

/// Selects by policy `P`, and counts what became of it.
#[inline(always)]
pub(crate) fn run<P: Policy>(ctx: &SkReuseportContext) -> u32 {
    let outcome = steer::<P>(ctx);
    if let Some(outcomes) = OUTCOMES.get_ptr_mut(0) {
        // SAFETY: the index is below the length, and no other program runs on this CPU's copy in between: programs
        // of this type run with preemption and softirqs off.
        unsafe { *(&raw mut *outcomes).cast::<u64>().add(outcome.index()) += 1 };
    }
    // Passing without a selection leaves the choice to the kernel: whatever surprises us, connections go on.
    if matches!(outcome, Outcome::Dropped) { SK_DROP } else { SK_PASS }
}

#[inline(always)]
fn steer<P: Policy>(ctx: &SkReuseportContext) -> Outcome {
    let (Some(bank), Some(loads)) = (Bank::active(), Loads::now()) else {
        return Outcome::FallbackNoWorker;
    };
    let Some(arrival) = key::arrival(ctx) else { return Outcome::FallbackUnreadable };
    if bank.members_len() == 0 {
        // What waits already is not dropped: any worker is better than none.
        let refuse = bank.refuses() && !matches!(arrival, Arrival::Migrating(_));
        return if refuse { Outcome::Dropped } else { Outcome::FallbackNoWorker };
    }
    let Some(policy) = P::prepare(ctx, arrival, bank, loads) else { return Outcome::FallbackUnreadable };
    let (look_after_ms, stall_after_ms) = (bank.look_after_ms(), bank.stall_after_ms());
    let mut gone = false;
    for attempt in 0..ATTEMPTS {
        let Some(choice) = policy.candidate(attempt) else { return Outcome::FallbackNoWorker };
        let slot = if attempt < HEALTHY_ATTEMPTS {
            if !(policy.admits(attempt, choice)
                && loads.takes_connections(choice, look_after_ms, stall_after_ms))
            {
                continue;
            }
            choice
        } else {
            // When all are stalled, all are eligible again.
            bank.healthy_member(loads, choice).unwrap_or(choice)
        };
        if SOCKETS.select_reuseport(ctx, slot).is_err() {
            debug!(ctx, "slot {} is gone, attempt {}", slot, attempt);
            gone = true;
            continue;
        }
        debug!(ctx, "flow {:x} to slot {}", ctx.hash(), slot);
        return match arrival {
            Arrival::New => {
                loads.counters().selected(slot);
                policy.selected();
                if gone { Outcome::Retried } else { Outcome::Selected }
            }
            Arrival::Migrating(sk) => {
                migrate(ctx, sk, slot, loads.counters());
                Outcome::Migrated
            }
            Arrival::Stray => Outcome::Stray,
        };
    }
    Outcome::FallbackRefused
}

/// Moves the count of a waiting connection to its new slot.
///
/// A connection that is established carries its old listener's slot in its socket storage, which this type of
/// program may not touch; it may remember the connection's cookie, though.
#[inline(always)]
fn migrate(ctx: &SkReuseportContext, sk: *const bpf_sock, slot: u32, counters: Counters) {
    // SAFETY: the kernel handed `sk` to this run.
    let state = unsafe { (*sk).state };
    if state == TCP_CLOSE {
        // Reset by the peer while it waited, and counted down then.
        return;
    }
    // SAFETY: both sockets are the kernel's own; the helper takes any socket.
    let (child, listener) =
        unsafe { (bpf_get_socket_cookie(sk.cast_mut().cast()), bpf_get_socket_cookie(listener(ctx).cast())) };
    // SAFETY: the value is copied at once.
    let moved_before = unsafe { MOVED.get(child).copied() };
    // SAFETY: as above.
    let Some(from) = moved_before.or_else(|| unsafe { LISTENERS.get(listener).copied() }) else { return };
    match state {
        // The child will be made from the new listener and inherit its slot; only the handshake moves.
        TCP_NEW_SYN_RECV | TCP_SYN_RECV => counters.move_handshake(from, slot),
        _ => {
            let first_move = moved_before.is_none();
            // Before the entry is there, so that who finds the connection moved looks for it.
            if first_move {
                counters.moved_out(from);
            }
            if MOVED.insert(child, slot, 0).is_ok() {
                counters.move_connection(from, slot);
            } else if first_move {
                counters.moved_ended(from);
            }
        }
    }
}

/// The listener that the packet was looked up for, or that is being closed.
#[inline(always)]
fn listener(ctx: &SkReuseportContext) -> *mut bpf_sock {
    // SAFETY: the union has this one field.
    unsafe { (*ctx.md).__bindgen_anon_3.sk }
}
