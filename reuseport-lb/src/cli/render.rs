//! What commands print.

use std::io;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::env::Env;
use crate::{
    control::{FailedWorker, GroupStatus, OperationState, OperationStatus, Outcomes, Stalls, WorkerStatus},
    group::{WorkerId, WorkerState, id_ranges},
};

/// Prints a value as the JSON that scripts read.
pub(super) fn json(env: &mut Env<'_>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *env.out, value)?;
    writeln!(env.out)
}

/// A group: a head line, its workers, its outcomes.
pub(super) fn group(group: &GroupStatus) -> String {
    let GroupStatus { name, protocol, listen, mode, policy, workers, operation, outcomes } = group;
    format!(
        "{name} · {listen} {} · {} · {}\n\n{}\n\n{}{}{}\n",
        protocol,
        policy,
        mode,
        worker_table(workers),
        last_words(workers),
        operation
            .as_ref()
            .filter(|operation| operation.state != OperationState::Done)
            .map_or_else(String::new, |operation| format!("{}\n", self::operation(operation))),
        self::outcomes(outcomes),
    )
}

/// What those wrote last that are down, and a blank line.
fn last_words(workers: &[WorkerStatus]) -> String {
    let mut text = String::new();
    for WorkerStatus { id, last_words, .. } in workers {
        for line in last_words {
            text.push_str(&format!("worker {id} wrote: {line}\n"));
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// How an operation is going.
pub(super) fn operation(operation: &OperationStatus) -> String {
    let OperationStatus { id, kind, state, seconds, done, under_way, waiting, failed } = operation;
    let mut text = format!("operation {id}: {kind} {} after {seconds:.1}s", state.as_str());
    let mut part = |what: &str, ids: Vec<WorkerId>| {
        if !ids.is_empty() {
            text.push_str(&format!(", {what} {}", id_ranges(ids)));
        }
    };
    part("done", done.clone());
    part("at", under_way.iter().map(|at| at.worker).collect());
    part("waiting", waiting.clone());
    for FailedWorker { worker, reason } in failed {
        text.push_str(&format!(", worker {worker} did not come back ({reason})"));
    }
    text
}

fn worker_table(workers: &[WorkerStatus]) -> String {
    let mut header = vec![
        "WORKER", "PID", "STATE", "WEIGHT", "ACTIVE", "PENDING", "QUEUED", "SELECTED", "MIGRATED",
        "RESTARTS", "STALLS",
    ];
    let pinned = workers.iter().any(|worker| worker.cpu.is_some());
    if pinned {
        header.insert(4, "CPU");
    }
    let with_status = workers.iter().any(|worker| worker.status.is_some() || worker.reloading);
    if with_status {
        header.push("STATUS");
    }
    let with_reasons = workers.iter().any(|worker| worker.reason.is_some());
    if with_reasons {
        header.push("REASON");
    }
    let mut table = Table::new();
    // Lines keep their width whatever the terminal's: wrapped rows cannot be read, nor cut with awk.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(&header);
    for worker in workers {
        let WorkerStatus {
            id,
            pid,
            state,
            reason,
            last_words: _,
            status,
            reloading,
            weight,
            cpu,
            connections,
            restarts,
            stalls,
        } = worker;
        let mut row = vec![
            id.to_string(),
            pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
            state.to_string(),
            weight.to_string(),
            connections.active.to_string(),
            connections.pending.to_string(),
            connections.queued.to_string(),
            connections.selected_total.to_string(),
            connections.migrated_in_total.to_string(),
            restarts.to_string(),
            self::stalls(stalls),
        ];
        if pinned {
            row.insert(4, cpu.map_or_else(|| "-".into(), |cpu| cpu.to_string()));
        }
        if with_status {
            let reloading = if *reloading { "reloading" } else { "" };
            row.push(status.clone().unwrap_or_else(|| reloading.into()));
        }
        if with_reasons {
            row.push(reason.clone().unwrap_or_default());
        }
        table.add_row(row);
    }
    for (column, title) in table.column_iter_mut().zip(&header) {
        column.set_padding((0, 2));
        if !["STATE", "STATUS", "REASON"].contains(title) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// How often, how long in total, and since when it lasts now.
fn stalls(Stalls { count, seconds_total, since_seconds }: &Stalls) -> String {
    match since_seconds {
        _ if *count == 0 => "0".into(),
        None => format!("{count} ({seconds_total:.1}s)"),
        Some(since) => format!("{count} ({seconds_total:.1}s, now for {since:.1}s)"),
    }
}

fn outcomes(outcomes: &Outcomes) -> String {
    let Outcomes { selected, retried, fallback, dropped, migrated, stray, fallback_reasons: _ } = outcomes;
    format!(
        "outcomes: {selected} selected, {retried} retried, {fallback} fallback, {dropped} dropped, \
         {migrated} migrated, {stray} stray"
    )
}

/// A worker's state in one line, with the connections that it still has while it is on its way out.
pub(super) fn worker(worker: &WorkerStatus) -> String {
    let WorkerStatus { id, state, reason, .. } = worker;
    match (state, reason) {
        (WorkerState::Draining | WorkerState::Stopping, _) => {
            format!("worker {id} is {state}: {}", connections(worker))
        }
        (_, Some(reason)) => format!("worker {id} is {state} ({reason})"),
        (_, None) => format!("worker {id} is {state}"),
    }
}

/// What a worker has left to do.
pub(super) fn connections(worker: &WorkerStatus) -> String {
    format!("{} active, {} queued", worker.connections.active, worker.connections.queued)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing;

    #[test]
    fn a_group_is_a_head_line_a_table_and_its_outcomes() {
        let status = testing::status();
        assert_eq!(
            group(&status.groups[0]),
            "\
default · 0.0.0.0:8080 tcp · consistent-hash on flow · supervised

WORKER  PID  STATE   WEIGHT  ACTIVE  PENDING  QUEUED  SELECTED  MIGRATED  RESTARTS  STALLS  REASON
     0  100  active       1       0        0       0        10         0         0       0
     1  101  active       1       5        0       0        10         0         0       0
     2    -  down         1       0        0       0        10         0         3       0  exit status 1

outcomes: 30 selected, 0 retried, 0 fallback, 0 dropped, 0 migrated, 0 stray
"
        );
    }

    #[test]
    fn reasons_have_a_column_only_where_there_are_some() {
        let mut status = testing::status();
        status.groups[0].workers.truncate(2);
        assert!(!group(&status.groups[0]).contains("REASON"));
    }

    #[test]
    fn a_stall_says_how_often_how_long_and_since_when() {
        let render =
            |count, seconds_total, since_seconds| stalls(&Stalls { count, seconds_total, since_seconds });
        assert_eq!(render(0, 0.0, None), "0");
        assert_eq!(render(2, 1.25, None), "2 (1.2s)");
        assert_eq!(render(3, 1.5, Some(0.25)), "3 (1.5s, now for 0.2s)");
    }

    #[test]
    fn pinned_workers_have_their_cpus_in_a_column() {
        let mut status = testing::status();
        assert!(!group(&status.groups[0]).contains("CPU"));
        status.groups[0].workers[1].cpu = Some(7);
        let table = group(&status.groups[0]);
        let fields = |line: usize| table.lines().nth(2 + line).expect("a line").split_whitespace().nth(4);
        assert_eq!([fields(0), fields(1), fields(2)], [Some("CPU"), Some("-"), Some("7")]);
    }
}
