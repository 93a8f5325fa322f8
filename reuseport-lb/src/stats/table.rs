//! The one table of metrics: name, type, help, labels, and where the numbers come from.

use std::{borrow::Cow, fmt};

use prometheus_client::{
    encoding::{DescriptorEncoder, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};
use reuseport_lb_ebpf::outcome::Outcome;

use crate::{
    control::{GroupStatus, OperationState, Status, WorkerStatus},
    group::WorkerState,
};

/// One metric.
pub(super) struct Metric {
    /// The name, without the prefix and without what unit and type put behind it.
    stem: &'static str,
    kind: Kind,
    unit: Option<Unit>,
    help: &'static str,
    samples: Samples,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only goes up, and begins again at 0 when its subject is made anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Always 1; its labels are what it tells.
    Info,
}

/// What a metric is about, and how to get its numbers. Labels of the subject (`group`, `worker`) come first; those that
/// are named here come after them, and the function gives their values beside each number.
enum Samples {
    /// The daemon.
    Daemon(fn(&Status) -> Number),
    /// The daemon, told by labels.
    DaemonInfo(&'static [&'static str], fn(&Status) -> Vec<String>),
    /// Each group.
    Group(fn(&GroupStatus) -> Number),
    /// Each group, told by labels.
    GroupInfo(&'static [&'static str], fn(&GroupStatus) -> Vec<String>),
    /// Each group, once for each value of a label.
    GroupBy(&'static str, fn(&GroupStatus) -> Vec<(&'static str, Number)>),
    /// Each worker.
    Worker(fn(&WorkerStatus) -> Number),
    /// Each worker, once for each value of a label.
    WorkerBy(&'static str, fn(&WorkerStatus) -> Vec<(&'static str, Number)>),
}

