//! Scenario `runtime`: how long the BPF programs run.
//!
//! The kernel measures each run (`run_time_ns` and `run_cnt`). The measuring is part of what it measures, so the
//! figure is what a program takes above an empty one. Both run for the same group in the same session, by turns, so
//! that whatever slows the machine down meets both.

use std::{fmt, path::Path};

use anyhow::{Result, ensure};
use clap::ValueEnum as _;
use reuseport_lb::policy::{Policy, Program};
use reuseport_lb_ebpf::names::TRACK_CONNECTIONS;
use reuseport_lb_tests::Netns;
use serde::{Deserialize, Serialize};

use crate::{
    Scale,
    counters::{Counters, Runs},
    goals::Goal,
    group::{Group, SELECT_NOTHING, TRACK_NOTHING},
    machine::Machine,
    samples::Summary,
    tables,
    traffic::Close,
};

/// The sizes of the groups.
const WORKERS: [u16; 5] = [4, 16, 64, 512, 1024];
/// How many connections one program gets before it is the next one's turn.
const TURN: u32 = 1000;

/// The result.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: Machine,
    rounds: u32,
    connections_per_round: u32,
    pub(crate) groups: Vec<GroupReport>,
}

/// The result for one size of group.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GroupReport {
    pub(crate) workers: u16,
    /// What the kernel says that an empty selection program takes.
    empty_ns: Summary,
    pub(crate) selection: Vec<ProgramReport>,
    tracker: TrackerReport,
}

/// One selection program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProgramReport {
    pub(crate) program: Program,
    pub(crate) above_empty_ns: Summary,
}

/// The program that counts connections.
#[derive(Debug, Serialize, Deserialize)]
struct TrackerReport {
    runs_per_connection: Summary,
    /// Of all runs of a connection together, those for the client's socket included.
    above_empty_ns_per_connection: Summary,
}

/// Measures all groups, one after the other.
pub(crate) fn measure(scale: Scale, baseline: &Path) -> Result<Report> {
    let turns = scale.of(6, 4, 1);
    let rounds = scale.rounds(7, 5);
    let mut groups = Vec::new();
    for workers in scale.sizes(&WORKERS) {
        eprintln!("bench: run time of the programs, {workers} workers");
        groups.push(Netns::new().within(|| measure_group(*workers, rounds, turns, baseline))?);
    }
    Ok(Report { machine: Machine::here()?, rounds, connections_per_round: turns * TURN, groups })
}

fn measure_group(workers: u16, rounds: u32, turns: u32, baseline: &Path) -> Result<GroupReport> {
    let mut group = Group::new(workers, baseline)?;
    let programs = programs();
    for program in &programs {
        // The kernel has it from then on.
        group.attach(*program)?;
    }
    let counters = Counters::enable()?;

    let mut empty_ns = Vec::new();
    let mut programs_ns = vec![Vec::new(); programs.len()];
    let mut trackers = Vec::new();
    for _ in 0..rounds {
        let mut nothing = Runs::default();
        let mut totals = vec![Runs::default(); programs.len()];
        for first in 0..turns as usize {
            group.attach_nothing()?;
            nothing += turn(&group, &counters, SELECT_NOTHING)?;
            // Each time another one is the first, which finds the tables colder than the others.
            for index in 0..programs.len() {
                let index = (first + index) % programs.len();
                group.attach(programs[index])?;
                totals[index] += turn(&group, &counters, &name_of(programs[index]))?;
            }
        }
        empty_ns.push(nothing.mean_ns());
        for (total, ns) in totals.iter().zip(&mut programs_ns) {
            ns.push(total.mean_ns() - nothing.mean_ns());
        }
        group.attach(Policy::ConsistentHash.into())?;
        trackers.push(track(&group, &counters, turns.div_ceil(4) * TURN)?);
    }
    Ok(GroupReport {
        workers,
        empty_ns: Summary::of(empty_ns),
        selection: programs
            .into_iter()
            .zip(programs_ns)
            .map(|(program, ns)| ProgramReport { program, above_empty_ns: Summary::of(ns) })
            .collect(),
        tracker: TrackerReport {
            runs_per_connection: Summary::of(trackers.iter().map(|(runs, _)| *runs)),
            above_empty_ns_per_connection: Summary::of(trackers.iter().map(|(_, ns)| *ns)),
        },
    })
}

