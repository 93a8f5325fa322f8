//! Whatever is written to the control socket is answered or not, and changes nothing unless it says that it has.

use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    runtime::Runtime,
};

use super::{routes, server, testing};
use crate::{control::Status, daemon, fuzz};

/// A clock that goes on by itself when all that is left is to wait, so that no time-out takes time.
fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime")
}

/// What a client gets that writes `input` and then has nothing more to say, and the daemon's state afterwards.
///
/// The connection is served on this very task, so that a panic in it is one of the test.
async fn answer(input: &[u8]) -> (Vec<u8>, Status) {
    let handle = testing::FakeDaemon::handle(testing::status());
    // More than any input and all answers to it.
    let (client, server) = duplex(1024 * 1024);
    let service = TowerToHyperService::new(routes::router(handle.clone()));
    let serving = server::http().serve_connection(TokioIo::new(server), service);
    let (mut read, mut write) = split(client);
    let mut output = Vec::new();
    let asking = async {
        write.write_all(input).await.expect("room for it");
        // It keeps its side open, as a client does that waits for answers, until the server has lost its patience.
        read.read_to_end(&mut output).await.expect("an end");
    };
    // An error is the client's own: what it wrote was no HTTP.
    let ((), _) = tokio::join!(asking, serving);
    let status = handle.ask(daemon::Request::Status).await.expect("the daemon lives on");
    (output, status)
}

/// The statuses of all answers. They are the only lines that begin with the protocol: bodies are JSON or metrics.
fn statuses(output: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(output);
    let parts = text.split("HTTP/1.1 ").skip(1);
    parts.map(|part| part.get(..3).and_then(|code| code.parse().ok()).expect("a status")).collect()
}

fn is_answered_or_not(runtime: &Runtime, input: &[u8]) -> Result<(), TestCaseError> {
    let (output, status) = runtime.block_on(answer(input));
    let statuses = statuses(&output);
    prop_assert!(output.is_empty() || output.starts_with(b"HTTP/1."), "{output:?}");
    prop_assert!(statuses.iter().all(|status| *status != 500), "{statuses:?}");
    if !statuses.iter().any(|status| (200..300).contains(status)) {
        prop_assert_eq!(status, testing::status());
    }
    Ok(())
}

fn check(cases: u32, inputs: &impl Strategy<Value = Vec<u8>>) {
    let runtime = runtime();
    TestRunner::new(fuzz::config(cases))
        .run(inputs, |input| is_answered_or_not(&runtime, &input))
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Requests that are nearly right: known and unknown words in all places.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let method = select(vec!["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "get", "PATCH", "CONNECT"]);
    let part = prop_oneof![
        8 => select(vec![
            "v1", "status", "groups", "-", "default", "workers", "0", "1", "2", "65535", "65536", "-1", "drain",
            "start", "weight", "policy", "restart", "scale", "reload", "upgrade", "metrics", "%2e%2e", "%ff", "",
        ])
        .prop_map(str::to_owned),
        1 => "[ -~]{0,8}",
    ];
    let path = prop_oneof![
        3 => vec(part, 0..7).prop_map(|parts| parts.join("/")),
        3 => select(vec![
            "v1/status", "v1/groups/-/policy", "v1/groups/default/workers/1/drain",
            "v1/groups/-/workers/0/weight", "v1/groups/-/workers/2/start", "v1/groups/-/restart",
            "v1/groups/-/scale", "v1/reload", "metrics",
        ])
        .prop_map(str::to_owned),
    ];
    let value = prop_oneof![
        select(vec![
            "0",
            "1",
            "-1",
            "256",
            "257",
            "1e400",
            "18446744073709551616",
            "null",
            "true",
            "[]",
            "{}",
            "\"flow\"",
            "\"hash\"",
            "\"least-loaded\"",
            "\"\\ud800\"",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,8}",
    ];
    let key = select(vec![
        "name",
        "hash_on",
        "weight",
        "workers",
        "worker",
        "parallel",
        "timeout_ms",
        "force",
        "stop",
        "dry_run",
        "x",
    ]);
    let body = prop_oneof![
        vec((key, value), 0..4).prop_map(|fields| {
            let fields: Vec<_> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            format!("{{{}}}", fields.join(",")).into_bytes()
        }),
        vec(any::<u8>(), 0..64),
        Just(b"[".repeat(2_000)),
    ];
    let header = select(vec![
        "Host: x",
        "Content-Type: application/json",
        "Content-Type: text/plain",
        "Transfer-Encoding: chunked",
        "Connection: close",
        "Expect: 100-continue",
        "Content-Length: 3",
        "Content-Length: -1",
        "Upgrade: h2c",
        ": x",
        "Accept: \u{0}",
    ]);
    let length = prop_oneof![4 => Just(None), 1 => any::<u8>().prop_map(|n| Some(usize::from(n)))];
    let request =
        (method, path, vec(header, 0..4), length, body).prop_map(|(method, path, headers, length, body)| {
            let length = length.unwrap_or(body.len());
            let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
            let head = format!("{method} /{path} HTTP/1.1\r\n{headers}Content-Length: {length}\r\n\r\n");
            [head.as_bytes(), &body].concat()
        });
    vec(request, 1..4).prop_map(|requests| requests.concat())
}

/// The same with some bytes exchanged.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    (requests(), vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

#[test]
fn any_bytes_are_answered_or_not() {
    check(256, &vec(any::<u8>(), 0..400));
}

#[test]
fn any_requests_are_answered_or_not() {
    check(512, &requests());
}

#[test]
fn any_damaged_requests_are_answered_or_not() {
    check(512, &damaged());
}

/// The test would not see a change otherwise.
#[test]
fn a_good_request_changes_the_state() {
    let runtime = runtime();
    let request =
        b"PUT /v1/groups/-/workers/0/weight HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Content-Length: 12\r\n\r\n{\"weight\":9}";
    let (output, status) = runtime.block_on(answer(request));
    assert_eq!(statuses(&output), [200]);
    assert_ne!(status, testing::status());
}
