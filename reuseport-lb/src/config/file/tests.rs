use std::{ffi::OsString, time::Duration};

use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::{
    config::WorkerCommand,
    policy::{HashOn, Policy},
};

/// A file with each kind of value, and two groups.
const VALID: &str = r#"
[daemon]
control = "/run/x.sock"
log-format = "json"

[groups.web]
listen = "[::1]:80"
workers = 3
policy = "hash"
hash-on = "source"
hash-seed = 0xfeed_feed_feed_feed
grace = 90
stall-after = "1s 500ms"
command = ["sh", "-c", "exit 1"]

[groups."api.v1"]
listen = ":8080"
"#;

fn groups(text: &str) -> Vec<GroupSpec> {
    parse(text.as_bytes()).unwrap_or_else(|faults| panic!("{text}: {faults:#?}")).groups
}

fn faults(text: &str) -> Vec<String> {
    let faults = parse(text.as_bytes()).expect_err(text);
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_describes_the_daemon_and_its_groups() {
    let Config { control, daemon, groups } = parse(VALID.as_bytes()).expect("valid");
    assert_eq!(control.as_deref(), Some(Path::new("/run/x.sock")));
    assert_eq!(daemon.settings().log_format, crate::config::flags::LogFormat::Json);
    let [api, web] = groups.as_slice() else { panic!("{groups:?}") };
    assert_eq!((&*api.name, api.listen.to_string()), ("api.v1", "0.0.0.0:8080".into()));
    assert_eq!((&*web.name, web.listen.to_string(), web.workers), ("web", "[::1]:80".into(), 3));
    assert_eq!((web.policy.name, web.policy.hash_on), (Policy::Hash, HashOn::SOURCE));
    assert_eq!(web.hash_seed, 0xfeed_feed_feed_feed);
    assert_eq!((web.grace, web.stall_after), (Duration::from_secs(90), Duration::from_millis(1_500)));
    let WorkerCommand::Program { args, .. } = &web.command else { panic!("{web:?}") };
    assert_eq!(args, &["-c", "exit 1"]);
}

/// The command line of a group.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    group: GroupFlags,
}

/// Whatever can be said on the command line can be said in a file, and means the same.
#[test]
fn flags_and_file_give_the_same_group() {
    for (line, file) in [
        (vec![], ""),
        (vec!["--listen=:1"], "listen = 1"),
        (vec!["--listen=[::]:1", "--workers=7"], "listen = '[::]:1'\nworkers = 7"),
        (vec!["--workers", "7"], "workers = '7'"),
        (vec!["--policy=random", "--hash-seed=0xff"], "policy = 'random'\nhash-seed = 0xff"),
        (vec!["--hash-seed=18446744073709551615"], "hash-seed = 18446744073709551615"),
        (vec!["--policy=hash", "--hash-on=source"], "policy = 'hash'\nhash-on = 'source'"),
        (vec!["--grace=1m 30s", "--stall-after=0"], "grace = '1m 30s'\nstall-after = 0"),
        (vec!["--grace=90", "--backlog=17"], "grace = 90\nbacklog = 17"),
        (vec!["--", "sh", "-c", "--x y", ""], "command = ['sh', '-c', '--x y', '']"),
        (vec!["--workers=4", "--weights=1,2,5"], "workers = 4\nweights = [1, 2, 5]"),
        (vec!["--workers=4", "--weights", "3"], "workers = 4\nweights = 3"),
        (vec!["--workers=4", "--weights=1,1"], "workers = 4"),
        (vec!["--env=A=b", "--env=C=d=e"], "env = ['A=b', 'C=d=e']"),
        (vec!["--env=A=1", "--env=C=d=e"], "env = {A = 1, C = 'd=e'}"),
        (
            vec!["--ready=accept", "--watchdog=5s", "--output=inherit"],
            "ready = 'accept'\nwatchdog = 5\noutput = 'inherit'",
        ),
        (vec!["--adopt", "--listen=:1"], "adopt = true\nlisten = 1"),
        (vec!["--self-bind", "--", "sh"], "self-bind = true\ncommand = ['sh']"),
        (
            vec!["--user=0:0", "--chdir=/", "--rlimit-nofile=64"],
            "user = '0:0'\nchdir = '/'\nrlimit-nofile = 64",
        ),
        (vec![], "adopt = false\nself-bind = false"),
        (vec!["--", "sh", "1"], "command = ['sh', 1]"),
    ] {
        let words = line.iter().map(OsString::from);
        let flags = Line::try_parse_from([OsString::from("x")].into_iter().chain(words))
            .unwrap_or_else(|error| panic!("{line:?}: {error}"))
            .group
            .spec("web".into())
            .unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert_eq!(groups(&format!("[groups.web]\n{file}")), [flags], "{line:?}");
    }
}

