//! Lists the listening sockets with the programs that pick among them: what no system call tells.

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_get_socket_cookie, bpf_seq_write},
    },
};
use reuseport_lb_ebpf::listen::Attached;

const TCP_LISTEN: u8 = 10;

/// Offsets in `struct sock_common` of the own port and the state, and in `struct bpf_iter__tcp` of the socket. So since
/// Linux 5.9: the verifier compares them with the running kernel's BTF.
const SKC_NUM: usize = 14;
const SKC_STATE: usize = 18;
const ITERATED: usize = 8;

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

/// One socket of an iterator over TCP sockets; `ctx` is a `struct bpf_iter__tcp`.
#[inline(always)]
pub(crate) fn run(ctx: *mut c_void) {
    // SAFETY: the kernel hands over the structure, whose first two members are pointers: to `struct bpf_iter_meta`, whose
    // first member is the file to write to, and to the socket, or null at the end. The verifier knows all of them.
    let (seq, sk) = unsafe {
        let meta = ctx.cast::<*mut *mut c_void>().read();
        (meta.read(), ctx.byte_add(ITERATED).cast::<*mut c_void>().read())
    };
    if sk.is_null() {
        return;
    }
    // SAFETY: within `struct sock_common`. Other states may be of smaller structures, which begin with the same.
    let (port, state) =
        unsafe { (sk.byte_add(SKC_NUM).cast::<u16>().read(), sk.byte_add(SKC_STATE).cast::<u8>().read()) };
    if state != TCP_LISTEN {
        return;
    }
    let (attached, program) = program_of(sk).map_or((0, 0), |id| (1, id));
    // SAFETY: the helper only reads the socket.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    let told = Attached { cookie, port: port.into(), attached, program, unused: 0 };
    // SAFETY: the file is the iterator's own, and the structure lives until the call is done. When it is full, the kernel
    // asks for the same socket again.
    unsafe {
        bpf_seq_write(seq.cast(), (&raw const told).cast(), size_of::<Attached>() as u32);
    }
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
