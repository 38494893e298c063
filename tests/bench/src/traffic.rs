//! What a process sends, and on how many connections: the kernel counts bytes for each connection, `ss` shows them.

use std::process::Command;

/// The open TCP connections of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub connections: u32,
    /// Bytes sent on them so far, with TLS and HTTP framing.
    pub bytes_sent: u64,
}

/// What a process has open and sent. `None` where `ss` (package iproute2) is missing.
pub fn traffic(process: u32) -> Option<Traffic> {
    let output = Command::new("ss").args(["--tcp", "--info", "--processes", "--no-header"]).output().ok()?;
    Some(sum(&String::from_utf8_lossy(&output.stdout), process))
}

/// A connection is a line about its ends and owner and, below it, an indented one with its counters.
fn sum(text: &str, process: u32) -> Traffic {
    let owner = format!("pid={process},");
    let mut ours = false;
    let mut total = Traffic { connections: 0, bytes_sent: 0 };
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) {
            ours = line.contains(&owner);
            total.connections += u32::from(ours);
        } else if ours {
            let sent = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_sent:"));
            total.bytes_sent += sent.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_of_the_process_count() {
        let text = "ESTAB 0 0 127.0.0.1:1 127.0.0.1:2 users:((\"a\",pid=12,fd=9))\n\t cubic bytes_sent:100 bytes_acked:100\n\
                    ESTAB 0 0 127.0.0.1:3 127.0.0.1:4 users:((\"b\",pid=123,fd=9))\n\t cubic bytes_sent:7\n\
                    ESTAB 0 0 127.0.0.1:5 127.0.0.1:6 users:((\"a\",pid=12,fd=10))\n\t cubic bytes_sent:5 x:1\n";
        let traffic = |connections, bytes_sent| Traffic { connections, bytes_sent };
        assert_eq!(sum(text, 12), traffic(2, 105));
        assert_eq!(sum(text, 123), traffic(1, 7));
        assert_eq!(sum(text, 1), traffic(0, 0));
    }
}
