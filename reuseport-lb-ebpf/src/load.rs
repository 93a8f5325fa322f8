//! The load of the workers: connections that are open, and handshakes that are in flight.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use reuseport_lb_ebpf::{
    health::{self, Verdict},
    limits::MAX_WORKERS,
    worker::{self, Load, STALLED, Workers},
};

use crate::{
    kernel,
    maps::{STALLS, WORKERS},
};

/// The counters of all workers.
#[derive(Clone, Copy)]
pub(crate) struct Counters(*mut Workers);

impl Counters {
    /// The counters; none never happens, but the verifier does not know that.
    #[inline(always)]
    pub(crate) fn get() -> Option<Self> {
        WORKERS.get_ptr_mut(0).map(Self)
    }

    #[inline(always)]
    fn of(self, slot: u32) -> *mut Load {
        // SAFETY: the mask keeps the slot within the array, whose length is a power of two.
        unsafe { (&raw mut (*self.0).loads).cast::<Load>().add((slot & (MAX_WORKERS - 1)) as usize) }
    }

    /// Counts a connection that the policy gave to a slot.
    #[inline(always)]
    pub(crate) fn selected(self, slot: u32) {
        // SAFETY: an element of the map, which lives as long as the program; the addition is atomic.
        unsafe { add(&raw mut (*self.of(slot)).selected, 1) };
    }

    /// Counts a connection of a slot as established.
    #[inline(always)]
    pub(crate) fn established(self, slot: u32) {
        // SAFETY: as in `selected`.
        unsafe { add(&raw mut (*self.of(slot)).established, 1) };
    }

    /// Counts a connection of a slot that was established before there was anybody to select it.
    #[inline(always)]
    pub(crate) fn older(self, slot: u32) {
        self.established(slot);
        // It was not given, so it does not come out of a handshake that was.
        // SAFETY: as in `selected`.
        unsafe { add_short(&raw mut (*self.of(slot)).abandoned, 1_u32.wrapping_neg()) };
    }

    /// Counts a connection of a slot as closed.
    #[inline(always)]
    pub(crate) fn closed(self, slot: u32) {
        // SAFETY: as in `selected`.
        unsafe { add(&raw mut (*self.of(slot)).closed, 1) };
    }

    /// Moves an established connection from one slot to another.
    #[inline(always)]
    pub(crate) fn move_connection(self, from: u32, to: u32) {
        // First there, then gone: somebody who reads in between sees a connection too many, not one too few.
        // SAFETY: as in `selected`.
        unsafe { add_short(&raw mut (*self.of(to)).migrated_in, 1) };
        self.takes_room(to);
        self.established(to);
        self.closed(from);
    }

    /// Remembers that a connection from a listener of a slot belongs to another one from now on.
    #[inline(always)]
    pub(crate) fn moved_out(self, slot: u32) {
        // SAFETY: as in `selected`.
        unsafe { add_short(&raw mut (*self.of(slot)).moved_out, 1) };
    }

    /// Forgets one of those, since it has ended.
    #[inline(always)]
    pub(crate) fn moved_ended(self, slot: u32) {
        // SAFETY: as in `selected`.
        unsafe { add_short(&raw mut (*self.of(slot)).moved_out, 1_u32.wrapping_neg()) };
    }

    /// Whether any connection from a listener of a slot belongs to another one.
    #[inline(always)]
    pub(crate) fn has_moved_out(self, slot: u32) -> bool {
        // SAFETY: as in `selected`; the word is read at once.
        unsafe { (&raw const (*self.of(slot)).moved_out).read_volatile() != 0 }
    }

    /// Moves a handshake from one slot to another.
    #[inline(always)]
    pub(crate) fn move_handshake(self, from: u32, to: u32) {
        // SAFETY: as in `selected`.
        unsafe {
            add_short(&raw mut (*self.of(to)).migrated_in, 1);
            add_short(&raw mut (*self.of(from)).abandoned, 1);
        }
        self.takes_room(to);
    }

