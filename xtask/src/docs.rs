//! The generated pages: `docs/CLI.md`, what the commands say of themselves, and `docs/METRICS.md`, the same of the
//! metrics.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{test, workspace::Workspace};

/// The page of the commands, below the workspace's root.
const CLI_PAGE: &str = "docs/CLI.md";
/// The page of the metrics.
const METRICS_PAGE: &str = "docs/METRICS.md";
/// The width of the help, whatever terminal the task runs in.
const COLUMNS: &str = "110";
/// The beginning of the page of the commands.
const CLI_HEADER: &str = "\
# The command line

Written by `cargo xtask docs` from `--help`; `cargo xtask lint` fails when it is out of date.
Exit statuses and examples are in [OPERATIONS.md](OPERATIONS.md).
";

/// The beginning of the page of the metrics.
const METRICS_HEADER: &str = "\
# Metrics

Written by `cargo xtask docs` from `reuseport-lb metrics --describe`; `cargo xtask lint` fails when it is out of date.
How to read them is in [OPERATIONS.md](OPERATIONS.md#metrics).

";

/// Writes the pages.
pub(crate) fn write(workspace: &Workspace) -> Result<()> {
    for (name, page) in pages(workspace)? {
        fs::write(workspace.path(name), page).with_context(|| format!("cannot write {name}"))?;
        eprintln!("xtask: wrote {name}");
    }
    Ok(())
}

/// Fails when a page is not what [`write()`] would write.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    for (name, page) in pages(workspace)? {
        let committed =
            fs::read_to_string(workspace.path(name)).with_context(|| format!("cannot read {name}"))?;
        if committed != page {
            bail!("{name} is not what the program says; run `cargo xtask docs`");
        }
    }
    Ok(())
}

/// Each page with its name.
fn pages(workspace: &Workspace) -> Result<[(&'static str, String); 2]> {
    // The committed object will do: no BPF program runs for this.
    let binary = test::build_daemon(workspace, None, false)?;
    let metrics = METRICS_HEADER.to_owned() + &printed(&binary, &["metrics", "--describe"])?;
    Ok([(CLI_PAGE, cli_page(&binary)?), (METRICS_PAGE, metrics)])
}

fn cli_page(binary: &Path) -> Result<String> {
    let overview = help(binary, None)?;
    let mut page = CLI_HEADER.to_owned() + &section("reuseport-lb", &overview);
    let commands = commands(&overview);
    if commands.is_empty() {
        bail!("`reuseport-lb --help` names no commands");
    }
    for command in commands {
        page += &section(&format!("reuseport-lb {command}"), &help(binary, Some(command))?);
    }
    Ok(page)
}

/// What a command prints for `--help`.
fn help(binary: &Path, command: Option<&str>) -> Result<String> {
    let args: Vec<&str> = command.into_iter().chain(["--help"]).collect();
    printed(binary, &args)
}

/// What the program prints for these arguments.
pub(crate) fn printed(binary: &Path, args: &[&str]) -> Result<String> {
    // None of its streams is a terminal, so that the width is what is set here.
    let output = Command::new(binary)
        .args(args)
        .env("COLUMNS", COLUMNS)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    if !output.status.success() {
        bail!("reuseport-lb {}: {}", args.join(" "), output.status);
    }
    String::from_utf8(output.stdout).context("what the program prints is not UTF-8")
}

/// The commands that the overview names, but for `help`, which says the same again.
pub(crate) fn commands(overview: &str) -> Vec<&str> {
    overview
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A description that goes on in the next line is indented further.
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect()
}

fn section(title: &str, help: &str) -> String {
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    format!("\n## {title}\n\n```text\n{}\n```\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_the_overview() {
        let overview = "About\n\nUsage: x\n\nCommands:\n  run     Start\n          it\n  status  Show\n  help    Help\n\n\
                        Options:\n  -h  Help\n";
        assert_eq!(commands(overview), ["run", "status"]);
        assert!(commands("Options:\n  -h  Help\n").is_empty());
    }

    #[test]
    fn no_line_ends_in_blanks() {
        assert_eq!(section("x", "a  \n\n   \nb\n\n"), "\n## x\n\n```text\na\n\n\nb\n```\n");
    }
}
