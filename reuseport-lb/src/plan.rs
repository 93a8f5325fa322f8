//! From what is to what should be: which steps, in which order.
//!
//! Pure. The order is what keeps connections alive: a socket is in its slot before a table names it, and no table
//! names it any more when its slot is emptied.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::policy::{BalanceFactor, HashOn, Member, Policy, Program};

/// What the kernel's side of a group looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The program that is attached.
    pub program: Program,
    /// What policy `hash` and policy `consistent-hash` hash.
    pub hash_on: [HashOn; 2],
    /// The slots that hold a socket.
    pub sockets: BTreeSet<u16>,
    /// The eligible workers, by slot.
    pub members: Vec<Member>,
    /// The CPU that each worker is pinned to, by slot; nothing of one that is not.
    pub cpus: BTreeMap<u16, u16>,
    /// How far above the mean a program that bounds loads lets them be.
    pub balance_factor: BalanceFactor,
    /// Whether connections are refused while there are no members.
    pub refuse: bool,
    /// After how long without an accept a worker with a queue is passed over; zero for never.
    pub stall_after: Duration,
    /// Whether the group is still coming up. Its table then is that of the first fill, in whatever order its workers
    /// get ready: the same clients meet the same workers after each start.
    pub founding: bool,
}

impl Default for State {
    /// As the kernel makes a group: no program, no sockets.
    fn default() -> Self {
        Self {
            program: Policy::Kernel.into(),
            hash_on: Default::default(),
            sockets: BTreeSet::new(),
            members: Vec::new(),
            cpus: BTreeMap::new(),
            balance_factor: BalanceFactor::MAX,
            refuse: false,
            stall_after: Duration::ZERO,
            founding: false,
        }
    }
}

/// One step. Connections are safe after each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Puts the socket of a slot into it.
    Insert(u16),
    /// Commits the tables for the desired members.
    Commit,
    /// Exchanges the program.
    Attach(Program),
    /// Empties a slot.
    Remove(u16),
}

/// The steps that lead from one state to another, in order.
pub fn steps(applied: &State, desired: &State) -> Vec<Step> {
    let State { program, hash_on, sockets, members, cpus, balance_factor, refuse, stall_after, founding: _ } =
        desired;
    let mut steps: Vec<Step> = sockets.difference(&applied.sockets).copied().map(Step::Insert).collect();
    let differs = *hash_on != applied.hash_on
        || *members != applied.members
        || *cpus != applied.cpus
        || *balance_factor != applied.balance_factor
        || *refuse != applied.refuse
        || *stall_after != applied.stall_after;
    if differs {
        steps.push(Step::Commit);
    }
    // A group without sockets is none, and nothing can be attached to it.
    if *program != applied.program && !sockets.is_empty() {
        steps.push(Step::Attach(*program));
    }
    steps.extend(applied.sockets.difference(sockets).copied().map(Step::Remove));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(policy: Policy, sockets: &[u16], members: &[u16]) -> State {
        State {
            program: policy.into(),
            sockets: sockets.iter().copied().collect(),
            members: members.iter().map(|&slot| Member { slot, weight: 1 }).collect(),
            ..State::default()
        }
    }

    #[test]
    fn the_first_start_fills_slots_then_tables_then_attaches() {
        assert_eq!(
            steps(&State::default(), &state(Policy::Hash, &[0, 1], &[0, 1])),
            [Step::Insert(0), Step::Insert(1), Step::Commit, Step::Attach(Policy::Hash.into())]
        );
    }

    #[test]
    fn a_socket_leaves_the_tables_before_its_slot_is_emptied() {
        let (before, after) = (state(Policy::Hash, &[0, 1], &[0, 1]), state(Policy::Hash, &[0], &[0]));
        assert_eq!(steps(&before, &after), [Step::Commit, Step::Remove(1)]);
    }

    #[test]
    fn a_switch_of_the_policy_touches_nothing_else() {
        let (before, after) = (state(Policy::Hash, &[0], &[0]), state(Policy::Random, &[0], &[0]));
        assert_eq!(steps(&before, &after), [Step::Attach(Policy::Random.into())]);
    }

    #[test]
    fn what_is_hashed_is_committed_before_the_program_that_hashes_it() {
        let before = state(Policy::LeastLoaded, &[0], &[0]);
        let after =
            State { hash_on: [HashOn::Flow, HashOn::SOURCE], ..state(Policy::ConsistentHash, &[0], &[0]) };
        assert_eq!(steps(&before, &after), [Step::Commit, Step::Attach(Policy::ConsistentHash.into())]);
    }

    #[test]
    fn a_bound_is_committed_before_the_program_that_keeps_it() {
        let before = state(Policy::ConsistentHash, &[0], &[0]);
        let bounded = Program { policy: Policy::ConsistentHash, bounded: true };
        let after = State { program: bounded, balance_factor: BalanceFactor::MIN, ..before.clone() };
        assert_eq!(steps(&before, &after), [Step::Commit, Step::Attach(bounded)]);
        // The other way round only the program goes: what it would keep is kept for the next time.
        let back = State { balance_factor: BalanceFactor::MIN, ..before };
        assert_eq!(steps(&after, &back), [Step::Attach(Policy::ConsistentHash.into())]);
    }

    #[test]
    fn nothing_to_do_is_no_step() {
        let same = state(Policy::Hash, &[0, 1], &[0]);
        assert_eq!(steps(&same, &same), []);
    }
}
