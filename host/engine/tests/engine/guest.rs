//! Modules made from `tests/policies/hostile/guest.wat` by replacing marked parts.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use sha2::Digest as _;

/// A module under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guest {
    parts: Vec<(String, String)>,
}

/// The plain, well-behaved one.
pub(crate) fn guest() -> Guest {
    Guest::default()
}

impl Guest {
    /// Puts `code` at `;;MARK`, whatever stands on that line.
    pub(crate) fn with(mut self, mark: &str, code: &str) -> Self {
        self.parts.push((format!(";;{mark}"), code.to_owned()));
        self
    }

    /// Caps cpu of every row.
    pub(crate) fn cap(self, cpu: i64) -> Self {
        self.with("LEASE", &format!("(call $cap_all (local.get $args) (i64.const {cpu}))"))
    }

    /// The core module without the section that names its world.
    pub(crate) fn core(&self) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policies/hostile/guest.wat");
        let mut text = std::fs::read_to_string(path).unwrap();
        for (mark, code) in &self.parts {
            assert!(text.contains(mark.as_str()), "there is no {mark}");
            text = text
                .lines()
                .map(|line| match line.split_once(mark.as_str()) {
                    Some((before, _)) if mark == ";;MEMORY" => {
                        format!("{}\n", before.split('(').next().unwrap_or("")) + code
                    }
                    Some((before, _)) => format!("{before}{code}"),
                    None => line.to_owned(),
                })
                .collect::<Vec<_>>()
                .join("\n");
        }
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// The core module as an author's toolchain makes it.
    pub(crate) fn bytes(&self) -> Arc<[u8]> {
        let mut module = self.core();
        let (resolve, world) = world();
        wit_component::embed_component_metadata(
            &mut module,
            resolve,
            *world,
            wit_component::StringEncoding::UTF8,
        )
        .unwrap();
        module.into()
    }
}

fn world() -> &'static (wit_parser::Resolve, wit_parser::WorldId) {
    static WORLD: OnceLock<(wit_parser::Resolve, wit_parser::WorldId)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let mut resolve = wit_parser::Resolve::default();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policy-sdk/wit");
        let (package, _) = resolve.push_path(path).unwrap();
        let world = resolve.select_world(&[package], Some("lease-policy")).unwrap();
        (resolve, world)
    })
}

/// `sha256:<hex>` of a module.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
