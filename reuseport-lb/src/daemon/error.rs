//! Why the daemon or a group cannot be started.

use std::{io, net::SocketAddr, path::PathBuf};

use super::following::LeftOut;
use crate::{
    adopt,
    datapath::{self, Attachment, Missing},
    group::Refusal,
};

/// Why the daemon did not start. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[error("cannot start group {group}")]
pub struct StartError {
    /// The first group that could not be started.
    pub group: String,
    /// Why.
    #[source]
    pub why: GroupError,
}

/// Why a group cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The kernel or the process lacks something essential.
    #[error("{0}")]
    Missing(Missing),
    /// What is not needed any more could not be given up.
    #[error("cannot give up privileges")]
    Privileges(#[source] caps::errors::CapsError),
    /// Somebody else listens there.
    #[error("{0}; stop it, or choose another address with --listen")]
    Taken(adopt::Conflict),
    /// Nobody listens at the address itself, but somebody does where its connections go.
    #[error(
        "nobody listens at {listen} itself, and its connections go elsewhere: {taken}; adopt that address"
    )]
    Elsewhere {
        /// The address.
        listen: SocketAddr,
        /// Who gets its connections.
        taken: Box<adopt::Conflict>,
    },
    /// A socket of the group cannot be adopted. It would get no connections any more.
    #[error("cannot adopt {0}")]
    LeftOut(Box<LeftOut>),
    /// Another program picks among the sockets.
    #[error("{listen} is steered already, by {program}; end that first")]
    Steered {
        /// The address.
        listen: SocketAddr,
        /// Who does it.
        program: Box<Attachment>,
    },
    /// The network namespace cannot be entered.
    #[error("cannot enter the network namespace {}", path.display())]
    Netns {
        /// What names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", explain(.error))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why. It is told already, so it is no source of its own.
        error: io::Error,
    },
    /// Workers would have nowhere to say how they are.
    #[error("cannot make the notify socket {}", path.display())]
    Notify {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An earlier daemon's group is not among those that are wanted, and its workers go on.
    #[error(
        "an earlier daemon has left it at {0} with workers that run, and it is not in the configuration; start with \
         that group once more and end it, or end its workers and remove the state file"
    )]
    Left(SocketAddr),
    /// What an earlier daemon has left could not be looked at.
    #[error("cannot look at what an earlier daemon has left")]
    Recover(#[source] io::Error),
    /// The sockets of the host could not be listed.
    #[error("cannot list the listening sockets")]
    Sockets(#[source] io::Error),
    /// A worker cannot have its weight.
    #[error("weights")]
    Weights(#[source] Refusal),
    /// The kernel refused a part of the datapath.
    #[error("cannot set up the datapath")]
    Datapath(#[from] datapath::Error),
    /// It is not known which CPUs there are for the workers.
    #[error("cannot find out which CPUs to pin the workers to")]
    Cpus(#[source] io::Error),
    /// What the programs tell could not be read.
    #[error("cannot read the news of the BPF programs")]
    Log(#[source] io::Error),
}

/// What went wrong with an address, in the words of somebody who chose it.
pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "this host has no such address; `ip address` lists those it has".into()
        }
        io::ErrorKind::AddrInUse => "the address is in use; `ss -ltnp` shows by whom".into(),
        io::ErrorKind::PermissionDenied => {
            "not permitted; ports below 1024 need CAP_NET_BIND_SERVICE, run it as root (sudo)".into()
        }
        _ => error.to_string(),
    }
}
