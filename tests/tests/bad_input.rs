//! Bad input gets a clear line and an exit status, and leaves everything as it was.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use reuseport_lb::control::ErrorBody;
use reuseport_lb::group::WorkerState;
use reuseport_lb_tests::{
    Daemon, GroupExt, Launch, binary, eventually, hold, in_netns, privileges::program_for_all, run,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

#[test]
fn commands() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.group().await;
        let cases: &[(&[&str], &[&str])] = &[
            (&["policy", "fastest"], &["fastest", "consistent-hash", "least-loaded", "kernel"]),
            (&["policy", "consistent-hash", "--hash-on", "moon"], &["moon", "flow", "source"]),
            (&["drain", "99"], &["99"]),
            (&["drain", "two"], &["two"]),
            (&["drain", "-1"], &["-1"]),
            (&["drain"], &["WORKER"]),
            (&["drain", "1", "--stop", "--timeout", "soon"], &["soon"]),
            (&["undrain", "99"], &["99"]),
            (&["weight", "99", "2"], &["99"]),
            (&["weight", "1", "0"], &["256"]),
            (&["weight", "1", "257"], &["256"]),
            (&["weight", "1", "100000"], &["256"]),
            (&["weight", "1", "heavy"], &["heavy"]),
            (&["frobnicate"], &["frobnicate"]),
            (&["status", "--frobnicate"], &["--frobnicate"]),
        ];
        for (args, words) in cases {
            daemon.cli(args).await.failed_with(words);
        }
        let after = daemon.group().await;
        assert_eq!(after, before, "what is refused changes nothing");
        daemon.stop().await;
    });
}

#[test]
fn starts() {
    in_netns(async |netns| {
        let cases: Vec<(Launch, &[&str])> = vec![
            (Launch::policy("fastest"), &["fastest", "consistent-hash", "least-loaded", "kernel"]),
            (Launch::policy("hash").workers(0), &["1,024"]),
            (Launch::policy("hash").workers(5_000), &["1,024"]),
            (Launch::policy("hash").listen("192.0.2.1:8080"), &["192.0.2.1"]),
            (Launch::policy("hash").listen("[2001:db8::1]:8080"), &["2001:db8::1"]),
            (Launch::policy("hash").worker_command(&["/no/such/server"]), &["/no/such/server"]),
            (Launch::policy("hash").worker_command(&["no-such-server"]), &["no-such-server", "PATH"]),
        ];
        for (launch, words) in cases {
            launch.fail(&netns).await.failed_with(words);
        }
    });
}

#[test]
fn a_port_that_another_process_has() {
    in_netns(async |netns| {
        let me = std::process::id().to_string();
        let alone = TcpListener::bind((Ipv4Addr::LOCALHOST, 8080)).expect("the port");
        Launch::policy("hash").fail(&netns).await.failed_with(&["127.0.0.1:8080", &me]);

        // With SO_REUSEPORT on both sides the kernel would put the stranger into our group, and say nothing.
        let stranger = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        stranger.set_reuse_port(true).expect("SO_REUSEPORT");
        stranger.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)).into()).expect("the port");
        stranger.listen(1).expect("listen");
        let launch = Launch::policy("hash").listen("127.0.0.1:8081");
        launch.fail(&netns).await.failed_with(&["127.0.0.1:8081", &me]);
        drop((alone, stranger));
    });
}

#[test]
fn a_worker_command_that_fails_again_and_again() {
    in_netns(async |netns| {
        let launch = Launch::policy("hash").workers(2).worker_command(&["sh", "-c", "exit 7"]);
        let daemon = launch.start_unready(&netns).await;
        let group = daemon
            .wait("each worker has failed twice more and is down, with a reason", |group| {
                group.workers.iter().all(|worker| {
                    worker.restarts >= 2 && worker.state == WorkerState::Down && worker.reason.is_some()
                })
            })
            .await;
        assert!(group.workers.iter().all(|worker| worker.pid.is_none()), "{group:#?}");
        let reason = group.worker(0).reason.clone().expect("a reason");
        assert!(reason.contains('7'), "the exit status is missing: {reason}");
        // Unless both are just being tried again.
        eventually("it is shown", async || {
            let shown = daemon.tell(&["status"]).await.stdout;
            if shown.contains("down") { Ok(()) } else { Err(shown) }
        })
        .await;
        daemon.stop().await;
    });
}

