//! What the kernel's verifier says of the programs, for `cargo xtask verifier`.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Btf, Ebpf, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use reuseport_lb_ebpf::names;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use super::{Error, object::Object, offsets::Offsets};

/// What it took to verify one program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The program.
    pub name: String,
    /// The instructions that the verifier went through, over all paths. It gives up at a million.
    pub instructions: u64,
    /// The states that it kept to compare others with.
    pub states: u64,
    /// The most of them that it had at once.
    pub peak_states: u64,
    /// The stack that the program uses, in bytes. It may use 512.
    pub stack_bytes: u64,
}

/// Has every program of the object verified by the running kernel, as the daemon would.
///
/// The kernel tells what it took in its log, and aya passes the log on only together with an error. So each program is
/// loaded while this process may have no further file descriptor, which the kernel finds out when everything else is
/// done. Not for a process that does anything else: its limit of open files is lowered meanwhile.
///
/// # Errors
///
/// The kernel has no BTF, or refuses a program.
pub fn verify() -> Result<Vec<Verified>, Error> {
    let btf = Btf::from_sys_fs()?;
    let object = Object { offsets: &Offsets::of_running_kernel(), log: None };
    let load = || object.load_with(&BTreeMap::new(), VerifierLogLevel::STATS);
    let mut names: Vec<String> = load()?.programs().map(|(name, _)| name.to_owned()).collect();
    names.sort_unstable();
    names
        .into_iter()
        .map(|name| {
            let log = log_of(&mut load()?, &name, &btf)?;
            Verified::parse(&name, &log).ok_or(Error::Lacks("statistics in the verifier's log"))
        })
        .collect()
}

fn log_of(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<String, Error> {
    let before = getrlimit(Resource::Nofile);
    // The number of the next descriptor is that of this one, once it is closed again.
    let next = {
        let file = File::open("/dev/null").map_err(Error::system("open of /dev/null"))?;
        file.as_fd().as_raw_fd().unsigned_abs()
    };
    let limit =
        |limit| setrlimit(Resource::Nofile, limit).map_err(|error| Error::system("setrlimit")(error.into()));
    let program = ebpf.program_mut(name).ok_or(Error::Lacks("program that it had before"))?;
    limit(Rlimit { current: Some(next.into()), ..before })?;
    let loaded = match program {
        Program::SkReuseport(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::Iter(program) => program.load("tcp", btf),
        Program::BtfTracePoint(program) => program.load(names::INET_SOCK_SET_STATE, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    limit(before)?;
    match loaded {
        Err(ProgramError::LoadError { io_error, verifier_log })
            if io_error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            Ok(verifier_log.to_string())
        }
        Err(error) => Err(Error::program("of the object")(error)),
        Ok(()) => Err(Error::Lacks("program that needs a file descriptor")),
    }
}

impl Verified {
    /// Takes the figures out of what `print_verification_stats` of [`verifier.c`] writes.
    ///
    /// [`verifier.c`]: https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c
    fn parse(name: &str, log: &str) -> Option<Self> {
        let words: Vec<&str> = log.split_whitespace().collect();
        let number_after = |label: &[&str]| {
            let at = words.windows(label.len()).rposition(|window| window == label)?;
            words.get(at + label.len()).copied()
        };
        Some(Self {
            name: name.to_owned(),
            instructions: number_after(&["processed"])?.parse().ok()?,
            states: number_after(&["total_states"])?.parse().ok()?,
            peak_states: number_after(&["peak_states"])?.parse().ok()?,
            // Of the program and its functions, with plus signs in between.
            stack_bytes: number_after(&["stack", "depth"])?
                .split('+')
                .map(str::parse::<u64>)
                .sum::<Result<_, _>>()
                .ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_found_in_the_log() {
        let log = "verification time 9 usec\nstack depth 256+32\nprocessed 525147 insns (limit 1000000) \
                   max_states_per_insn 18 total_states 4708 peak_states 886 mark_read 0\n";
        let verified = Verified::parse("x", log).expect("figures");
        assert_eq!(
            (verified.instructions, verified.states, verified.peak_states, verified.stack_bytes),
            (525_147, 4_708, 886, 288)
        );
        assert_eq!(Verified::parse("x", "0: R1=ctx()"), None);
    }
}
