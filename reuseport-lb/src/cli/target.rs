//! Which group and which worker a command means.

use anyhow::{Context as _, bail};
use clap::Args;

use crate::{
    config::values,
    control::{GroupStatus, Status, WorkerStatus},
    group::{WorkerId, id_ranges},
};

#[derive(Clone, Debug, Args)]
pub(super) struct Group {
    /// The group; needed where there is more than one
    #[arg(long = "group", value_name = "NAME", value_parser = values::group_name)]
    pub(super) name: Option<String>,
}

impl Group {
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The group that is meant, or the only one.
    pub(super) fn find<'a>(&self, status: &'a Status) -> anyhow::Result<&'a GroupStatus> {
        let names = || status.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>().join(", ");
        match (&self.name, status.groups.as_slice()) {
            (None, [group]) => Ok(group),
            (None, []) => bail!("the daemon has no group"),
            (None, _) => bail!("there is more than one group; name one with --group: {}", names()),
            (Some(name), groups) => groups
                .iter()
                .find(|group| group.name == *name)
                .with_context(|| format!("there is no group {name}; there is: {}", names())),
        }
    }

    /// A worker of the group.
    pub(super) fn find_worker<'a>(
        &self,
        status: &'a Status,
        id: WorkerId,
    ) -> anyhow::Result<&'a WorkerStatus> {
        let group = self.find(status)?;
        group.workers.iter().find(|worker| worker.id == id).with_context(|| {
            format!(
                "there is no worker {id} in group {}; its workers are {}",
                group.name,
                id_ranges(group.workers.iter().map(|worker| worker.id))
            )
        })
    }
}
