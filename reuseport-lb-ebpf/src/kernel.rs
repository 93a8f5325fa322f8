//! What is read of the kernel's own structures.
//!
//! The offsets differ from kernel to kernel. Rust has no CO-RE relocations, so user space takes them from the running
//! kernel's BTF and overrides these globals before the programs are loaded. An offset of 0 is an unknown one; the
//! verifier then cuts out what needs it.

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};
use reuseport_lb_ebpf::health::Queue;

use crate::maps::SOCKETS;

/// `ptrs` in `struct reuseport_array`.
#[unsafe(no_mangle)]
static OFFSET_ARRAY_PTRS: Global<u32> = Global::new(0);
/// `sk_ack_backlog` in `struct sock`, directly followed by `sk_max_ack_backlog`.
#[unsafe(no_mangle)]
static OFFSET_ACK_BACKLOG: Global<u32> = Global::new(0);
/// `icsk_accept_queue.qlen` in `struct inet_connection_sock`, which begins with the `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_HANDSHAKES: Global<u32> = Global::new(0);

/// The accept queue of the socket in a slot, below [`MAX_WORKERS`](reuseport_lb_ebpf::limits::MAX_WORKERS).
///
/// None when the slot is empty, or the offsets are unknown.
#[inline(always)]
pub(crate) fn accept_queue(slot: u32) -> Option<Queue> {
    let (ptrs, backlog) = (OFFSET_ARRAY_PTRS.load() as usize, OFFSET_ACK_BACKLOG.load() as usize);
    let handshakes = OFFSET_HANDSHAKES.load() as usize;
    if ptrs == 0 || backlog == 0 || handshakes == 0 {
        return None;
    }
    // A program may not read a map's own structure through the map's address. It may through a number, and what
    // comes back from the stack by this helper is one.
    let map = &raw const SOCKETS;
    // SAFETY: the helper fails where it cannot read. The socket may be closed meanwhile; its memory stays for the
    // grace period that this run is part of.
    unsafe {
        let map: u64 = bpf_probe_read_kernel((&raw const map).cast()).ok()?;
        let entry = map as usize + ptrs + slot as usize * size_of::<u64>();
        let sk: u64 = bpf_probe_read_kernel(entry as *const u64).ok()?;
        if sk == 0 {
            return None;
        }
        let [depth, backlog] = bpf_probe_read_kernel((sk as usize + backlog) as *const [u32; 2]).ok()?;
        let handshakes = bpf_probe_read_kernel((sk as usize + handshakes) as *const u32).ok()?;
        Some(Queue { depth, backlog, handshakes })
    }
}
