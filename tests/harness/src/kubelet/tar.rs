//! A tar archive (ustar) in memory: folders, files and symbolic links with short names, owned by root, without times, so
//! that the same content has the same digest.

/// What a path of the archive is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry<'a> {
    Folder { mode: u32 },
    File { mode: u32, content: &'a [u8] },
    Link { target: &'a str },
}

/// An archive that grows.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
}

/// Headers and contents fill blocks of this size.
const BLOCK_BYTES: usize = 512;

impl Archive {
    /// Appends an entry. Paths and targets are shorter than 100 bytes.
    #[must_use]
    pub(super) fn with(mut self, path: &str, entry: Entry<'_>) -> Self {
        let (kind, mode, content, target) = match entry {
            Entry::Folder { mode } => (b'5', mode, b"".as_slice(), ""),
            Entry::File { mode, content } => (b'0', mode, content, ""),
            Entry::Link { target } => (b'2', 0o777, b"".as_slice(), target),
        };
        self.bytes.extend_from_slice(&header(path, kind, mode, content.len(), target));
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self
    }

    /// The archive, closed by two empty blocks.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }
}

fn header(path: &str, kind: u8, mode: u32, size_bytes: usize, target: &str) -> [u8; BLOCK_BYTES] {
    debug_assert!(path.len() < 100 && target.len() < 100);
    let mut header = [0; BLOCK_BYTES];
    let mut put = |offset: usize, text: &str| {
        header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size_bytes:011o}"));
    put(136, "00000000000");
    // The checksum is that of a header whose checksum is eight spaces.
    put(148, "        ");
    put(157, target);
    put(257, "ustar\x0000");
    header[156] = kind;
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_reads_the_archive() {
        let archive = Archive::default()
            .with("bin/", Entry::Folder { mode: 0o755 })
            .with("bin/tool", Entry::File { mode: 0o755, content: &[b'x'; 600] })
            .with("bin/sh", Entry::Link { target: "tool" })
            .finish();
        assert_eq!(archive.len(), (1 + 1 + 2 + 1 + 2) * BLOCK_BYTES);
        let path = std::env::temp_dir().join(format!("kubeocean-test-{}.tar", std::process::id()));
        std::fs::write(&path, archive).unwrap();
        let list = Command::new("tar").arg("-tvf").arg(&path).stderr(Stdio::inherit()).output().unwrap();
        std::fs::remove_file(&path).unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let seen: Vec<(&str, &str)> = list
            .lines()
            .filter_map(|line| Some((line.split_whitespace().next()?, line.split_once(" 1970-01-01 ")?.1)))
            .map(|(mode, rest)| (mode, rest.split_once(' ').map_or(rest, |(_time, path)| path)))
            .collect();
        assert_eq!(
            seen,
            [("drwxr-xr-x", "bin/"), ("-rwxr-xr-x", "bin/tool"), ("lrwxrwxrwx", "bin/sh -> tool")]
        );
    }
}