#[test]
fn a_second_daemon_on_the_same_control_socket() {
    in_netns(async |netns| {
        let first = Launch::policy("hash").start(&netns).await;
        let pid = first.process().pid.to_string();
        let control = first.control().to_owned();
        let second = Launch::policy("hash").listen("127.0.0.1:8081").control(&control);
        second.fail(&netns).await.failed_with(&[&control.display().to_string(), &pid]);

        first.client().ask("/").await.expect("the first daemon's workers serve on");
        first.tell(&["policy", "random"]).await;
        first.stop().await;
    });
}

#[test]
fn a_stale_control_socket() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("control.sock");
        drop(UnixListener::bind(&control).expect("a socket that nobody listens on any more"));
        assert!(control.exists());
        Launch::policy("hash").control(&control).start(&netns).await.stop().await;
    });
}

#[test]
fn something_else_where_the_control_socket_should_be() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("control.sock");
        fs::write(&control, "precious").expect("a file");
        let output = Launch::policy("hash").control(&control).fail(&netns).await;
        output.failed_with(&[&control.display().to_string()]);
        assert_eq!(fs::read_to_string(&control).expect("the file"), "precious");
    });
}

#[test]
fn no_daemon() {
    in_netns(async |_| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let nothing = folder.path().join("nothing.sock");
        let stale = folder.path().join("stale.sock");
        drop(UnixListener::bind(&stale).expect("a socket that nobody listens on any more"));
        for control in [&nothing, &stale].map(|path| path.display().to_string()) {
            let commands: &[&[&str]] = &[
                &["status"],
                &["policy", "hash"],
                &["drain", "1"],
                &["undrain", "1"],
                &["weight", "1", "1"],
                &["shutdown"],
            ];
            for command in commands {
                let binary = binary().display().to_string();
                let line = [&[binary.as_str()], *command, &["--control", &control]].concat();
                let output = run(&line).await.failed_with(&[&control]);
                assert_eq!(output.status.code(), Some(1), "{output}");
            }
        }
    });
}

const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

#[test]
fn a_control_socket_that_is_not_permitted() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("control.sock");
        let daemon = Launch::policy("hash").control(&control).start(&netns).await;
        let mode = fs::metadata(&control).expect("the control socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let program = program_for_all(folder.path(), None);
        let [program, control] = [&program, &control].map(|path| path.display().to_string());
        let line = [AS_NOBODY.as_slice(), &[&program, "policy", "random", "--control", &control]].concat();
        run(&line).await.failed_with(&[&control, "not permitted"]);
        assert_eq!(daemon.group().await.policy.name.as_str(), "hash");
        daemon.stop().await;
    });
}

#[test]
fn capabilities_that_are_missing() {
    in_netns(async |netns| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let program = program_for_all(folder.path(), None).display().to_string();
        let control = folder.path().join("control.sock").display().to_string();
        let start =
            [program.as_str(), "run", "--listen", "127.0.0.1:8080", "--workers", "2", "--control", &control];

        let not_root = [AS_NOBODY.as_slice(), &start].concat();
        run(&not_root).await.failed_with(&["CAP_BPF", "CAP_NET_ADMIN", "root"]);

        // Root in a container that lets nobody load programs.
        let no_bpf = [["setpriv", "--bounding-set=-bpf,-sys_admin"].as_slice(), &start].concat();
        run(&no_bpf).await.failed_with(&["CAP_BPF"]);
        assert!(netns.processes().is_empty());
    });
}