/// And every option that `run` has for a group is a key: this list is the one to be extended together with them.
#[test]
fn every_option_of_a_group_is_a_key() {
    let command = GroupFlags::augment_args(clap::Command::new("x"));
    for arg in command.get_arguments() {
        let key = arg.get_long().unwrap_or_else(|| arg.get_id().as_str());
        // A value of a type that no setting takes is refused as such, which is more than an unknown key is.
        let told = faults(&format!("[groups.web]\n{key} = 1979-05-27")).remove(0);
        assert!(told.starts_with(&format!("2:{}: {key}: ", key.len() + 4)), "{told}");
    }
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    for (text, expected) in [
        // Unknown keys, with the nearest one.
        ("[groups.web]\npolcy = 'hash'", "2:1: unknown key 'polcy'; did you mean 'policy'?"),
        ("[groups.web]\n  hash_on = 'flow'", "2:3: unknown key 'hash_on'; did you mean 'hash-on'?"),
        ("[groups.web]\nWorkers = 1", "2:1: unknown key 'Workers'; did you mean 'workers'?"),
        ("[group.web]\n[groups.a]", "1:2: unknown key 'group'; did you mean 'groups'?"),
        ("x = 1\n[groups.a]", "1:1: unknown key 'x'; known are daemon, groups"),
        ("[daemon]\npins = '/x'\n[groups.a]", "2:1: unknown key 'pins'; did you mean 'pin-dir'?"),
        // Wrong values, in the words of the command line.
        ("[groups.web]\nworkers = 0", "2:11: workers: too low: a group has 1 to 1,024 workers"),
        ("[groups.web]\nworkers = 5000", "2:11: workers: too high: a group has 1 to 1,024 workers"),
        ("[groups.web]\nworkers = 1.5", "2:11: workers: not a whole number: a group has 1 to 1,024 workers"),
        ("[groups.web]\nlisten = '127.0.0.1'", "2:10: listen: the port is missing: write 127.0.0.1:8080"),
        (
            "[groups.web]\nweights = [1, 0]",
            "2:15: weights: too low: a weight is 1 to 256; to take a worker out, use drain",
        ),
        ("[groups.web]\nworkers = 1\nweights = [1, 2]", "3:11: 2 weights are too many for 1 workers"),
        ("[groups.web]\nbacklog = 0", "2:11: backlog: 0 is not in 1..=2147483647"),
        (
            "[groups.web]\ngrace = 'soon'",
            "2:9: grace: not a duration: write 30s, 500ms, 2m, or a number of seconds",
        ),
        // Wrong types.
        ("[groups.web]\nworkers = true", "2:11: workers: a text or a number is expected, not a boolean"),
        ("[groups.web]\nworkers = [1]", "2:11: workers: a text or a number is expected, not an array"),
        ("[groups.web]\nworkers = {a=1}", "2:11: workers: a text or a number is expected, not a table"),
        (
            "[groups.web]\ncommand = 'sh -c true'",
            r#"2:11: command: an array of words is expected, such as ["program", "argument"], not a string"#,
        ),
        ("[groups.web]\ncommand = ['sh', []]", "2:18: command: a word is expected, not an array"),
        ("groups = 1", "1:10: groups.NAME is not a table: write [groups.NAME] above its keys"),
        ("[groups]\nweb = 1", "2:7: groups.web is not a table: write [groups.web] above its keys"),
        ("daemon = 1\n[groups.a]", "1:10: daemon is not a table: write [daemon] above its keys"),
        ("[groups.web]\nadopt = 'yes'", "2:9: adopt: true or false is expected, not a string"),
        ("[groups.web]\nenv = ['A']", "2:8: env: write NAME=VALUE"),
        ("[groups.web]\nenv = {A = []}", "2:12: env: a text or a number is expected, not an array"),
        // Things that do not go together.
        (
            "[groups.web]\nadopt = true\nworkers = 2",
            "1:9: the argument '--adopt' cannot be used with '--workers <N>'",
        ),
        (
            "[groups.web]\nself-bind = true",
            "1:9: the following required arguments were not provided: <COMMAND>...",
        ),
        (
            "[groups.web]\ncommand = ['no-such-server']",
            "2:11: cannot run the worker command: no-such-server: no such command on PATH",
        ),
        ("[groups.a]\n[groups.b]", "2:9: listen: 0.0.0.0:8080 overlaps with 0.0.0.0:8080 of group a"),
        (
            "[groups.b]\nlisten = '[::]:1'\n[groups.a]\nlisten = '127.0.0.1:1'",
            "4:10: listen: 127.0.0.1:1 overlaps with [::]:1 of group b",
        ),
        ("", "1:1: there is no group: a table [groups.NAME] describes one"),
        ("[daemon]\n", "2:1: there is no group: a table [groups.NAME] describes one"),
        (
            "[groups.\"a/b\"]",
            "1:9: a name is 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first",
        ),
        // What is no TOML.
        ("[groups.web]\nworkers = 1\nworkers = 2", "3:1: duplicate key"),
        ("[groups.a]\n[groups.a]", "2:9: duplicate key"),
        // Columns are characters.
        ("[groups.web]\ncommand = ['ä', []]", "2:17: command: a word is expected, not an array"),
    ] {
        assert_eq!(faults(text), [expected], "{text}");
    }
}

