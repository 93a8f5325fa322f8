//! What the daemon keeps of its privileges once its groups stand.
//!
//! Capabilities and `no_new_privs` belong to threads. [`Privileges::reduce`] is called while there is only one, and those
//! that come later inherit what it has left.
//!
//! Processes inherit it, too. A worker that runs as root gets back by `exec` what root gets: all that is in the bounding
//! set. So that is touched, and `no_new_privs` set, only where no worker runs as root. Workers of a daemon that is not
//! root get no capability: what makes the daemon's privileges survive an `exec`, the ambient set, ends in
//! [`launcher`](crate::worker::launcher).

use std::collections::BTreeSet;

use caps::{
    CapSet::{Ambient, Bounding, Effective, Inheritable, Permitted},
    Capability, CapsHashSet,
    errors::CapsError,
};
use nix::unistd::geteuid;
use rustix::thread::{no_new_privs, set_no_new_privs};

use crate::{
    config::{GroupSpec, Sockets},
    datapath,
    worker::launcher::is_user,
};

/// A capability, what for, and which groups need it.
struct Need {
    capability: Capability,
    purpose: &'static str,
    is_needed: fn(&GroupSpec) -> bool,
    who: Who,
}

/// Who needs it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The daemon itself.
    Daemon,
    /// The process that is about to become a worker. As root it has all that is in the bounding set.
    Worker,
}

/// Those without which a group is not started.
const REQUIRED: [Need; 4] = [
    Need {
        capability: Capability::CAP_SETUID,
        purpose: "to start workers as another user",
        is_needed: changes_user,
        who: Who::Worker,
    },
    Need {
        capability: Capability::CAP_SETGID,
        purpose: "to start workers with other groups",
        is_needed: changes_user,
        who: Who::Worker,
    },
    Need {
        capability: Capability::CAP_KILL,
        purpose: "to end workers of another user",
        is_needed: changes_user,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_SYS_ADMIN,
        purpose: "to enter another network namespace",
        is_needed: |spec| spec.netns.is_some(),
        who: Who::Daemon,
    },
];

/// Those that the daemon keeps where it has them: not everybody needs them who may.
const USEFUL: [Need; 6] = [
    Need {
        capability: Capability::CAP_KILL,
        purpose: "to end processes of workers that have become other users",
        is_needed: starts_workers,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_NET_BIND_SERVICE,
        purpose: "to listen on ports below 1024",
        is_needed: |spec| spec.sockets == Sockets::HandedOver,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_SYS_PTRACE,
        purpose: "to take sockets from other processes",
        is_needed: follows,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_DAC_READ_SEARCH,
        purpose: "to see which sockets processes of other users have",
        is_needed: follows,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_DAC_OVERRIDE,
        purpose: "for programs, folders and logs of workers that belong to other users",
        is_needed: starts_workers,
        who: Who::Daemon,
    },
    Need {
        capability: Capability::CAP_SYS_RESOURCE,
        purpose: "for the pipes of many workers, and to raise their limit of open files",
        is_needed: starts_workers,
        who: Who::Daemon,
    },
];

fn starts_workers(spec: &GroupSpec) -> bool {
    spec.sockets != Sockets::Adopted
}

fn follows(spec: &GroupSpec) -> bool {
    spec.sockets != Sockets::HandedOver
}

fn changes_user(spec: &GroupSpec) -> bool {
    starts_workers(spec) && spec.process.user.as_ref().is_some_and(|user| !is_user(user.uid, user.gid))
}

fn starts_root(spec: &GroupSpec) -> bool {
    let uid = spec.process.user.as_ref().map_or_else(|| geteuid().as_raw(), |user| user.uid);
    starts_workers(spec) && uid == 0
}

/// What a group needs, beside what all of them do. Only where the bounding set is `bounded`, the daemon must have what the
/// processes need that become workers.
fn needs(spec: &GroupSpec, bounded: bool) -> impl Iterator<Item = &'static Need> {
    let all = REQUIRED.iter().chain(&USEFUL);
    all.filter(move |need| (need.is_needed)(spec) && (bounded || need.who == Who::Daemon))
}

