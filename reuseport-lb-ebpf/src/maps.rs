//! The maps. `reuseport_lb_ebpf` says what is in them and why they are as large as they are.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::{Array, HashMap, PerCpuArray, ReusePortSockArray, RingBuf},
    cty::c_void,
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use reuseport_lb_ebpf::{
    limits::{LISTENED_BYTES, MAX_MOVED, MAX_WORKERS, STALLS_BYTES},
    listen::{ListenEvent, Watched},
    outcome::Outcomes,
    sums::Sums,
    tables::Tables,
    worker::{Owner, Workers},
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static TABLES: Array<Tables, 1, MMAPABLE> = Array::new();

#[btf_map]
pub(crate) static SOCKETS: ReusePortSockArray<{ MAX_WORKERS as usize }> = ReusePortSockArray::new();

#[btf_map]
pub(crate) static WORKERS: Array<Workers, 1, MMAPABLE> = Array::new();

#[btf_map]
pub(crate) static SUMS: Array<Sums, 1, MMAPABLE> = Array::new();

#[btf_map]
pub(crate) static OUTCOMES: PerCpuArray<Outcomes, 1> = PerCpuArray::new();

/// Where round robin stands, on each CPU for itself: a shared ticket would need an atomic addition that returns
/// what was there, which LLVM does not offer for the plain BPF instruction set.
#[btf_map]
pub(crate) static TICKETS: PerCpuArray<u32, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static STALLS: RingBuf<u32, STALLS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static WATCHED: Array<Watched, 1> = Array::new();

#[btf_map]
pub(crate) static LISTENED: RingBuf<ListenEvent, LISTENED_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static LISTENERS: HashMap<u64, u32, { MAX_WORKERS as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static MOVED: HashMap<u64, u32, { MAX_MOVED as usize }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static OWNER: ClonedSkStorage<Owner> = ClonedSkStorage::new();

/// Socket storage that a child inherits from its listener.
///
/// aya-ebpf has the type of map, but fixes its flags without `BPF_F_CLONE`.
///
/// # Minimum kernel version
///
/// 5.4 for `BPF_F_CLONE`, 5.11 for socket storage in tracing programs.
#[repr(C)]
pub(crate) struct ClonedSkStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; NO_PREALLOC | BPF_F_CLONE],
}

const BPF_F_CLONE: usize = aya_ebpf::bindings::BPF_F_CLONE as usize;

// SAFETY: the fields only describe the map to the loader and are never read.
unsafe impl<T> Sync for ClonedSkStorage<T> {}

impl<T> ClonedSkStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// What `sk` remembers, or null.
    ///
    /// # Safety
    ///
    /// `sk` must be a socket that the kernel handed to this run of the program.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, sk: *mut c_void) -> *mut T {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the map is this one, `sk` is what the caller says, and without the flag to create an entry the
        // helper reads no value.
        unsafe { bpf_sk_storage_get(map, sk, core::ptr::null_mut(), 0).cast() }
    }
}
