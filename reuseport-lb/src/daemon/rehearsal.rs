//! Before a daemon becomes another program: what that one would do with all that is there, without doing it.

use std::{collections::BTreeSet, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    GroupError, StartError,
    creation::{cpus, open_netns},
    resume::belongs_to,
    start::possible,
};
use crate::{
    config::{BpfLogLevel, GroupSpec, Sockets},
    datapath,
    handover::FORMAT,
    state::{ReadError, State, StateFile},
};

/// What a program says that can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Its version.
    pub version: String,
    /// The maps that it would replace.
    pub maps_replaced: BTreeSet<String>,
}

/// Why a program cannot go on from where a daemon is.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It would not understand what it is handed.
    #[error("it takes what is handed over in format {FORMAT}, and would get it in format {format}")]
    Format {
        /// The format that it would get.
        format: u32,
    },
    /// It would look for the state somewhere else.
    #[error("the control socket would be {}, and is {}; that needs a restart of the daemon", wanted.display(), present.display())]
    Control {
        /// What the configuration says now.
        wanted: PathBuf,
        /// What the daemon has.
        present: PathBuf,
    },
    /// It does not understand the state.
    #[error(transparent)]
    State(#[from] ReadError),
    /// There is nothing to go on from.
    #[error("there is no state to go on from")]
    NoState,
    /// A group cannot be.
    #[error(transparent)]
    Group(#[from] StartError),
    /// The kernel does not take its programs.
    #[error("cannot load its BPF programs")]
    Datapath(#[from] datapath::Error),
}

/// Sees whether this program can go on from what `state_file` says with these groups, and attaches and changes nothing.
///
/// # Errors
///
/// See [`Unfit`].
pub fn rehearse(
    groups: &[GroupSpec],
    log: Option<BpfLogLevel>,
    state_file: &StateFile,
) -> Result<Rehearsal, Unfit> {
    possible(groups)?;
    let State { groups: earlier, .. } = state_file.read()?.ok_or(Unfit::NoState)?;
    if let Some(left) = earlier.iter().find(|left| !groups.iter().any(|spec| belongs_to(left, spec))) {
        let (group, why) = (left.name.clone(), GroupError::Left(left.listen));
        return Err(StartError { group, why }.into());
    }
    for spec in groups {
        rehearse_group(spec).map_err(|why| StartError { group: spec.name.clone(), why })?;
    }
    let follows = groups.iter().any(|spec| spec.sockets != Sockets::HandedOver);
    let pins: Vec<_> = earlier.iter().map(|group| &group.pins).collect();
    let maps_replaced = datapath::rehearse(log, follows, &pins)?;
    Ok(Rehearsal { version: env!("CARGO_PKG_VERSION").into(), maps_replaced })
}

/// What is special about a group, and could be found missing.
fn rehearse_group(spec: &GroupSpec) -> Result<(), GroupError> {
    open_netns(spec)?;
    cpus(spec)?;
    Ok(())
}
