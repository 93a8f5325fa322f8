//! The benchmarks measure what they say. How fast something is stands in docs/BENCHMARKS.md; here it is whether every
//! scenario runs to its end, sees its own programs run, and writes a result that the page can be made from.

use std::{env, ffi::OsStr, path::Path};

use reuseport_lb_tests::{Output, binary};

const SCENARIOS: [&str; 6] = ["short", "spread", "unwell", "events", "control", "runtime"];

/// `command::run` gives a command 30 s, which is less than all scenarios take on a busy machine.
async fn bench(args: &[&OsStr]) -> Output {
    let object = env::var_os("REUSEPORT_LB_BENCH_OBJECT").expect("run `cargo xtask test`, which builds it");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(args).env("REUSEPORT_LB_BENCH_OBJECT", object).env("REUSEPORT_LB_BIN", binary());
    let output = command.kill_on_drop(true).output().await.expect("the benchmarks start");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Output {
        line: format!("bench {args:?}"),
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[tokio::test]
async fn every_scenario_gives_a_result_and_the_page_is_made_of_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path();
    for scenario in SCENARIOS {
        let args = [scenario, "--smoke", "--output"].map(OsStr::new);
        let measured = bench(&[&args[..], &[output.as_os_str()]].concat()).await.succeeded();
        assert!(measured.stdout.contains(&format!("## {scenario}")), "{measured}");
        assert!(output.join(scenario).with_extension("json").is_file(), "{measured}");
    }

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/BENCHMARKS.md");
    let copy = output.join("BENCHMARKS.md");
    std::fs::copy(page, &copy).expect("the page");
    let args = [
        OsStr::new("docs"),
        OsStr::new("--output"),
        output.as_os_str(),
        OsStr::new("--docs"),
        output.as_os_str(),
    ];
    let written = bench(&args).await.succeeded();
    assert!(!written.stderr.contains("was not measured"), "{written}");
    let text = std::fs::read_to_string(copy).expect("the page");
    for what in ["## What was to be reached", "| kernel, counted", "| consistent-hash", "bench-runtime.svg"] {
        assert!(text.contains(what), "{what} in {text}");
    }
    for plot in ["short", "spread", "unwell", "runtime"] {
        let plot = std::fs::read_to_string(output.join(format!("bench-{plot}.svg"))).expect("a plot");
        assert!(plot.starts_with("<svg") && plot.contains("least-loaded"), "{plot}");
    }
}
