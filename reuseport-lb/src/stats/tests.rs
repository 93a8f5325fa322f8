use std::collections::BTreeSet;

use reuseport_lb_ebpf::outcome::Outcome;

use super::*;
use crate::{
    control::{FallbackReasons, Outcomes, testing::status},
    policy::Policy,
};

fn plain(status: Status) -> Vec<String> {
    render(status, Format::Prometheus).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn names_follow_the_conventions_and_are_unique() {
    let mut names = BTreeSet::new();
    for metric in table::METRICS {
        let (name, help) = (metric.name(), metric.help());
        assert!(names.insert(name.clone()), "{name} is declared twice");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind() == "counter", "{name}");
        assert_eq!(name.ends_with("_info"), metric.kind() == "info", "{name}");
        assert!(
            !help.is_empty() && !help.contains(['\n', '\\', '|']) && !help.ends_with('.'),
            "{name}: {help}"
        );
        let labels = metric.labels();
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), labels.len(), "{name}: {labels:?}");
    }
}

#[test]
fn every_declared_metric_is_exported_with_its_labels_zeros_included() {
    let lines = plain(status());
    for metric in table::METRICS {
        let name = metric.name();
        let samples: Vec<_> =
            lines.iter().filter(|line| line.split(['{', ' ']).next() == Some(name.as_str())).collect();
        // One for the daemon or the group, three for the workers, and each as often as its own label has values.
        let labels = metric.labels();
        let subjects = if labels.contains(&"worker") { 3 } else { 1 };
        let values = match labels.last() {
            Some(&"outcome") => Outcome::COUNT,
            Some(&"state") if labels.contains(&"worker") => crate::group::WorkerState::ALL.len(),
            Some(&"state") => crate::control::OperationState::ALL.len(),
            _ => 1,
        };
        assert_eq!(samples.len(), subjects * values, "{name}: {samples:?}");
        for sample in samples {
            for label in &labels {
                assert!(sample.contains(&format!("{label}=\"")), "{sample} lacks {label}");
            }
        }
    }
}

#[test]
fn numbers_are_those_of_the_status() {
    let mut status = status();
    status.groups[0].outcomes = Outcomes {
        selected: 28,
        fallback: 3,
        fallback_reasons: FallbackReasons { no_worker: 2, unreadable: 1, refused: 0 },
        ..Outcomes::default()
    };
    status.groups[0].workers[0].stalls.count = 2;
    status.groups[0].workers[0].stalls.seconds_total = 0.5;
    let lines = plain(status);
    for expected in [
        "reuseport_lb_build_info{version=\"0.1.0\"} 1",
        "reuseport_lb_uptime_seconds 1.5",
        "reuseport_lb_group_info{group=\"default\",protocol=\"tcp\",listen=\"0.0.0.0:8080\",mode=\"supervised\",policy=\"consistent-hash\",hash_on=\"flow\"} 1",
        "reuseport_lb_group_workers{group=\"default\"} 3",
        "reuseport_lb_group_eligible_workers{group=\"default\"} 2",
        "reuseport_lb_runs_total{group=\"default\",outcome=\"selected\"} 28",
        "reuseport_lb_runs_total{group=\"default\",outcome=\"fallback_no_worker\"} 2",
        "reuseport_lb_runs_total{group=\"default\",outcome=\"fallback_unreadable\"} 1",
        "reuseport_lb_runs_total{group=\"default\",outcome=\"fallback_refused\"} 0",
        "reuseport_lb_worker_state{group=\"default\",worker=\"2\",state=\"down\"} 1",
        "reuseport_lb_worker_state{group=\"default\",worker=\"2\",state=\"active\"} 0",
        "reuseport_lb_worker_active_connections{group=\"default\",worker=\"1\"} 5",
        "reuseport_lb_worker_selected_total{group=\"default\",worker=\"0\"} 10",
        "reuseport_lb_worker_restarts_total{group=\"default\",worker=\"2\"} 3",
        "reuseport_lb_worker_stalls_total{group=\"default\",worker=\"0\"} 2",
        "reuseport_lb_worker_stalled_seconds_total{group=\"default\",worker=\"0\"} 0.5",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is not in\n{}", lines.join("\n"));
    }
}

#[test]
fn a_policy_that_hashes_nothing_says_so() {
    let mut status = status();
    status.groups[0].policy = Policy::Random.into();
    let lines = plain(status);
    assert!(lines.iter().any(|line| line.contains("policy=\"random\",hash_on=\"\"")), "{lines:#?}");
}

#[test]
fn the_reference_names_every_metric_outcome_and_state() {
    let reference = reference();
    for metric in table::METRICS {
        assert!(reference.contains(&format!("| `{}` | {} |", metric.name(), metric.kind())), "{reference}");
    }
    for outcome in Outcome::ALL {
        assert!(reference.contains(&format!("| `{}` | {} |", outcome.name(), outcome.help())), "{reference}");
    }
}
