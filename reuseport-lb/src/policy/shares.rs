//! The weighted list of slots that `hash`, `random`, `round-robin` and `power-of-two` pick from.
//!
//! Each member is in the list as often as its weight says, so a random entry is a weighted random choice. The
//! order is that of a fair round robin, so taking one entry after the other is a weighted round robin with no bursts.
//!
//! The order solves the chairman assignment problem: R. Tijdeman, "The chairman assignment problem", Discrete
//! Mathematics 32 (1980), 323-330. Of `n` members with `q` of `len` entries each, a member is in the first `k`
//! entries `k * q / len` times, give or take at most `1 - 1 / (2n - 2)`. No order can promise less.

use reuseport_lb_ebpf::limits::MAX_SHARES;

use super::{Member, apportion};

/// Makes `out` the list of `members`.
///
/// Its length is the sum of the weights after division by their greatest common divisor. When that is above
/// [`MAX_SHARES`], the list has `MAX_SHARES` entries, shared out by the largest remainder with one at least for each
/// member. No members give an empty list. The order of `members` has no meaning; members of equal weight come in
/// ascending order of their slots, so equal weights alone give `0, 1, 2, …`.
///
/// # Panics
///
/// When there are more than [`MAX_SHARES`] members, or all weights are 0.
pub fn schedule(members: &[Member], out: &mut Vec<u16>) {
    schedule_within(members, MAX_SHARES, out);
}

/// The same with `room` entries at most, in place of [`MAX_SHARES`].
pub(super) fn schedule_within(members: &[Member], room: u32, out: &mut Vec<u16>) {
    out.clear();
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|member| member.slot);
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, u32::from(member.weight))).max(1);
    let mut counts: Vec<u32> = members.iter().map(|member| u32::from(member.weight) / divisor).collect();
    let mut len = counts.iter().sum::<u32>();
    if len > room {
        len = room;
        apportion(&members, len, &mut counts);
    }
    if let [only] = members.as_slice() {
        out.push(only.slot);
    } else {
        arrange(&members, &counts, len as usize, out);
    }
}

/// One of a member's entries, and where it may stand.
#[derive(Clone, Copy, Default)]
struct Seat {
    slot: u16,
    earliest: u32,
}

/// Puts `counts[i]` entries of `members[i]` into order.
///
/// Tijdeman's bound says of every single entry where it may stand at the earliest and at the latest. His theorem
/// says that the entries fit. For intervals, taking them by their latest place and giving each the earliest that is
/// free finds a fit where there is one: an entry that took an earlier place can swap with any later one
/// that needs it.
fn arrange(members: &[Member], counts: &[u32], len: usize, out: &mut Vec<u16>) {
    // The bound is (unit - 1) / unit.
    let unit = (2 * members.len() as u64).saturating_sub(2);
    let places = len as u64;
    // The `nth` entry, from 0, of a member with `count` entries stands at `place`, from 0. Not too many among the
    // first place + 1:  nth + 1 - (place + 1) * count / len <= bound
    let earliest = |nth: u64, count: u64| ((unit * nth + 1) * places).div_ceil(unit * count) - 1;
    // Not too few among the first `place`:  place * count / len - nth <= bound
    let latest = |nth: u64, count: u64| (unit * (nth + 1) - 1) * places / (unit * count);

    // Sort by counting, so that of equal latest places the lower slot comes first.
    let mut starts = vec![0_u32; len + 1];
    for count in counts.iter().map(|count| u64::from(*count)) {
        for nth in 0..count {
            starts[latest(nth, count) as usize + 1] += 1;
        }
    }
    for place in 0..len {
        starts[place + 1] += starts[place];
    }
    let mut seats = vec![Seat::default(); len];
    for (member, count) in members.iter().zip(counts) {
        let count = u64::from(*count);
        for nth in 0..count {
            let start = &mut starts[latest(nth, count) as usize];
            // Below `len`, which is a u32.
            seats[*start as usize] = Seat { slot: member.slot, earliest: earliest(nth, count) as u32 };
            *start += 1;
        }
    }

    // From a place to the first free one: itself, or further on.
    let mut free: Vec<u32> = (0..=len as u32).collect();
    out.resize(len, 0);
    for seat in seats {
        let mut place = seat.earliest;
        while free[place as usize] != place {
            // Halving the path keeps the walks short.
            free[place as usize] = free[free[place as usize] as usize];
            place = free[place as usize];
        }
        out[place as usize] = seat.slot;
        free[place as usize] = place + 1;
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests;
