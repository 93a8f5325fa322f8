//! The command line as a whole; what one command does is tested beside it.

use std::path::Path;

use super::*;
use crate::control::testing::FakeDaemon;

fn args(line: &str) -> impl Iterator<Item = OsString> {
    std::iter::once("reuseport-lb").chain(line.split_whitespace()).map(OsString::from)
}

fn parsed(line: &str) -> Command {
    parse(args(line)).unwrap_or_else(|e| panic!("{line}: {e:#}")).1
}

#[test]
fn clap_finds_no_fault() {
    command().debug_assert();
}

#[test]
fn without_a_command_it_runs() {
    for line in [
        "",
        "run",
        "--policy least-loaded",
        "--policy least-loaded -- nginx -g daemon",
        "run --policy least-loaded -- nginx status",
        "-- status",
        "--control /x --listen :1",
        "--control=/x",
        "--control /x",
        "--listen :1 --control /x",
    ] {
        assert!(matches!(parsed(line), Command::Run(_)), "{line}");
    }
}

#[test]
fn good_command_lines_are_understood() {
    for line in [
        "--listen [::]:80 --workers 1024 --policy consistent-hash --hash-on source --name web --grace 1m",
        "--metrics 9464",
        "--metrics [::1]:9464",
        "--backlog 1 --hash-seed 0xfeed --pin-dir /x --log-format json --bpf-log trace",
        "--config web.toml --pin-dir /x --log-format json --control /y",
        "check web.toml --json",
        "status --json --group web",
        "--control /x status",
        "status --control /x",
        "policy",
        "policy random",
        "policy hash --hash-on source --json",
        "drain 2 --wait --timeout 30 --stop --force --json",
        "undrain 2",
        "weight 2 256",
        "metrics",
        "metrics --describe",
        "top --interval 500ms --group web",
        "doctor --listen :80 --json",
        "restart",
        "restart 2 --timeout 5s --json --group web",
        "restart --rolling --parallel 3 --no-wait",
        "scale 12 --timeout 5s --no-wait --json",
        "stop 2 --timeout 5s --force --no-wait --json",
        "start 2 --no-wait --json",
        "shutdown --no-wait",
        "completions zsh",
        "man drain",
        "demo-worker",
        "worker-exec nginx -g x -- --help",
        "worker-exec -- nginx --version",
    ] {
        parsed(line);
    }
}

