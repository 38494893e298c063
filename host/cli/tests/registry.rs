//! `kubeocean policy push | pull | sign | verify | keygen` against a real registry, as a person uses them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a step that fails is a failed test")]

mod binary;

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use binary::{drawn, seen_on_a_terminal};
use kubeocean_engine::builtin;
use kubeocean_harness::registry::{PASSWORD, Proxy, Registry, Tls, docker_config};
use kubeocean_hostile_policies::guest;
use kubeocean_registry::{Client, ClientConfig, DockerConfig, Labels, package};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Person {
    registry: Registry,
    home: TempDir,
}

impl Person {
    async fn start() -> Option<Self> {
        let registry = Registry::start(Tls::On).await?;
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".docker")).unwrap();
        let config = docker_config(&[&registry.host()], PASSWORD).to_string();
        std::fs::write(home.path().join(".docker/config.json"), config).unwrap();
        Some(Self { registry, home })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn image(&self, name: &str) -> String {
        format!("{}/policies/{name}", self.registry.host())
    }

    /// Exit code, standard output and standard error of a command in the home folder.
    fn said_with(&self, variables: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kubeocean"))
            .arg("policy")
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .envs(variables.iter().copied())
            .current_dir(self.home.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// The same, with the registry's authority.
    fn said(&self, args: &[&str]) -> (i32, String, String) {
        let authority = self.registry.authority();
        self.said_with(&[], &[args, &["--registry-ca", authority.to_str().unwrap()]].concat())
    }

    /// It succeeds; what it says in JSON.
    fn does(&self, args: &[&str]) -> Value {
        let (code, out, error) = self.said(&[args, &["-o", "json"]].concat());
        assert_eq!(code, 0, "{args:?}: {error}");
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_goes_to_a_registry_and_comes_back() {
    let Some(person) = Person::start().await else { return };
    let image = person.image("half:1");
    let pushed = person.does(&["push", "builtin:cpu-percentage", &image]);
    assert_eq!(person.does(&["push", "builtin:cpu-percentage", &image]), pushed, "the same each time");
    let (code, text, _) = person.said(&["push", "builtin:cpu-percentage", &image, "--revision", "abc"]);
    assert_eq!(code, 0);
    assert!(
        text.contains(&format!("oci: {{image: \"{image}\"}}")) && text.contains("digest: sha256:"),
        "{text}"
    );

    let digest = pushed["digest"].as_str().unwrap();
    let pulled = person.does(&["pull", &image, "--digest", digest]);
    assert_eq!((&pulled["digest"], &pulled["file"]), (&pushed["digest"], &"cpu-percentage.wasm".into()));
    let bytes = std::fs::read(person.path("cpu-percentage.wasm")).unwrap();
    assert_eq!(kubeocean_engine::module_digest(&bytes), digest);
    assert_ne!(pulled["manifestDigest"], pushed["manifestDigest"], "the revision is part of the manifest");
    let address = format!("oci://{image}");
    assert_eq!(person.does(&["inspect", &address])["digest"], pushed["digest"]);
    let limits = r#"{"limits": [{"resource": "cpu", "percent": 50}]}"#;
    person.does(&["check", &address, "--settings", limits]);

    let other = format!("sha256:{}", "0".repeat(64));
    let (code, _, error) = person.said(&["pull", &image, "--digest", &other]);
    assert!(code == 2 && error.contains("DigestMismatch") && error.contains(digest), "{code}: {error}");
    let (code, _, error) = person.said(&["pull", &person.image("none:1")]);
    assert!(code == 2 && error.contains("ModuleNotFound"), "{code}: {error}");
    let (code, _, error) = person.said_with(
        &[("DOCKER_CONFIG", "/nowhere")],
        &["pull", &image, "--registry-ca", person.registry.authority().to_str().unwrap()],
    );
    assert!(code == 2 && error.contains("FetchForbidden"), "{code}: {error}");
    assert!(error.contains("there is no /nowhere/config.json; give --registry-config"), "{error}");
    let helped = json!({"auths": {person.registry.host(): {}}, "credsStore": "desktop"});
    std::fs::write(person.path("helped.json"), helped.to_string()).unwrap();
    for args in [&["pull", &image, "spare.wasm"][..], &["push", "builtin:cpu-percentage", &image]] {
        let (code, _, error) = person.said(&[args, &["--registry-config", "helped.json"]].concat());
        assert!(code == 2 && error.contains("FetchForbidden"), "{code}: {error}");
        let leaves = format!("helped.json leaves {} to the credential helper", person.registry.host());
        assert!(error.contains(&leaves) && error.contains("give --registry-config"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_of_more_than_a_mebibyte_shows_how_far_it_is() {
    let Some(person) = Person::start().await else { return };
    let ballast = format!("(data (i32.const 70000) \"{}\")", "x".repeat(1 << 20));
    let large = guest().with("MEMORY", "(memory (export \"memory\") 32)").with("START", &ballast).bytes();
    std::fs::write(person.path("large.wasm"), large).unwrap();
    let path = |name: &str| person.path(name).to_str().unwrap().to_owned();
    let (file, back, config) = (path("large.wasm"), path("back.wasm"), path(".docker/config.json"));
    let authority = person.registry.authority();
    let login = ["--registry-ca", authority.to_str().unwrap(), "--registry-config", &config];
    let (large, small) = (person.image("large:1"), person.image("small:1"));
    for (args, verb) in
        [(["policy", "push", &file, &large], "pushing"), (["policy", "pull", &large, &back], "pulling")]
    {
        let seen = seen_on_a_terminal(&[&args[..], &login].concat());
        assert!(drawn(&seen, verb, '/').len() > 1 && seen.contains("/1.0"), "{seen}");
    }
    let small = ["policy", "push", "builtin:cpu-percentage", &small];
    assert_eq!(seen_on_a_terminal(&[&small[..], &login].concat()), "", "nobody wonders about a few bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_made_and_checked_with_a_pair_of_keys() {
    let Some(person) = Person::start().await else { return };
    let image = person.image("half:1");
    for (name, algorithm) in [("release", "p256"), ("second", "ed25519")] {
        person.said_with(&[], &["keygen", name, "--algorithm", algorithm]);
        let mode = std::fs::metadata(person.path(&format!("{name}.key"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a private key is private");
    }
    let (code, _, error) = person.said_with(&[], &["keygen", "release"]);
    assert!(code == 2 && error.contains("is there already"), "{code}: {error}");

    person.does(&["push", "builtin:cpu-percentage", &image]);
    let verify = |key: &str| person.said(&["verify", &image, "--key", key]);
    let address = format!("oci://{image}");
    let inspected =
        |more: &[&str]| person.does(&[&["inspect", &address], more].concat())["signatures"].clone();
    assert_eq!(inspected(&["--key", "release.pem"]), json!({"matching": 0, "others": 0, "signedBy": []}));
    let (code, _, error) = verify("release.pem");
    assert!(code == 1 && error.contains("SignatureRejected"), "{code}: {error}");
    person.does(&["sign", &image, "--key", "release.key"]);
    let (code, out, _) = verify("release.pem");
    assert!(code == 0 && out.contains("signed by  release.pem"), "{code}: {out}");
    assert!(out.contains("module     cpu-percentage "), "{out}");
    person.does(&["sign", &image, "--key", "release.key"]);
    assert_eq!(inspected(&[]), json!({"matching": 1, "others": 0}), "a key signs once");
    assert_eq!(verify("second.pem").0, 1);
    person.does(&["push", "builtin:cpu-percentage", &image, "--key", "second.key"]);
    assert_eq!((verify("release.pem").0, verify("second.pem").0), (0, 0), "one does not replace the other");
    assert_eq!(inspected(&[]), json!({"matching": 2, "others": 0}));
    let by = inspected(&["--key", "second.pem", "--key", "release.pem"])["signedBy"].clone();
    assert_eq!(by, json!(["second.pem", "release.pem"]));
    let (code, _, error) = person.said(&["inspect", "builtin:cpu-percentage", "--key", "release.pem"]);
    assert!(code == 2 && error.contains("only a module in a registry"), "{code}: {error}");

    std::fs::create_dir(person.path("trust")).unwrap();
    std::fs::copy(person.path("second.pem"), person.path("trust/second.pem")).unwrap();
    let rules = format!("rules:\n- prefix: {}\n  keys: [second.pem]\n", person.registry.host());
    std::fs::write(person.path("trust/trust.yaml"), rules).unwrap();
    assert_eq!(person.does(&["verify", &image, "--trust-dir", "trust"])["signedBy"], "second.pem");
    assert_eq!(inspected(&["--trust-dir", "trust"])["signedBy"], json!(["second.pem"]));
    // Where no rule is for an image, its registry is not even asked.
    std::fs::create_dir(person.path("closed")).unwrap();
    std::fs::write(person.path("closed/trust.yaml"), "rules: []\nothers: refuse\n").unwrap();
    let (code, _, error) = person.said(&["verify", "127.0.0.1:1/nobody/x:1", "--trust-dir", "closed"]);
    assert!(
        code == 1 && error.contains("no rule of trust.yaml is for 127.0.0.1:1/nobody/x"),
        "{code}: {error}"
    );
    // Another module under the tag has no signature of its own.
    person.does(&["push", "builtin:time-windows", &image]);
    assert_eq!(person.said(&["verify", &image, "--trust-dir", "trust"]).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_that_claims_to_be_another_module_is_refused() {
    let Some(person) = Person::start().await else { return };
    let module = builtin("cpu-percentage").unwrap();
    let packed = package(module, &Labels { title: "night-gpu".into(), ..Labels::default() });
    let authorities = Some(std::fs::read(person.registry.authority()).unwrap());
    let client = Client::new(&ClientConfig { authorities, ..ClientConfig::default() }).unwrap();
    let config = docker_config(&[&person.registry.host()], PASSWORD).to_string();
    let config = DockerConfig::parse(config.as_bytes()).unwrap();
    let image = person.image("half:1").parse().unwrap();
    client.push(&image, config.of(&image), module.into(), &packed, None).await.unwrap();
    let image = person.image("half:1");
    person.said_with(&[], &["keygen", "release"]);
    person.does(&["sign", &image, "--key", "release.key"]);
    let named = format!("oci://{image}");
    for args in [&["pull", &image][..], &["verify", &image, "--key", "release.pem"], &["check", &named]] {
        let (code, _, error) = person.said(args);
        assert!(code == 2 && error.contains("claims the name \"night-gpu\""), "{code}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_used_and_no_answer_is_exit_code_3() {
    let Some(mut person) = Person::start().await else { return };
    let (image, proxy) = (person.image("half:1"), Proxy::start().await);
    person.does(&["push", "builtin:cpu-percentage", &image]);
    let authority = person.registry.authority();
    let pull = ["pull", image.as_str(), "--registry-ca", authority.to_str().unwrap()];
    let address = proxy.address();
    let (code, _, error) = person.said_with(&[("HTTPS_PROXY", &address)], &pull);
    assert_eq!((code, proxy.targets().first()), (0, Some(&person.registry.host())), "{error}");
    let (code, _, _) = person.said_with(&[("HTTPS_PROXY", &address), ("NO_PROXY", "127.0.0.1")], &pull);
    assert_eq!((code, proxy.targets().len()), (0, 0));
    let (code, _, error) = person.said_with(&[], &["pull", &image]);
    assert!(code == 3 && error.contains("certificate"), "{code}: {error}");
    person.registry.stop();
    let (code, _, error) = person.said(&["pull", &image]);
    assert_eq!(code, 3, "{error}");
}
