//! Connections that are older than the daemon: they carry no mark of their worker, and nobody has counted them.

use std::{
    io::{self, Read as _},
    os::fd::BorrowedFd,
};

use aya::{Btf, maps::MapError, programs::Iter};
use reuseport_lb_ebpf::{names, worker::Owner};

use super::{
    Error,
    kernel::{KernelDatapath, Value, program},
};
use crate::netns::Netns;

/// `BPF_NOEXIST`: what is there stays.
const ONLY_NEW: u64 = 1;

impl KernelDatapath {
    /// Marks a connection as one of the worker in `slot`, for [`count_older`](Self::count_older). One that has a mark keeps
    /// it, and is counted already.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn mark_older(&mut self, connection: BorrowedFd<'_>, slot: u16) -> Result<(), Error> {
        let owner = Owner { slot: slot.into(), counted: 0 };
        match self.owner.insert(&connection, Value(owner), ONLY_NEW) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(())
            }
            result => result.map_err(Error::map(names::OWNER)),
        }
    }

    /// Counts the connections in `netns` that are marked and have not been counted. Gives how many could not be.
    ///
    /// # Minimum kernel version
    ///
    /// 6.12, with BTF: before that, no program can have the kernel tell of a connection's end afterwards.
    ///
    /// # Errors
    ///
    /// There is no BTF, or the kernel refuses the program.
    pub fn count_older(&mut self, netns: &Netns) -> Result<usize, Error> {
        let name = names::COUNT_OLDER;
        let mut ebpf = self.programs.get();
        let iterator = program::<Iter>(&mut ebpf, name)?;
        if iterator.fd().is_err() {
            iterator.load("tcp", &Btf::from_sys_fs()?).map_err(Error::program(name))?;
        }
        let link = iterator.attach().and_then(|id| iterator.take_link(id)).map_err(Error::program(name))?;
        // It iterates over the namespace in which it is opened.
        let mut uncounted = Vec::new();
        netns
            .within(|| link.into_file().map_err(io::Error::other)?.read_to_end(&mut uncounted))
            .flatten()
            .map_err(Error::system("reading a BPF iterator"))?;
        Ok(uncounted.len() / size_of::<u32>())
    }
}
