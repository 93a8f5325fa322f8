//! Which workers a CPU has: what `cpu-local` picks from.

use std::{collections::BTreeMap, ops::Range};

use reuseport_lb_ebpf::limits::{MAX_CPUS, MAX_SHARES};

use super::{Member, shares};

/// For each CPU that has workers, their slots by weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Where each CPU's part of `slots` is.
    cpus: BTreeMap<u16, Range<u16>>,
    /// The parts, one after the other; each as [`shares::schedule`] orders it.
    slots: Vec<u16>,
}

impl Local {
    /// For `members` that are pinned as `pinned` says: the CPU by slot. A member that is not pinned belongs to no CPU,
    /// nor does one of a CPU with a number from [`MAX_CPUS`] on.
    ///
    /// # Panics
    ///
    /// As [`shares::schedule`].
    pub fn new(members: &[Member], pinned: &BTreeMap<u16, u16>) -> Self {
        let mut by_cpu: BTreeMap<u16, Vec<Member>> = BTreeMap::new();
        for member in members {
            if let Some(cpu) = pinned.get(&member.slot).filter(|cpu| u32::from(**cpu) < MAX_CPUS) {
                by_cpu.entry(*cpu).or_default().push(*member);
            }
        }
        let mut local = Self::default();
        let mut part = Vec::new();
        for (cpu, members_here) in by_cpu {
            // Each CPU has room for the part of all members that it has, so all parts together fit.
            let room = MAX_SHARES as usize * members_here.len() / members.len();
            shares::schedule_within(&members_here, room as u32, &mut part);
            // Both ends are at most `MAX_SHARES`.
            let start = local.slots.len() as u16;
            local.slots.extend_from_slice(&part);
            local.cpus.insert(cpu, start..local.slots.len() as u16);
        }
        local
    }

    /// The CPUs that have workers, and where their part of [`slots`](Self::slots) is.
    pub fn cpus(&self) -> impl Iterator<Item = (u16, Range<u16>)> {
        self.cpus.iter().map(|(cpu, part)| (*cpu, part.clone()))
    }

    /// The slots of all CPUs.
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(local: &Local, cpu: u16) -> Vec<u16> {
        local
            .cpus()
            .find(|(of, _)| *of == cpu)
            .map_or_else(Vec::new, |(_, part)| local.slots()[part.start.into()..part.end.into()].to_vec())
    }

    #[test]
    fn a_cpu_has_the_workers_that_are_pinned_to_it_by_weight() {
        let members = [(0, 1), (1, 1), (2, 3), (3, 1)].map(|(slot, weight)| Member { slot, weight });
        let local = Local::new(&members, &[(0, 4), (1, 5), (2, 4), (9, 6)].into());
        assert_eq!(of(&local, 4).iter().filter(|slot| **slot == 2).count(), 3);
        assert_eq!(of(&local, 4).iter().filter(|slot| **slot == 0).count(), 1);
        assert_eq!(of(&local, 5), [1]);
        assert_eq!(of(&local, 6), [0_u16; 0], "slot 9 is no member");
        assert_eq!(local.slots().len(), 5, "slot 3 is not pinned");
    }

    #[test]
    fn nobody_pinned_is_nobody_local() {
        assert_eq!(Local::new(&[Member { slot: 0, weight: 1 }], &BTreeMap::new()), Local::default());
        assert_eq!(Local::new(&[], &[(0, 0)].into()), Local::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn everybody_pinned_is_in_the_part_of_its_cpu(
            weights in prop::collection::vec(1_u16..=256, 1..1024),
            cpus in 1_u16..300,
        ) {
            let members: Vec<Member> =
                weights.iter().zip(0..).map(|(weight, slot)| Member { slot, weight: *weight }).collect();
            let pinned = members.iter().map(|member| (member.slot, member.slot % cpus)).collect();
            let local = Local::new(&members, &pinned);
            prop_assert!(local.slots().len() <= MAX_SHARES as usize);
            for member in &members {
                prop_assert!(of(&local, member.slot % cpus).contains(&member.slot));
            }
            for (cpu, _) in local.cpus() {
                prop_assert!(of(&local, cpu).iter().all(|slot| slot % cpus == cpu));
            }
        }
    }
}
