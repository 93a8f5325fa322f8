//! What the kernel and the process must have.

use std::fmt;

use aya::programs::ProgramType;
use caps::{CapSet, Capability};

use super::{cgroup, offsets::Offsets, pins};

/// The capabilities that every group needs, each with what for.
pub const CAPABILITIES: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "to load programs and maps"),
    (Capability::CAP_PERFMON, "to let programs read accept queues"),
    (Capability::CAP_NET_ADMIN, "to attach a program to the group"),
];

/// And this one where nobody has mounted the BPF file system, which systemd does at boot.
const TO_MOUNT: (Capability, &str) =
    (Capability::CAP_SYS_ADMIN, "to mount the BPF file system on /sys/fs/bpf, which nobody has done");

/// Something that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Capabilities, without which nothing can be done.
    Capabilities(Vec<String>),
    /// `SO_REUSEPORT` programs, without which nothing can be steered.
    SkReuseport,
    /// A mount of cgroup v2: connections are not counted.
    Cgroup,
    /// The kernel's BTF: accept queues are not seen.
    Btf,
    /// The JIT: the programs run in the interpreter.
    Jit,
}

impl Missing {
    /// Whether the daemon cannot run at all.
    pub const fn is_fatal(&self) -> bool {
        matches!(self, Self::Capabilities(_) | Self::SkReuseport)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities(names) => {
                write!(f, "not permitted: this needs {}; run it as root (sudo)", names.join(", "))
            }
            Self::SkReuseport => f.write_str(
                "this kernel has no SK_REUSEPORT programs; it needs Linux 5.14 or later with CONFIG_BPF_SYSCALL and \
                 CONFIG_INET",
            ),
            Self::Cgroup => f.write_str(
                "cgroup v2 is not mounted, so open connections are not counted: least-loaded and power-of-two are \
                 not to be had, and a draining worker is never seen to be drained; mount it with: \
                 mount -t cgroup2 none /sys/fs/cgroup",
            ),
            Self::Btf => f.write_str(
                "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF): accept queues are not seen, so workers that are \
                 stalled or full are not passed over, and sockets that others open cannot be followed",
            ),
            Self::Jit => f.write_str(
                "the BPF JIT is off, so steering costs more; turn it on with: sysctl net.core.bpf_jit_enable=1",
            ),
        }
    }
}

/// Everything that is missing, the worst first.
pub fn check() -> Vec<Missing> {
    let mut missing = Vec::new();
    let lacks = |capability| !caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let to_mount = pins::is_missing_bpffs().then_some(&TO_MOUNT);
    let capabilities: Vec<String> = CAPABILITIES
        .iter()
        .chain(to_mount)
        .filter(|(capability, _)| lacks(*capability))
        .map(|(capability, purpose)| format!("{capability} {purpose}"))
        .collect();
    if !capabilities.is_empty() {
        // Whatever else is missing cannot be found out without them.
        return vec![Missing::Capabilities(capabilities)];
    }
    if !matches!(aya::sys::is_program_supported(ProgramType::SkReuseport), Ok(true)) {
        missing.push(Missing::SkReuseport);
    }
    if cgroup::root().is_err() {
        missing.push(Missing::Cgroup);
    }
    if !Offsets::of_running_kernel().sees_stalls() {
        missing.push(Missing::Btf);
    }
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable");
    if matches!(jit.as_deref().map(str::trim), Ok("0")) {
        missing.push(Missing::Jit);
    }
    missing
}
