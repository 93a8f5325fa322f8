//! The handshakes in flight: which slot each was given, and when.
//!
//! The key is the kernel's hash of the connection's 4-tuple. A selection program is handed it as `ctx.hash`, and the
//! socket that the handshake ends in carries the same value as `skc_hash` ([`inet_ehashfn`]), so nothing has to be
//! read from a packet. Where a kernel differs, a handshake merely counts until it has aged.
//!
//! [`inet_ehashfn`]: https://github.com/torvalds/linux/blob/v6.18/net/ipv4/inet_hashtables.c

use crate::limits::PENDING_WAYS;

/// Bits of an entry that hold the slot.
const SLOT_BITS: u32 = 10;
/// Bits of an entry that hold the epoch: 104 days until it repeats, and then a stale entry must meet its own hash.
const EPOCH_BITS: u32 = 22;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

const _: () = {
    assert!(1 << SLOT_BITS >= crate::limits::MAX_WORKERS);
    assert!(32 + SLOT_BITS + EPOCH_BITS == u64::BITS);
};

/// The entries whose hash leads to the same place.
pub type PendingSet = [u64; PENDING_WAYS];

/// One handshake, packed into a word so that it is read and written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake(u64);

impl Handshake {
    /// A handshake of the flow `hash`, given to `slot` in `epoch`.
    #[inline(always)]
    pub const fn new(hash: u32, slot: u32, epoch: u64) -> Self {
        let slot = slot as u64 & ((1 << SLOT_BITS) - 1);
        Self((hash as u64) << 32 | slot << EPOCH_BITS | epoch & EPOCH_MASK)
    }

    /// What stands in an entry.
    #[inline(always)]
    pub const fn from_entry(entry: u64) -> Self {
        Self(entry)
    }

    /// The entry to store.
    #[inline(always)]
    pub const fn into_entry(self) -> u64 {
        self.0
    }

    /// The flow.
    #[inline(always)]
    pub const fn hash(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> EPOCH_BITS) as u32 & ((1 << SLOT_BITS) - 1)
    }

    /// How many epochs ago it was selected, seen from `epoch`.
    #[inline(always)]
    pub const fn age(self, epoch: u64) -> u64 {
        epoch.wrapping_sub(self.0) & EPOCH_MASK
    }

    /// Whether it still counts at `epoch`. An empty entry is an old one.
    #[inline(always)]
    pub const fn is_live(self, epoch: u64) -> bool {
        self.age(epoch) <= 1
    }
}

/// The set for a flow. The upper bits of the kernel's hash are as good as the lower ones; the buckets of the
/// kernel's own table use those.
#[inline(always)]
pub const fn set_of(hash: u32) -> u32 {
    hash >> (u32::BITS - crate::limits::PENDING_SETS.ilog2())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{MAX_WORKERS, PENDING_SETS};

    proptest! {
        #[test]
        fn an_entry_gives_back_what_was_put_in(hash: u32, slot in 0..MAX_WORKERS, epoch in 0_u64..1 << 33) {
            let handshake = Handshake::from_entry(Handshake::new(hash, slot, epoch).into_entry());
            prop_assert_eq!(handshake.hash(), hash);
            prop_assert_eq!(handshake.slot(), slot);
            prop_assert_eq!(handshake.age(epoch + 3), 3);
            prop_assert!(handshake.is_live(epoch) && handshake.is_live(epoch + 1));
            prop_assert!(!handshake.is_live(epoch + 2));
        }

        #[test]
        fn each_hash_has_a_set(hash: u32) {
            prop_assert!(set_of(hash) < PENDING_SETS);
        }
    }
}
