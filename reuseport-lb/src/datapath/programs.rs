//! The programs of a group: which is whose, and when the kernel verifies them.
//!
//! Verifying is most of what a start takes: half a second for one program, in the worst case. So the program that picks at
//! first is verified at once, and a thread has the kernel verify the others while the group serves already.

use std::{
    os::fd::BorrowedFd,
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{Ebpf, programs::SkReuseport};
use reuseport_lb_ebpf::names;

use super::{Error, kernel::program, memory};
use crate::{
    chain::chain,
    policy::{Policy, Program},
};

/// The selection programs, by policy.
pub(super) const PROGRAMS: [(Program, &str); 8] = [
    (plain(Policy::Hash), names::SELECT_HASH),
    (plain(Policy::ConsistentHash), names::SELECT_CONSISTENT_HASH),
    (Program { policy: Policy::ConsistentHash, bounded: true }, names::SELECT_BOUNDED_CONSISTENT_HASH),
    (plain(Policy::LeastLoaded), names::SELECT_LEAST_LOADED),
    (plain(Policy::PowerOfTwo), names::SELECT_POWER_OF_TWO),
    (plain(Policy::RoundRobin), names::SELECT_ROUND_ROBIN),
    (plain(Policy::Random), names::SELECT_RANDOM),
    (plain(Policy::CpuLocal), names::SELECT_CPU_LOCAL),
];

const fn plain(policy: Policy) -> Program {
    Program { policy, bounded: false }
}

/// The name of the program that picks; none where the kernel does.
pub(super) fn name_of(program: Program) -> Option<&'static str> {
    PROGRAMS.into_iter().find_map(|(of, name)| (of == program).then_some(name))
}

/// The programs, and what is needed to load them.
pub(super) struct Programs(Arc<Mutex<Ebpf>>);

impl Programs {
    pub(super) fn new(ebpf: Ebpf) -> Self {
        Self(Arc::new(Mutex::new(ebpf)))
    }

    /// The programs. Waits for the thread of [`verify_all`](Self::verify_all), which takes a second at most on a machine that
    /// has time.
    pub(super) fn get(&self) -> MutexGuard<'_, Ebpf> {
        lock(&self.0)
    }

    /// Lets a program pick for the group that `socket` is in. It is verified now when it has not been.
    pub(super) fn attach(&self, name: &'static str, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let mut ebpf = self.get();
        verify(&mut ebpf, &[name])?;
        program::<SkReuseport>(&mut ebpf, name)?.attach(socket).map_err(Error::program(name))
    }

    /// Has the programs verified that have not been, by a thread. One that the kernel refuses is tried again when it is to
    /// be attached.
    pub(super) fn verify_all(&self) {
        let programs = Arc::clone(&self.0);
        let verifier = move || {
            if let Err(error) = verify(&mut lock(&programs), &PROGRAMS.map(|(_, name)| name)) {
                tracing::warn!(
                    error = chain(&error),
                    "a policy cannot be chosen, since the kernel refuses its program"
                );
            }
            memory::give_back();
        };
        if let Err(error) = thread::Builder::new().name("verifier".into()).spawn(verifier) {
            tracing::warn!(%error, "no thread to verify programs ahead; each is verified when its policy is chosen");
        }
    }
}

fn lock(programs: &Mutex<Ebpf>) -> MutexGuard<'_, Ebpf> {
    // Who panicked has left programs that are verified, or not.
    programs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has those of the selection programs verified that are named and have not been, all at once: the kernel goes through
/// each of them on the CPU that asks for it.
pub(super) fn verify(ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), Error> {
    let named = |(of, program)| Some((*names.iter().find(|name| **name == of)?, program));
    let mut unverified = Vec::new();
    for (name, program) in ebpf.programs_mut().filter_map(named) {
        let program: &mut SkReuseport = program.try_into().map_err(Error::program(name))?;
        // One that has a descriptor has been verified.
        if program.fd().is_err() {
            unverified.push((name, program));
        }
    }
    thread::scope(|scope| {
        let load = |(name, program): (_, &mut SkReuseport)| program.load().map_err(Error::program(name));
        let loads: Vec<_> =
            unverified.into_iter().map(|program| scope.spawn(move || load(program))).collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
