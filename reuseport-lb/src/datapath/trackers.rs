//! The programs that count connections, and what keeps them running: their links.

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, links::FdLink},
};
use reuseport_lb_ebpf::names;

use super::{Error, kernel::program, pins::Earlier};

/// The programs. An earlier daemon's may still run for a moment beside these: what two of them see is counted once,
/// since the socket remembers what was counted.
const TRACKERS: [&str; 1] = [names::TRACK_CONNECTIONS];

/// Links, each with the name of its program.
pub(super) type Links = Vec<(&'static str, FdLink)>;

/// Attaches the programs, or gets hold of those of `same`, which are the very same with the same maps. Says which it
/// was. None without the kernel's BTF.
pub(super) fn links(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    same: Option<&Earlier>,
) -> Result<(Links, bool), Error> {
    let earlier: Vec<_> = TRACKERS.into_iter().filter_map(|name| Some((name, same?.link(name)?))).collect();
    if earlier.len() == TRACKERS.len() {
        return Ok((earlier, true));
    }
    let Some(btf) = btf else { return Ok((vec![], false)) };
    let mut links = Vec::new();
    for name in TRACKERS {
        let tracker = program::<BtfTracePoint>(ebpf, name)?;
        let mut attach = || {
            tracker.load(names::INET_SOCK_SET_STATE, btf)?;
            let id = tracker.attach()?;
            tracker.take_link(id)
        };
        links.push((name, attach().map_err(Error::program(name))?.into()));
    }
    Ok((links, false))
}
