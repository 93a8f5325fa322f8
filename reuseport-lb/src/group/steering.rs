//! How a group is steered: its policy, and the CPUs of its workers.

use super::{Group, Refusal, Wish, WorkerId};
use crate::policy::{HashOn, Policy, PolicySpec, Program};

impl Group {
    /// The same group with its workers pinned to these CPUs, by turns.
    pub fn pinned_to(self, cpus: Vec<u16>) -> Self {
        Self { cpus, ..self }
    }

    /// The CPU that a worker is pinned to, if any: that of its number, modulo the number of CPUs.
    pub fn cpu(&self, id: WorkerId) -> Option<u16> {
        let index = usize::from(id.0).checked_rem(self.cpus.len())?;
        self.cpus.get(index).copied()
    }

    /// The policy, and how it is set.
    pub fn policy(&self) -> PolicySpec {
        let Program { policy: name, bounded } = self.program;
        let hash_on = hash_user(name).map_or(HashOn::default(), |user| self.hash_on[user]);
        PolicySpec { name, hash_on, balance_factor: bounded.then_some(self.balance_factor) }
    }

    /// Another policy.
    ///
    /// # Errors
    ///
    /// [`Policy::Kernel`] while a worker is kept from new connections, and [`Policy::CpuLocal`] while workers are not
    /// pinned.
    pub fn set_policy(&mut self, policy: PolicySpec) -> Result<(), Refusal> {
        if policy.name == Policy::Kernel {
            let kept = self.workers.iter().find(|(_, worker)| worker.open && worker.wish != Wish::Serve);
            if let Some((id, worker)) = kept {
                return Err(Refusal::KernelWouldFeed(*id, worker.state()));
            }
        }
        if policy.name == Policy::CpuLocal && self.cpus.is_empty() {
            return Err(Refusal::NotPinned);
        }
        self.choose(policy);
        Ok(())
    }

    pub(super) fn choose(&mut self, policy: PolicySpec) {
        let PolicySpec { name, hash_on, balance_factor } = policy;
        self.program = policy.program();
        if let Some(user) = hash_user(name) {
            self.hash_on[user] = hash_on;
        }
        // The program that keeps it may run for a moment after this, so it is not taken back.
        self.balance_factor = balance_factor.unwrap_or(self.balance_factor);
    }
}

/// The place of a policy in `hash_on`.
const fn hash_user(policy: Policy) -> Option<usize> {
    use reuseport_lb_ebpf::tables::HashUser;

    match policy {
        Policy::Hash => Some(HashUser::Hash as usize),
        Policy::ConsistentHash => Some(HashUser::ConsistentHash as usize),
        Policy::Kernel
        | Policy::LeastLoaded
        | Policy::PowerOfTwo
        | Policy::RoundRobin
        | Policy::Random
        | Policy::CpuLocal => None,
    }
}
