//! Free ports. A port is free when it was chosen and may be taken a moment later, so whoever starts a server on one
//! starts it again on another when the server says that its address is in use.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use anyhow::{Context, Result};

/// `N` ports on `address` that differ from each other.
pub(crate) fn free_on<const N: usize>(address: IpAddr) -> Result<[u16; N]> {
    let mut ports = [0; N];
    // All listeners stay open until the last port is known: else the kernel could offer one twice.
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener =
            TcpListener::bind((address, 0)).with_context(|| format!("binding a port on {address}"))?;
        *port = listener.local_addr().context("reading a bound address")?.port();
        held.push(listener);
    }
    Ok(ports)
}

/// As [`free_on`], on 127.0.0.1.
pub(crate) fn free<const N: usize>() -> Result<[u16; N]> {
    free_on(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// Whether a log says that a server lost the race for its port.
pub(crate) fn lost(log: &str) -> bool {
    log.contains("address already in use") || log.contains("Address already in use")
}
