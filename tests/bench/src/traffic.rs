//! What a process sends: the kernel counts bytes for each connection, `ss` shows them.

use std::process::Command;

/// Bytes that the TCP connections of a process have sent so far, with TLS and HTTP framing. `None` where `ss` (package
/// iproute2) is missing.
pub fn bytes_sent(process: u32) -> Option<u64> {
    let output = Command::new("ss").args(["--tcp", "--info", "--processes", "--no-header"]).output().ok()?;
    Some(sum(&String::from_utf8_lossy(&output.stdout), process))
}

/// A connection is a line about its ends and owner and, below it, an indented one with its counters.
fn sum(text: &str, process: u32) -> u64 {
    let owner = format!("pid={process},");
    let mut ours = false;
    let mut total = 0;
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) {
            ours = line.contains(&owner);
        } else if ours {
            let sent = line.split_whitespace().find_map(|word| word.strip_prefix("bytes_sent:"));
            total += sent.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_default();
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
        assert_eq!((sum(text, 12), sum(text, 123), sum(text, 1)), (105, 7, 0));
    }
}
