//! Carries out the steps of a plan, whole or not at all.

use std::os::fd::AsFd;

use super::{Datapath, Error, Selection};
use crate::{
    plan::{State, Step, steps},
    policy::{Local, ring::Ring, shares},
};

/// A datapath, and what has been applied to it.
#[derive(Debug)]
pub struct Applied<D> {
    datapath: D,
    state: State,
    ring: Ring,
    shares: Vec<u16>,
    // A program is attached that is not ours.
    foreign_program: bool,
    local: Local,
}

impl<D: Datapath> Applied<D> {
    /// A datapath to which nothing has been applied, for a group that begins with `workers` workers.
    pub fn new(datapath: D, workers: u16) -> Self {
        let ring = Ring::new(Ring::size_for(workers));
        Self {
            datapath,
            state: State::default(),
            ring,
            shares: Vec::new(),
            local: Local::default(),
            foreign_program: false,
        }
    }

    /// A datapath that goes on where an earlier daemon's left off, for a group that began with `workers` workers: its
    /// sockets may be in their slots, and one of its programs may be attached. `ring` is what that has as the ring; where it
    /// is one, each client keeps its worker.
    ///
    /// Nothing changes before [`take_over`](Self::take_over), which exchanges the program in any case.
    pub fn resume(datapath: D, workers: u16, ring: &[u16]) -> Self {
        let ring = Ring::resume(ring).unwrap_or_else(|| Ring::new(Ring::size_for(workers)));
        Self { ring, foreign_program: true, ..Self::new(datapath, workers) }
    }

    /// The datapath, to change what is not applied.
    pub const fn datapath_mut(&mut self) -> &mut D {
        &mut self.datapath
    }

    /// The datapath, to read from it.
    pub const fn datapath(&self) -> &D {
        &self.datapath
    }

    /// Makes the kernel's side what `desired` says.
    ///
    /// `socket` gives the socket of a slot, for each slot in `desired.sockets`.
    ///
    /// # Errors
    ///
    /// Everything is as before then. Should the way back fail too, what remains is safe for connections, and the
    /// next call goes on from there.
    pub fn apply<S: AsFd>(
        &mut self,
        desired: &State,
        socket: impl Fn(u16) -> Option<S>,
    ) -> Result<(), Error> {
        let before = self.state.clone();
        self.advance(desired, &socket).inspect_err(|_| {
            // Back to the very same ring, too: it remembers the tables that its members had before.
            if let Err(error) = self.advance(&before, &socket) {
                tracing::error!(%error, "cannot undo a change that failed");
            }
        })
    }

    /// The first [`apply`](Self::apply) after [`resume`](Self::resume). With `in_halves`, sockets come from another socket
    /// array, which the attached program still picks from: then that keeps one half of them while ours gets the other,
    /// and there is always somebody to pick.
    ///
    /// # Errors
    ///
    /// What an earlier daemon had applied is not undone: each step leaves it working, and the next daemon can take over.
    pub fn take_over<S: AsFd>(
        &mut self,
        desired: &State,
        in_halves: bool,
        socket: impl Fn(u16) -> Option<S>,
    ) -> Result<(), Error> {
        if in_halves && desired.members.len() > 1 {
            let mut half = desired.clone();
            half.members.truncate(desired.members.len() / 2);
            half.sockets = half.members.iter().map(|member| member.slot).collect();
            self.advance(&half, &socket)?;
        }
        self.advance(desired, &socket)
    }

    /// Waits until no program runs any more that has not seen what was applied.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait; what was applied is applied.
    pub fn settle(&mut self) -> Result<(), Error> {
        self.datapath.settle()
    }

    /// A slot that was emptied is to be another worker's; see [`Datapath::forget`].
    ///
    /// # Errors
    ///
    /// What is counted for the slot goes on from where it is.
    pub fn forget(&mut self, slot: u16) -> Result<(), Error> {
        self.datapath.forget(slot)
    }