/// What is missing for a group, each with what for, beside what is missing for all.
pub fn missing(spec: &GroupSpec) -> Vec<String> {
    let missing = REQUIRED.iter().filter(|need| (need.is_needed)(spec) && !is_there(need));
    missing.map(|Need { capability, purpose, .. }| format!("{capability} {purpose}")).collect()
}

fn is_there(need: &Need) -> bool {
    let set = match need.who {
        Who::Worker if !geteuid().is_root() => Effective,
        Who::Worker if no_new_privs().unwrap_or(false) => Permitted,
        Who::Worker => Bounding,
        Who::Daemon => Effective,
    };
    caps::has_cap(None, set, need.capability).unwrap_or(false)
}

/// What has been given up.
#[derive(Debug)]
pub struct Privileges {
    given_up: CapsHashSet,
    /// Whether even root's workers would have no more than the daemon.
    bounded: bool,
}

/// Why a group cannot come in later. The daemon has to be started again, with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GivenUp {
    /// A capability.
    #[error(
        "group {group} needs {capability} {purpose}, which the daemon gave up at its start, since no group needed it; \
         start the daemon again"
    )]
    Capability {
        /// The group that needs it.
        group: String,
        /// The capability.
        capability: Capability,
        /// What for.
        purpose: &'static str,
    },
    /// Root's privileges.
    #[error(
        "group {0} runs workers as root, which would not have root's privileges: the daemon gave those up at its start, \
         since all workers had another user; start the daemon again"
    )]
    Root(String),
}

impl Privileges {
    /// Leaves the calling thread, and all that it starts from now on, what these groups need. `earlier` is what was given
    /// up already, by the daemon that has become this one.
    ///
    /// # Errors
    ///
    /// The kernel's. Some of it may have been given up.
    pub fn reduce(groups: &[&GroupSpec], earlier: &BTreeSet<String>) -> Result<Self, CapsError> {
        let before = caps::read(None, Permitted)?;
        let bounded = !groups.iter().any(|spec| starts_root(spec));
        let of_groups = groups.iter().flat_map(|spec| needs(spec, bounded)).map(|need| need.capability);
        let of_all = datapath::CAPABILITIES.iter().map(|(capability, _)| *capability);
        let keep: CapsHashSet =
            of_all.chain(of_groups).filter(|capability| before.contains(capability)).collect();
        if bounded {
            bound(&keep)?;
        }
        caps::set(None, Effective, &keep)?;
        // Where systemd, say, has set `no_new_privs`, root's workers get nothing that is not permitted here.
        if bounded || !no_new_privs().unwrap_or(false) {
            caps::set(None, Permitted, &keep)?;
        }
        if !geteuid().is_root() {
            // So that they are there after an `exec`, too.
            caps::set(None, Inheritable, &keep)?;
            caps::set(None, Ambient, &keep)?;
        }
        let earlier = earlier.iter().filter_map(|name| name.parse().ok());
        let given_up = before.iter().copied().chain(earlier).filter(|capability| !keep.contains(capability));
        Ok(Self { given_up: given_up.collect(), bounded })
    }

    /// The names of the capabilities that were given up.
    pub fn given_up(&self) -> BTreeSet<String> {
        self.given_up.iter().map(ToString::to_string).collect()
    }

    /// Whether these groups need nothing that has been given up.
    ///
    /// # Errors
    ///
    /// See [`GivenUp`].
    pub fn suffice(&self, groups: &[&GroupSpec]) -> Result<(), GivenUp> {
        groups.iter().try_for_each(|spec| {
            let group = spec.name.clone();
            if self.bounded && starts_root(spec) {
                return Err(GivenUp::Root(group));
            }
            let given_up = needs(spec, self.bounded).find(|need| self.given_up.contains(&need.capability));
            given_up.map_or(Ok(()), |&Need { capability, purpose, .. }| {
                Err(GivenUp::Capability { group, capability, purpose })
            })
        })
    }
}

/// Lets no program that is run from here on get any other capability, nor become another user by its file's mode.
fn bound(keep: &CapsHashSet) -> Result<(), CapsError> {
    set_no_new_privs(true).map_err(|error| format!("PR_SET_NO_NEW_PRIVS: {error}"))?;
    // Without this capability the set stays, and `no_new_privs` alone sees to it.
    if caps::has_cap(None, Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, Bounding)?.difference(keep) {
            caps::drop(None, Bounding, *capability)?;
        }
    }
    Ok(())
}