#[tokio::test]
async fn bad_command_lines_get_one_line_and_status_2() {
    for (line, expected) in [
        ("foo", "unrecognized subcommand 'foo'"),
        ("shutdow", "tip: a similar subcommand exists: 'shutdown'"),
        ("--polcy hash", "tip: a similar argument exists: '--policy'"),
        ("--policy fastest", "possible values: kernel, hash, consistent-hash, least-loaded, power-of-two"),
        ("policy fastest", "possible values: kernel, hash, consistent-hash, least-loaded, power-of-two"),
        ("--policy random --hash-on flow", "policy random does not hash"),
        ("policy random --hash-on flow", "policy random does not hash"),
        ("policy --hash-on flow", "required arguments were not provided: <POLICY>"),
        ("--workers 0", "1 to 1,024 workers"),
        ("--workers 5000", "1 to 1,024 workers"),
        ("--listen localhost:80", "'localhost' is not an IP address"),
        ("--listen 127.0.0.1:0", "port 0"),
        ("--name a/b", "a name is"),
        ("--metrics 0", "port 0 cannot be"),
        ("--metrics localhost:9", "'localhost' is not an IP address"),
        ("--grace soon", "not a duration"),
        ("--backlog 0", "--backlog"),
        ("--hash-seed x", "not a number of 64 bits"),
        ("--bpf-log loud", "possible values: off, error, warn, info, debug, trace"),
        (
            "--config x --listen :1",
            "the argument '--config <FILE>' cannot be used with '--listen <ADDRESS>'; try",
        ),
        ("--config x --name a", "the argument '--config <FILE>' cannot be used with '--name <GROUP>'"),
        ("--config x -- nginx", "the argument '--config <FILE>' cannot be used with '[COMMAND]...'"),
        ("check", "<FILE>"),
        ("--policy hash status", "unexpected argument 'status'"),
        ("run nginx", "unexpected argument 'nginx'"),
        ("drain", "<WORKER>"),
        ("drain two", "a worker has a number"),
        ("drain 1 2", "unexpected argument '2'"),
        ("drain 1 --wait --timeout x", "not a duration"),
        ("drain 1 --timeout 3s", "--timeout needs --wait or --stop"),
        ("weight 1", "<WEIGHT>"),
        ("weight 1 0", "use drain"),
        ("weight 1 257", "a weight is 1 to 256"),
        ("restart 1 --rolling", "cannot be used with"),
        ("restart 1 --parallel 2", "cannot be used with"),
        ("restart --parallel 0", "--parallel"),
        ("scale 0", "1 to 1,024 workers"),
        ("scale 1025", "1 to 1,024 workers"),
        ("scale", "<N>"),
        ("stop", "<WORKER>"),
        ("start one", "a worker has a number"),
        ("status --group -", "a name is"),
        ("completions tcsh", "possible values: bash"),
        ("worker-exec", "<COMMAND>"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let ran = testing::run(Path::new("/nowhere"), &words).await;
        let told = ran.failed(2);
        assert!(told.contains(expected), "{line}: {told}");
        assert_eq!(ran.out, "", "{line}");
    }
    let dangling: Vec<_> = args("--control").collect();
    parse(dangling).expect_err("--control has no value");
}

#[tokio::test]
async fn help_and_version_are_no_errors() {
    let nowhere = Path::new("/nowhere");
    assert_eq!(
        testing::run(nowhere, &["--version"]).await.printed(),
        concat!("reuseport-lb ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let help = testing::run(nowhere, &["--help"]).await.printed();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        let listed = help.lines().any(|line| line.trim_start().starts_with(&format!("{name} ")));
        assert_eq!(listed, !command.is_hide_set(), "{name}: {help}");
        if !command.is_hide_set() {
            let help = testing::run(nowhere, &[name, "--help"]).await.printed();
            assert!(help.contains("--control <PATH>"), "{help}");
        }
    }
}

#[tokio::test]
async fn completions_and_man_pages_know_the_commands() {
    let nowhere = Path::new("/nowhere");
    let script = testing::run(nowhere, &["completions", "bash"]).await.printed();
    assert!(script.contains("undrain") && script.contains("--hash-on"), "{script}");
    let page = testing::run(nowhere, &["man"]).await.printed();
    assert!(page.contains(".TH reuseport-lb 1"), "{page}");
    let page = testing::run(nowhere, &["man", "drain"]).await.printed();
    assert!(page.contains(".TH reuseport-lb-drain 1") && page.contains(r"\-\-force"), "{page}");
    let no_page = testing::run(nowhere, &["man", "worker-exec"]).await;
    assert_eq!(no_page.failed(1), "there is no command worker-exec");
}

#[tokio::test]
async fn without_a_daemon_each_command_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let control = folder.path().join("control.sock");
    for line in [
        "status",
        "status --json",
        "policy",
        "policy random",
        "drain 1",
        "undrain 1",
        "weight 1 2",
        "metrics",
        "restart",
        "scale 2",
        "stop 1",
        "start 1",
        "shutdown",
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let ran = testing::run(&control, &words).await;
        let told = ran.failed(1);
        assert!(
            told.starts_with(&format!("no daemon is running at {}; ", control.display())),
            "{line}: {told}"
        );
        assert!(told.contains("sudo reuseport-lb") && told.contains("--control"), "{line}: {told}");
    }
}

#[tokio::test]
async fn an_unknown_worker_or_group_is_named() {
    let daemon = FakeDaemon::start();
    for (line, expected) in [
        ("drain 7", "there is no worker 7"),
        ("undrain 7", "there is no worker 7"),
        ("weight 7 2", "there is no worker 7 in group default; its workers are 0-2"),
        ("status --group web", "there is no group web; there is: default"),
        ("policy --group web", "there is no group web; there is: default"),
        ("policy random --group web", "there is no group web; there is: default"),
        ("drain 1 --group web", "there is no group web"),
    ] {
        let words: Vec<_> = line.split_whitespace().collect();
        let ran = testing::run(&daemon.socket(), &words).await;
        assert_eq!(ran.failed(1), expected, "{line}");
    }
}

#[tokio::test]
async fn a_second_daemon_is_refused_before_it_does_anything() {
    let daemon = FakeDaemon::start();
    let ran = testing::run(&daemon.socket(), &["run"]).await;
    let told = ran.failed(1);
    let expected = format!(
        "{} is in use by another reuseport-lb (pid {})",
        daemon.socket().display(),
        std::process::id()
    );
    assert!(told.starts_with(&expected), "{told}");
    assert_eq!(ran.out, "");
}

#[tokio::test]
async fn a_worker_command_that_is_not_there_fails_before_anything_is_done() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let control = folder.path().join("below/control.sock");
    let ran = testing::run(&control, &["--", "no-such-server"]).await;
    assert_eq!(ran.failed(1), "cannot run the worker command: no-such-server: no such command on PATH");
    assert!(!folder.path().join("below").exists());
}
