//! What an operator, a crash or a busy machine may do to a group at any moment.

use std::{fmt, time::Duration};

use clap::ValueEnum as _;
use fastrand::Rng;
use reuseport_lb::policy::{HashOn, Policy, PolicySpec};

/// Worker numbers that are drawn. With [`Action::Scale`] some of them exist only for a while, so that commands for
/// workers that there are not come up as well.
const WORKERS: u16 = 6;

/// The group that has the load.
pub const GROUP: &str = "web";

/// Draws an action of one kind.
type Draw = fn(&mut Rng) -> Action;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to a worker.
    Kill(u16),
    /// SIGSTOP to a worker, and SIGCONT after this time.
    Freeze(u16, Duration),
    /// A command that concerns a worker: `drain`, `undrain`, `stop`, `start`, `restart`.
    Worker(&'static str, u16),
    /// `weight`.
    Weight(u16, u16),
    /// `scale`.
    Scale(u16),
    /// `restart` of all workers, so many at the same time.
    Rolling(u16),
    /// `restart --cancel`.
    Cancel,
    /// `policy`.
    Policy(PolicySpec),
    /// Another configuration file, and `reload` or SIGHUP.
    Reload(Configuration),
    /// SIGKILL to the daemon, and to a worker while there is none, and a new daemon after this time.
    KillDaemon(Option<u16>, Duration),
    /// `upgrade`, to the same version.
    Upgrade,
}

/// What a configuration file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Workers of the group that has the load.
    pub workers: u16,
    /// Its policy.
    pub policy: PolicySpec,
    /// The weight of its worker 0.
    pub weight: u16,
    /// Whether there is another group.
    pub other: bool,
    /// Whether there is a mistake in it, so that nothing may change.
    pub wrong: bool,
    /// Whether the daemon is told by SIGHUP, and not by the command.
    pub signal: bool,
}

impl Configuration {
    /// What holds in the beginning and at rest.
    pub const REST: Self = Self {
        workers: 4,
        policy: PolicySpec { name: Policy::LeastLoaded, hash_on: HashOn::Flow, balance_factor: None },
        weight: 1,
        other: false,
        wrong: false,
        signal: false,
    };
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, policy, weight, other, wrong, signal: _ } = self;
        writeln!(f, "[groups.{GROUP}]\nlisten = \"0.0.0.0:8080\"")?;
        writeln!(f, "workers = {workers}\nweights = [{weight}]")?;
        // Without this there can be no policy `cpu-local`.
        writeln!(f, "pin-workers = true")?;
        for (key, value) in settings(*policy) {
            writeln!(f, "{key} = {value}")?;
        }
        if *other {
            writeln!(f, "[groups.other]\nlisten = \"127.0.0.1:8090\"\nworkers = 1")?;
        }
        if *wrong {
            writeln!(f, "workres = 1")?;
        }
        Ok(())
    }
}

impl Action {
    /// The name of each kind.
    pub const KINDS: [&str; 15] = [
        "kill",
        "freeze",
        "drain",
        "undrain",
        "stop",
        "start",
        "restart",
        "weight",
        "scale",
        "rolling",
        "cancel",
        "policy",
        "reload",
        "kill daemon",
        "upgrade",
    ];

    /// Draws one. The sequence depends on the seed alone, and on nothing that has happened.
    pub fn draw(rng: &mut Rng) -> Self {
        // How often each kind comes, in parts. What brings workers back comes as often as what takes them away.
        let draws: [(u32, Draw); 15] = [
            (4, |rng| Self::Kill(worker(rng))),
            (4, |rng| Self::Freeze(worker(rng), Duration::from_millis(rng.u64(20..2_000)))),
            (4, |rng| Self::Worker("drain", worker(rng))),
            (5, |rng| Self::Worker("undrain", worker(rng))),
            (2, |rng| Self::Worker("stop", worker(rng))),
            (3, |rng| Self::Worker("start", worker(rng))),
            (2, |rng| Self::Worker("restart", worker(rng))),
            (4, |rng| Self::Weight(worker(rng), if rng.bool() { 1 } else { rng.u16(1..=256) })),
            (3, |rng| Self::Scale(rng.u16(2..=WORKERS))),
            (2, |rng| Self::Rolling(rng.u16(1..=3))),
            (2, |_| Self::Cancel),
            (4, |rng| Self::Policy(policy(rng))),
            (4, |rng| {
                Self::Reload(Configuration {
                    workers: rng.u16(2..=WORKERS),
                    policy: policy(rng),
                    weight: rng.u16(1..=8),
                    other: rng.bool(),
                    wrong: rng.u8(..4) == 0,
                    signal: rng.u8(..4) == 0,
                })
            }),
            (2, |rng| {
                let worker = (rng.u8(..3) == 0).then(|| worker(rng));
                Self::KillDaemon(worker, Duration::from_millis(rng.u64(..500)))
            }),
            (2, |_| Self::Upgrade),
        ];
        let parts: u32 = draws.iter().map(|(parts, _)| parts).sum();
        let mut point = rng.u32(..parts);
        for (parts, draw) in draws {
            match point.checked_sub(parts) {
                None => return draw(rng),
                Some(left) => point = left,
            }
        }
        unreachable!("the point is below the sum of the parts")
    }

