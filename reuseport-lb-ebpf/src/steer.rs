//! The run of a selection program, the same for each policy.

use aya_ebpf::{
    bindings::{
        bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
        sk_reuseport_md,
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
    policy::{Bank, NO_SLOT, Policy, healthy_member, opaque},
    summing::Sums,
};

const TCP_SYN_RECV: u32 = 3;
const TCP_CLOSE: u32 = 7;
const TCP_NEW_SYN_RECV: u32 = 12;

/// Selects by policy `P`, and counts what became of it.
///
/// Most runs end with the policy's choice. What that takes is kept short and in one place: a program's instructions have
/// to come from memory as its data have, since between two runs the CPU does much else.
#[inline(always)]
pub(crate) fn run<P: Policy>(ctx: &SkReuseportContext) -> u32 {
    let (outcome, slot) = match choose::<P>(ctx) {
        Ok(slot) => (Outcome::Selected.index() as u32, slot),
        Err(choice) => {
            let result = persist::<P>(ctx.md, choice);
            (opaque((result >> 32) as u32), result as u32)
        }
    };
    if let Some(outcomes) = OUTCOMES.get_ptr_mut(0)
        && outcome < Outcome::COUNT as u32
    {
        // SAFETY: the index is below the length, and no other program runs on this CPU's copy in between: programs
        // of this type run with preemption and softirqs off.
        unsafe { *(&raw mut *outcomes).cast::<u64>().add(outcome as usize) += 1 };
    }
    if slot != NO_SLOT {
        debug!(ctx, "flow {:x} to slot {}", ctx.hash(), slot);
    }
    // Passing without a selection leaves the choice to the kernel: whatever surprises us, connections go on.
    if outcome == Outcome::Dropped.index() as u32 { SK_DROP } else { SK_PASS }
}

/// Gives a new connection to the policy's choice, if it is known to take it. If not, says what the choice was, if there
/// is one.
#[inline(always)]
fn choose<P: Policy>(ctx: &SkReuseportContext) -> Result<u32, u32> {
    let (Some(bank), Some(loads)) = (Bank::active(), Loads::now()) else { return Err(NO_SLOT) };
    let Some(arrival @ Arrival::New) = key::arrival(ctx) else { return Err(NO_SLOT) };
    if bank.members_len() == 0 {
        return Err(NO_SLOT);
    }
    let Some(policy) = P::prepare(ctx, arrival, bank, loads) else { return Err(NO_SLOT) };
    let Some(slot) = policy.choice() else { return Err(NO_SLOT) };
    if loads.is_known_to_take(slot) && policy.admits(0, slot) && SOCKETS.select_reuseport(ctx, slot).is_ok() {
        loads.counters().selected(slot);
        policy.selected(slot);
        Ok(slot)
    } else {
        Err(slot)
    }
}

/// Selects where it takes more than that. A `choice` that the policy has made already stands. Returns the outcome in the
/// upper half, the slot or [`NO_SLOT`] in the lower.
#[cold]
#[inline(never)]
fn persist<P: Policy>(ctx: *mut sk_reuseport_md, choice: u32) -> u64 {
    let (outcome, slot) = try_all::<P>(&SkReuseportContext::new(ctx), choice);
    (outcome.index() as u64) << 32 | u64::from(slot)
}

#[inline(always)]
fn try_all<P: Policy>(ctx: &SkReuseportContext, choice: u32) -> (Outcome, u32) {
    let (Some(bank), Some(loads)) = (Bank::active(), Loads::now()) else {
        return (Outcome::FallbackNoWorker, NO_SLOT);
    };
    let Some(arrival) = key::arrival(ctx) else { return (Outcome::FallbackUnreadable, NO_SLOT) };
    if bank.members_len() == 0 {
        // What waits already is not dropped: any worker is better than none.
        let refuse = bank.refuses() && !matches!(arrival, Arrival::Migrating(_));
        return (if refuse { Outcome::Dropped } else { Outcome::FallbackNoWorker }, NO_SLOT);
    }
    let Some(policy) = P::prepare(ctx, arrival, bank, loads) else {
        return (Outcome::FallbackUnreadable, NO_SLOT);
    };
    let choice = if choice == NO_SLOT { policy.choice() } else { Some(choice) };
    let Some(choice) = choice.and_then(|choice| policy.reconsider(choice)) else {
        return (Outcome::FallbackNoWorker, NO_SLOT);
    };
    let (look_after_ms, stall_after_ms) = (bank.look_after_ms(), bank.stall_after_ms());
    let mut gone = false;
    for attempt in 0..ATTEMPTS {
        let next = if attempt == 0 { Some(choice) } else { policy.alternative(attempt) };
        let Some(next) = next else { return (Outcome::FallbackNoWorker, NO_SLOT) };
        let slot = if attempt < HEALTHY_ATTEMPTS {
            if !((attempt == 0 || policy.admits(attempt, next))
                && loads.takes_connections(next, look_after_ms, stall_after_ms))
            {
                continue;
            }
            next
        } else {
            // When all are stalled, all are eligible again.
            opaque(healthy_member(next))
        };
        if SOCKETS.select_reuseport(ctx, slot).is_err() {
            gone = true;
            continue;
        }
        let outcome = match arrival {
            Arrival::New => {
                loads.counters().selected(slot);
                policy.selected(slot);
                if gone { Outcome::Retried } else { Outcome::Selected }
            }
            Arrival::Migrating(sk) => {
                policy.selected(slot);
                migrate(ctx, sk, slot, loads.counters());
                Outcome::Migrated
            }
            Arrival::Stray => Outcome::Stray,
        };
        return (outcome, slot);
    }
    (Outcome::FallbackRefused, NO_SLOT)
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
        TCP_NEW_SYN_RECV | TCP_SYN_RECV => {
            counters.move_handshake(from, slot);
            Sums::closed(from);
        }
        _ => {
            let first_move = moved_before.is_none();
            // Before the entry is there, so that who finds the connection moved looks for it.
            if first_move {
                counters.moved_out(from);
            }
            if MOVED.insert(child, slot, 0).is_ok() {
                counters.move_connection(from, slot);
                Sums::closed(from);
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
