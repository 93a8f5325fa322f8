//! Follows each connection of the group from establishment to close.
//!
//! A child carries a copy of its listener's [`Owner`](reuseport_lb_ebpf::worker::Owner), so the unmodified server's
//! connections are known without asking it. All other sockets of the host carry none and cost a look-up.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_get_socket_cookie, programs::BtfTracePointContext};

use crate::{
    load::Loads,
    maps::{MOVED, OWNER},
};

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;

/// Offset of `skc_hash` in `struct sock_common`, behind the pair of IPv4 addresses; so since Linux 3.9. The verifier
/// compares it with the running kernel's BTF and refuses the program where it lies elsewhere.
const SKC_HASH: usize = 8;

/// One change of a socket's state: `inet_sock_set_state(sk, oldstate, newstate)`.
#[inline(always)]
pub(crate) fn run(ctx: &BtfTracePointContext) {
    let sk: *mut c_void = ctx.arg(0);
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let established = old == TCP_SYN_RECV && new == TCP_ESTABLISHED;
    if !established && new != TCP_CLOSE {
        return;
    }
    // SAFETY: the tracepoint hands over a socket that lives for the time of this run.
    let owner = unsafe { OWNER.get(sk) };
    if owner.is_null() {
        return;
    }
    let Some(loads) = Loads::now_in_tracing() else { return };
    // SAFETY: socket storage lives as long as its socket, and the kernel changes a socket's state under its lock.
    let owner = unsafe { &mut *owner };
    if established {
        owner.counted = 1;
        loads.add_active(owner.slot, 1);
        // SAFETY: within `struct sock`; the verifier knows the type of `sk` and checks the field.
        loads.end_handshake(unsafe { sk.byte_add(SKC_HASH).cast::<u32>().read() });
    } else if owner.counted == 1 {
        owner.counted = 0;
        // SAFETY: as above; the helper only reads the socket.
        let cookie = unsafe { bpf_get_socket_cookie(sk) };
        // SAFETY: the value is copied at once.
        let moved = unsafe { MOVED.get(cookie).copied() };
        if moved.is_some() {
            // It fails only when it is gone, which is what is wanted.
            let _ = MOVED.remove(cookie);
        }
        loads.add_active(moved.unwrap_or(owner.slot), -1);
    }
}
