//! The flow hash: own and keyed, so that it is the same after a restart, on another host, and for a client that
//! reaches the same address over another socket. The kernel's `skb` and socket hashes change with every boot.

use crate::assert_layout;

/// What of a packet is hashed: the fields of the tuple are masked with this before.
///
/// Addresses are kept as they stand in the packet, so the masks are in network byte order too.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMask {
    /// For an IPv6 source address, as two words.
    pub source_v6: [u64; 2],
    /// For an IPv4 source address.
    pub source_v4: u32,
    /// For the destination address and both ports: all ones or all zeros.
    pub rest: u32,
}

assert_layout!(KeyMask, size: 24, align: 8, fields: { source_v6: [u64; 2], source_v4: u32, rest: u32 });

impl KeyMask {
    /// Addresses and ports.
    pub const FLOW: Self = Self { source_v6: [u64::MAX; 2], source_v4: u32::MAX, rest: u32::MAX };
    /// The source address alone.
    pub const SOURCE: Self = Self::source(u32::BITS, u128::BITS);

    /// The network of the source address: its first `v4` bits in IPv4, its first `v6` bits in IPv6.
    pub const fn source(v4: u32, v6: u32) -> Self {
        // No bits are a shift by all of them, which a shift cannot do.
        let source_v4 = if v4 == 0 { 0 } else { u32::MAX << (u32::BITS - v4) };
        let source_v6 = if v6 == 0 { 0 } else { u128::MAX << (u128::BITS - v6) };
        let [high, low] = [(source_v6 >> 64) as u64, source_v6 as u64];
        Self { source_v6: [high.to_be(), low.to_be()], source_v4: source_v4.to_be(), rest: 0 }
    }
}

/// A connection's addresses and ports as they stand in the packet. The source is the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuple {
    /// An IPv4 packet, whatever the family of the socket that takes it.
    V4 {
        /// Source address, as in memory.
        source: u32,
        /// Destination address, as in memory.
        destination: u32,
        /// The source port in the first two bytes in memory, the destination port in the last two.
        ports: u32,
    },
    /// An IPv6 packet.
    V6 {
        /// Source address, as in memory.
        source: [u64; 2],
        /// Destination address, as in memory.
        destination: [u64; 2],
        /// As above.
        ports: u32,
    },
}

impl Tuple {
    /// The keyed hash of what `mask` leaves of the tuple.
    ///
    /// Each word is mixed with a bijection, so that two tuples of one family that differ in one word never collide
    /// before the result is cut.
    #[inline(always)]
    pub const fn hash(&self, mask: &KeyMask, seed: u64) -> u64 {
        match *self {
            Self::V4 { source, destination, ports } => {
                let addresses = (source & mask.source_v4) as u64 | ((destination & mask.rest) as u64) << 32;
                mix(mix(seed ^ addresses) ^ (ports & mask.rest) as u64)
            }
            Self::V6 { source, destination, ports } => {
                let rest = mask.rest as u64 | (mask.rest as u64) << 32;
                let hash = mix(seed ^ (source[0] & mask.source_v6[0]));
                let hash = mix(hash ^ (source[1] & mask.source_v6[1]));
                let hash = mix(hash ^ (destination[0] & rest));
                let hash = mix(hash ^ (destination[1] & rest));
                mix(hash ^ (ports & mask.rest) as u64)
            }
        }
    }
}

/// A bijection on 64 bits in which each bit of the input changes half of the bits of the output: the finaliser
/// "Mix13" of Stafford's list, known from SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014). BPF has no 128-bit product and no rotation, which rules out most faster ones.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Maps a hash to `0..len` without a division (Lemire, "Fast Random Integer Generation in an Interval").
///
/// Takes the upper half of the hash; the result is below `len` for each `len` above zero.
#[inline(always)]
pub const fn scale(hash: u64, len: u32) -> u32 {
    (((hash >> 32) * len as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(source: u32, ports: u32) -> Tuple {
        Tuple::V4 { source, destination: 0x0100_007f, ports }
    }

    proptest! {
        #[test]
        fn source_mask_forgets_everything_but_the_source(source: u32, a: u32, b: u32, seed: u64) {
            prop_assert_eq!(v4(source, a).hash(&KeyMask::SOURCE, seed), v4(source, b).hash(&KeyMask::SOURCE, seed));
        }

        #[test]
        fn flow_mask_tells_ports_apart(source: u32, a: u32, b: u32, seed: u64) {
            prop_assume!(a != b);
            prop_assert_ne!(v4(source, a).hash(&KeyMask::FLOW, seed), v4(source, b).hash(&KeyMask::FLOW, seed));
        }

        #[test]
        fn v6_source_mask_forgets_everything_but_the_source(
            source: [u64; 2], a: [u64; 2], b: [u64; 2], ports: (u32, u32), seed: u64,
        ) {
            let one = Tuple::V6 { source, destination: a, ports: ports.0 };
            let other = Tuple::V6 { source, destination: b, ports: ports.1 };
            prop_assert_eq!(one.hash(&KeyMask::SOURCE, seed), other.hash(&KeyMask::SOURCE, seed));
        }

        #[test]
        fn a_prefix_forgets_what_is_behind_it(a: u32, b: u32, bits in 1_u32..=32, seed: u64) {
            let mask = KeyMask::source(bits, 128);
            let hash = |address: u32| v4(address.to_be(), 0).hash(&mask, seed);
            prop_assert_eq!(a >> (32 - bits) == b >> (32 - bits), hash(a) == hash(b));
        }

        #[test]
        fn a_v6_prefix_forgets_what_is_behind_it(a: u128, other: u128, common in 0_u32..=128, bits in 1_u32..=128) {
            let b = if common == 0 { other } else { a ^ other.checked_shr(common).unwrap_or(0) };
            let mask = KeyMask::source(32, bits);
            let hash = |address: u128| {
                let bytes = address.to_be_bytes();
                let [high, low] = [0, 8].map(|at| u64::from_ne_bytes(core::array::from_fn(|i| bytes[at + i])));
                Tuple::V6 { source: [high, low], destination: [0; 2], ports: 0 }.hash(&mask, 0)
            };
            prop_assert_eq!(a >> (128 - bits) == b >> (128 - bits), hash(a) == hash(b));
        }

        #[test]
        fn scale_stays_below_len(hash: u64, len in 1_u32..) {
            prop_assert!(scale(hash, len) < len);
        }
    }

    /// Chi-squared test of 16 buckets over consecutive source ports, the least random input there is.
    #[test]
    fn consecutive_ports_spread_evenly() {
        const BUCKETS: usize = 16;
        const FLOWS: u32 = 28_000;
        let mut counts = [0_u32; BUCKETS];
        for port in 0..FLOWS {
            let ports = u32::from_ne_bytes([((32_768 + port) >> 8) as u8, port as u8, 0x1f, 0x90]);
            counts[scale(v4(0x0100_007f, ports).hash(&KeyMask::FLOW, 0), BUCKETS as u32) as usize] += 1;
        }
        let expected = f64::from(FLOWS) / BUCKETS as f64;
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: exceeded by chance once in 10,000 keys; the key is fixed, so this never flickers.
        assert!(chi < 44.3, "{counts:?}: {chi}");
    }
}
