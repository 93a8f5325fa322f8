//! Lists the listening sockets with the programs that pick among them: what no system call tells.

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::{bpf_probe_read_kernel, generated::bpf_get_socket_cookie},
};
use reuseport_lb_ebpf::listen::Attached;

use crate::iterator::Iterated;

const TCP_LISTEN: u8 = 10;

/// `sk_reuseport_cb` in `struct sock`.
#[unsafe(no_mangle)]
static OFFSET_REUSEPORT: Global<u32> = Global::new(0);
/// `prog` in `struct sock_reuseport`.
#[unsafe(no_mangle)]
static OFFSET_PROGRAM: Global<u32> = Global::new(0);
/// `aux` in `struct bpf_prog`.
#[unsafe(no_mangle)]
static OFFSET_AUX: Global<u32> = Global::new(0);
/// `id` in `struct bpf_prog_aux`.
#[unsafe(no_mangle)]
static OFFSET_PROGRAM_ID: Global<u32> = Global::new(0);

/// One socket of the iterator.
#[inline(always)]
pub(crate) fn run(ctx: *mut c_void) {
    let Some(iterated) = Iterated::of(ctx) else { return };
    let (port, state) = (iterated.port(), iterated.state());
    if state != TCP_LISTEN {
        return;
    }
    let (attached, program) = program_of(iterated.sk()).map_or((0, 0), |id| (1, id));
    // SAFETY: the helper only reads the socket.
    let cookie = unsafe { bpf_get_socket_cookie(iterated.sk()) };
    iterated.tell(&Attached { cookie, port: port.into(), attached, program, unused: 0 });
}

/// The id of the program that picks for a socket, 0 for one that has none.
#[inline(always)]
fn program_of(sk: *const c_void) -> Option<u32> {
    let offsets = [OFFSET_REUSEPORT.load(), OFFSET_PROGRAM.load(), OFFSET_AUX.load()];
    let mut at = sk as usize;
    for offset in offsets {
        // SAFETY: the helper fails where it cannot read.
        at = unsafe { bpf_probe_read_kernel((at + offset as usize) as *const usize) }.ok()?;
        if at == 0 {
            return None;
        }
    }
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel((at + OFFSET_PROGRAM_ID.load() as usize) as *const u32) }.ok()
}