    /// Its name among [`Action::KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Freeze(..) => "freeze",
            Self::Worker(command, _) => command,
            Self::Weight(..) => "weight",
            Self::Scale(_) => "scale",
            Self::Rolling(_) => "rolling",
            Self::Cancel => "cancel",
            Self::Policy(..) => "policy",
            Self::Reload(_) => "reload",
            Self::KillDaemon(..) => "kill daemon",
            Self::Upgrade => "upgrade",
        }
    }

    /// The command line, for what is a command.
    pub fn command(&self) -> Option<String> {
        let command = match self {
            Self::Kill(_) | Self::Freeze(..) | Self::Reload(_) | Self::KillDaemon(..) => return None,
            Self::Upgrade => return Some("upgrade".to_owned()),
            Self::Worker(command @ ("drain" | "undrain"), id) => format!("{command} {id}"),
            Self::Worker(command, id) => format!("{command} {id} --no-wait"),
            Self::Weight(id, weight) => format!("weight {id} {weight}"),
            Self::Scale(workers) => format!("scale {workers} --no-wait"),
            Self::Rolling(parallel) => format!("restart --parallel {parallel} --no-wait"),
            Self::Cancel => "restart --cancel --no-wait".to_owned(),
            Self::Policy(policy) => {
                let words = settings(*policy).into_iter().map(|(key, value)| match key {
                    "policy" => format!("policy {value}"),
                    option => format!("--{option} {value}"),
                });
                words.collect::<Vec<_>>().join(" ").replace('"', "")
            }
        };
        Some(format!("{command} --group {GROUP}"))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(id) => write!(f, "SIGKILL to worker {id}"),
            Self::Freeze(id, time) => write!(f, "SIGSTOP to worker {id}, SIGCONT after {time:?}"),
            Self::Reload(configuration) => {
                write!(f, "{} {configuration:?}", if configuration.signal { "SIGHUP" } else { "reload" })
            }
            Self::KillDaemon(worker, time) => {
                write!(f, "SIGKILL to the daemon")?;
                if let Some(id) = worker {
                    write!(f, ", then to worker {id}")?;
                }
                write!(f, ", a new one after {time:?}")
            }
            command => f.write_str(&command.command().unwrap_or_default()),
        }
    }
}

/// Any policy, set in any way that it can be.
fn policy(rng: &mut Rng) -> PolicySpec {
    let name = Policy::value_variants()[rng.usize(..Policy::value_variants().len())];
    let ways = [HashOn::Flow, HashOn::SOURCE, HashOn::Source { v4: 24, v6: 64 }];
    let hash_on = if name.hashes() { ways[rng.usize(..ways.len())] } else { HashOn::Flow };
    let factor = || "1.25".parse().expect("a factor");
    PolicySpec { name, hash_on, balance_factor: (name.balances() && rng.bool()).then(factor) }
}

/// The options and keys of a policy that have a meaning for it, with their values as TOML.
fn settings(PolicySpec { name, hash_on, balance_factor }: PolicySpec) -> Vec<(&'static str, String)> {
    let mut settings = vec![("policy", format!("\"{name}\""))];
    if name.hashes() {
        settings.push(("hash-on", format!("\"{hash_on}\"")));
    }
    settings.extend(balance_factor.map(|factor| ("balance-factor", factor.to_string())));
    settings
}

fn worker(rng: &mut Rng) -> u16 {
    rng.u16(..WORKERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_a_sequence_and_each_kind_comes() {
        let draw = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..1_000).map(|_| Action::draw(&mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for kind in Action::KINDS {
            assert!(draw(7).iter().any(|action| action.kind() == kind), "{kind}");
        }
        assert!(draw(7).iter().all(|action| Action::KINDS.contains(&action.kind())));
        for policy in Policy::value_variants() {
            let is_drawn = |action: &Action| matches!(action, Action::Policy(spec) if spec.name == *policy);
            assert!(draw(7).iter().any(is_drawn), "{policy}");
        }
    }
}
