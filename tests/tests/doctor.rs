//! What `doctor` finds on this machine, which runs all the other tests.

use std::{collections::BTreeMap, net::TcpListener};

use reuseport_lb_tests::{Launch, Output, binary, in_netns, run};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    verdict: String,
    found: String,
}

/// `doctor --json` with these arguments, under a wrapper or none.
async fn examine(wrapper: &[&str], args: &[&str]) -> (Output, BTreeMap<String, Check>) {
    let binary = binary().to_str().expect("a path");
    let control = ["--control", "/nonexistent/reuseport-lb/control.sock"];
    // The last `--control` counts.
    let line = [
        wrapper,
        &[binary, "doctor", "--json"],
        if args.contains(&"--control") { &[] } else { &control },
        args,
    ];
    let output = run(&line.concat()).await;
    let checks: Vec<Check> =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{output}"));
    (output, checks.into_iter().map(|check| (check.name.clone(), check)).collect())
}

#[test]
fn a_machine_that_runs_the_daemon_passes() {
    in_netns(async |_netns| {
        let (output, checks) = examine(&[], &["--listen", "127.0.0.1:8080"]).await;
        output.succeeded();
        for name in ["kernel", "capabilities", "BPF programs", "BTF", "control socket", "address"] {
            assert_eq!(checks[name].verdict, "ok", "{:?}", checks[name]);
        }
        for name in ["JIT", "bpffs", "open files", "locked memory", "accept queues"] {
            assert_ne!(checks[name].verdict, "fail", "{:?}", checks[name]);
        }
    });
}

#[test]
fn without_privileges_it_fails_and_names_them() {
    in_netns(async |_netns| {
        // Root in a container that has nothing of root but the name.
        let (output, checks) = examine(&["setpriv", "--bounding-set=-all"], &[]).await;
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains("capabilities"), "{output}");
        let capabilities = &checks["capabilities"];
        assert_eq!(capabilities.verdict, "fail");
        assert!(
            capabilities.found.contains("CAP_BPF") && capabilities.found.contains("CAP_NET_ADMIN"),
            "{capabilities:?}"
        );
    });
}

#[test]
fn an_address_that_is_taken_is_told_from_the_daemons_own() {
    in_netns(async |netns| {
        let foreign = TcpListener::bind("127.0.0.1:8081").expect("a port");
        let (output, checks) = examine(&[], &["--listen", "127.0.0.1:8081"]).await;
        assert_eq!(output.status.code(), Some(1), "{output}");
        let address = &checks["address"];
        assert_eq!(address.verdict, "fail");
        assert!(address.found.contains(&std::process::id().to_string()), "{address:?}");
        drop(foreign);

        let daemon = Launch::policy("hash").start(&netns).await;
        let control = daemon.control().to_str().expect("a path");
        let (output, checks) = examine(&[], &["--listen", "127.0.0.1:8080", "--control", control]).await;
        output.succeeded();
        assert_eq!(checks["address"].verdict, "ok", "{:?}", checks["address"]);
        let running = &checks["control socket"];
        assert!(running.found.contains(&daemon.process().pid.to_string()), "{running:?}");
        let privileges = &checks["privileges"].found;
        assert!(privileges.contains("CAP_BPF") && privileges.contains("CAP_KILL"), "{privileges}");
        assert!(!privileges.contains("CAP_SYS_MODULE"), "{privileges}");
        daemon.stop().await;
    });
}