    /// Something joins the accept queue of a slot that was not selected for it.
    #[inline(always)]
    fn takes_room(self, slot: u32) {
        // SAFETY: as in `selected`.
        unsafe { add_short(&raw mut (*self.of(slot)).room_until, 1_u32.wrapping_neg()) };
    }
}

/// The loads of all workers, at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Loads {
    counters: Counters,
    now_ms: u32,
}

impl Loads {
    /// The loads as they are now.
    #[inline(always)]
    pub(crate) fn now() -> Option<Self> {
        // SAFETY: the helper takes nothing and only reads the clock, as it stood at the last tick.
        let now_ms = worker::milliseconds(unsafe { bpf_ktime_get_coarse_ns() });
        Some(Self { counters: Counters::get()?, now_ms })
    }

    /// The counters, to change them.
    #[inline(always)]
    pub(crate) const fn counters(self) -> Counters {
        self.counters
    }

    /// What is known of a slot, at this moment.
    ///
    /// Other CPUs write meanwhile. Each word is read at once, and a load that is a moment old is as good as any.
    #[inline(always)]
    fn snapshot(self, slot: u32) -> Load {
        let load = self.counters.of(slot);
        // SAFETY: an element of the map, which lives as long as the program; all its bits are integers.
        unsafe {
            Load {
                accepted: (&raw const (*load).accepted).read_volatile(),
                progress_at_ms: (&raw const (*load).progress_at_ms).read_volatile(),
                look_after_ms: (&raw const (*load).look_after_ms).read_volatile(),
                room_until: (&raw const (*load).room_until).read_volatile(),
                unfit: (&raw const (*load).unfit).read_volatile(),
                ..self.connections(slot)
            }
        }
    }

    /// The part of it that is about connections, and how old it is.
    #[inline(always)]
    fn connections(self, slot: u32) -> Load {
        let load = self.counters.of(slot);
        // SAFETY: as in `snapshot`.
        unsafe {
            Load {
                established: (&raw const (*load).established).read_volatile(),
                closed: (&raw const (*load).closed).read_volatile(),
                selected: (&raw const (*load).selected).read_volatile(),
                migrated_in: (&raw const (*load).migrated_in).read_volatile(),
                abandoned: (&raw const (*load).abandoned).read_volatile(),
                checked_at_ms: (&raw const (*load).checked_at_ms).read_volatile(),
                ..Load::default()
            }
        }
    }

    /// The time, in milliseconds of the monotonic clock.
    #[inline(always)]
    pub(crate) const fn now_ms(self) -> u32 {
        self.now_ms
    }

    /// Why the worker in a slot should not be given connections, when its accept queue was last looked at: see
    /// [`Load::unfit`].
    #[inline(always)]
    pub(crate) fn unfit(self, slot: u32) -> u32 {
        // SAFETY: as in `snapshot`.
        unsafe { (&raw const (*self.counters.of(slot)).unfit).read_volatile() }
    }

    /// As [`get`](Self::get), for loops over all workers; see [`Load::balance_at`].
    #[inline(always)]
    pub(crate) fn balance(self, slot: u32) -> i64 {
        self.connections(slot).balance_at(self.now_ms)
    }

    /// Open connections and handshakes of a slot.
    #[inline(always)]
    pub(crate) fn get(self, slot: u32) -> u64 {
        let load = self.snapshot(slot);
        load.active() + load.pending_at(self.now_ms)
    }

    /// Whether it is known without a look that the worker in a slot takes the connections that it is given.
    #[inline(always)]
    pub(crate) fn is_known_to_take(self, slot: u32) -> bool {
        let load = self.counters.of(slot);
        // SAFETY: as in `snapshot`.
        let seen = unsafe {
            Load {
                selected: (&raw const (*load).selected).read_volatile(),
                checked_at_ms: (&raw const (*load).checked_at_ms).read_volatile(),
                look_after_ms: (&raw const (*load).look_after_ms).read_volatile(),
                room_until: (&raw const (*load).room_until).read_volatile(),
                unfit: (&raw const (*load).unfit).read_volatile(),
                ..Load::default()
            }
        };
        seen.unfit == 0
            && (health::is_recent(&seen, self.now_ms) || health::is_idle(&self.snapshot(slot), self.now_ms))
    }

