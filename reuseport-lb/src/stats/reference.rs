//! `docs/METRICS.md`: the metrics in words.

use std::fmt::Write as _;

use reuseport_lb_ebpf::outcome::Outcome;

use super::table::METRICS;
use crate::group::WorkerState;

/// Every metric with its type, labels and meaning, and the values of the labels that have a fixed set, as Markdown.
pub fn reference() -> String {
    let mut text = String::from("| metric | type | labels | is |\n| --- | --- | --- | --- |\n");
    for metric in METRICS {
        let labels: Vec<_> = metric.labels().iter().map(|label| format!("`{label}`")).collect();
        row(&mut text, &[&format!("`{}`", metric.name()), metric.kind(), &labels.join(", "), metric.help()]);
    }
    text += "\n`outcome` is one of these:\n\n| outcome | the run |\n| --- | --- |\n";
    for outcome in Outcome::ALL {
        row(&mut text, &[&format!("`{}`", outcome.name()), outcome.help()]);
    }
    text += "\n`state` of a worker is one of these:\n\n| state | the worker |\n| --- | --- |\n";
    for state in WorkerState::ALL {
        row(&mut text, &[&format!("`{state}`"), state.help()]);
    }
    text
}

fn row(text: &mut String, cells: &[&str]) {
    // Memory can always be written.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
