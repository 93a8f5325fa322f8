//! The load of the workers: connections that are open, and handshakes that are in flight.

use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use reuseport_lb_ebpf::{
    health::{self, Verdict},
    limits::{MAX_WORKERS, PENDING_WAYS},
    pending::{self, Handshake, PendingSet},
    worker::{self, Load, Workers},
};

use crate::{
    kernel,
    maps::{PENDING, STALLS, WORKERS},
};

/// The loads of all workers, at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Loads {
    workers: *mut Workers,
    epoch: u32,
    now_ms: u32,
}

impl Loads {
    /// The loads as they are now, for a selection program.
    #[inline(always)]
    pub(crate) fn now() -> Option<Self> {
        // SAFETY: the helper takes nothing and only reads the clock, as it stood at the last tick.
        Self::at(unsafe { bpf_ktime_get_coarse_ns() })
    }

    /// The same for a tracing program, which may not read the cheaper clock. The two may be an epoch apart for the
    /// length of a tick, which a live handshake survives.
    #[inline(always)]
    pub(crate) fn now_in_tracing() -> Option<Self> {
        // SAFETY: the helper takes nothing and only reads the clock.
        Self::at(unsafe { bpf_ktime_get_ns() })
    }

    #[inline(always)]
    fn at(now_ns: u64) -> Option<Self> {
        Some(Self {
            workers: WORKERS.get_ptr_mut(0)?,
            epoch: worker::epoch(now_ns),
            now_ms: worker::milliseconds(now_ns),
        })
    }

    #[inline(always)]
    fn of(self, slot: u32) -> *mut Load {
        // SAFETY: the mask keeps the slot within the array, whose length is a power of two.
        unsafe { (&raw mut (*self.workers).loads).cast::<Load>().add((slot & (MAX_WORKERS - 1)) as usize) }
    }

    /// What is known of a slot, at this moment.
    ///
    /// Other CPUs write meanwhile. Each word is read at once, and a load that is a moment old is as good as any.
    #[inline(always)]
    fn snapshot(self, slot: u32) -> Load {
        let load = self.of(slot);
        // SAFETY: an element of the map, which lives as long as the program; all its bits are integers.
        unsafe {
            Load {
                established: (&raw const (*load).established).read_volatile(),
                closed: (&raw const (*load).closed).read_volatile(),
                pending: (&raw const (*load).pending).read_volatile(),
                pending_epoch: (&raw const (*load).pending_epoch).read_volatile(),
                accepted: (&raw const (*load).accepted).read_volatile(),
                checked_at_ms: (&raw const (*load).checked_at_ms).read_volatile(),
                progress_at_ms: (&raw const (*load).progress_at_ms).read_volatile(),
                backlog: (&raw const (*load).backlog).read_volatile(),
                stalled: (&raw const (*load).stalled).read_volatile(),
            }
        }
    }

    /// Open connections and handshakes of a slot.
    #[inline(always)]
    pub(crate) fn get(self, slot: u32) -> u64 {
        let load = self.snapshot(slot);
        load.active() + load.pending_at(self.epoch)
    }

    /// Whether the worker in a slot takes the connections that it is given, after `stall_after_ms` at the latest.
    ///
    /// Looks at its accept queue when it is time to, and remembers what it saw. Two CPUs may look at once: both see
    /// the same queue.
    #[inline(always)]
    pub(crate) fn takes_connections(self, slot: u32, stall_after_ms: u32) -> bool {
        if stall_after_ms == 0 {
            return true;
        }
        let load = self.snapshot(slot);
        let pending = load.pending_at(self.epoch);
        if !health::is_due(&load, pending, self.now_ms, stall_after_ms) {
            return load.stalled == 0;
        }
        // An empty slot is for the selection to find out.
        let Some(queue) = kernel::accept_queue(slot & (MAX_WORKERS - 1)) else { return true };
        let Verdict { accepted, progress_at_ms, stalled, full } =
            health::judge(&load, queue, pending, self.now_ms, stall_after_ms);
        let written = self.of(slot);
        // SAFETY: as in `snapshot`.
        unsafe {
            (&raw mut (*written).accepted).write_volatile(accepted);
            (&raw mut (*written).progress_at_ms).write_volatile(progress_at_ms);
            (&raw mut (*written).checked_at_ms).write_volatile(self.now_ms);
            (&raw mut (*written).backlog).write_volatile(queue.backlog);
            (&raw mut (*written).stalled).write_volatile(u32::from(stalled));
        }
        if u32::from(stalled) != load.stalled {
            // The daemon reads the state itself; this only wakes it. Without room it will be woken by the next.
            let _ = STALLS.output(slot, 0);
        }
        !stalled && !full
    }

