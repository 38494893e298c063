//! A forward proxy that tunnels (`CONNECT`) and writes down where to.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::front::read_head;

/// See the module documentation. Dropping it ends it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    targets: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Proxy {
    /// Starts one.
    ///
    /// # Panics
    /// No port can be bound.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("a bound address").port();
        let targets = Arc::<Mutex<Vec<String>>>::default();
        let shared = Arc::clone(&targets);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let targets = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Either side may end a tunnel.
                    let _ = tunnel(stream, &targets).await;
                });
            }
        });
        Self { port, targets, serving }
    }

    /// As `HTTPS_PROXY` has it.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Hosts of all tunnels since the last call.
    ///
    /// # Panics
    /// A thread panicked while it held the list.
    pub fn targets(&self) -> Vec<String> {
        std::mem::take(&mut self.targets.lock().expect("the list"))
    }
}

async fn tunnel(mut stream: TcpStream, targets: &Mutex<Vec<String>>) -> Result<()> {
    let (head, _) = read_head(&mut stream).await?;
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.context("only CONNECT is served")?.to_owned();
    targets.lock().ok().context("a panic elsewhere")?.push(target.clone());
    let mut behind = TcpStream::connect(&target).await?;
    stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut stream, &mut behind).await?;
    Ok(())
}
