//! Who picks the worker of a new connection: the policies, and those that they are compared with.

use std::{fmt, os::fd::AsFd};

use anyhow::{Context as _, Result};
use aya::programs::{ProgramError, SkReuseport, SkReuseportError};
use clap::ValueEnum as _;
use nix::{
    libc::{self, sock_filter, sock_fprog},
    sys::socket::{setsockopt, sockopt::AttachReusePortCbpf},
};
use reuseport_lb::policy::Policy;

use crate::peers;

/// Who picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steering {
    /// The kernel's hash, and nothing of this project is loaded.
    Kernel,
    /// The kernel's hash, while the program that counts connections runs.
    KernelCounted,
    /// A classic BPF program: a random number modulo the number of workers.
    ClassicBpf,
    /// A program of this project.
    Policy(Policy),
    /// A proxy before the workers.
    Proxy(Proxy),
}

/// A proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx's `stream`.
    Nginx,
}

impl Steering {
    /// All that can be had here, the kernel's hash first. `cargo xtask bench` has seen to the proxies.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Kernel, Self::KernelCounted, Self::ClassicBpf];
        all.extend(policies().into_iter().map(Self::Policy));
        let proxies = [Proxy::Haproxy, Proxy::Nginx].into_iter();
        all.extend(proxies.filter(|proxy| peers::is_installed(*proxy)).map(Self::Proxy));
        all
    }

    /// The policy that a daemon would have, where there would be a daemon.
    pub(crate) const fn policy(self) -> Option<Policy> {
        match self {
            Self::KernelCounted => Some(Policy::Kernel),
            Self::Policy(policy) => Some(policy),
            Self::Kernel | Self::ClassicBpf | Self::Proxy(_) => None,
        }
    }

    /// Whether connections are counted meanwhile.
    pub(crate) const fn counts(self) -> bool {
        self.policy().is_some()
    }
}

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Kernel => "kernel",
            Self::KernelCounted => "kernel, counted",
            Self::ClassicBpf => "classic BPF",
            Self::Policy(policy) => policy.as_str(),
            Self::Proxy(Proxy::Haproxy) => "HAProxy",
            Self::Proxy(Proxy::Nginx) => "nginx",
        };
        f.pad(name)
    }
}

/// All policies that have a program.
pub(crate) fn policies() -> Vec<Policy> {
    // Without pinned workers, which would change what the others are compared with, cpu-local has nobody to pick.
    let left_out = [Policy::Kernel, Policy::CpuLocal];
    Policy::value_variants().iter().copied().filter(|policy| !left_out.contains(policy)).collect()
}

/// Lets a classic BPF program pick for the group of `socket`: one of the first `workers` sockets, at random.
///
/// # Minimum kernel version
///
/// 4.5, for `SO_ATTACH_REUSEPORT_CBPF`.
pub(crate) fn attach_classic(socket: impl AsFd, workers: u16) -> Result<()> {
    // `SKF_AD_OFF` and `SKF_AD_RANDOM` of the kernel's `include/uapi/linux/filter.h`.
    const RANDOM: u32 = (-0x1000_i32 + 56).cast_unsigned();
    let instruction = |code: u32, k| sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, workers.into()),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(&socket, AttachReusePortCbpf, &program).context("SO_ATTACH_REUSEPORT_CBPF")
}

/// Takes away whatever program picks for the group of `socket`.
pub(crate) fn detach(socket: impl AsFd) -> Result<()> {
    match SkReuseport::detach(socket) {
        // There is none.
        Err(ProgramError::SkReuseportError(SkReuseportError::SetsockoptError { io_error, .. }))
            if io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => result.context("SO_DETACH_REUSEPORT_BPF"),
    }
}
