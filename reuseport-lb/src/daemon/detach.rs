//! Leaving the groups to the kernel: the daemon goes, and their workers go on.

use super::{Daemon, RequestError, runner::Runner, socket::Socket};
use crate::group::{Group, Wish, WorkerId};

impl Daemon {
    /// Takes the programs off all groups, and ends. Workers and their sockets stay; the kernel picks among them by its own
    /// hash, as it does without this program.
    ///
    /// # Errors
    ///
    /// A worker is kept from new connections, which the kernel cannot do; or a group is leaving. Nothing has changed
    /// then.
    pub(super) fn detach(&mut self) -> Result<(), RequestError> {
        if self.ending {
            return Err(RequestError::Refused("the daemon is shutting down".into()));
        }
        if let Some(leaving) = self.leaving.first() {
            let name = &leaving.spec.name;
            return Err(RequestError::Refused(format!("group {name} is leaving; wait until it has gone")));
        }
        for runner in self.groups.values() {
            runner.can_be_left()?;
        }
        let mut before: Vec<(String, Group)> = Vec::new();
        for (name, runner) in &mut self.groups {
            before.push((name.clone(), runner.group.clone()));
            if let Err(error) = runner.leave_to_kernel() {
                for (name, group) in before {
                    if let Some(runner) = self.groups.get_mut(&name) {
                        runner.steer_again(group);
                    }
                }
                return Err(error);
            }
        }
        tracing::info!("left the groups to the kernel; their workers go on");
        self.ending = true;
        Ok(())
    }
}

impl Runner {
    fn can_be_left(&self) -> Result<(), RequestError> {
        let kept = self.group.workers().find(|(_, worker)| worker.open && worker.wish != Wish::Serve);
        kept.map_or(Ok(()), |(id, worker)| {
            Err(RequestError::Refused(format!(
                "worker {id} of group {} is {}, and the kernel cannot keep connections from it; undrain it first",
                self.spec.name,
                worker.state(),
            )))
        })
    }

    fn leave_to_kernel(&mut self) -> Result<(), RequestError> {
        // The kernel would feed sockets that nobody accepts from. Their queues move while the program is still there.
        let unserved: Vec<WorkerId> = self
            .group
            .workers()
            .filter(|(id, worker)| {
                worker.pid().is_none() && matches!(self.listeners.get(id), Some(Socket::Made(_)))
            })
            .map(|(id, _)| id)
            .collect();
        for id in unserved {
            self.listeners.remove(&id);
            self.group.closed(id);
        }
        self.apply()?;
        self.group.release();
        self.apply()?;
        Ok(())
    }

    fn steer_again(&mut self, before: Group) {
        let mut group = before;
        let ids: Vec<WorkerId> = group.workers().map(|(id, _)| id).collect();
        for id in ids.into_iter().filter(|id| !self.listeners.contains_key(id)) {
            group.closed(id);
        }
        self.group = group;
        if let Err(error) = self.apply() {
            tracing::error!(group = self.spec.name, %error, "cannot steer again what was to be left to the kernel");
        }
    }
}
