//! The server, asked as strangers ask.

use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    control::{DrainRequest, ErrorBody, client, routes::MAX_BODY_BYTES, testing::FakeDaemon},
    group::{WorkerId, WorkerState},
    policy::{Policy, PolicySpec},
};

/// Sends bytes as they are, and gives the answer's status and body.
async fn raw(socket: PathBuf, request: &[u8]) -> (u16, String) {
    let stream = UnixStream::connect(socket).await.expect("the server listens");
    let (mut from, mut to) = stream.into_split();
    // The server may answer, and close, before it has read everything.
    let sending = async {
        drop(to.write_all(request).await);
        to
    };
    let mut answer = Vec::new();
    let receiving = async {
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..length]);
        }
    };
    let both = async { tokio::join!(sending, receiving) };
    timeout(4 * READ_PATIENCE, both).await.expect("the server closes the connection");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {head:?}")), body.to_owned())
}

async fn request(daemon: &FakeDaemon, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    raw(daemon.socket(), &[head.as_bytes(), body].concat()).await
}

fn error_of(body: &str) -> String {
    let ErrorBody { error } = serde_json::from_str(body).unwrap_or_else(|e| panic!("{body:?}: {e}"));
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?} is not one line");
    error
}

#[tokio::test]
async fn each_request_reaches_the_daemon() {
    let daemon = FakeDaemon::start();
    let client = daemon.client();
    assert_eq!(client.status().await.expect("status").groups[0].workers.len(), 3);

    let random = PolicySpec::from(Policy::Random);
    assert_eq!(client.set_policy(None, random).await.expect("policy"), random);
    assert_eq!(client.status().await.expect("status").groups[0].policy, random);

    let drained = client.drain(Some("default"), WorkerId(1), DrainRequest::default()).await.expect("drain");
    assert_eq!(drained.state, WorkerState::Draining);
    let back = client.undrain(Some("default"), WorkerId(1)).await.expect("undrain");
    assert_eq!(back.state, WorkerState::Active);
    assert_eq!(client.set_weight(None, WorkerId(1), 256).await.expect("weight").weight, 256);
    client.shutdown().await.expect("shutdown");
}