/// A whole number, or a measured one.
#[derive(Clone, Copy, Debug)]
enum Number {
    Whole(u64),
    Real(f64),
}

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// All metrics, from the whole to the parts.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        stem: "build",
        kind: Kind::Info,
        unit: None,
        help: "The daemon's version",
        samples: Samples::DaemonInfo(&["version"], |status| vec![status.version.clone()]),
    },
    Metric {
        stem: "uptime",
        kind: Kind::Gauge,
        unit: Some(Unit::Seconds),
        help: "How long the daemon has been running",
        samples: Samples::Daemon(|status| Number::Real(status.uptime_seconds)),
    },
    Metric {
        stem: "group",
        kind: Kind::Info,
        unit: None,
        help: "What a group is, and its present policy",
        samples: Samples::GroupInfo(&["protocol", "listen", "mode", "policy", "hash_on"], |group| {
            let hash_on = group.policy.name.hashes().then_some(group.policy.hash_on);
            vec![
                group.protocol.to_string(),
                group.listen.to_string(),
                group.mode.to_string(),
                group.policy.name.to_string(),
                hash_on.map_or_else(String::new, |hash_on| hash_on.to_string()),
            ]
        }),
    },
    Metric {
        stem: "group_workers",
        kind: Kind::Gauge,
        unit: None,
        help: "Workers of the group, whatever their state",
        samples: Samples::Group(|group| Number::count(group.workers.len())),
    },
    Metric {
        stem: "group_eligible_workers",
        kind: Kind::Gauge,
        unit: None,
        help: "Workers that may be picked for new connections, which are those in state active",
        samples: Samples::Group(|group| {
            let is_eligible = |worker: &&WorkerStatus| worker.state == WorkerState::Active;
            Number::count(group.workers.iter().filter(is_eligible).count())
        }),
    },
    Metric {
        stem: "runs",
        kind: Kind::Counter,
        unit: None,
        help: "Runs of the group's selection programs, by what became of them; each run counts in exactly one outcome",
        samples: Samples::GroupBy("outcome", |group| {
            let number = |outcome: Outcome| Number::Whole(group.outcomes.count(outcome));
            Outcome::ALL.iter().map(|outcome| (outcome.name(), number(*outcome))).collect()
        }),
    },
    Metric {
        stem: "group_operations",
        kind: Kind::Counter,
        unit: None,
        help: "Restarts of workers and changes of their number that were begun",
        samples: Samples::Group(|group| {
            Number::Whole(group.operation.as_ref().map_or(0, |operation| operation.id))
        }),
    },
    Metric {
        stem: "group_operation_state",
        kind: Kind::Gauge,
        unit: None,
        help: "1 for how the last of these operations is going, 0 for the others; all 0 before the first",
        samples: Samples::GroupBy("state", |group| {
            let now = group.operation.as_ref().map(|operation| operation.state);
            let number = |state: OperationState| Number::Whole(u64::from(now == Some(state)));
            OperationState::ALL.iter().map(|state| (state.as_str(), number(*state))).collect()
        }),
    },
    Metric {
        stem: "worker_state",
        kind: Kind::Gauge,
        unit: None,
        help: "1 for the state that the worker is in, 0 for the others",
        samples: Samples::WorkerBy("state", |worker| {
            let number = |state: WorkerState| Number::Whole(u64::from(state == worker.state));
            WorkerState::ALL.iter().map(|state| (state.as_str(), number(*state))).collect()
        }),
    },
    Metric {
        stem: "worker_weight",
        kind: Kind::Gauge,
        unit: None,
        help: "The worker's weight, 1 to 256",
        samples: Samples::Worker(|worker| Number::Whole(worker.weight.into())),
    },
    Metric {
        stem: "worker_active_connections",
        kind: Kind::Gauge,
        unit: None,
        help: "Connections of the worker that are established and not yet closed, those in its accept queue included",
        samples: Samples::Worker(|worker| Number::Whole(worker.connections.active)),
    },
    Metric {
        stem: "worker_pending_connections",
        kind: Kind::Gauge,
        unit: None,
        help: "Connections that were given to the worker and are still in their handshake",
        samples: Samples::Worker(|worker| Number::Whole(worker.connections.pending)),
    },
    Metric {
        stem: "worker_queued_connections",
        kind: Kind::Gauge,
        unit: None,
        help: "Connections that wait in the worker's accept queue",
        samples: Samples::Worker(|worker| Number::Whole(worker.connections.queued)),
    },
    Metric {
        stem: "worker_selected",
        kind: Kind::Counter,
        unit: None,
        help: "Connections that the policy gave to the worker",
        samples: Samples::Worker(|worker| Number::Whole(worker.connections.selected_total)),
    },
    Metric {
        stem: "worker_migrated_in",
        kind: Kind::Counter,
        unit: None,
        help: "Waiting connections that moved to the worker since another one's socket was closed",
        samples: Samples::Worker(|worker| Number::Whole(worker.connections.migrated_in_total)),
    },
    Metric {
        stem: "worker_restarts",
        kind: Kind::Counter,
        unit: None,
        help: "How often the worker's process was started again",
        samples: Samples::Worker(|worker| Number::Whole(worker.restarts)),
    },
    Metric {
        stem: "worker_stalls",
        kind: Kind::Counter,
        unit: None,
        help: "How often the worker began to take nothing from an accept queue that was not empty",
        samples: Samples::Worker(|worker| Number::Whole(worker.stalls.count)),
    },
    Metric {
        stem: "worker_stalled",
        kind: Kind::Counter,
        unit: Some(Unit::Seconds),
        help: "How long the worker was stalled altogether, the present stall included",
        samples: Samples::Worker(|worker| Number::Real(worker.stalls.seconds_total)),
    },
];

impl Metric {
    /// The name as Prometheus sees it.
    pub(super) fn name(&self) -> String {
        let Self { stem, kind, unit, .. } = self;
        let unit = unit.as_ref().map_or_else(String::new, |unit| format!("_{}", unit.as_str()));
        let ending = match kind {
            Kind::Counter => "_total",
            Kind::Gauge => "",
            Kind::Info => "_info",
        };
        format!("{}_{stem}{unit}{ending}", super::PREFIX)
    }

