//! What an iterator over TCP sockets is given, one after the other.

use aya_ebpf::{
    bindings::seq_file,
    cty::{c_long, c_void},
    helpers::generated::bpf_seq_write,
};

/// Offsets in `struct sock_common` of the own port and the state, and in `struct bpf_iter__tcp` of the socket. So since
/// Linux 5.9: the verifier compares them with the running kernel's BTF.
const SKC_NUM: usize = 14;
const SKC_STATE: usize = 18;
const ITERATED: usize = 8;

/// One socket, and the file that whoever reads the iterator reads.
#[derive(Clone, Copy)]
pub(crate) struct Iterated {
    seq: *mut c_void,
    sk: *mut c_void,
}

impl Iterated {
    /// The socket of this run; none at the end. `ctx` is a `struct bpf_iter__tcp`.
    #[inline(always)]
    pub(crate) fn of(ctx: *mut c_void) -> Option<Self> {
        // SAFETY: the kernel hands over the structure, whose first two members are pointers: to `struct bpf_iter_meta`,
        // whose first member is the file to write to, and to the socket, or null at the end. The verifier knows all of
        // them.
        let (seq, sk) = unsafe {
            let meta = ctx.cast::<*mut *mut c_void>().read();
            (meta.read(), ctx.byte_add(ITERATED).cast::<*mut c_void>().read())
        };
        (!sk.is_null()).then_some(Self { seq, sk })
    }

    /// The socket.
    #[inline(always)]
    pub(crate) const fn sk(self) -> *mut c_void {
        self.sk
    }

    /// Its own port.
    #[inline(always)]
    pub(crate) fn port(self) -> u16 {
        // SAFETY: within `struct sock_common`. Other states may be of smaller structures, which begin with the same.
        unsafe { self.sk.byte_add(SKC_NUM).cast::<u16>().read() }
    }

    /// Its state, by the kernel's number.
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        // SAFETY: as above.
        unsafe { self.sk.byte_add(SKC_STATE).cast::<u8>().read() }
    }

    /// Tells whoever reads the iterator. When there is no room, the kernel asks for the same socket again.
    #[inline(always)]
    pub(crate) fn tell<T>(self, what: &T) {
        // SAFETY: the file is the iterator's own, and the value lives until the call is done.
        let _: c_long = unsafe {
            bpf_seq_write(
                self.seq.cast::<seq_file>(),
                core::ptr::from_ref(what).cast(),
                size_of::<T>() as u32,
            )
        };
    }
}
