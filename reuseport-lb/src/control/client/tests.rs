use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn no_daemon_is_told_from_other_trouble() {
    let folder = folder();
    let path = folder.path().join("control.sock");
    let missing = Client::new(&path).status().await.expect_err("no socket");
    assert!(matches!(missing, Error::NoDaemon { .. }), "{missing:?}");
    assert_eq!(
        missing.to_string(),
        format!(
            "no daemon is running at {}; start one with `sudo reuseport-lb`, or name its socket with --control",
            path.display()
        )
    );

    drop(UnixListener::bind(&path).expect("a socket"));
    let stale = Client::new(&path).status().await.expect_err("nobody listens");
    assert!(matches!(stale, Error::NoDaemon { .. }), "{stale:?}");

    let below_a_socket = Client::new(path.join("x")).status().await.expect_err("no folder");
    assert!(matches!(below_a_socket, Error::NoDaemon { .. }), "{below_a_socket:?}");
}

#[test]
fn not_permitted_says_who_is() {
    let error = Client::new("/x").not_connected(io::ErrorKind::PermissionDenied.into());
    assert_eq!(error.to_string(), "not permitted to use /x; run as root (sudo)");
}

/// What the client makes of a server that answers with `answer`, whatever it is asked.
async fn told(answer: &'static [u8]) -> Error {
    let folder = folder();
    let path = folder.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut request = [0; 1024];
            assert_ne!(stream.read(&mut request).await.expect("the client writes"), 0);
            stream.write_all(answer).await.expect("the client reads");
        }
    });
    let error = Client::new(&path).status().await.expect_err("no proper answer");
    server.abort();
    error
}

#[tokio::test]
async fn strange_answers_are_errors() {
    let cut = told(b"").await;
    assert!(matches!(cut, Error::Broken { .. }), "{cut:?}");
    let other_protocol = told(b"220 mail ESMTP\r\n\r\n").await;
    assert!(matches!(other_protocol, Error::Broken { .. }), "{other_protocol:?}");
    let other_version = told(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    assert!(matches!(other_version, Error::NotUnderstood { .. }), "{other_version:?}");
    let bare = told(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno").await;
    let Error::Refused { status: 502, message } = bare else { panic!("{bare:?}") };
    assert_eq!(message, "the daemon answered 502 Bad Gateway");
}

/// The daemon that has not read a request is asked again; the one that has may have done what it says.
#[tokio::test]
async fn a_request_is_made_again_only_if_it_was_not_read() {
    let folder = folder();
    let path = folder.path().join("control.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let client = Client::new(&path);
    let accept = async || listener.accept().await.expect("the client connects").0;

    let server = async {
        accept().await.readable().await.expect("the client writes");
        drop(accept().await);
    };
    let (asked, ()) = tokio::join!(client.shutdown(), server);
    // Once more, and not again and again.
    assert!(matches!(asked, Err(Error::Broken { .. })), "{asked:?}");

    let server = async {
        accept().await.readable().await.expect("the client writes");
        let mut stream = accept().await;
        let mut request = [0; 1024];
        assert_ne!(stream.read(&mut request).await.expect("the client writes"), 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("the client reads");
    };
    let (asked, ()) = tokio::join!(client.shutdown(), server);
    asked.expect("the second answer");

    let server = async {
        let mut request = [0; 1024];
        assert_ne!(accept().await.read(&mut request).await.expect("the client writes"), 0);
    };
    let (asked, ()) = tokio::join!(client.shutdown(), server);
    assert!(matches!(asked, Err(Error::Broken { .. })), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_daemon_is_not_waited_for_for_ever() {
    let folder = folder();
    let path = folder.path().join("control.sock");
    let _listener = UnixListener::bind(&path).expect("a socket");
    let error = Client::new(&path).status().await.expect_err("nobody answers");
    assert!(matches!(error, Error::Silent { .. }), "{error:?}");
}