#[test]
fn requests_that_are_malformed() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let before = daemon.group().await;
        let cases: &[(&str, &str, &str, u16)] = &[
            ("GET", "/v1/nothing", "", 404),
            ("PUT", "/v1/groups/-/policy", "", 400),
            ("PUT", "/v1/groups/-/policy", "{", 400),
            ("PUT", "/v1/groups/-/policy", "[]", 400),
            ("PUT", "/v1/groups/-/policy", r#"{"name":"fastest"}"#, 400),
            ("PUT", "/v1/groups/none/policy", r#"{"name":"random"}"#, 404),
            ("PUT", "/v1/groups/-/workers/99/drain", "{}", 404),
            ("PUT", "/v1/groups/-/workers/two/drain", "{}", 404),
            ("PUT", "/v1/groups/-/workers/1/drain", r#"{"stopp":true}"#, 400),
            ("PUT", "/v1/groups/-/workers/1/weight", r#"{"weight":0}"#, 400),
            ("PUT", "/v1/groups/-/workers/1/weight", r#"{"weight":70000}"#, 400),
            ("DELETE", "/v1/groups/-/workers/99/drain", "", 404),
        ];
        for (method, path, body, status) in cases {
            let response = daemon.control_request(method, path, body.as_bytes()).await.expect("a response");
            let text = String::from_utf8_lossy(&response.body);
            assert_eq!(response.status, *status, "{method} {path} {body}: {text}");
            let ErrorBody { error } = serde_json::from_str(&text)
                .unwrap_or_else(|why| panic!("{method} {path} {body}: {why}: {text}"));
            assert!(!error.is_empty() && !error.contains('\n'), "{method} {path} {body}: {error:?}");
        }
        let response = daemon.control_request("DELETE", "/v1/status", b"").await.expect("a response");
        assert_eq!(response.status, 405);
        assert_eq!(daemon.group().await, before, "what is refused changes nothing");
        daemon.stop().await;
    });
}

#[test]
fn requests_that_are_no_requests() {
    in_netns(async |netns| {
        let daemon = Launch::policy("hash").start(&netns).await;
        let huge_head = [b"GET /v1/status HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; 4 << 20]].concat();
        let huge_body = [
            b"PUT /v1/groups/-/policy HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n".as_slice(),
            &vec![b' '; 64 << 20],
        ]
        .concat();
        let cases: [&[u8]; 6] = [
            b"",
            b"\n",
            b"\0\0\0\0\xff\xff\xff\xff\r\n\r\n",
            b"policy random\r\n\r\n",
            &huge_head,
            &huge_body,
        ];
        for bytes in cases {
            let reply = say(&daemon, bytes).await;
            assert!(
                !reply.starts_with(b"HTTP/1.1 2"),
                "accepted: {:?}",
                String::from_utf8_lossy(bytes.get(..80).unwrap_or(bytes))
            );
            assert_eq!(daemon.group().await.policy.name.as_str(), "hash", "the daemon lives on");
        }

        // Clients that connect and say nothing, or begin and do not go on, hold nobody up.
        let mut idle = Vec::new();
        for i in 0..200 {
            let mut stream = UnixStream::connect(daemon.control()).await.expect("a connection");
            if i % 2 == 0 {
                stream.write_all(b"GET /v1/sta").await.expect("half a request");
            }
            idle.push(stream);
        }
        daemon.tell(&["policy", "random"]).await;
        // Nor do they hold up the end.
        daemon.stop().await;
        drop(idle);
    });
}

/// Sends bytes, ends this side, and reads whatever comes back. The daemon may hang up at any moment.
async fn say(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(daemon.control()).await.expect("a connection");
    let (mut reader, mut writer) = stream.split();
    let mut reply = Vec::new();
    let write = async {
        if writer.write_all(bytes).await.is_ok() {
            // Fails when the daemon has hung up, which it may.
            drop(writer.shutdown().await);
        }
    };
    let (_, read) = reuseport_lb_tests::within("the daemon hangs up", async {
        tokio::join!(write, reader.read_to_end(&mut reply))
    })
    .await;
    drop(read);
    reply
}

#[test]
fn a_kernel_without_type_information() {
    in_netns(async |netns| {
        let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", hide];
        // What needs no type information works without; the user learns what is lost.
        let daemon = Launch::policy("least-loaded").workers(4).wrapper(&wrapper).start(&netns).await;
        assert!(daemon.written("stderr").contains("BTF"), "{daemon}");
        let held = hold(&daemon.client(), 40).await;
        daemon.wait("all are counted", |group| group.active() == [10; 4]).await;
        assert_eq!(daemon.group().await.runs(), 40);
        drop(held);
        daemon.idle().await;
        daemon.stop().await;
    });
}

#[test]
fn a_host_without_control_groups() {
    in_netns(async |netns| {
        let hide = "umount -R /sys/fs/cgroup && exec \"$0\" \"$@\"";
        let wrapper = ["unshare", "--mount", "sh", "-c", hide];
        // What needs no count of connections works without; the user learns what is lost.
        let daemon = Launch::policy("consistent-hash").wrapper(&wrapper).start(&netns).await;
        assert!(daemon.written("stderr").contains("cgroup v2"), "{daemon}");
        daemon.client().ask("/").await.expect("an answer");
        assert_eq!(daemon.group().await.runs(), 1);

        daemon.cli(&["policy", "least-loaded"]).await.failed_with(&["cgroup v2"]);
        assert_eq!(daemon.group().await.policy.name.as_str(), "consistent-hash");
        daemon.stop().await;
        Launch::policy("least-loaded").wrapper(&wrapper).fail(&netns).await.failed_with(&["cgroup v2"]);
    });
}
