//! What is read of the kernel's own structures.
//!
//! The offsets differ from kernel to kernel. Rust has no CO-RE relocations, so user space takes them from the running
//! kernel's BTF and overrides these globals before the programs are loaded. An offset of 0 is an unknown one; the
//! verifier then cuts out what needs it.

use aya_ebpf::{Global, cty::c_void, helpers::bpf_probe_read_kernel};
use reuseport_lb_ebpf::health::Queue;

use crate::maps::SOCKETS;

/// `copied_seq` in `struct tcp_sock`.
#[unsafe(no_mangle)]
static OFFSET_COPIED_SEQ: Global<u32> = Global::new(0);
/// `ptrs` in `struct reuseport_array`.
#[unsafe(no_mangle)]
static OFFSET_ARRAY_PTRS: Global<u32> = Global::new(0);
/// `sk_ack_backlog` in `struct sock`, directly followed by `sk_max_ack_backlog`.
#[unsafe(no_mangle)]
static OFFSET_ACK_BACKLOG: Global<u32> = Global::new(0);

/// The sequence number that the client of a connection began with. The connection must just be established: then
/// nothing was read of it, and the next byte to read is the one behind the SYN.
#[inline(always)]
pub(crate) fn initial_sequence(sk: *const c_void) -> Option<u32> {
    let offset = OFFSET_COPIED_SEQ.load() as usize;
    if offset == 0 {
        return None;
    }
    // SAFETY: the helper fails where it cannot read.
    let copied = unsafe { bpf_probe_read_kernel(sk.wrapping_byte_add(offset).cast::<u32>()) };
    Some(copied.ok()?.wrapping_sub(1))
}

/// The accept queue of the socket in a slot, below [`MAX_WORKERS`](reuseport_lb_ebpf::limits::MAX_WORKERS).
///
/// None when the slot is empty, or the offsets are unknown.
#[inline(always)]
pub(crate) fn accept_queue(slot: u32) -> Option<Queue> {
    let (ptrs, backlog) = (OFFSET_ARRAY_PTRS.load() as usize, OFFSET_ACK_BACKLOG.load() as usize);
    if ptrs == 0 || backlog == 0 {
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
        Some(Queue { depth, backlog })
    }
}
