//! Reads the rules of trust from the folder that the Syncer's configuration names (`--policy-trust-dir`).

use std::{io::Read as _, path::Path};

use crate::trust::{Trust, TrustError};

/// Most bytes of one file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The rules in `<folder>/trust.yaml` with the keys beside it. A folder mounted from a Secret is full of links, so links
/// are followed; who may write there is trusted.
pub fn read_trust(folder: &Path) -> Result<Trust, TrustError> {
    let read = |name: &str| -> Result<Vec<u8>, String> {
        let file = std::fs::File::open(folder.join(name)).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            Err(format!("more than {MAX_FILE_BYTES} bytes"))
        } else {
            Ok(bytes)
        }
    };
    let unreadable = |message| TrustError::Unreadable { name: "trust.yaml".to_owned(), message };
    let yaml = read("trust.yaml").map_err(unreadable)?;
    let yaml = String::from_utf8(yaml).map_err(|error| TrustError::Malformed(error.to_string()))?;
    Trust::parse(&yaml, read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Algorithm, SigningKey};

    #[test]
    fn rules_and_keys_are_read_from_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read_trust(folder.path()), Err(TrustError::Unreadable { .. })));
        let key = SigningKey::generate(Algorithm::P256).unwrap().0.public();
        std::fs::write(folder.path().join("release.pem"), key.to_pem()).unwrap();
        let yaml = "rules:\n- prefix: r.example/policies\n  keys: [release.pem]\n";
        std::fs::write(folder.path().join("trust.yaml"), yaml).unwrap();
        let trust = read_trust(folder.path()).unwrap();
        let rule = trust.rule(&"r.example/policies/p".parse().unwrap()).unwrap().clone();
        assert_eq!((rule.keys, rule.required), (vec![("release.pem".to_owned(), key)], true));
    }
}
