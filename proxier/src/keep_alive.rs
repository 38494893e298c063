//! Options of every connection that may live long (PX-816).
//!
//! Dead peers are found by probes on a silent connection. There is no limit on how long sent bytes may stay unread
//! (`TCP_USER_TIMEOUT`): the system counts the time of a living peer that reads nothing as well, and a reader may pause as
//! long as it likes.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// When a silent peer is asked whether it still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probes {
    /// Silence before the first one.
    after: Duration,
    /// From one to the next.
    every: Duration,
    /// Unanswered ones that end a connection.
    count: u32,
}

/// A dead peer is found within a minute.
const PROBES: Probes = Probes { after: Duration::from_secs(30), every: Duration::from_secs(10), count: 3 };

/// Prepares a connection for a long life.
pub(crate) fn tune(tcp: &TcpStream) -> io::Result<()> {
    tune_with(tcp, PROBES)
}

fn tune_with(tcp: &TcpStream, probes: Probes) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keep_alive =
        TcpKeepalive::new().with_time(probes.after).with_interval(probes.every).with_retries(probes.count);
    SockRef::from(tcp).set_tcp_keepalive(&keep_alive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::tunnel::{End, TunnelLimits, tunnel};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::Instant,
    };

    /// The shortest the system takes: a peer that answers nothing is given up after two seconds.
    const SHORT: Probes = Probes { after: Duration::from_secs(1), every: Duration::from_secs(1), count: 1 };

    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn only_silence_is_asked_about() {
        let (near, _far) = connection().await;
        tune(&near).unwrap();
        let socket = SockRef::from(&near);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        #[cfg(target_os = "linux")]
        {
            let probes = Probes {
                after: socket.tcp_keepalive_time().unwrap(),
                every: socket.tcp_keepalive_interval().unwrap(),
                count: socket.tcp_keepalive_retries().unwrap(),
            };
            assert_eq!(probes, PROBES);
            assert_eq!(socket.tcp_user_timeout().unwrap(), None, "a reader may pause");
        }
    }

    #[tokio::test]
    async fn a_reader_that_pauses_longer_than_the_probes_take_misses_nothing() {
        const SENT: usize = 16 * 1024 * 1024;
        let ((mut reader, near), (far, mut writer)) = (connection().await, connection().await);
        for side in [&near, &far] {
            tune_with(side, SHORT).unwrap();
        }
        let limits = TunnelLimits { idle: None, linger: Duration::from_secs(30) };
        let running = tokio::spawn(tunnel(near, far, limits, std::future::pending()));
        let writing = tokio::spawn(async move {
            writer.write_all(&vec![7; SENT]).await.unwrap();
            writer.shutdown().await.unwrap();
            Instant::now()
        });
        // The passing of time is what is tested: more than the probes would take, and more than a user timeout of theirs.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let resumed = Instant::now();
        assert!(!running.is_finished(), "the stream lives while nobody reads");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes.len() == SENT && bytes.iter().all(|byte| *byte == 7), "{} bytes", bytes.len());
        assert!(writing.await.unwrap() > resumed, "the pause was felt by the writer");
        reader.shutdown().await.unwrap();
        assert_eq!(running.await.unwrap().end, End::Finished);
    }
}
