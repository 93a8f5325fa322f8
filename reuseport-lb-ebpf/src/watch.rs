//! Tells the daemon when sockets begin and cease to listen, so that it need not look again and again.

use aya_ebpf::{
    Global,
    cty::c_void,
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_socket_cookie},
    programs::BtfTracePointContext,
};
use reuseport_lb_ebpf::listen::{ListenEvent, Watched};

use crate::maps::{LISTENED, LISTENERS, WATCHED};

const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

/// Offset of the own port in `struct sock_common`, in the host's byte order; see `track`.
const SKC_NUM: usize = 14;

/// `skc_net` in `struct sock_common`.
#[unsafe(no_mangle)]
static OFFSET_SKC_NET: Global<u32> = Global::new(0);
/// `ns.inum` in `struct net`.
#[unsafe(no_mangle)]
static OFFSET_NET_INUM: Global<u32> = Global::new(0);

/// One change of a socket's state: `inet_sock_set_state(sk, oldstate, newstate)`.
#[inline(always)]
pub(crate) fn run(ctx: &BtfTracePointContext) {
    let sk: *mut c_void = ctx.arg(0);
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    let listens = old == TCP_CLOSE && new == TCP_LISTEN;
    if !listens && old != TCP_LISTEN {
        return;
    }
    if listens {
        let Some(watched) = WATCHED.get(0) else { return };
        if !is_watched(sk, *watched) {
            return;
        }
    }
    // SAFETY: the tracepoint hands over a socket that lives for the time of this run.
    let cookie = unsafe { bpf_get_socket_cookie(sk) };
    // SAFETY: only whether it is there matters. A socket that the daemon has not met is none whose end it must know.
    if !listens && unsafe { LISTENERS.get(cookie) }.is_none() {
        return;
    }
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // Without room, what is unread wakes the daemon, and it looks at everything.
    let _ = LISTENED.output(ListenEvent { cookie, pid, listens: u32::from(listens) }, 0);
}

#[inline(always)]
fn is_watched(sk: *const c_void, watched: Watched) -> bool {
    // SAFETY: within `struct sock`; the verifier knows the type of `sk` and checks the field.
    let port = unsafe { sk.byte_add(SKC_NUM).cast::<u16>().read() };
    if u32::from(port) != watched.port {
        return false;
    }
    let (net, inum) = (OFFSET_SKC_NET.load() as usize, OFFSET_NET_INUM.load() as usize);
    if net == 0 || inum == 0 || watched.netns == 0 {
        return true;
    }
    // SAFETY: the helper fails where it cannot read.
    let found = unsafe {
        bpf_probe_read_kernel(sk.wrapping_byte_add(net).cast::<usize>())
            .and_then(|net| bpf_probe_read_kernel((net + inum) as *const u32))
    };
    // Better a look in vain than a socket that is missed.
    found.map_or(true, |inum| inum == watched.netns)
}
