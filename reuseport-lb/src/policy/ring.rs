//! The consistent-hash table: entry → slot of the worker.
//!
//! A flow is hashed to an entry, so an entry stands for the clients that hash to it. Three rules make the table:
//!
//! * **Shares.** How many entries a member has is a function of the set of members alone, by the method of the
//!   largest remainder: less than one entry off its weight's exact share, and with equal weights no two members
//!   differ by more than one. The lower slot is served first where fractions are equal. See [`Ring::rebuild`] for
//!   the one exception.
//! * **Moves.** An entry moves only from a member that has more than its share (or has left) to one that has less.
//!   So exactly `sum(max(0, share - held))` entries move, and no table with these shares can be had for fewer. With
//!   other shares it can, by one: a member that comes in could leave a surplus entry of the rounding where it is.
//!   That it does not is what brings *all* clients back to a worker that comes back.
//! * **Choice.** Which entries move, and to whom, is free within that. First come those with which the set had
//!   this table before; then those that a returning member had when it left; then those of the canonical table, which is
//!   the first fill of the set ([Maglev](https://research.google/pubs/pub44824/) with weights). An empty table is
//!   nobody's surplus, so the first fill is the canonical table itself.
//!
//! What follows: a change that is taken back gives exactly the old table, whatever it was (a drain, a new worker, a
//! weight, several at once), and so do up to [`HISTORY`] - 1 changes to sets that were all different, taken back in
//! reverse order. The proof: a change moves an entry only from who has to give to who has to get. Taking it back turns
//! the roles round, and as many entries have to move as differ from the old table, so each of them goes back.
//!
//! Workers that come back in another order may find some of their entries with a member that has no surplus. Those
//! stay where they are, since exchanging them would be more than the fewest moves. Two of four workers with equal
//! weights that leave and come back in the same order miss 0.3 per cent of the table.

use std::collections::VecDeque;

use reuseport_lb_ebpf::limits::MAX_WORKERS;

use super::{Member, apportion, maglev::Maglev};

/// The sizes that a table may have. Prime, so that every skip of a Maglev permutation reaches every entry. The last
/// is the largest that fits the map; the others keep a small group's rebuild small.
const SIZES: [usize; 3] = [4_099, 16_411, 65_537];

/// Entries for each worker that are enough: shares that differ by one differ by less than one per cent.
const ENTRIES_PER_WORKER: usize = 128;

/// How many tables are remembered. Drains and restarts nest a few levels deep; sixteen tables of the largest size
/// are 2 MiB.
pub const HISTORY: usize = 16;

/// Who owns the entries of an empty table: the index behind the last worker's.
const NOBODY: u16 = MAX_WORKERS as u16;

/// A set of members, sorted by slot, and the table it had.
struct Arrangement {
    members: Vec<Member>,
    slots: Vec<u16>,
}

impl Arrangement {
    fn has(&self, slot: u16) -> bool {
        contains(&self.members, slot)
    }
}

/// The consistent-hash table of one group.
///
/// It keeps its size for life: a table of another size would send almost every client elsewhere.
pub struct Ring {
    /// The owner of each entry; all are [`NOBODY`]'s or none is.
    slots: Vec<u16>,
    /// The members of the last rebuild, sorted by slot.
    members: Vec<Member>,
    /// The last arrangements, the newest first. No set of members is in it twice.
    history: VecDeque<Arrangement>,
    canonical: Maglev,
    // Memory that is kept between rebuilds.
    next: Vec<Member>,
    shares: Vec<u32>,
    surplus: Vec<i32>,
}

impl Ring {
    /// The number of entries for a group that may grow to `workers`: the smallest of 4,099, 16,411 and 65,537 that
    /// has 128 entries for each, or else 65,537.
    pub const fn size_for(workers: u16) -> usize {
        let wanted = workers as usize * ENTRIES_PER_WORKER;
        if wanted <= SIZES[0] {
            SIZES[0]
        } else if wanted <= SIZES[1] {
            SIZES[1]
        } else {
            SIZES[2]
        }
    }

    /// An empty table of `size` entries, which should come from [`Ring::size_for`].
    ///
    /// # Panics
    ///
    /// When the size is not a prime above 2.
    pub fn new(size: usize) -> Self {
        assert!(is_prime(size), "a table of {size} entries: not a prime above 2");
        Self {
            slots: vec![NOBODY; size],
            members: Vec::new(),
            history: VecDeque::with_capacity(HISTORY),
            canonical: Maglev::new(size),
            next: Vec::new(),
            shares: Vec::new(),
            surplus: Vec::new(),
        }
    }