#[tokio::test]
async fn curl_needs_no_content_type_and_drain_no_body() {
    let daemon = FakeDaemon::start();
    let (status, _) = request(&daemon, "PUT", "/v1/groups/-/workers/0/drain", b"").await;
    assert_eq!(status, 200);
    let (status, _) = request(&daemon, "PUT", "/v1/groups/-/policy", br#"{"name":"hash"}"#).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn what_makes_no_sense_gets_an_error_body() {
    let daemon = FakeDaemon::start();
    let policy = "/v1/groups/default/policy";
    let weight = "/v1/groups/default/workers/0/weight";
    let drain = "/v1/groups/default/workers/0/drain";
    let (restart, scale) = ("/v1/groups/default/restart", "/v1/groups/default/scale");
    let cases: &[(&str, &str, &[u8], u16)] = &[
        ("GET", "/", b"", 404),
        ("GET", "/v2/status", b"", 404),
        ("POST", "/v1/status", b"", 405),
        ("GET", "/v1/shutdown", b"", 405),
        ("GET", "/v1/reload", b"", 405),
        ("POST", "/v1/reload", br#"{"dry_run":1}"#, 400),
        ("POST", "/v1/reload", br#"{"now":true}"#, 400),
        ("PUT", policy, b"", 400),
        ("PUT", policy, b"{", 400),
        ("PUT", policy, b"[]", 400),
        ("PUT", policy, b"\xff\xfe", 400),
        ("PUT", policy, br#"{"name":"fastest"}"#, 400),
        ("PUT", policy, br#"{"name":"random","hash_on":"source"}"#, 400),
        ("PUT", policy, br#"{"name":"hash","hash_on":"source/33"}"#, 400),
        ("PUT", policy, br#"{"name":"hash","balance_factor":1.25}"#, 400),
        ("PUT", policy, br#"{"name":"consistent-hash","balance_factor":0.5}"#, 400),
        ("PUT", policy, br#"{"name":"consistent-hash","balance_factor":"1.25"}"#, 400),
        ("PUT", policy, br#"{"name":"consistent-hash","balance":1.25}"#, 400),
        ("PUT", weight, br#"{"weight":0}"#, 400),
        ("PUT", weight, br#"{"weight":257}"#, 400),
        ("PUT", weight, br#"{"weight":70000}"#, 400),
        ("PUT", weight, br#"{"weight":-1}"#, 400),
        ("PUT", weight, br#"{"weight":1,"wait":true}"#, 400),
        ("PUT", drain, br#"{"stop":1}"#, 400),
        ("PUT", drain, br#"{"timeout_ms":18446744073709551615}"#, 400),
        ("POST", restart, br#"{"worker":"all"}"#, 400),
        ("POST", restart, br#"{"parallel":0}"#, 400),
        ("POST", restart, br#"{"parallel":-1}"#, 400),
        ("POST", restart, br#"{"workers":[1]}"#, 400),
        ("POST", restart, br#"{"worker":7}"#, 404),
        ("POST", restart, br#"{"timeout_ms":18446744073709551615}"#, 400),
        ("GET", restart, b"", 405),
        ("PUT", scale, b"", 400),
        ("PUT", scale, br#"{"workers":0}"#, 400),
        ("PUT", scale, br#"{"workers":1025}"#, 400),
        ("PUT", scale, br#"{"workers":65536}"#, 400),
        ("PUT", scale, br#"{"workers":2,"timeout_ms":18446744073709551615}"#, 400),
        ("PUT", "/v1/groups/default/workers/0/start", b"", 409),
        ("PUT", "/v1/groups/default/workers/two/drain", b"", 404),
        ("PUT", "/v1/groups/default/workers/-1/drain", b"", 404),
        ("PUT", "/v1/groups/default/workers/70000/drain", b"", 404),
        ("PUT", "/v1/groups/default/workers/7/drain", b"", 404),
        ("PUT", "/v1/groups/%ff/workers/0/drain", b"", 400),
        ("PUT", "/v1/groups/other/workers/0/drain", b"", 404),
        ("PUT", policy, &[b' '; MAX_BODY_BYTES + 1], 413),
        ("PUT", policy, &[b'['; MAX_BODY_BYTES], 400),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = request(&daemon, method, path, body).await;
        assert_eq!(status, *expected, "{method} {path} {:?}: {answer}", String::from_utf8_lossy(body));
        error_of(&answer);
    }
    daemon.client().status().await.expect("the daemon lives on");
}

#[tokio::test]
async fn what_the_daemon_refuses_is_told_in_its_words() {
    let daemon = FakeDaemon::start();
    let client = daemon.client();
    client.drain(None, WorkerId(0), DrainRequest::default()).await.expect("worker 1 is left");
    let refused = client.drain(None, WorkerId(1), DrainRequest::default()).await.expect_err("the last one");
    let client::Error::Refused { status: 409, message } = refused else { panic!("{refused:?}") };
    assert_eq!(message, "worker 1 is the last one; --force drains it");
}

#[tokio::test]
async fn huge_and_broken_requests_do_no_harm() {
    let daemon = FakeDaemon::start();
    let huge = vec![b'x'; 8 * 1024 * 1024];
    let (status, answer) = request(&daemon, "PUT", "/v1/groups/-/policy", &huge).await;
    assert_eq!(status, 413);
    error_of(&answer);

    let chunked = [
        b"PUT /v1/groups/-/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        b"10000\r\n".as_slice(),
        &[b' '; 0x10000],
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    assert_eq!(raw(daemon.socket(), &chunked).await.0, 413);

    let long_head = [b"GET /v1/status HTTP/1.1\r\nx: ".as_slice(), &huge[..100_000]].concat();
    assert_eq!(raw(daemon.socket(), &long_head).await.0, 431);
    assert_eq!(raw(daemon.socket(), b"\x16\x03\x01\x02\x00hello\r\n\r\n").await.0, 400);
    daemon.client().status().await.expect("the daemon lives on");
}

#[tokio::test(start_paused = true)]
async fn idle_connections_make_room_for_others() {
    let daemon = FakeDaemon::start();
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = UnixStream::connect(daemon.socket()).await.expect("there is room");
        stream.write_all(b"GET /v1/sta").await.expect("the server reads");
        idle.push(stream);
    }
    daemon.client().status().await.expect("the idle ones are cut before the client loses patience");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_given_up() {
    let daemon = FakeDaemon::start();
    let head =
        b"PUT /v1/groups/-/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{";
    assert_eq!(raw(daemon.socket(), head).await.0, 408);
}

#[tokio::test]
async fn the_socket_goes_when_the_server_ends() {
    let mut daemon = FakeDaemon::start();
    let socket = daemon.socket();
    let _idle = UnixStream::connect(&socket).await.expect("the server listens");
    daemon.client().status().await.expect("the server answers");
    timeout(Duration::from_secs(5), daemon.stop()).await.expect("the idle connection holds nothing up");
    assert!(!socket.exists());
}