    /// Whether the worker in a slot takes the connections that it is given, after `stall_after_ms` at the latest.
    ///
    /// Looks at its accept queue when it is time to, and remembers what it saw. Two CPUs may look at once: both see
    /// the same queue.
    #[inline(always)]
    pub(crate) fn takes_connections(self, slot: u32, look_after_ms: u32, stall_after_ms: u32) -> bool {
        look(slot, look_after_ms, stall_after_ms) != 0
    }

    #[inline(always)]
    fn look(self, slot: u32, look_after_ms: u32, stall_after_ms: u32) -> bool {
        let load = self.snapshot(slot);
        if health::is_recent(&load, self.now_ms) || health::is_idle(&load, self.now_ms) {
            return load.unfit == 0;
        }
        // An empty slot is for the selection to find out.
        let Some(queue) = kernel::accept_queue(slot & (MAX_WORKERS - 1)) else { return true };
        let Verdict { accepted, progress_at_ms, look_after_ms, unfit, room } =
            health::judge(&load, queue, self.now_ms, look_after_ms, stall_after_ms);
        let written = self.counters.of(slot);
        // SAFETY: as in `snapshot`.
        unsafe {
            // What was established is as it was before the look, and the rest as it is now: see `abandoned_of`.
            let given = Load {
                selected: (&raw const (*written).selected).read_volatile(),
                migrated_in: (&raw const (*written).migrated_in).read_volatile(),
                ..load
            };
            (&raw mut (*written).abandoned).write_volatile(given.abandoned_of(queue.handshakes));
            (&raw mut (*written).accepted).write_volatile(accepted);
            (&raw mut (*written).progress_at_ms).write_volatile(progress_at_ms);
            (&raw mut (*written).checked_at_ms).write_volatile(self.now_ms);
            (&raw mut (*written).look_after_ms).write_volatile(look_after_ms);
            (&raw mut (*written).room_until).write_volatile((load.selected as u32).wrapping_add_signed(room));
            (&raw mut (*written).unfit).write_volatile(unfit);
        }
        if (unfit ^ load.unfit) & STALLED != 0 {
            // The daemon reads the state itself; this only wakes it. Without room it will be woken by the next.
            let _ = STALLS.output(slot, 0);
        }
        unfit == 0
    }
}

/// See [`Loads::takes_connections`].
#[cold]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look(slot: u32, look_after_ms: u32, stall_after_ms: u32) -> u32 {
    Loads::now().is_none_or(|loads| loads.look(slot, look_after_ms, stall_after_ms)).into()
}

/// Declares an atomic addition. The stable way, `fetch_add`, does not exist for the BPF target.
macro_rules! atomic_addition {
    ($name:ident, $word:ty, $atomic:ty, $instruction:literal) => {
        /// Adds atomically.
        ///
        /// # Safety
        ///
        /// `counter` must point into a map.
        #[inline(always)]
        pub(crate) unsafe fn $name(counter: *mut $word, change: $word) {
            #[cfg(target_arch = "bpf")]
            // SAFETY: the caller vouches for the pointer, and the types in maps are aligned as Rust wants it.
            unsafe {
                core::arch::asm!($instruction, counter = in(reg) counter, change = in(reg) u64::from(change));
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: as above. This arm lets the crate be checked on the host.
            unsafe {
                <$atomic>::from_ptr(counter).fetch_add(change, core::sync::atomic::Ordering::Relaxed);
            }
        }
    };
}

atomic_addition!(add, u64, core::sync::atomic::AtomicU64, "lock *(u64 *)({counter} + 0) += {change}");
atomic_addition!(add_short, u32, core::sync::atomic::AtomicU32, "lock *(u32 *)({counter} + 0) += {change}");
