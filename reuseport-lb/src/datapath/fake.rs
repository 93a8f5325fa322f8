//! A datapath that remembers what it was told, for tests of what is above it.

use std::{collections::BTreeSet, io, os::fd::BorrowedFd};

use reuseport_lb_ebpf::outcome::{Outcome, Outcomes};

use super::{Datapath, Error, Selection, SlotLoad};
use crate::policy::{Member, Program};

/// One call that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Insert(u16),
    Remove(u16),
    Commit,
    Attach(Program),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakeDatapath {
    /// What was called, in order.
    pub(crate) calls: Vec<Call>,
    /// The call that is to fail the next time.
    pub(crate) fail_once: Option<Call>,
    sockets: BTreeSet<u16>,
    members: Vec<Member>,
    ring: Vec<u16>,
    program: Option<Program>,
}

impl FakeDatapath {
    /// Everything that programs would see.
    pub(crate) fn contents(&self) -> (&BTreeSet<u16>, &[Member], &[u16], Option<Program>) {
        (&self.sockets, &self.members, &self.ring, self.program)
    }

    fn call(&mut self, call: Call) -> Result<(), Error> {
        self.calls.push(call);
        if self.fail_once == Some(call) {
            self.fail_once = None;
            return Err(Error::System { call: "fake", source: io::Error::other("as told") });
        }
        Ok(())
    }
}

impl Datapath for FakeDatapath {
    fn insert(&mut self, slot: u16, _: BorrowedFd<'_>) -> Result<(), Error> {
        self.call(Call::Insert(slot))?;
        assert!(self.sockets.insert(slot), "slot {slot} is taken");
        Ok(())
    }

    fn remove(&mut self, slot: u16) -> Result<(), Error> {
        self.call(Call::Remove(slot))?;
        assert!(!self.members.iter().any(|member| member.slot == slot), "slot {slot} can still be picked");
        self.sockets.remove(&slot);
        Ok(())
    }

    fn forget(&mut self, slot: u16) -> Result<(), Error> {
        assert!(!self.sockets.contains(&slot), "slot {slot} has a socket");
        Ok(())
    }

    fn commit(&mut self, selection: &Selection<'_>) -> Result<(), Error> {
        self.call(Call::Commit)?;
        for member in selection.members {
            assert!(self.sockets.contains(&member.slot), "slot {} has no socket", member.slot);
        }
        self.members = selection.members.to_vec();
        self.ring = selection.ring.to_vec();
        Ok(())
    }

    fn attach(&mut self, program: Program, _: BorrowedFd<'_>) -> Result<(), Error> {
        self.call(Call::Attach(program))?;
        self.program = Some(program);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn counts_connections(&self) -> bool {
        true
    }

    fn load(&self, _: u16) -> SlotLoad {
        SlotLoad::default()
    }

    fn outcomes(&self) -> Result<Outcomes, Error> {
        Ok([0; Outcome::COUNT])
    }
}
