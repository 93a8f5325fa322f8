//! One HTTP/1.1 request and its response, over any stream, and nothing hidden in between.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest response head that is taken.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Writes a request without a body.
pub async fn send_get<S: AsyncWrite + Unpin>(stream: &mut S, path: &str, close: bool) -> io::Result<()> {
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes()).await
}

/// Writes a request for text of a certain type, after which the server closes.
pub async fn send_get_accepting<S: AsyncWrite + Unpin>(
    stream: &mut S,
    path: &str,
    accept: &str,
) -> io::Result<()> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAccept: {accept}\r\n\r\n");
    stream.write_all(head.as_bytes()).await
}

/// Writes a request with a JSON body, after which the server closes.
pub async fn send_json<S: AsyncWrite + Unpin>(
    stream: &mut S,
    method: &str,
    path: &str,
    body: &[u8],
) -> io::Result<()> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}

/// Reads one response.
///
/// # Errors
/// `UnexpectedEof` when the stream ends early, `InvalidData` when it is not HTTP, and what the stream says.
pub async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Response> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            let got = bytes.len();
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("end of stream after {got} bytes of a response"),
            ));
        }
        if let Some((mut response, head_bytes)) = parse_head(&bytes)? {
            response.body = bytes.split_off(head_bytes);
            read_body(stream, &mut response).await?;
            return Ok(response);
        }
        if bytes.len() > MAX_HEAD_BYTES {
            return Err(invalid("a response head without an end"));
        }
    }
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<(Response, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = head.parse(bytes).map_err(invalid)? else {
        return Ok(None);
    };
    let headers = head
        .headers
        .iter()
        .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()))
        .collect();
    let status = head.code.ok_or_else(|| invalid("a response without a status"))?;
    Ok(Some((Response { status, headers, body: Vec::new() }, head_bytes)))
}

async fn read_body<S: AsyncRead + Unpin>(stream: &mut S, response: &mut Response) -> io::Result<()> {
    let Some(length) = response.header("content-length") else {
        stream.read_to_end(&mut response.body).await?;
        return Ok(());
    };
    let length: usize = length.parse().map_err(invalid)?;
    let missing =
        length.checked_sub(response.body.len()).ok_or_else(|| invalid("more body than announced"))?;
    let have = response.body.len();
    response.body.resize(have + missing, 0);
    stream.read_exact(&mut response.body[have..]).await?;
    Ok(())
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