#[test]
fn a_value_that_is_none_of_those_there_are_gets_the_nearest() {
    let told = faults("[groups.web]\npolicy = 'least-loadd'").remove(0);
    assert!(told.starts_with("2:10: policy: one of kernel, hash, consistent-hash, least-loaded, "), "{told}");
    assert!(told.ends_with("; did you mean 'least-loaded'?"), "{told}");
    let told = faults("[groups.web]\npolicy = 'random'\nhash-on = 'flow'").remove(0);
    assert!(told.starts_with("3:11: policy random does not hash"), "{told}");
}

#[test]
fn everything_that_is_wrong_is_told_at_once_in_order() {
    let told = faults(
        "[daemon]\nlog-format = 'xml'\n\n[groups.b]\nworkers = 0\npolcy = 1\n\n[groups.a]\nlisten = 'x'\ncommand = 'y'\n",
    );
    let places: Vec<_> = told.iter().map(|told| told.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(places, ["2:14", "5:11", "6:1", "9:10", "10:11"], "{told:#?}");
    let several = faults("[groups.a]\nx = =\nworkers = 0\n[groups.b\n");
    assert!(several.len() > 1, "{several:#?}");
}

#[test]
fn a_file_that_is_wrong_throughout_is_told_in_bounds() {
    let text: String = (0..20_000).map(|n| format!("key-{n} = [\n")).collect();
    let faults = parse(text.as_bytes()).expect_err("nothing in it is right");
    assert!((1..=MAX_FAULTS).contains(&faults.len()), "{}", faults.len());
    let text: String = (0..20_000).map(|n| format!("key-{n} = {n}\n")).collect();
    assert_eq!(parse(text.as_bytes()).expect_err("all keys are unknown").len(), MAX_FAULTS);
}

#[test]
fn what_is_no_text_is_no_file() {
    let told = parse(b"[groups.web]\n# \xff").expect_err("not UTF-8");
    assert_eq!(told, [Fault { line: 2, column: 3, why: "not UTF-8".into() }]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("none.toml");
    let told = read(&path).expect_err("no such file");
    assert!(matches!(&told, FileError::Unreadable { .. }), "{told:?}");
    let told = read(folder.path()).expect_err("a folder");
    assert!(matches!(&told, FileError::Unreadable { .. }), "{told:?}");

    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .expect("a pipe");
    let told = read(&pipe).expect_err("nobody writes");
    assert!(matches!(&told, FileError::Unreadable { .. }), "{told:?}");

    std::fs::write(&path, vec![b'\n'; 1024 * 1024 + 1]).expect("a file");
    let told = read(&path).expect_err("too long");
    assert!(matches!(&told, FileError::Unreadable { .. }), "{told:?}");

    std::fs::write(&path, "x = 1\ny = 1\n").expect("a file");
    let told = read(&path).expect_err("two errors").to_string();
    let path = path.display();
    let expected = format!(
        "{path}:1:1: unknown key 'x'; known are daemon, groups (and 2 more; `reuseport-lb check {path}` shows all)"
    );
    assert_eq!(told, expected);
}

/// The example of the manual, as it stands there and with all that is commented out in it.
#[test]
fn the_example_of_the_manual_is_valid() {
    let manual = include_str!("../../../../docs/OPERATIONS.md");
    let (_, rest) = manual.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    assert_eq!(groups(example).len(), 2, "{example}");
    let everything = example.replace("\n#command = [\"/usr/bin/gunicorn\"", "\ncommand = [\"sh\"");
    assert_ne!(everything, example);
    let web = groups(&everything).pop().expect("two groups");
    assert_eq!((&*web.name, web.command.to_string().ends_with("sh app:app")), ("web", true), "{web:?}");
}

/// A change of a few bytes in a valid file.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edit = (0..VALID.len(), 0..4_usize, proptest::collection::vec(any::<u8>(), 0..4));
    proptest::collection::vec(edit, 1..6).prop_map(|edits| {
        let mut bytes = VALID.as_bytes().to_vec();
        for (at, removed, inserted) in edits {
            let at = at.min(bytes.len());
            let end = (at + removed).min(bytes.len());
            bytes.splice(at..end, inserted);
        }
        bytes
    })
}

/// Pieces of files, in any order: nearer to what can be meant than bytes.
fn pieced() -> impl Strategy<Value = Vec<u8>> {
    let lines: Vec<_> =
        VALID.lines().chain(["[groups", "= 1", "x = [1, {a = 1}]", "env = {A = 1}"]).collect();
    let piece = prop_oneof![
        proptest::sample::select(lines).prop_map(|line| format!("{line}\n")),
        "[a-z\\[\\]=\"'{}.,0-9\n -]{0,12}",
    ];
    proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Whatever stands in a file is taken, or refused with at least one fault, in order, each on one line and inside the
/// file.
fn is_taken_or_refused(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse(bytes) {
        Ok(config) => prop_assert!(!config.groups.is_empty()),
        Err(faults) => {
            prop_assert!(!faults.is_empty());
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
            for Fault { line, column, why } in &faults {
                prop_assert!((1..=lines).contains(line) && *column > 0, "{line}:{column}");
                prop_assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
            }
            prop_assert!(faults.is_sorted_by_key(|fault| (fault.line, fault.column)), "{faults:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(crate::fuzz::config(512))]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        is_taken_or_refused(&bytes)?;
    }

    #[test]
    fn any_change_of_a_valid_file_is_taken_or_refused(bytes in mutated()) {
        is_taken_or_refused(&bytes)?;
    }

    #[test]
    fn any_pieces_of_files_are_taken_or_refused(bytes in pieced()) {
        is_taken_or_refused(&bytes)?;
    }
}
