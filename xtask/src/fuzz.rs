//! Runs the tests with random input, with more of it than usual.

use anyhow::{Result, ensure};

use crate::{command, workspace::Workspace};

/// What comes from outside, and how the names of its tests begin.
const SUBJECTS: [(&str, &[&str]); 4] = [
    ("configuration files", &["config::file::tests::any_"]),
    ("control requests", &["control::fuzz::any_", "group::fuzz::any_"]),
    ("notify datagrams", &["worker::notify::tests::any_"]),
    ("state files", &["state::tests::any_"]),
];

/// Gives `cases` inputs to each of the tests. They need no root and no kernel.
pub(crate) fn fuzz(workspace: &Workspace, cases: u32) -> Result<()> {
    let cargo = || {
        let mut cargo = command::cargo();
        cargo
            .args(["test", "--locked", "--package=reuseport-lb", "--lib", "--"])
            .current_dir(&workspace.root)
            .env("PROPTEST_CASES", cases.to_string())
            // Debug builds are several times as slow, and a panic at an overflow is wanted here as there.
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1");
        cargo
    };
    let list = command::output(cargo().args(["--list", "--format=terse"]))?;
    let names: Vec<_> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let mut chosen = Vec::new();
    for (what, begins) in SUBJECTS {
        for begin in begins {
            let before = chosen.len();
            chosen.extend(names.iter().copied().filter(|name| name.starts_with(begin)));
            ensure!(chosen.len() > before, "there is no test of {what}: none is called {begin}…");
        }
    }
    eprintln!("xtask: {cases} inputs for each of {} tests", chosen.len());
    command::succeed(cargo().arg("--exact").args(chosen))
}
