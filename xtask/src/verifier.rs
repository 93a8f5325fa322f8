//! What the BPF programs cost the kernel's verifier, and how much they may.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    bpf, command,
    setup::{self, Needs},
    test,
    workspace::Workspace,
};

/// The budget, below the workspace's root.
const BUDGET: &str = "reuseport-lb-ebpf/verifier.toml";
/// The beginning of the file with the budget.
const HEADER: &str = "\
# What each BPF program may cost the kernel's verifier: `cargo xtask verifier` fails beyond it.
#
# The kernel gives up at 1,000,000 instructions and 512 bytes of stack. Kernels differ in what they find alike, and so in
# the instructions that they go through; hence the head-room of a half above what was measured (a sixteenth of the limit
# for the stack, which differs by register spills alone). A program that needs more than that has grown, and whoever
# makes it grow says so here: `cargo xtask verifier --record` after the change.
";

/// What one program took.
#[derive(Deserialize)]
struct Verified {
    name: String,
    instructions: u64,
    states: u64,
    peak_states: u64,
    stack_bytes: u64,
}

/// What one program may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    instructions: u64,
    stack_bytes: u64,
}

impl Budget {
    /// What was measured, and the head-room.
    fn above(verified: &Verified) -> Self {
        Self {
            instructions: (verified.instructions * 3 / 2).next_multiple_of(500).min(1_000_000),
            stack_bytes: (verified.stack_bytes + 32).min(512),
        }
    }

    fn admits(self, verified: &Verified) -> bool {
        verified.instructions <= self.instructions && verified.stack_bytes <= self.stack_bytes
    }
}

/// Builds the programs from source, has them verified as root, and prints what that took. Fails beyond the budget, or
/// writes a new one.
pub(crate) fn verifier(workspace: &Workspace, record: bool) -> Result<()> {
    if !command::is_root()? {
        // Before the minutes of building.
        command::sudo()?;
    }
    let (toolchain, _) = setup::ensure(workspace, Needs::test())?;
    let object = bpf::build(workspace, &toolchain)?;
    let verifier = test::build_binary(
        workspace,
        Some(&object),
        &["--package=reuseport-lb-tests", "--bin=verifier"],
        false,
    )?;
    let json = command::output(&mut command::as_root(verifier)?)?;
    let programs: Vec<Verified> =
        serde_json::from_str(&json).context("cannot read what the verifier took")?;
    if programs.is_empty() {
        bail!("the object has no programs");
    }

    if record {
        let budgets: BTreeMap<&str, Budget> =
            programs.iter().map(|program| (program.name.as_str(), Budget::above(program))).collect();
        let text = format!("{HEADER}\n{}", toml::to_string(&budgets).context("cannot write TOML")?);
        fs::write(workspace.path(BUDGET), text).with_context(|| format!("cannot write {BUDGET}"))?;
    }
    let budgets: BTreeMap<String, Budget> =
        workspace.toml(BUDGET)?.try_into().with_context(|| format!("cannot read {BUDGET}"))?;
    print!("{}", table(&programs, &budgets));
    let beyond = beyond(&programs, &budgets);
    if !beyond.is_empty() {
        bail!("beyond the budget in {BUDGET}: {}", beyond.join(", "));
    }
    Ok(())
}

fn table(programs: &[Verified], budgets: &BTreeMap<String, Budget>) -> String {
    let row = |cells: [&str; 5]| {
        let [name, instructions, states, peak, stack] = cells;
        format!("{name:32} {instructions:>20} {states:>8} {peak:>12} {stack:>12}\n")
    };
    let mut table = row(["program", "instructions", "states", "peak states", "stack bytes"]);
    for Verified { name, instructions, states, peak_states, stack_bytes } in programs {
        let of = |taken: &u64, budget: fn(&Budget) -> u64| match budgets.get(name) {
            Some(of) => format!("{taken} / {}", budget(of)),
            None => format!("{taken} / -"),
        };
        table += &row([
            name,
            &of(instructions, |budget| budget.instructions),
            &states.to_string(),
            &peak_states.to_string(),
            &of(stack_bytes, |budget| budget.stack_bytes),
        ]);
    }
    table
}

/// The programs that took more than they may, or that nobody has a budget for; and the budgets that no program has.
fn beyond<'a>(programs: &'a [Verified], budgets: &'a BTreeMap<String, Budget>) -> Vec<&'a str> {
    let too_much = programs
        .iter()
        .filter(|program| !budgets.get(&program.name).is_some_and(|budget| budget.admits(program)));
    let unused = budgets.keys().filter(|name| !programs.iter().any(|program| program.name == **name));
    too_much.map(|program| program.name.as_str()).chain(unused.map(String::as_str)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str, instructions: u64, stack_bytes: u64) -> Verified {
        Verified { name: name.to_owned(), instructions, states: 1, peak_states: 1, stack_bytes }
    }

    #[test]
    fn more_than_the_budget_is_beyond_it_and_so_is_no_budget() {
        let budgets = [
            ("a".to_owned(), Budget { instructions: 100, stack_bytes: 64 }),
            ("gone".to_owned(), Budget { instructions: 1, stack_bytes: 1 }),
        ]
        .into();
        let beyond = |programs: &[Verified]| beyond(programs, &budgets).join(" ");
        assert_eq!(beyond(&[program("a", 100, 64), program("gone", 1, 1)]), "");
        assert_eq!(beyond(&[program("a", 101, 64)]), "a gone");
        assert_eq!(beyond(&[program("a", 100, 65), program("gone", 1, 1)]), "a");
        assert_eq!(beyond(&[program("a", 1, 1), program("new", 1, 1), program("gone", 1, 1)]), "new");
    }

    #[test]
    fn a_budget_has_head_room_and_keeps_within_the_kernels_limits() {
        assert_eq!(
            Budget::above(&program("a", 1_001, 100)),
            Budget { instructions: 2_000, stack_bytes: 132 }
        );
        assert_eq!(
            Budget::above(&program("a", 900_000, 500)),
            Budget { instructions: 1_000_000, stack_bytes: 512 }
        );
    }
}
