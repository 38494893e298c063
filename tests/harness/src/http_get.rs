//! A GET over plain HTTP/1.1, for health and metrics ports. Not a client: one request, one connection.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status and body. `HTTP/1.0` keeps the answer free of chunks.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.context("sending a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("reading an answer")?;
    parse(&String::from_utf8_lossy(&answer))
        .with_context(|| format!("{address}{path} does not answer in HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn status_and_body_are_taken_apart() {
        assert_eq!(parse("HTTP/1.1 503 Busy\r\nA: b\r\n\r\nno\r\n"), Some((503, "no\r\n".to_owned())));
        assert_eq!(parse("SSH-2.0"), None);
    }
}
