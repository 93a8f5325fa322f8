//! What is different between the groups that run and those that are wanted.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{
    GroupSpec,
    settings::{Applies, Setting},
};

/// One thing that is different. One line of text, and one object in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// There is a further group.
    Added {
        /// The group.
        group: String,
        /// Where it listens.
        listen: SocketAddr,
        /// How many workers it has.
        workers: u16,
    },
    /// A group goes: no new connections, time for the open ones, the end.
    Removed {
        /// The group.
        group: String,
        /// Where it listens.
        listen: SocketAddr,
    },
    /// A setting of a group has another value.
    Set {
        /// The group.
        group: String,
        /// The setting, by its name in the configuration file.
        setting: String,
        /// The value that it had.
        from: String,
        /// The value that it has.
        to: String,
        /// When that comes to bear.
        applies: Applies,
    },
}

impl Change {
    /// When the change of a setting comes to bear.
    pub const fn applies(&self) -> Option<Applies> {
        match self {
            Self::Set { applies, .. } => Some(*applies),
            Self::Added { .. } | Self::Removed { .. } => None,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { group, listen, workers } => {
                write!(f, "group {group}: added on {listen} with {workers} workers")
            }
            Self::Removed { group, listen } => write!(f, "group {group}: removed from {listen}"),
            Self::Set { group, setting, from, to, applies } => {
                write!(f, "group {group}: {setting} {from} -> {to}")?;
                match applies {
                    Applies::Now | Applies::Never => Ok(()),
                    Applies::NextStart => f.write_str(", for workers that are started from now on"),
                    Applies::NewGroup => f.write_str(", by a new group in place of the old one"),
                }
            }
        }
    }
}

/// What leads from the groups `before` to the groups `after`, by the names of groups.
pub fn difference(before: &[GroupSpec], after: &[GroupSpec]) -> Vec<Change> {
    let by_name = |groups| -> BTreeMap<&str, &GroupSpec> {
        <[GroupSpec]>::iter(groups).map(|spec| (spec.name.as_str(), spec)).collect()
    };
    let (before, after) = (by_name(before), by_name(after));
    let mut changes = Vec::new();
    for (name, spec) in &before {
        match after.get(name) {
            Some(after) => changes.extend(changed_settings(spec, after)),
            None => changes.push(Change::Removed { group: spec.name.clone(), listen: spec.listen }),
        }
    }
    for spec in after.iter().filter(|(name, _)| !before.contains_key(*name)).map(|(_, spec)| spec) {
        let GroupSpec { name, listen, workers, .. } = spec;
        changes.push(Change::Added { group: name.clone(), listen: *listen, workers: *workers });
    }
    changes
}

/// What is different between two groups of one name.
fn changed_settings(before: &GroupSpec, after: &GroupSpec) -> impl Iterator<Item = Change> {
    // The same settings in the same order, since both come from the same function.
    let pairs = before.settings().into_iter().zip(after.settings());
    let group = before.name.clone();
    pairs.filter(|(before, after)| before.value != after.value).map(move |(before, after)| {
        let Setting { name, value: from, applies } = before;
        Change::Set { group: group.clone(), setting: name.into(), from, to: after.value, applies }
    })
}

/// Whether a group can only become like `after` by a new one in its place.
pub fn needs_new_group(before: &GroupSpec, after: &GroupSpec) -> bool {
    changed_settings(before, after).any(|change| change.applies() == Some(Applies::NewGroup))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn groups(text: &str) -> Vec<GroupSpec> {
        file::parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{text}: {faults:?}")).groups
    }

    fn told(before: &str, after: &str) -> Vec<String> {
        difference(&groups(before), &groups(after)).iter().map(ToString::to_string).collect()
    }

    const WEB: &str = "[groups.web]\nlisten = 1\nworkers = 2\npolicy = 'hash'\n";

    #[test]
    fn what_is_the_same_is_no_difference() {
        assert_eq!(told(WEB, WEB), [""; 0]);
        // Written differently, and the same.
        assert_eq!(told(WEB, "[groups.web]\npolicy = 'hash'\nlisten = '0.0.0.0:1'\nworkers = '2'"), [""; 0]);
    }

    #[test]
    fn groups_come_and_go_by_name() {
        let both = format!("{WEB}[groups.api]\nlisten = 2\nworkers = 3");
        assert_eq!(told(WEB, &both), ["group api: added on 0.0.0.0:2 with 3 workers"]);
        assert_eq!(told(&both, WEB), ["group api: removed from 0.0.0.0:2"]);
    }

    #[test]
    fn each_setting_is_a_change_of_its_own() {
        let after = "[groups.web]\nlisten = 2\nworkers = 3\npolicy = 'hash'\nhash-on = 'source'\nhash-seed = 9\nweights = [1, 4, 1]\n\
                     grace = 1\nstall-after = 0\nbacklog = 5\ncommand = ['/bin/sh', '-c', 'exit 1']";
        assert_eq!(
            told(WEB, after),
            [
                "group web: listen 0.0.0.0:1 -> 0.0.0.0:2, by a new group in place of the old one",
                "group web: workers 2 -> 3",
                "group web: weights 1 -> 1,4",
                "group web: policy hash on flow -> hash on source",
                "group web: hash-seed 0 -> 9",
                "group web: grace 30s -> 1s",
                "group web: stall-after 50ms -> 0s",
                "group web: backlog 4096 -> 5",
                "group web: command built-in -> /bin/sh -c 'exit 1', for workers that are started from now on",
                "group web: ready notify -> exec, for workers that are started from now on",
            ]
        );
    }

    #[test]
    fn only_another_address_needs_a_new_group() {
        let needs = |after: &str| needs_new_group(&groups(WEB)[0], &groups(after)[0]);
        assert!(needs("[groups.web]\nlisten = 2"));
        assert!(!needs("[groups.web]\nlisten = 1\nworkers = 9\ncommand = ['sh']"));
    }

    #[test]
    fn json_names_the_change() {
        let changes =
            difference(&groups(WEB), &groups("[groups.web]\nlisten = 1\nworkers = 3\npolicy = 'hash'"));
        assert_eq!(
            serde_json::to_value(&changes).expect("JSON"),
            serde_json::json!([
                {"change": "set", "group": "web", "setting": "workers", "from": "2", "to": "3", "applies": "now"},
            ])
        );
    }
}