/// What the selection program that is attached takes for one turn of connections.
fn turn(group: &Group, counters: &Counters, program: &str) -> Result<Runs> {
    let before = counters.read(program)?;
    group.connections(TURN, Close::Reset)?;
    let runs = counters.read(program)? - before;
    ensure!(runs.runs == u64::from(TURN), "{program} ran {} times for {TURN} connections", runs.runs);
    Ok(runs)
}

/// The runs of the tracker for a connection, and what they take above those of an empty one. Both run each time.
fn track(group: &Group, counters: &Counters, connections: u32) -> Result<(f64, f64)> {
    let read = || anyhow::Ok((counters.read(TRACK_CONNECTIONS)?, counters.read(TRACK_NOTHING)?));
    let before = read()?;
    group.connections(connections, Close::Orderly)?;
    let after = read()?;
    let (tracker, nothing) = (after.0 - before.0, after.1 - before.1);
    let runs = tracker.runs as f64 / f64::from(connections);
    Ok((runs, (tracker.time_ns as f64 - nothing.mean_ns() * tracker.runs as f64) / f64::from(connections)))
}

/// All programs that pick.
fn programs() -> Vec<Program> {
    let mut programs: Vec<Program> = Policy::value_variants()
        .iter()
        .filter(|policy| **policy != Policy::Kernel)
        .map(|policy| Program::from(*policy))
        .collect();
    programs.push(Program { policy: Policy::ConsistentHash, bounded: true });
    programs
}

/// The name of a program in the kernel.
fn name_of(Program { policy, bounded }: Program) -> String {
    let bounded = if bounded { "bounded_" } else { "" };
    format!("select_{bounded}{}", policy.as_str().replace('-', "_"))
}

impl Report {
    /// What the programs may take.
    pub(crate) fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let limits = [
            (Policy::ConsistentHash, 80.0, 150.0),
            (Policy::LeastLoaded, 110.0, 200.0),
            (Policy::PowerOfTwo, 110.0, 200.0),
        ];
        for group in &self.groups {
            for (policy, few, many) in limits {
                let limit = match group.workers {
                    16 => few,
                    1024 => many,
                    _ => continue,
                };
                let ns = group
                    .selection
                    .iter()
                    .find(|report| report.program == policy.into())
                    .map(|report| report.above_empty_ns.median);
                if let Some(ns) = ns {
                    goals.push(Goal::at_most(
                        format!("{policy}, {} workers: a run", group.workers),
                        limit,
                        ns,
                        " ns",
                    ));
                }
            }
        }
        let trackers = self.groups.iter().map(|group| group.tracker.above_empty_ns_per_connection.median);
        if let Some(worst) = trackers.max_by(f64::total_cmp) {
            goals.push(Goal::at_most("counting, a connection, in the dearest group", 250.0, worst, " ns"));
        }
        goals
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, rounds, connections_per_round, groups } = self;
        writeln!(f, "{machine}")?;
        writeln!(
            f,
            "median (min–max) of {rounds} rounds of {connections_per_round} connections, in ns above an empty program\n"
        )?;
        let mut header = vec!["workers".to_owned()];
        header.extend(groups.iter().map(|group| group.workers.to_string()));
        let mut table = tables::new(header);
        let programs = groups.first().map_or(0, |group| group.selection.len());
        for index in 0..programs {
            let mut row = vec![groups[0].selection[index].program.to_string()];
            row.extend(groups.iter().map(|group| group.selection[index].above_empty_ns.to_string()));
            table.add_row(row);
        }
        let mut row = |name: &str, figure: fn(&GroupReport) -> Summary| {
            let mut row = vec![name.to_owned()];
            row.extend(groups.iter().map(|group| figure(group).to_string()));
            table.add_row(row);
        };
        row("tracker, a connection", |group| group.tracker.above_empty_ns_per_connection);
        row("tracker's runs, a connection", |group| group.tracker.runs_per_connection);
        row("empty program, as measured", |group| group.empty_ns);
        writeln!(f, "{table}")
    }
}