    /// The name of the type, in the words of Prometheus.
    pub(super) const fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Info => "info",
        }
    }

    /// One line for people.
    pub(super) const fn help(&self) -> &'static str {
        self.help
    }

    /// The labels of each sample, in order.
    pub(super) fn labels(&self) -> Vec<&'static str> {
        match self.samples {
            Samples::Daemon(_) => vec![],
            Samples::DaemonInfo(names, _) => names.to_vec(),
            Samples::Group(_) => vec!["group"],
            Samples::GroupInfo(names, _) => [&["group"], names].concat(),
            Samples::GroupBy(name, _) => vec!["group", name],
            Samples::Worker(_) => vec!["group", "worker"],
            Samples::WorkerBy(name, _) => vec!["group", "worker", name],
        }
    }

    /// Writes everything about this metric: what it is, and its samples.
    pub(super) fn encode(&self, status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Info => MetricType::Info,
        };
        let encoder = &mut encoder.encode_descriptor(self.stem, self.help, self.unit.as_ref(), kind)?;
        match &self.samples {
            Samples::Daemon(number) => self.sample(encoder, &vec![], number(status)),
            Samples::DaemonInfo(names, values) => {
                let values = values(status);
                encoder.encode_info(&named(names, &values).collect::<Labels<'_>>())
            }
            Samples::Group(number) => status
                .groups
                .iter()
                .try_for_each(|group| self.sample(encoder, &of_group(group), number(group))),
            Samples::GroupInfo(names, values) => status.groups.iter().try_for_each(|group| {
                let (mut labels, values) = (of_group(group), values(group));
                labels.extend(named(names, &values));
                encoder.encode_info(&labels)
            }),
            Samples::GroupBy(name, numbers) => status
                .groups
                .iter()
                .try_for_each(|group| self.samples_by(encoder, &of_group(group), name, numbers(group))),
            Samples::Worker(number) => {
                workers(status).try_for_each(|(labels, worker)| self.sample(encoder, &labels, number(worker)))
            }
            Samples::WorkerBy(name, numbers) => workers(status)
                .try_for_each(|(labels, worker)| self.samples_by(encoder, &labels, name, numbers(worker))),
        }
    }

    fn samples_by(
        &self,
        encoder: &mut MetricEncoder<'_>,
        subject: &Labels<'_>,
        name: &'static str,
        numbers: Vec<(&'static str, Number)>,
    ) -> fmt::Result {
        numbers.into_iter().try_for_each(|(value, number)| {
            let mut labels = subject.clone();
            labels.push((name, value.into()));
            self.sample(encoder, &labels, number)
        })
    }

    fn sample(&self, encoder: &mut MetricEncoder<'_>, labels: &Labels<'_>, number: Number) -> fmt::Result {
        const NO_EXEMPLAR: Option<&Exemplar<[(&str, &str); 0], f64>> = None;

        let mut encoder = encoder.encode_family(labels)?;
        match (self.kind, number) {
            (Kind::Counter, Number::Whole(number)) => encoder.encode_counter(&number, NO_EXEMPLAR),
            (Kind::Counter, Number::Real(number)) => encoder.encode_counter(&number, NO_EXEMPLAR),
            (Kind::Gauge | Kind::Info, Number::Whole(number)) => encoder.encode_gauge(&number),
            (Kind::Gauge | Kind::Info, Number::Real(number)) => encoder.encode_gauge(&number),
        }
    }
}

impl Number {
    const fn count(count: usize) -> Self {
        Self::Whole(count as u64)
    }
}

fn of_group(group: &GroupStatus) -> Labels<'_> {
    vec![("group", group.name.as_str().into())]
}

fn workers(status: &Status) -> impl Iterator<Item = (Labels<'_>, &WorkerStatus)> {
    status.groups.iter().flat_map(|group| {
        group.workers.iter().map(|worker| {
            let mut labels = of_group(group);
            labels.push(("worker", worker.id.to_string().into()));
            (labels, worker)
        })
    })
}

fn named<'a>(
    names: &'static [&'static str],
    values: &'a [String],
) -> impl Iterator<Item = (&'static str, Cow<'a, str>)> {
    names.iter().copied().zip(values.iter().map(Cow::from))
}
