//! What has become different from one state to the next: far less than a state, in large groups.

use std::{collections::BTreeMap, mem};

use serde::{Deserialize, Serialize};

use super::{GroupState, ProcessState, State};
use crate::group::{Worker, WorkerId};

/// What has become different in one group. Of workers, what they have now, and none for what is gone.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Change {
    /// Which of the groups it is, by its place among them.
    group: usize,
    /// The group as it is now, with nobody in it; none when nothing but workers is different.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    is: Option<Box<GroupState>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    workers: Changed<Worker>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sockets: Changed<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    processes: Changed<ProcessState>,
}

type Changed<T> = BTreeMap<WorkerId, Option<T>>;

impl State {
    /// What makes this state the next one; none where that takes all of it.
    pub(super) fn changes_to(&self, next: &Self) -> Option<Vec<Change>> {
        let Self { format, version, boot, network_namespace, generation, given_up, groups } = next;
        let is_same = (&self.format, &self.version, &self.boot, &self.network_namespace, &self.generation)
            == (format, version, boot, network_namespace, generation)
            && self.given_up == *given_up
            && self.groups.len() == groups.len();
        let pairs = self.groups.iter().zip(groups).enumerate();
        is_same.then(|| pairs.filter_map(|(index, (before, after))| before.change_to(after, index)).collect())
    }

    /// Makes this state the next one.
    ///
    /// # Errors
    ///
    /// The change is none of this state.
    pub(super) fn change(&mut self, changes: Vec<Change>) -> Result<(), String> {
        for Change { group, is, workers, sockets, processes } in changes {
            let of = self.groups.get_mut(group).ok_or_else(|| format!("there is no group {group}"))?;
            if let Some(is) = is {
                of.become_without_workers(*is);
            }
            change(&mut of.group.workers, workers);
            change(&mut of.sockets, sockets);
            change(&mut of.processes, processes);
        }
        Ok(())
    }
}

impl GroupState {
    fn change_to(&self, next: &Self, index: usize) -> Option<Change> {
        let is = next.without_workers();
        let change = Change {
            group: index,
            is: (is != self.without_workers()).then(|| Box::new(is)),
            workers: if next.group.workers.is_copy_of(&self.group.workers) {
                Changed::new()
            } else {
                difference(&self.group.workers, &next.group.workers)
            },
            sockets: difference(&self.sockets, &next.sockets),
            processes: difference(&self.processes, &next.processes),
        };
        let Change { group: _, is, workers, sockets, processes } = &change;
        let is_none = is.is_none() && workers.is_empty() && sockets.is_empty() && processes.is_empty();
        (!is_none).then_some(change)
    }