    /// Counts a connection of a slot as established, or as moved to it.
    #[inline(always)]
    pub(crate) fn established(self, slot: u32) {
        let load = self.of(slot);
        // SAFETY: as in `snapshot`; the addition is atomic.
        unsafe { add(&raw mut (*load).established, 1) };
    }

    /// Counts a connection of a slot as closed, or as moved away.
    #[inline(always)]
    pub(crate) fn closed(self, slot: u32) {
        let load = self.of(slot);
        // SAFETY: as in `snapshot`; the addition is atomic.
        unsafe { add(&raw mut (*load).closed, 1) };
    }

    /// The handshake `key` was given to `slot`. It replaces what an earlier packet of it was given.
    #[inline(always)]
    pub(crate) fn begin_handshake(self, key: u32, slot: u32) {
        let Some(set) = PENDING.get_ptr_mut(pending::set_of(key)) else { return };
        let mut free = None;
        for way in 0..PENDING_WAYS {
            let handshake = self.entry(set, way);
            if !handshake.is_live(self.epoch) {
                free = Some(way);
            } else if handshake.key() == key {
                self.withdraw(handshake);
                free = Some(way);
                break;
            }
        }
        self.add_pending(slot, self.epoch, 1);
        // In a full set the handshake goes unrecorded: it counts until it has aged, established or not.
        if let Some(way) = free {
            self.store(set, way, Handshake::new(key, slot, self.epoch).into_entry());
        }
    }

    /// The handshake `key` has ended in a connection.
    #[inline(always)]
    pub(crate) fn end_handshake(self, key: u32) {
        let Some(set) = PENDING.get_ptr_mut(pending::set_of(key)) else { return };
        for way in 0..PENDING_WAYS {
            let handshake = self.entry(set, way);
            if handshake.key() == key && handshake.is_live(self.epoch) {
                self.withdraw(handshake);
                self.store(set, way, 0);
                return;
            }
        }
    }

    #[inline(always)]
    fn entry(self, set: *mut PendingSet, way: usize) -> Handshake {
        // SAFETY: `set` is an element of the map and `way` is within it. The word is read at once.
        Handshake::from_entry(unsafe { set.cast::<u64>().add(way).read_volatile() })
    }

    #[inline(always)]
    fn store(self, set: *mut PendingSet, way: usize, entry: u64) {
        // SAFETY: as in `entry`. Two CPUs may write the same entry for two flows: one is then unrecorded.
        unsafe { set.cast::<u64>().add(way).write_volatile(entry) };
    }

    /// Takes a live handshake out of the count that it is in.
    #[inline(always)]
    fn withdraw(self, handshake: Handshake) {
        self.add_pending(handshake.slot(), self.epoch - handshake.age(self.epoch), -1);
    }

    #[inline(always)]
    fn add_pending(self, slot: u32, epoch: u32, change: i64) {
        let load = self.of(slot);
        let parity = (epoch & 1) as usize;
        // SAFETY: `load` is an element of the map, the parity is 0 or 1. The addition is atomic; that the count of a
        // new epoch begins at zero is not, see `Load::pending_at`.
        unsafe {
            let begun = (&raw mut (*load).pending_epoch).cast::<u32>().add(parity);
            let count = (&raw mut (*load).pending).cast::<u64>().add(parity);
            if begun.read_volatile() != epoch {
                count.write_volatile(0);
                begun.write_volatile(epoch);
            }
            add(count, change);
        }
    }
}

/// Adds atomically. The stable way, `AtomicU64::fetch_add`, does not exist for the BPF target.
///
/// # Safety
///
/// `counter` must point into a map.
#[inline(always)]
unsafe fn add(counter: *mut u64, change: i64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller vouches for the pointer, and the kernel aligns map values to eight bytes.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {change}", counter = in(reg) counter, change = in(reg) change);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as above. This arm lets the crate be checked on the host.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(counter)
            .fetch_add(change.cast_unsigned(), core::sync::atomic::Ordering::Relaxed);
    }
}