    fn advance<S: AsFd>(&mut self, desired: &State, socket: &impl Fn(u16) -> Option<S>) -> Result<(), Error> {
        let mut steps = steps(&self.state, desired);
        let attaches = |step: &Step| matches!(step, Step::Attach(_));
        if self.foreign_program && !desired.sockets.is_empty() && !steps.iter().any(attaches) {
            let removal = steps.iter().position(|step| matches!(step, Step::Remove(_)));
            steps.insert(removal.unwrap_or(steps.len()), Step::Attach(desired.program));
        }
        for step in steps {
            match step {
                Step::Insert(slot) => {
                    let socket = socket(slot).ok_or(Error::NoSocket(slot))?;
                    self.datapath.insert(slot, socket.as_fd())?;
                    self.state.sockets.insert(slot);
                }
                Step::Commit => self.commit(desired)?,
                Step::Attach(program) => {
                    let any = desired.sockets.iter().find_map(|&slot| socket(slot));
                    if let Some(any) = any {
                        self.datapath.attach(program, any.as_fd())?;
                        self.state.program = program;
                        self.foreign_program = false;
                    }
                }
                Step::Remove(slot) => {
                    self.datapath.remove(slot)?;
                    self.state.sockets.remove(&slot);
                }
            }
        }
        self.state.founding = desired.founding;
        if self.state.sockets.is_empty() {
            // The kernel's group goes with its last socket, and takes the program along.
            self.state.program = State::default().program;
        }
        Ok(())
    }

    fn commit(&mut self, desired: &State) -> Result<(), Error> {
        let State { members, cpus, hash_on, balance_factor, refuse, stall_after, .. } = desired;
        if *members != self.state.members {
            if self.state.founding || desired.founding {
                self.ring = self.ring.anew();
            }
            self.ring.rebuild(members);
            shares::schedule(members, &mut self.shares);
        }
        if (members, cpus) != (&self.state.members, &self.state.cpus) {
            self.local = Local::new(members, cpus);
        }
        self.datapath.commit(&Selection {
            members,
            shares: &self.shares,
            ring: self.ring.as_slice(),
            local: &self.local,
            hash_on: *hash_on,
            balance_factor: *balance_factor,
            refuse: *refuse,
            stall_after: *stall_after,
        })?;
        self.state.members.clone_from(members);
        self.state.cpus.clone_from(cpus);
        self.state.balance_factor = *balance_factor;
        self.state.hash_on = *hash_on;
        self.state.refuse = *refuse;
        self.state.stall_after = *stall_after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::fake::{Call, FakeDatapath},
        policy::{Member, Policy},
    };

    fn state(policy: Policy, slots: &[u16]) -> State {
        State {
            program: policy.into(),
            sockets: slots.iter().copied().collect(),
            members: slots.iter().map(|&slot| Member { slot, weight: 1 }).collect(),
            ..State::default()
        }
    }

    fn apply(applied: &mut Applied<FakeDatapath>, desired: &State) -> Result<(), Error> {
        // Any descriptor will do: the fake does not look at it.
        let stdin = std::io::stdin();
        applied.apply(desired, |_| Some(stdin.as_fd()))
    }

    fn take_over(applied: &mut Applied<FakeDatapath>, desired: &State, halves: bool) -> Result<(), Error> {
        let stdin = std::io::stdin();
        applied.take_over(desired, halves, |_| Some(stdin.as_fd()))
    }

    #[test]
    fn applies_what_differs_and_nothing_else() {
        let mut applied = Applied::new(FakeDatapath::default(), 4);
        apply(&mut applied, &state(Policy::Hash, &[0, 1])).unwrap();
        applied.datapath.calls.clear();
        apply(&mut applied, &state(Policy::Random, &[0, 1])).unwrap();
        assert_eq!(applied.datapath.calls, [Call::Attach(Policy::Random.into())]);
    }

    /// Whichever call fails, everything is as before, down to the ring.
    #[test]
    fn a_failure_changes_nothing() {
        let (before, after) = (state(Policy::Hash, &[0, 1, 2]), state(Policy::LeastLoaded, &[0, 2, 3]));
        for failing in
            [Call::Insert(3), Call::Commit, Call::Attach(Policy::LeastLoaded.into()), Call::Remove(1)]
        {
            let mut applied = Applied::new(FakeDatapath::default(), 4);
            apply(&mut applied, &before).unwrap();
            let untouched = applied.datapath.clone();
            applied.datapath.fail_once = Some(failing);
            apply(&mut applied, &after).unwrap_err();
            assert_eq!(applied.state, before, "{failing:?}");
            assert_eq!(applied.datapath.contents(), untouched.contents(), "{failing:?}");
            apply(&mut applied, &after).unwrap();
            assert_eq!(applied.state, after);
        }
    }

