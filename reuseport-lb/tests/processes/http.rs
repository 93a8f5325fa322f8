//! A client that does exactly what it is told.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::namespace::BOUND;

/// One connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

/// What the built-in worker says of itself.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) worker: u16,
    pub(crate) pid: u32,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, BOUND).context("connect")?;
        stream.set_read_timeout(Some(BOUND))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn send(&mut self, path: &str) -> Result<()> {
        // In one segment: a second one could wait for the acknowledgement of the first.
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        Ok(self.stream.get_mut().write_all(request.as_bytes())?)
    }

    pub(crate) fn receive(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.stream.read_line(&mut line).context("no status line")?;
        let status = line.split(' ').nth(1).with_context(|| format!("status line {line:?}"))?.parse()?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None if line == "\r\n" => break,
                None => bail!("header {line:?}"),
            }
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let length: usize = answer.header("content-length").context("no content-length")?.parse()?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        answer.body = String::from_utf8(body)?;
        Ok(answer)
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer> {
        self.send(path)?;
        self.receive()
    }

    /// Says that there will be no more requests.
    pub(crate) fn half_close(&self) -> Result<()> {
        Ok(self.stream.get_ref().shutdown(std::net::Shutdown::Write)?)
    }

    /// Waits until the other side has closed. Fails if it sends something or resets.
    pub(crate) fn closed(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).context("not closed")?;
        if rest.is_empty() { Ok(()) } else { bail!("got {rest:?} instead of the end") }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn identity(&self) -> Result<Identity> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }
}

/// One request on a connection of its own.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    Client::connect(address)?.get(path)
}
