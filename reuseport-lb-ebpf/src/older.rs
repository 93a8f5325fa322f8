//! Counts the connections that are older than the daemon, once it has marked them with their worker.
//!
//! The daemon puts an [`Owner`](reuseport_lb_ebpf::worker::Owner) into the storage of each connection that an adopted
//! server has. This iterator over TCP sockets asks for what [`track`](crate::track) asks for, and counts them; from then
//! on they are as all others, and their end is counted whether there is a daemon or not.

use aya_ebpf::{
    bindings::BPF_SOCK_OPS_STATE_CB_FLAG,
    cty::c_void,
    helpers::generated::{bpf_getsockopt, bpf_setsockopt},
};

use crate::{iterator::Iterated, load::Counters, maps::OWNER};

const SOL_TCP: i32 = 6;
/// `TCP_BPF_SOCK_OPS_CB_FLAGS`: what a connection's socket-operations programs are to be told of.
const CB_FLAGS: i32 = 1_008;

/// The states of a connection, by number: established, both of waiting for the other end to close, the other end's having
/// closed, and both of closing.
const OPEN: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// One socket of the iterator. Tells a word for each that cannot be counted.
#[inline(always)]
pub(crate) fn run(ctx: *mut c_void) {
    let Some(iterated) = Iterated::of(ctx) else { return };
    if OPEN >> (iterated.state() & 31) & 1 == 0 {
        return;
    }
    let sk = iterated.sk();
    // SAFETY: the kernel has the socket locked for this run, and its storage lives as long as it does.
    let (Some(owner), Some(counters)) = (unsafe { OWNER.get(sk).as_mut() }, Counters::get()) else { return };
    if owner.counted != 0 {
        return;
    }
    if !is_told(sk) {
        iterated.tell(&0_u32);
        return;
    }
    owner.counted = 1;
    counters.older(owner.slot);
}

/// Has the kernel tell of the connection's end, beside what others have asked for.
#[inline(always)]
fn is_told(sk: *mut c_void) -> bool {
    let mut flags = 0_u32;
    let length = size_of::<u32>() as i32;
    // SAFETY: the helpers read and write the word within its length, and the socket is locked.
    unsafe {
        let word = (&raw mut flags).cast();
        if bpf_getsockopt(sk, SOL_TCP, CB_FLAGS, word, length) != 0 {
            return false;
        }
        flags |= BPF_SOCK_OPS_STATE_CB_FLAG;
        bpf_setsockopt(sk, SOL_TCP, CB_FLAGS, (&raw mut flags).cast(), length) == 0
    }
}
