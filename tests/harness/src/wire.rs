//! A wire to a server that can be cut: what goes through it is passed on unread.
//!
//! In: an address. Out: another one on loopback. A cut ends every connection at once, as a router that starts anew does;
//! whoever connects after it gets through.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// See the module documentation. Dropping it cuts it for good.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// A wire to `server`.
    ///
    /// # Errors
    /// No port is free.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port for a wire")?;
        let address = listener.local_addr().context("the port of a wire")?;
        let cuts = watch::Sender::new(0);
        let ends = cuts.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, ends.subscribe()));
            }
        });
        Ok(Self { address, cuts, accepting })
    }

    /// Where to connect instead of to the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection. Returns how many there were.
    pub fn cut(&self) -> usize {
        let connections = self.cuts.receiver_count();
        self.cuts.send_modify(|cuts| *cuts += 1);
        connections
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut cut: watch::Receiver<u64>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    tokio::select! {
        // Whoever closes first ends the connection; there is nothing to tell about it.
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = cut.changed() => {}
    }
}
