//! The handshakes in flight: which slot each was given, and when.
//!
//! A handshake is known by its ports and the client's initial sequence number, which is as good as random. Both
//! stand at the start of the first packet's TCP header, and the socket that the handshake ends in still knows them,
//! whatever the family of its addresses.

use crate::{flow::mix, limits::PENDING_WAYS};

/// Bits of an entry that hold the slot.
const SLOT_BITS: u32 = 10;
/// Bits of an entry that hold the epoch: 104 days until it repeats, and then a stale entry must meet its own key.
const EPOCH_BITS: u32 = 22;
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;

const _: () = {
    assert!(1 << SLOT_BITS >= crate::limits::MAX_WORKERS);
    assert!(32 + SLOT_BITS + EPOCH_BITS == u64::BITS);
};

/// The entries whose key leads to the same place.
pub type PendingSet = [u64; PENDING_WAYS];

/// The key of a handshake.
///
/// `ports` as they stand in the packet, source first; `sequence` the client's initial sequence number, in the host's
/// byte order.
#[inline(always)]
pub const fn key(ports: u32, sequence: u32) -> u32 {
    (mix((sequence as u64) << 32 | ports as u64) >> 32) as u32
}

/// One handshake, packed into a word so that it is read and written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake(u64);

impl Handshake {
    /// The handshake `key`, given to `slot` in `epoch`.
    #[inline(always)]
    pub const fn new(key: u32, slot: u32, epoch: u32) -> Self {
        let slot = slot as u64 & ((1 << SLOT_BITS) - 1);
        Self((key as u64) << 32 | slot << EPOCH_BITS | epoch as u64 & EPOCH_MASK)
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

    /// The key.
    #[inline(always)]
    pub const fn key(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The slot.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 >> EPOCH_BITS) as u32 & ((1 << SLOT_BITS) - 1)
    }

    /// How many epochs ago it was selected, seen from `epoch`.
    #[inline(always)]
    pub const fn age(self, epoch: u32) -> u32 {
        ((epoch as u64).wrapping_sub(self.0) & EPOCH_MASK) as u32
    }

    /// Whether it still counts at `epoch`. An empty entry is an old one.
    #[inline(always)]
    pub const fn is_live(self, epoch: u32) -> bool {
        self.age(epoch) <= 1
    }
}

/// The set for a key.
#[inline(always)]
pub const fn set_of(key: u32) -> u32 {
    key & (crate::limits::PENDING_SETS - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{MAX_WORKERS, PENDING_SETS};

    proptest! {
        #[test]
        fn an_entry_gives_back_what_was_put_in(key: u32, slot in 0..MAX_WORKERS, epoch in 0..u32::MAX - 3) {
            let handshake = Handshake::from_entry(Handshake::new(key, slot, epoch).into_entry());
            prop_assert_eq!(handshake.key(), key);
            prop_assert_eq!(handshake.slot(), slot);
            prop_assert_eq!(handshake.age(epoch + 3), 3);
            prop_assert!(handshake.is_live(epoch) && handshake.is_live(epoch + 1));
            prop_assert!(!handshake.is_live(epoch + 2));
        }

        #[test]
        fn each_key_has_a_set(key: u32) {
            prop_assert!(set_of(key) < PENDING_SETS);
        }
    }
}
