//! Follows each connection of the group from establishment to close.
//!
//! A child carries a copy of its listener's [`Owner`](reuseport_lb_ebpf::worker::Owner), so the unmodified server's
//! connections are known without asking it. All other sockets of the host carry none and cost a look-up.

use aya_ebpf::{cty::c_void, helpers::generated::bpf_get_socket_cookie, programs::BtfTracePointContext};

use reuseport_lb_ebpf::pending;

use crate::{
    kernel,
    load::Loads,
    maps::{MOVED, OWNER},
};

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_RECV: i32 = 3;
const TCP_CLOSE: i32 = 7;

/// Offset of the peer's port in `struct sock_common`, in network byte order, and behind it that of the own port, in
/// the host's. So since Linux 3.9: the verifier compares it with the running kernel's BTF, and refuses the program
/// where they lie elsewhere.
const SKC_DPORT: usize = 12;
const SKC_NUM: usize = 14;

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
        loads.established(owner.slot);
        // SAFETY: within `struct sock`; the verifier knows the type of `sk` and checks the fields.
        let (peer, own) = unsafe {
            (sk.byte_add(SKC_DPORT).cast::<u16>().read(), sk.byte_add(SKC_NUM).cast::<u16>().read())
        };
        if let Some(sequence) = kernel::initial_sequence(sk) {
            let ports = u32::from(peer) | u32::from(own.to_be()) << 16;
            loads.end_handshake(pending::key(ports, sequence));
        }
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
        loads.closed(moved.unwrap_or(owner.slot));
    }
}
