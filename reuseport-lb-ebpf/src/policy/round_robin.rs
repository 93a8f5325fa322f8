use aya_ebpf::programs::SkReuseportContext;

use super::{Bank, Policy};
use crate::{key::Arrival, load::Loads, maps::TICKETS};

/// One worker after the other, by weight; each CPU goes round for itself.
pub(crate) struct RoundRobin {
    bank: Bank,
    /// This CPU's own.
    ticket: *mut u32,
}

impl Policy for RoundRobin {
    #[inline(always)]
    fn prepare(_: &SkReuseportContext, _: Arrival, bank: Bank, _: Loads) -> Option<Self> {
        Some(Self { bank, ticket: TICKETS.get_ptr_mut(0)? })
    }

    #[inline(always)]
    fn choice(&self) -> Option<u32> {
        self.alternative(0)
    }

    #[inline(always)]
    fn alternative(&self, attempt: u32) -> Option<u32> {
        // SAFETY: an element of a map, which no other program uses meanwhile.
        self.bank.turn(unsafe { *self.ticket }.wrapping_add(attempt))
    }

    #[inline(always)]
    fn selected(&self, _: u32) {
        // SAFETY: as above.
        unsafe { *self.ticket = (*self.ticket).wrapping_add(1) };
    }
}
