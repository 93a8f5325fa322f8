//! The programs that count connections, and what keeps them running: their links.

use std::io;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, SockOps, links::FdLink},
};
use reuseport_lb_ebpf::names;

use super::{Error, cgroup, kernel::program, pins::Earlier};

/// The programs. An earlier daemon's may still run for a moment beside these: what two of them see is counted once,
/// since the socket remembers what was counted.
const TRACKERS: [&str; 1] = [names::TRACK_CONNECTIONS];

/// Links, each with the name of its program.
pub(super) type Links = Vec<(&'static str, FdLink)>;

/// Loads the programs.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    TRACKERS
        .into_iter()
        .try_for_each(|name| program::<SockOps>(ebpf, name)?.load().map_err(Error::program(name)))
}

/// Attaches the programs, or gets hold of those of `same`, which are the very same with the same maps. Says which it
/// was. None where cgroup v2 is not mounted.
pub(super) fn links(ebpf: &mut Ebpf, same: Option<&Earlier>) -> Result<(Links, bool), Error> {
    let earlier: Vec<_> = TRACKERS.into_iter().filter_map(|name| Some((name, same?.link(name)?))).collect();
    if earlier.len() == TRACKERS.len() {
        return Ok((earlier, true));
    }
    let root = match cgroup::root() {
        Ok(root) => root,
        Err(error) => {
            tracing::debug!(%error, "no control group");
            return Ok((vec![], false));
        }
    };
    load(ebpf)?;
    let mut links = Vec::new();
    for name in TRACKERS {
        let tracker = program::<SockOps>(ebpf, name)?;
        let mut attach = || {
            // A link always stands beside what others have attached, and the kernel refuses to be told so.
            let id = tracker.attach(&root, CgroupAttachMode::Single)?;
            tracker.take_link(id)
        };
        let link = attach().map_err(Error::program(name))?;
        let link = FdLink::try_from(link);
        links.push((name, link.map_err(|error| Error::system("bpf_link_create")(io::Error::other(error)))?));
    }
    Ok((links, false))
}
