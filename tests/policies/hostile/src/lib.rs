//! Policy modules that want to do harm, each in exactly one way.
//!
//! All are made from `guest.wat` and `place.wat`, a complete and well-behaved lease and place policy in WebAssembly text,
//! by replacing marked parts; `lease_exports.wat` is what the second one needs to lease as well. Callers: the tests of the engine, and those on real clusters.

use std::sync::{Arc, OnceLock};

use sha2::Digest as _;

const SOURCE: &str = include_str!("guest.wat");
const PLACE: &str = include_str!("place.wat");
const WIT: &str = include_str!("../../../../policy-sdk/wit/policy.wit");
/// The version in all of them.
const SDK_VERSION: &str = "@1.0.0";
const LEASE_IMPORTS: &str = r#"(import "[export]kubeocean:policy/lease@1.0.0" "[resource-new]lease-evaluator"
    (func $lease_resource_new (param i32) (result i32)))"#;
const LEASE_EXPORTS: &str = include_str!("lease_exports.wat");

/// A module under construction.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Letter of a place policy; a lease policy has none.
    place: Option<char>,
    /// A place policy that leases as well.
    leases: bool,
    /// Version of the interface it is made for; `None` is the one of the SDK.
    version: Option<String>,
    /// Text of that interface; `None` is the one of the SDK.
    interface: Option<String>,
    parts: Vec<(String, String)>,
}

/// The plain, well-behaved one: it offers every node, without caps, and reads the fact `node.created`.
pub fn guest() -> Guest {
    Guest::default()
}

/// A place policy that does what its candidates say by the extended resources `<letter>.test/fit` and
/// `<letter>.test/score`; `place.wat` tells their values.
pub fn place_guest(letter: char) -> Guest {
    Guest { place: Some(letter), ..Guest::default() }
}

impl Guest {
    /// Puts `code` at `;;MARK`, whatever stands on that line.
    #[must_use]
    pub fn with(mut self, mark: &str, code: &str) -> Self {
        self.parts.push((format!(";;{mark}"), code.to_owned()));
        self
    }

    /// Caps cpu of every row.
    #[must_use]
    pub fn cap(self, cpu: i64) -> Self {
        self.with("LEASE", &format!("(call $cap_all (local.get $args) (i64.const {cpu}))"))
    }

    /// Of a place policy: it also offers every node.
    #[must_use]
    pub fn leasing(self) -> Self {
        let this = self.with("LEASE_IMPORTS", LEASE_IMPORTS).with("LEASE_EXPORTS", LEASE_EXPORTS);
        Self { leases: true, ..this }
    }

    /// Makes it for another version of the interface, which says nothing new about what it uses.
    #[must_use]
    pub fn of_version(self, version: &str) -> Self {
        let interface = Some(WIT.replace(SDK_VERSION, &format!("@{version}")));
        Self { version: Some(version.to_owned()), interface, ..self }
    }

    /// Makes it for an interface that says `to` where the SDK's says `from`. Its code stays the same.
    ///
    /// # Panics
    /// The SDK's does not say so.
    #[must_use]
    pub fn of_shape(self, from: &str, to: &str) -> Self {
        assert!(WIT.contains(from), "the interface does not say {from}");
        Self { interface: Some(WIT.replace(from, to)), ..self }
    }

    /// The core module without the section that names its world.
    ///
    /// # Panics
    /// There is no such mark, or the text is no WebAssembly.
    pub fn core(&self) -> Vec<u8> {
        let mut text = match self.place {
            Some(letter) => PLACE.replace("?.test", &format!("{letter}.test")),
            None => SOURCE.to_owned(),
        };
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
        if let Some(version) = &self.version {
            text = text.replace(SDK_VERSION, &format!("@{version}"));
        }
        wat::parse_str(&text).unwrap_or_else(|error| {
            #[expect(clippy::panic, reason = "a module that cannot be made is a wrong test")]
            {
                panic!("{error}\n{text}")
            }
        })
    }

    /// The core module as an author's toolchain makes it.
    ///
    /// # Panics
    /// As [`Self::core`].
    pub fn bytes(&self) -> Arc<[u8]> {
        let mut module = self.core();
        let other = self.interface.as_deref().map(worlds_of);
        let (resolve, worlds) = other.as_ref().unwrap_or_else(|| sdk_worlds());
        let world = match (self.place, self.leases) {
            (None, _) => &worlds.lease,
            (Some(_), false) => &worlds.place,
            (Some(_), true) => &worlds.both,
        };
        let encoding = wit_component::StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut module, resolve, *world, encoding)
            .expect("the world fits the module");
        module.into()
    }
}

/// The worlds of policies by what they decide.
struct Worlds {
    lease: wit_parser::WorldId,
    place: wit_parser::WorldId,
    both: wit_parser::WorldId,
}

fn sdk_worlds() -> &'static (wit_parser::Resolve, Worlds) {
    static WORLDS: OnceLock<(wit_parser::Resolve, Worlds)> = OnceLock::new();
    WORLDS.get_or_init(|| worlds_of(WIT))
}

fn worlds_of(interface: &str) -> (wit_parser::Resolve, Worlds) {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("policy.wit", interface).expect("the interface parses");
    let world = |name| resolve.select_world(&[package], Some(name)).expect("the world is there");
    let worlds = Worlds { lease: world("lease-policy"), place: world("place-policy"), both: world("policy") };
    (resolve, worlds)
}

/// `sha256:<hex>` of a module, as a policy pins it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
