//! Opening ports: both address families on one socket where the machine has them (PX-211).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Opens `port` on `address`. The unspecified IPv6 address takes IPv4 too, and stands for IPv4 alone where there is no
/// IPv6.
pub(crate) fn bind(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    match open(SocketAddr::new(address, port)) {
        Err(error)
            if address.is_ipv6() && address.is_unspecified() && error.kind() != io::ErrorKind::AddrInUse =>
        {
            open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
        }
        opened => opened,
    }
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip().is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Without it a restart would wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn the_unspecified_address_takes_both_families() {
        let listener = bind(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (connected, accepted) =
            tokio::join!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_so() {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let first = bind(address, 0).unwrap();
        let error = bind(address, first.local_addr().unwrap().port()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
