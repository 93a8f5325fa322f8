//! The tables, the loads and their sums, as memory that user space and the programs share.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use reuseport_lb_ebpf::{
    flow::KeyMask,
    health, least_loaded,
    limits::{MAX_CPUS, MAX_WORKERS},
    sums::Sums,
    tables::{Bank, COST_UNIT, Header, Part, Tables},
    worker::{self, Load, Workers},
};

use super::{Error, Selection, SlotLoad};
use crate::policy::HashOn;

/// The memory of map `TABLES`.
#[derive(Debug)]
pub(super) struct SharedTables {
    memory: MmapRaw,
    /// One more than the largest slot that a table ever named.
    slots_len: u32,
}

impl SharedTables {
    /// Maps the memory of a map whose one value is [`Tables`].
    pub(super) fn map(map: impl AsFd) -> Result<Self, Error> {
        Ok(Self { memory: map_value::<Tables>(map)?, slots_len: 0 })
    }

    fn tables(&self) -> *mut Tables {
        self.memory.as_mut_ptr().cast()
    }

    fn active(&self) -> &AtomicU64 {
        // SAFETY: the word lies at the start of the mapping, which is aligned to a page, and is only ever accessed
        // as a whole: here by atomics, in the programs by one load.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.tables()).active) }
    }

    /// The ring that the programs pick from at present.
    pub(super) fn ring(&self) -> Vec<u16> {
        let active = self.active().load(Ordering::Acquire) & 1;
        // SAFETY: the index is 0 or 1, and only the daemon writes banks, by `&mut self`. The lengths are cut to those
        // of the arrays, since it was another daemon who wrote them.
        unsafe {
            let bank = (&raw const (*self.tables()).banks).cast::<Bank>().add(active as usize);
            let header = (&raw const (*self.tables()).headers).cast::<Header>().add(active as usize);
            read(&raw const (*bank).ring, (&raw const (*header).ring_len).read())
        }
    }

    /// Fills the idle bank and makes it the active one.
    ///
    /// The caller must have seen to it that no program still reads the idle bank, where that matters to it: one
    /// that does may pick any slot of the old or the new tables.
    pub(super) fn commit(&mut self, selection: &Selection<'_>, seed: u64) {
        let Selection { members, shares, ring, local, balance_factor, hash_on, refuse, stall_after } =
            *selection;
        let slots_len = members.iter().map(|member| u32::from(member.slot) + 1).max();
        self.slots_len = self.slots_len.max(slots_len.unwrap_or(0));
        let idle = self.active().load(Ordering::Relaxed) & 1 ^ 1;
        // SAFETY: the index is 0 or 1, within the array of banks. The arrays are written within their lengths,
        // which the slices are cut to. No reference is made to memory that programs read; what a program that is
        // late reads of a half-written bank are integers that it bounds itself.
        unsafe {
            let bank = (&raw mut (*self.tables()).banks).cast::<Bank>().add(idle as usize);
            let ring_len = fill(&raw mut (*bank).ring, ring);
            let shares_len = fill(&raw mut (*bank).shares, shares);
            fill(&raw mut (*bank).local, local.slots());
            let cpus = (&raw mut (*bank).cpus).cast::<Part>();
            cpus.write_bytes(0, MAX_CPUS as usize);
            for (cpu, part) in local.cpus() {
                let part = Part { start: part.start, len: part.end - part.start };
                cpus.add(usize::from(cpu) % MAX_CPUS as usize).write(part);
            }
            let weights = (&raw mut (*bank).weights).cast::<u16>();
            let constants = (&raw mut (*bank).constants).cast::<u64>();
            let slots = (&raw mut (*bank).members).cast::<u16>();
            let members = &members[..members.len().min(MAX_WORKERS as usize)];
            for (index, member) in members.iter().enumerate() {
                let slot = usize::from(member.slot) % MAX_WORKERS as usize;
                slots.add(index).write(member.slot);
                slots.add(members.len() + index).write(member.slot);
                weights.add(slot).write(member.weight);
                let cost = COST_UNIT / u32::from(member.weight);
                constants.add(slot).write(least_loaded::constant(cost, slot as u32));
            }
            let stall_after_ms = worker::stall_milliseconds(stall_after);
            (&raw mut (*self.tables()).headers).cast::<Header>().add(idle as usize).write(Header {
                masks: hash_on.map(mask),
                seed,
                ring_len,
                shares_len,
                members_len: members.len() as u32,
                refuse: u32::from(refuse),
                stall_after_ms,
                look_after_ms: health::look_after_ms(stall_after_ms),
                balance_thousandths: balance_factor.thousandths(),
                weights_sum: members.iter().map(|member| u32::from(member.weight)).sum(),
                slots_len: self.slots_len,
                reserved: 0,
            });
        }
        // The programs find the bank through this word, so their reads of the bank depend on their read of the
        // word, and all that was written above is there for who sees the new word.
        self.active().store(idle, Ordering::Release);
    }
}

