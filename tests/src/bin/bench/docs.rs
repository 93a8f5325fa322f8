//! Writes the measured part of `docs/BENCHMARKS.md`, and its plots, from the results.

use std::{
    fmt::{Display, Write as _},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

use crate::{
    control, events,
    goals::{Goal, Goals},
    plots::{Axis, Plot, Series},
    runtime, samples, short, spread, unwell,
};

const BEGIN: &str = "<!-- measured: written by `cargo xtask bench docs` -->";
const END: &str = "<!-- end of what was measured -->";

/// Reads the results in `results`, and writes what they say into the folder `docs`. What was not measured is left out.
pub(crate) fn write(results: &Path, docs: &Path) -> Result<()> {
    let mut text = String::new();
    let mut goals = Vec::new();
    if let Some(report) = read::<short::Report>(results, "short")? {
        plot_short(&report, &docs.join("bench-short.svg"))?;
        goals.extend(report.goals());
        section(&mut text, "Short connections", "bench-short.svg", &report);
    }
    if let Some(report) = read::<spread::Report>(results, "spread")? {
        plot_spread(&report, &docs.join("bench-spread.svg"))?;
        goals.extend(report.goals());
        section(&mut text, "Spread of open connections", "bench-spread.svg", &report);
    }
    if let Some(report) = read::<unwell::Report>(results, "unwell")? {
        plot_unwell(&report, &docs.join("bench-unwell.svg"))?;
        goals.extend(report.goals());
        section(&mut text, "A worker that is not well", "bench-unwell.svg", &report);
    }
    if let Some(report) = read::<events::Report>(results, "events")? {
        goals.extend(report.goals());
        section(&mut text, "Changes under load", "", &report);
    }
    if let Some(report) = read::<runtime::Report>(results, "runtime")? {
        plot_runtime(&report, &docs.join("bench-runtime.svg"))?;
        goals.extend(report.goals());
        section(&mut text, "Run time of the programs", "bench-runtime.svg", &report);
    }
    if let Some(report) = read::<control::Report>(results, "control")? {
        goals.extend(report.goals());
        section(&mut text, "Commands, and the daemon", "", &report);
    }
    let path = docs.join("BENCHMARKS.md");
    let page = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let page = replace(&page, &format!("{}{text}", goals_section(&goals)))?;
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("bench: wrote {}", path.display());
    Ok(())
}

fn read<T: DeserializeOwned>(results: &Path, name: &str) -> Result<Option<T>> {
    let path = results.join(name).with_extension("json");
    if !path.exists() {
        eprintln!("bench: {name} was not measured");
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("cannot understand {}", path.display()))
}

fn goals_section(goals: &[Goal]) -> String {
    format!("## What was to be reached\n\n{}\n\n", Goals(goals))
}

fn section(text: &mut String, title: &str, plot: &str, report: &impl Display) {
    // Writing to a string does not fail.
    let _ = write!(text, "## {title}\n\n");
    if !plot.is_empty() {
        let _ = write!(text, "![{title}]({plot})\n\n");
    }
    let _ = write!(text, "{}\n\n", report.to_string().trim_end());
}

/// The page with `measured` between its two marks.
fn replace(page: &str, measured: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("the page lacks {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("the page lacks {END}"))?;
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", measured.trim_end()))
}

fn summary(summary: samples::Summary) -> Option<(f64, f64, f64)> {
    Some((summary.median, summary.min, summary.max))
}

fn plot_short(report: &short::Report, path: &Path) -> Result<()> {
    let Some(first) = report.groups.first() else { return Ok(()) };
    let series = report.groups.iter().map(|group| Series {
        name: format!("{} workers", group.workers),
        values: group
            .contenders
            .iter()
            .map(|contender| contender.rate_to_kernel)
            .map(|ratio| Some((ratio.median, ratio.low, ratio.high)))
            .collect(),
    });
    Plot {
        title: "Short connections a second, relative to the bare kernel's hash",
        y: "relative rate",
        categories: first.contenders.iter().map(|contender| contender.steering.clone()).collect(),
        series: series.collect(),
        scale: Axis::Linear,
        mark: Some(1.0),
    }
    .bars(path)
}

fn plot_spread(report: &spread::Report, path: &Path) -> Result<()> {
    Plot {
        title: "Open connections: the fullest worker less the emptiest",
        y: "connections",
        categories: report.contenders.iter().map(|contender| contender.steering.clone()).collect(),
        series: vec![Series {
            name: "max − min".into(),
            values: report.contenders.iter().map(|contender| summary(contender.difference)).collect(),
        }],
        scale: Axis::Linear,
        mark: None,
    }
    .bars(path)
}

fn plot_unwell(report: &unwell::Report, path: &Path) -> Result<()> {
    let Some(first) = report.illnesses.first() else { return Ok(()) };
    let series = report.illnesses.iter().map(|illness| Series {
        name: illness.illness.as_str().into(),
        values: illness.contenders.iter().map(|contender| summary(contender.p99_ms)).collect(),
    });
    Plot {
        title: "One worker of four that is not well: 99th percentile to the first byte",
        y: "ms",
        categories: first.contenders.iter().map(|contender| contender.steering.clone()).collect(),
        series: series.collect(),
        scale: Axis::Logarithmic,
        mark: None,
    }
    .bars(path)
}

fn plot_runtime(report: &runtime::Report, path: &Path) -> Result<()> {
    let Some(first) = report.groups.first() else { return Ok(()) };
    let series = first.selection.iter().enumerate().map(|(index, first)| Series {
        name: first.program.to_string(),
        values: report.groups.iter().map(|group| summary(group.selection[index].above_empty_ns)).collect(),
    });
    Plot {
        title: "Run time of a selection above an empty program",
        y: "ns",
        categories: report.groups.iter().map(|group| format!("{} workers", group.workers)).collect(),
        series: series.collect(),
        scale: Axis::Linear,
        mark: None,
    }
    .lines(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_measured_is_replaced() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        let new = replace(&page, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n\nnew\n\n{END}\nz\n"));
        assert_eq!(replace(&new, "new").unwrap(), new);
    }

    #[test]
    fn a_page_without_marks_is_left_alone() {
        assert!(replace("a page", "new").is_err());
        assert!(replace(&format!("{BEGIN} and no end"), "new").is_err());
    }
}