    fn without_workers(&self) -> Self {
        let Self { name, listen, leaving, configured, pins, group, sockets: _, processes: _ } = self;
        Self {
            name: name.clone(),
            listen: *listen,
            leaving: *leaving,
            configured: configured.clone(),
            pins: pins.clone(),
            group: group.without_workers(),
            sockets: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }

    fn become_without_workers(&mut self, other: Self) {
        let before = mem::replace(self, other);
        self.group.workers = before.group.workers;
        self.sockets = before.sockets;
        self.processes = before.processes;
    }
}

/// Both are in order, so one look at each is enough.
fn difference<T: PartialEq + Clone>(
    before: &BTreeMap<WorkerId, T>,
    after: &BTreeMap<WorkerId, T>,
) -> Changed<T> {
    let mut changed = Changed::new();
    let mut before = before.iter().peekable();
    for (id, value) in after {
        while let Some((gone, _)) = before.next_if(|(other, _)| *other < id) {
            changed.insert(*gone, None);
        }
        if before.next_if(|(other, _)| *other == id).is_none_or(|(_, other)| other != value) {
            changed.insert(*id, Some(value.clone()));
        }
    }
    changed.extend(before.map(|(gone, _)| (*gone, None)));
    changed
}

fn change<T>(values: &mut BTreeMap<WorkerId, T>, changed: Changed<T>) {
    for (id, value) in changed {
        match value {
            Some(value) => drop(values.insert(id, value)),
            None => drop(values.remove(&id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use crate::{
        group::WorkerId,
        policy::Policy,
        state::{
            State,
            tests::{file, state},
        },
    };

    fn json(state: &State) -> String {
        serde_json::to_string(state).unwrap()
    }

    /// One state after the other, as a group would go through them.
    fn changed(mut state: State, turn: u16) -> State {
        let of = &mut state.groups[0];
        match turn % 5 {
            0 => of.group.set_policy(Policy::LeastLoaded.into()).unwrap(),
            1 => of.group.set_weight(WorkerId(0), 1 + turn % 256).unwrap(),
            2 => {
                of.group.ended(WorkerId(2), "crashed".into(), vec!["words".into()], Instant::now());
                of.sockets.remove(&WorkerId(2));
                of.processes.remove(&WorkerId(2));
            }
            3 => of.group.scale(4 + turn % 3, Duration::from_secs(1), Instant::now()).map_or((), drop),
            _ => of.group.set_policy(Policy::ConsistentHash.into()).unwrap(),
        }
        state
    }

    #[test]
    fn what_is_read_is_what_was_written_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        let mut now = state(&file);
        file.write(now.clone()).unwrap();
        let whole = fs::metadata(file.path()).unwrap().len();
        for turn in 0..200 {
            now = changed(now, turn);
            file.write(now.clone()).unwrap();
            assert_eq!(json(&file.read().unwrap().unwrap()), json(&now), "after turn {turn}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
        // Not all of the changes are there still.
        assert!(fs::metadata(file.path()).unwrap().len() < 10 * whole);
        let groups = vec![];
        now = State { groups, ..now };
        file.write(now.clone()).unwrap();
        assert_eq!(json(&file.read().unwrap().unwrap()), json(&now));
    }

    #[test]
    fn a_change_costs_no_more_than_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        let before = state(&file);
        let mut after = before.clone();
        after.groups[0].group.set_weight(WorkerId(1), 7).unwrap();
        file.write(before).unwrap();
        let whole = fs::metadata(file.path()).unwrap().len();
        file.write(after.clone()).unwrap();
        let change = fs::read_to_string(file.path()).unwrap()[whole as usize..].to_owned();
        assert!(change.starts_with(r#"[{"group":0,"workers":{"1":{"weight":7,"#), "{change}");
        assert!(!change.contains("consistent-hash") && !change.contains(r#""0":"#), "{change}");
        // Nothing is no change.
        file.write(after).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().len(), whole + change.len() as u64);
    }

    /// Wherever a daemon is killed while it writes, the next one finds the state of before or that of after.
    #[test]
    fn a_change_that_was_not_written_to_its_end_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file(folder.path());
        let (before, after) = (state(&file), changed(changed(state(&file), 1), 2));
        file.write(before.clone()).unwrap();
        let whole = fs::read(file.path()).unwrap();
        file.write(after.clone()).unwrap();
        let both = fs::read(file.path()).unwrap();
        assert_eq!(both[..whole.len()], whole);
        for end in whole.len()..both.len() {
            assert_eq!(json(&file.parse(&both[..end]).unwrap().unwrap()), json(&before), "cut at {end}");
        }
        assert_eq!(json(&file.parse(&both).unwrap().unwrap()), json(&after));
    }

    #[test]
    fn a_change_of_nobody_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let mut bytes = serde_json::to_vec(&state(&file)).unwrap();
        bytes.extend_from_slice(b"\n[{\"group\":7}]\n");
        assert!(file.parse(&bytes).unwrap_err().to_string().contains("there is no group 7"));
        bytes.extend_from_slice(b"no JSON\n");
        file.parse(&bytes).unwrap_err();
    }
}
