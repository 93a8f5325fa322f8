use aya_ebpf::{helpers::generated::bpf_get_smp_processor_id, programs::SkReuseportContext};
use reuseport_lb_ebpf::{
    flow::{mix, scale},
    limits::HEALTHY_ATTEMPTS,
    tables::Part,
};

use super::{Bank, Policy, rehash};
use crate::{key::Arrival, load::Loads};

/// The attempts that look for a worker of the same CPU.
const LOCAL_ATTEMPTS: u32 = 4;

/// A worker that is pinned to the CPU which took the packet, by the flow's hash and weight when there are several. Where
/// there is none that takes connections, any worker, by the same hash and weight.
pub(crate) struct CpuLocal {
    bank: Bank,
    local: Part,
    /// The kernel's hash of the connection.
    hash: u64,
}

impl Policy for CpuLocal {
    #[inline(always)]
    fn prepare(ctx: &SkReuseportContext, _: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        // SAFETY: the helper takes nothing.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        Some(Self { bank, local: bank.part_of(cpu), hash: mix(u64::from(ctx.hash())) })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.alternative(0)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        let len = u32::from(self.local.len);
        // When all are stalled, those of this CPU are eligible again, too.
        #[expect(
            clippy::manual_range_contains,
            reason = "the verifier walks twice as many instructions otherwise"
        )]
        let is_local = attempt < LOCAL_ATTEMPTS || attempt >= HEALTHY_ATTEMPTS;
        let step = attempt % HEALTHY_ATTEMPTS;
        if is_local && step < len {
            // One after the other, so that the next attempt meets another worker.
            let index = scale(self.hash, len) + step;
            self.bank.local(u32::from(self.local.start) + if index < len { index } else { index - len })
        } else {
            self.bank.share(rehash(self.hash, attempt))
        }
    }
}