/// Copies as much as fits, and says how much that is.
///
/// # Safety
///
/// `room` must be valid for writes.
unsafe fn fill<const N: usize>(room: *mut [u16; N], slots: &[u16]) -> u32 {
    let len = slots.len().min(N);
    // SAFETY: the length is at most that of both; a slice of ordinary memory and a map do not overlap.
    unsafe { room.cast::<u16>().copy_from_nonoverlapping(slots.as_ptr(), len) };
    len as u32
}

/// Reads the first `len` slots, or as many as there are.
///
/// # Safety
///
/// `slots` must be valid for reads.
unsafe fn read<const N: usize>(slots: *const [u16; N], len: u32) -> Vec<u16> {
    let len = N.min(len as usize);
    // SAFETY: the length is at most that of the array.
    (0..len).map(|index| unsafe { slots.cast::<u16>().add(index).read() }).collect()
}

const fn mask(hash_on: HashOn) -> KeyMask {
    match hash_on {
        HashOn::Flow => KeyMask::FLOW,
        HashOn::Source { v4, v6 } => KeyMask::source(v4 as u32, v6 as u32),
    }
}

/// The memory of map `WORKERS`.
#[derive(Debug)]
pub(super) struct SharedLoads {
    memory: MmapRaw,
}

impl SharedLoads {
    /// Maps the memory of a map whose one value is [`Workers`].
    pub(super) fn map(map: impl AsFd) -> Result<Self, Error> {
        Ok(Self { memory: map_value::<Workers>(map)? })
    }

    /// Begins to count anew what a slot is given. Its connections that are open stay counted.
    ///
    /// The caller must have seen to it that no program gives it connections meanwhile.
    pub(super) fn forget(&mut self, slot: u16) {
        let slot = usize::from(slot) % MAX_WORKERS as usize;
        // SAFETY: the slot is within the array. Programs add to the other words meanwhile; these are written whole.
        unsafe {
            let load = self.memory.as_mut_ptr().cast::<Load>().add(slot);
            (&raw mut (*load).selected).write_volatile(0);
            (&raw mut (*load).migrated_in).write_volatile(0);
            // What was seen of the queue of another socket does not hold.
            (&raw mut (*load).look_after_ms).write_volatile(0);
            (&raw mut (*load).room_until).write_volatile(u32::MAX);
            // Nothing is in its handshake.
            (&raw mut (*load).abandoned).write_volatile(load.read_volatile().abandoned_of(0));
        }
    }

    /// The load of a slot, at this moment.
    pub(super) fn get(&self, slot: u16) -> SlotLoad {
        let slot = usize::from(slot) % MAX_WORKERS as usize;
        // SAFETY: the slot is within the array. Programs add to the words meanwhile, so these may be of different
        // moments; all of their bits are integers.
        let load = unsafe { self.memory.as_ptr().cast::<Load>().add(slot).read_volatile() };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        let now_ns = now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned();
        SlotLoad {
            active: load.active(),
            established: load.established,
            pending: load.pending_at(worker::milliseconds(now_ns)),
            stalled: load.is_stalled(),
            selected: load.selected,
            migrated_in: load.migrated_in.into(),
        }
    }
}

/// The memory of map `SUMS`.
#[derive(Debug)]
pub(super) struct SharedSums {
    memory: MmapRaw,
}

impl SharedSums {
    /// Maps the memory of a map whose one value is [`Sums`].
    pub(super) fn map(map: impl AsFd) -> Result<Self, Error> {
        Ok(Self { memory: map_value::<Sums>(map)? })
    }

    /// Lets the programs keep the sums up, or spares them that. The next program that needs them takes them anew.
    pub(super) fn keep(&self, needed: bool) {
        let sums = self.memory.as_mut_ptr().cast::<Sums>();
        // SAFETY: the words are within the mapping and aligned, and everybody who shares them accesses them as a whole.
        let (taken_at_ms, flag) = unsafe {
            (AtomicU32::from_ptr(&raw mut (*sums).taken_at_ms), AtomicU32::from_ptr(&raw mut (*sums).needed))
        };
        flag.store(needed.into(), Ordering::Relaxed);
        taken_at_ms.store(0, Ordering::Relaxed);
    }
}

fn map_value<T>(map: impl AsFd) -> Result<MmapRaw, Error> {
    use std::os::fd::AsRawFd as _;

    MmapOptions::new()
        .len(size_of::<T>())
        .map_raw(map.as_fd().as_raw_fd())
        .map_err(Error::system("mmap of a BPF map"))
}