    /// An empty table of the same size, which remembers nothing.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(self.slots.len())
    }

    /// A table that was made by another process: the owner of each entry. It is taken as it is, and what it was before
    /// is not known. None when it cannot be one, such as an empty one.
    pub fn resume(slots: &[u16]) -> Option<Self> {
        let is_table = SIZES.contains(&slots.len()) && slots.iter().all(|slot| *slot < NOBODY);
        is_table.then(|| {
            let mut ring = Self::new(slots.len());
            ring.slots.copy_from_slice(slots);
            let mut owners: Vec<u16> = slots.to_vec();
            owners.sort_unstable();
            owners.dedup();
            // Only that they were there matters for what follows, and their weights do not.
            ring.members = owners.into_iter().map(|slot| Member { slot, weight: 1 }).collect();
            ring
        })
    }

    /// Makes the table that of `members`, with the fewest moves, and returns how many entries have another owner
    /// than before. The first fill counts every entry, and so does the change to no members, which leaves the table
    /// empty.
    ///
    /// The order of `members` has no meaning. Every member gets an entry, however light it is. Shares are less than
    /// one entry off `size * weight / sum(weights)`, and less than two in sets with so many members
    /// below one entry that rounding cannot serve them all (hundreds of workers with weights 1 and 256).
    ///
    /// # Panics
    ///
    /// When there are more members than entries, or a slot is not below
    /// [`MAX_WORKERS`], is there twice, or has the weight 0.
    pub fn rebuild(&mut self, members: &[Member]) -> usize {
        self.next.clear();
        self.next.extend_from_slice(members);
        self.next.sort_unstable_by_key(|member| member.slot);
        assert!(self.next.is_sorted_by(|a, b| a.slot < b.slot), "a slot is there twice");
        assert!(self.next.iter().all(|member| member.slot < NOBODY && member.weight > 0), "no such member");

        if members.is_empty() {
            let moved = if self.is_empty() { 0 } else { self.slots.len() };
            self.slots.fill(NOBODY);
            self.members.clear();
            return moved;
        }

        apportion(&self.next, self.slots.len() as u32, &mut self.shares);
        self.surplus.clear();
        self.surplus.resize(usize::from(NOBODY) + 1, 0);
        for slot in &self.slots {
            self.surplus[usize::from(*slot)] += 1;
        }
        for (member, share) in self.next.iter().zip(&self.shares) {
            // Not more than the size.
            self.surplus[usize::from(member.slot)] -= *share as i32;
        }
        let missing = self.surplus.iter().map(|surplus| (-*surplus).max(0) as usize).sum();

        let mut moves = Moves { slots: &mut self.slots, surplus: &mut self.surplus, left: missing };
        let same = self.history.iter().position(|past| past.members == self.next);
        if let Some(past) = same.and_then(|index| self.history.get(index)) {
            moves.towards(&past.slots);
        }
        if moves.left > 0 {
            let old = &self.members;
            let mut returning: Vec<u16> =
                self.next.iter().map(|member| member.slot).filter(|slot| !contains(old, *slot)).collect();
            for past in &self.history {
                let before = returning.len();
                returning.retain(|slot| !past.has(*slot));
                if returning.len() < before {
                    moves.towards(&past.slots);
                }
            }
        }
        if moves.left > 0 {
            let canonical = self.canonical.fill(&self.next, &self.shares);
            moves.towards(canonical);
            moves.away_from(canonical, &self.next);
        }

        std::mem::swap(&mut self.members, &mut self.next);
        self.remember(same);
        missing
    }

    /// Puts the present arrangement first in the history, in place of the one at `same` or the oldest.
    fn remember(&mut self, same: Option<usize>) {
        let oldest = (self.history.len() == HISTORY).then_some(HISTORY - 1);
        let reused = same.or(oldest).and_then(|index| self.history.remove(index));
        let mut past = reused.unwrap_or_else(|| Arrangement { members: Vec::new(), slots: Vec::new() });
        past.members.clone_from(&self.members);
        past.slots.clone_from(&self.slots);
        self.history.push_front(past);
    }

    /// The owner of each entry; no entries while the table is empty.
    pub fn as_slice(&self) -> &[u16] {
        if self.is_empty() { &[] } else { &self.slots }
    }

    /// Whether there is nobody to pick.
    pub fn is_empty(&self) -> bool {
        self.slots.first() == Some(&NOBODY)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("size", &self.slots.len())
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// Moves entries from those who have too many to those who have too few.
struct Moves<'a> {
    slots: &'a mut [u16],
    /// How many entries each slot has above its share; negative when it has too few.
    surplus: &'a mut [i32],
    /// How many moves are still to be made.
    left: usize,
}

impl Moves<'_> {
    /// Gives entries to their owners in `target`.
    fn towards(&mut self, target: &[u16]) {
        for (slot, wanted) in self.slots.iter_mut().zip(target) {
            if self.left == 0 {
                return;
            }
            let (from, to) = (usize::from(*slot), usize::from(*wanted));
            if from != to && self.surplus[from] > 0 && self.surplus[to] < 0 {
                self.surplus[from] -= 1;
                self.surplus[to] += 1;
                self.left -= 1;
                *slot = *wanted;
            }
        }
    }

    /// Makes the moves that are left, from wherever there is surplus: first of entries that are not with their owner
    /// in `target`. What one member gives goes round all who get, so that one's loss is not another's gain.
    fn away_from(&mut self, target: &[u16], members: &[Member]) {
        let mut getting: Vec<u16> = members
            .iter()
            .map(|member| member.slot)
            .filter(|slot| self.surplus[usize::from(*slot)] < 0)
            .collect();
        let mut turn = 0;
        for settled in [false, true] {
            for (slot, wanted) in self.slots.iter_mut().zip(target) {
                let from = usize::from(*slot);
                if self.surplus[from] <= 0 || (slot == wanted) != settled {
                    continue;
                }
                turn %= getting.len();
                let to = getting[turn];
                self.surplus[from] -= 1;
                self.surplus[usize::from(to)] += 1;
                self.left -= 1;
                *slot = to;
                if self.left == 0 {
                    return;
                }
                if self.surplus[usize::from(to)] == 0 {
                    getting.remove(turn);
                } else {
                    turn += 1;
                }
            }
        }
    }
}

/// Whether the sorted `members` have the slot.
fn contains(members: &[Member], slot: u16) -> bool {
    members.binary_search_by_key(&slot, |member| member.slot).is_ok()
}

fn is_prime(number: usize) -> bool {
    number > 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests;
