use aya_ebpf::programs::SkReuseportContext;

use super::{Bank, Policy};
use crate::{key::Arrival, load::Loads, maps::TICKETS};

/// One worker after the other, by weight; each CPU goes round for itself.
pub(crate) struct RoundRobin {
    bank: Bank,
    ticket: u32,
}

impl Policy for RoundRobin {
    #[inline(always)]
    fn prepare(_: &SkReuseportContext, _: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        let ticket = TICKETS.get_ptr_mut(0)?;
        // SAFETY: an element of a map, and this CPU's own copy.
        let ticket = unsafe {
            *ticket = (*ticket).wrapping_add(1);
            *ticket
        };
        Some(Self { bank, ticket })
    }

    #[inline(always)]
    fn candidate(&self, attempt: u32) -> Option<u32> {
        self.bank.turn(self.ticket.wrapping_add(attempt))
    }
}