    /// Whatever the policy, the kernel's included: the program of the daemon before goes.
    #[test]
    fn what_is_taken_over_gets_a_program_of_ours() {
        for policy in [Policy::Kernel, Policy::Hash] {
            let mut applied = Applied::resume(FakeDatapath::default(), 4, &[]);
            take_over(&mut applied, &state(policy, &[0, 1]), false).unwrap();
            assert_eq!(
                applied.datapath.calls,
                [Call::Insert(0), Call::Insert(1), Call::Commit, Call::Attach(policy.into())]
            );
            applied.datapath.calls.clear();
            apply(&mut applied, &state(policy, &[0, 1])).unwrap();
            assert_eq!(applied.datapath.calls, []);
        }
    }

    #[test]
    fn sockets_change_their_array_by_halves() {
        let mut applied = Applied::resume(FakeDatapath::default(), 4, &[]);
        take_over(&mut applied, &state(Policy::Hash, &[0, 1, 2]), true).unwrap();
        let attach = Call::Attach(Policy::Hash.into());
        let insert = Call::Insert;
        assert_eq!(
            applied.datapath.calls,
            [insert(0), Call::Commit, attach, insert(1), insert(2), Call::Commit]
        );
    }

    /// A daemon that fails to take over must not take the sockets from the program that picks them.
    #[test]
    fn a_take_over_that_fails_is_not_undone() {
        let mut datapath = FakeDatapath::default();
        datapath.fail_once = Some(Call::Attach(Policy::Hash.into()));
        let mut applied = Applied::resume(datapath, 4, &[]);
        take_over(&mut applied, &state(Policy::Hash, &[0, 1]), false).unwrap_err();
        assert!(!applied.datapath.calls.iter().any(|call| matches!(call, Call::Remove(_))));
    }

    #[test]
    fn clients_keep_their_workers_when_a_ring_is_taken_over() {
        let mut before = Applied::new(FakeDatapath::default(), 4);
        apply(&mut before, &state(Policy::ConsistentHash, &[0, 1, 2, 3])).unwrap();
        apply(&mut before, &state(Policy::ConsistentHash, &[0, 1, 3])).unwrap();
        let (_, _, ring, _) = before.datapath.contents();
        let mut after = Applied::resume(FakeDatapath::default(), 4, ring);
        apply(&mut after, &state(Policy::ConsistentHash, &[0, 1, 3])).unwrap();
        assert_eq!(after.datapath.contents(), before.datapath.contents());
        // And the one that was drained gets its own back.
        for applied in [&mut before, &mut after] {
            apply(applied, &state(Policy::ConsistentHash, &[0, 1, 2, 3])).unwrap();
        }
        assert_eq!(after.datapath.contents(), before.datapath.contents());
    }

    /// In whatever order the workers of a new group get ready, the same clients meet the same workers.
    #[test]
    fn a_group_that_comes_up_ends_with_the_table_of_the_first_fill() {
        let mut at_once = Applied::new(FakeDatapath::default(), 4);
        apply(&mut at_once, &state(Policy::ConsistentHash, &[0, 1, 2, 3])).unwrap();
        let mut applied = Applied::new(FakeDatapath::default(), 4);
        for ready in [&[0, 1, 2, 3][..], &[2], &[2, 3], &[0, 2, 3]] {
            let coming_up = State { founding: true, ..state(Policy::ConsistentHash, &[0, 1, 2, 3]) };
            let members = ready.iter().map(|&slot| Member { slot, weight: 1 }).collect();
            apply(&mut applied, &State { members, ..coming_up }).unwrap();
        }
        apply(&mut applied, &state(Policy::ConsistentHash, &[0, 1, 2, 3])).unwrap();
        assert_eq!(applied.ring.as_slice(), at_once.ring.as_slice());
    }

    #[test]
    fn a_group_that_lost_its_last_socket_gets_its_program_again() {
        let mut applied = Applied::new(FakeDatapath::default(), 4);
        apply(&mut applied, &state(Policy::Hash, &[0])).unwrap();
        apply(&mut applied, &state(Policy::Hash, &[])).unwrap();
        applied.datapath.calls.clear();
        apply(&mut applied, &state(Policy::Hash, &[0])).unwrap();
        assert!(applied.datapath.calls.contains(&Call::Attach(Policy::Hash.into())));
    }
}
