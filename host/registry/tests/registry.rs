//! The client against a real registry with TLS and a password: what it pushes it pulls, and what is wrong it refuses.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kubeocean_harness::registry::{Answer, Front, PASSWORD, Registry, Tls, Trick, USER, docker_config};
use kubeocean_registry::{
    Algorithm, Bundle, Client, ClientConfig, Credentials, Demands, Digest, DockerConfig, Labels, Package,
    Progress, Reference, RegistryError, Signatures, SignedPayload, SigningKey, Trust, TrustRule, accept,
    package, payload,
};

/// Enough for every module here.
const LIMIT: Demands = Demands { digest: None, max_bytes: 4 << 20 };

/// A component by its first bytes; the registry does not look further, and neither does the client.
fn module(bytes: usize) -> Vec<u8> {
    let mut module = b"\0asm\x0d\0\x01\0".to_vec();
    module.resize(bytes, 7);
    module
}

fn robot() -> Credentials {
    Credentials { username: USER.to_owned(), password: PASSWORD.to_owned() }
}

struct Scene {
    registry: Registry,
    client: Client,
}

impl Scene {
    async fn start() -> Option<Self> {
        let registry = Registry::start(Tls::On).await?;
        let authorities = Some(std::fs::read(registry.authority()).unwrap());
        let client = Client::new(&ClientConfig { authorities, ..ClientConfig::default() }).unwrap();
        Some(Self { registry, client })
    }

    fn image(&self, name: &str) -> Reference {
        image(&self.registry.host(), name)
    }

    async fn push(&self, name: &str, module: &[u8]) -> Package {
        let packed = package(module, &Labels { title: name.into(), ..Labels::default() });
        let image = self.image(name);
        self.client.push(&image, Some(&robot()), module.to_vec().into(), &packed, None).await.unwrap();
        packed
    }

    async fn pull(&self, image: &Reference) -> Result<Bundle, RegistryError> {
        self.client.pull(image, Some(&robot()), LIMIT, Signatures::Fetch, None, None).await
    }
}

fn image(host: &str, name: &str) -> Reference {
    format!("{host}/policies/{name}:1").parse().unwrap()
}

/// What an error says where nobody gave credentials.
fn none_known(image: &Reference) -> String {
    format!("no credentials are known for {}", image.registry())
}

#[tokio::test]
async fn what_is_pushed_is_pulled_byte_for_byte_and_the_same_each_time() {
    let Some(scene) = Scene::start().await else { return };
    let (module, image) = (module(3 << 20), scene.image("p"));
    let told = Arc::new(AtomicU64::new(0));
    let progress: Progress = {
        let told = Arc::clone(&told);
        Arc::new(move |done, _| told.store(done, Ordering::Relaxed))
    };
    let packed = package(&module, &Labels { title: "p".into(), version: "1".into(), ..Labels::default() });
    let push = async |progress: Option<Progress>| {
        scene.client.push(&image, Some(&robot()), module.clone().into(), &packed, progress).await.unwrap()
    };
    let first = push(Some(Arc::clone(&progress))).await;
    assert_eq!((first.manifest_digest, first.module_was_there), (packed.manifest_digest, false));
    assert_eq!(told.swap(0, Ordering::Relaxed), 3 << 20);
    let second = push(None).await;
    assert_eq!((second.manifest_digest, second.module_was_there), (packed.manifest_digest, true));

    let pulled = scene
        .client
        .pull(&image, Some(&robot()), LIMIT, Signatures::Skip, None, Some(progress))
        .await
        .unwrap();
    assert_eq!(
        (pulled.manifest.as_slice(), &*pulled.module),
        (packed.manifest.as_slice(), module.as_slice())
    );
    assert_eq!(told.load(Ordering::Relaxed), 3 << 20);
    let by_digest = scene.pull(&image.with_digest(packed.manifest_digest)).await.unwrap();
    assert_eq!(by_digest, pulled);
    let accepted = accept(&image, &pulled, &Trust::default(), LIMIT).unwrap();
    assert_eq!((accepted.title.as_deref(), accepted.version.as_deref()), (Some("p"), Some("1")));
}

#[tokio::test]
async fn who_has_no_password_or_no_authority_gets_nothing() {
    let Some(scene) = Scene::start().await else { return };
    scene.push("p", &module(100)).await;
    let image = scene.image("p");
    for credentials in [None, Some(Credentials { password: "guess".into(), ..robot() })] {
        let refused = scene.client.find(&image, credentials.as_ref()).await.unwrap_err();
        assert!(matches!(refused, RegistryError::Forbidden { .. }), "{refused}");
        assert!(!refused.to_string().contains("guess"));
        assert_eq!(refused.to_string().contains(&none_known(&image)), credentials.is_none(), "{refused}");
    }
    let config = docker_config(&[&scene.registry.host()], PASSWORD);
    let config = DockerConfig::parse(config.to_string().as_bytes()).unwrap();
    scene.client.find(&image, config.of(&image)).await.unwrap();
    let missing = scene.client.find(&scene.image("none"), Some(&robot())).await.unwrap_err();
    assert!(matches!(missing, RegistryError::NotFound { .. }), "{missing}");

    let stranger = Client::new(&ClientConfig::default()).unwrap();
    let refused = stranger.find(&image, Some(&robot())).await.unwrap_err();
    assert!(
        matches!(&refused, RegistryError::Unreachable { message, .. } if message.contains("certificate")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_token_is_fetched_for_each_purpose_where_the_registry_wants_one() {
    let Some(registry) = Registry::start_with_tokens().await else { return };
    let authorities = Some(std::fs::read(registry.authority()).unwrap());
    let client = Client::new(&ClientConfig { authorities, ..ClientConfig::default() }).unwrap();
    let (image, module) = (image(&registry.host(), "p"), module(100));
    let packed = package(&module, &Labels::default());
    client.push(&image, Some(&robot()), module.clone().into(), &packed, None).await.unwrap();
    let scopes = registry.token_scopes();
    // The registry names the actions of a scope in no certain order.
    let to_push = ["repository:policies/p:pull,push", "repository:policies/p:push,pull"];
    assert!(scopes.iter().any(|scope| to_push.contains(&scope.as_str())), "{scopes:?}");
    let pulled = client.pull(&image, Some(&robot()), LIMIT, Signatures::Fetch, None, None).await.unwrap();
    assert_eq!(*pulled.module, *module);
    assert_eq!(registry.token_scopes(), ["repository:policies/p:pull"], "one token for the whole pull");
    for credentials in [None, Some(Credentials { password: "guess".into(), ..robot() })] {
        let refused = client.find(&image, credentials.as_ref()).await.unwrap_err();
        assert!(matches!(refused, RegistryError::Forbidden { .. }), "{refused}");
        assert_eq!(refused.to_string().contains(&none_known(&image)), credentials.is_none(), "{refused}");
    }
}

#[tokio::test]
async fn plain_http_is_for_named_hosts_only() {
    let Some(registry) = Registry::start(Tls::Off).await else { return };
    let image = image(&registry.host(), "p");
    let client = |insecure_hosts| Client::new(&ClientConfig { insecure_hosts, authorities: None }).unwrap();
    let refused = client(Vec::new()).find(&image, Some(&robot())).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Unreachable { .. }), "TLS meets a server without: {refused}");
    let way = format!("--insecure-registry {}", registry.host());
    assert!(refused.to_string().contains(&way), "{refused}");
    let named = client(vec![registry.host()]);
    let (module, packed) = (module(100), package(&module(100), &Labels::default()));
    named.push(&image, Some(&robot()), module.clone().into(), &packed, None).await.unwrap();
    let pulled = named.pull(&image, Some(&robot()), LIMIT, Signatures::Skip, None, None).await.unwrap();
    assert_eq!(*pulled.module, *module);
}

/// A front before the registry of the scene, with one module behind it.
async fn fronted(scene: &Scene) -> (Front, Reference, Package) {
    let packed = scene.push("p", &module(200_000)).await;
    let front = scene.registry.front().await;
    let image = image(&front.host(), "p");
    (front, image, packed)
}

#[tokio::test]
async fn a_blob_that_is_cut_or_is_another_is_refused() {
    let Some(scene) = Scene::start().await else { return };
    let (front, image, packed) = fronted(&scene).await;
    scene.pull(&image).await.unwrap();

    front.trick(Trick::Cut(50_000));
    let cut = scene.pull(&image).await.unwrap_err();
    assert!(matches!(cut, RegistryError::Unreachable { .. }), "{cut}");
    front.trick(Trick::Instead(module(100_000)));
    let other = scene.pull(&image).await.unwrap_err();
    let got = Digest::of(&module(100_000));
    assert_eq!(other, RegistryError::Corrupt { what: image.to_string(), got });

    front.seen();
    let demands = Demands { digest: Some(Digest::of(b"wanted")), ..LIMIT };
    let pull = async |demands| {
        scene.client.pull(&image, Some(&robot()), demands, Signatures::Skip, None, None).await
    };
    let other = pull(demands).await.unwrap_err();
    assert_eq!(other, RegistryError::OtherModule { what: image.to_string(), got: packed.module_digest });
    let large = pull(Demands { digest: None, max_bytes: 1000 }).await.unwrap_err();
    assert!(matches!(large, RegistryError::TooLarge { limit_bytes: 1000, .. }), "{large}");
    let blobs = front.seen().iter().filter(|seen| seen.line.contains("/blobs/")).count();
    assert_eq!(blobs, 0, "what is not wanted is not transferred");
}

#[tokio::test]
async fn a_body_without_end_is_left_at_the_limit() {
    let Some(scene) = Scene::start().await else { return };
    let (front, image, _) = fronted(&scene).await;
    front.trick(Trick::Endless);
    let large = scene.pull(&image).await.unwrap_err();
    assert!(
        matches!(large, RegistryError::TooLarge { limit_bytes, .. } if limit_bytes == LIMIT.max_bytes),
        "{large}"
    );
}

#[tokio::test]
async fn a_redirect_keeps_tls_and_leaves_the_password_behind() {
    let Some(scene) = Scene::start().await else { return };
    let (front, image, _) = fronted(&scene).await;
    let storage = scene.registry.front().await;
    storage.trick(Trick::Instead(module(200_000)));
    front.trick(Trick::Redirect(format!("https://{}", storage.host())));
    let pulled = scene.pull(&image).await.unwrap();
    assert_eq!(*pulled.module, *module(200_000));
    assert!(front.seen().iter().any(|seen| seen.authorized), "the registry asked for the password");
    let there = storage.seen();
    assert!(!there.is_empty() && there.iter().all(|seen| !seen.authorized), "{there:?}");

    for to in [format!("http://{}", storage.host()), format!("http://{}", front.host()), "ftp://x".to_owned()]
    {
        front.trick(Trick::Redirect(to.clone()));
        let refused = scene.pull(&image).await.unwrap_err();
        assert!(matches!(refused, RegistryError::Insecure { .. }), "{to}: {refused}");
    }
    assert_eq!(storage.seen(), [], "nobody went there");
    // A host that may be talked to without TLS is no way out of TLS either.
    let authorities = Some(std::fs::read(scene.registry.authority()).unwrap());
    let config = ClientConfig { insecure_hosts: vec![storage.host()], authorities };
    let lax = Client::new(&config).unwrap();
    front.trick(Trick::Redirect(format!("http://{}", storage.host())));
    let refused = lax.pull(&image, Some(&robot()), LIMIT, Signatures::Skip, None, None).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Insecure { .. }), "{refused}");

    front.trick(Trick::Redirect(format!("https://{}", front.host())));
    let circle = scene.pull(&image).await.unwrap_err();
    assert!(circle.to_string().contains("redirects"), "{circle}");
}

/// What is pushed goes where the registry says, but not where anybody could read or change it on the way.
#[tokio::test]
async fn an_upload_keeps_tls_and_leaves_the_password_behind() {
    let Some(scene) = Scene::start().await else { return };
    let (front, storage) = (scene.registry.front().await, scene.registry.front().await);
    let (image, module) = (image(&front.host(), "p"), module(100));
    let packed = package(&module, &Labels::default());
    // Even a host that may be talked to without TLS is no way out of TLS.
    let authorities = Some(std::fs::read(scene.registry.authority()).unwrap());
    let insecure_hosts = vec![storage.host()];
    let client = Client::new(&ClientConfig { insecure_hosts, authorities }).unwrap();
    let push = async || client.push(&image, Some(&robot()), module.clone().into(), &packed, None).await;
    let goes_on_at = |address: String| {
        front.answer("POST /v2/policies/p/blobs/uploads/", Answer::of(202).header("Location", address));
    };
    for host in [storage.host(), front.host()] {
        goes_on_at(format!("http://{host}/upload"));
        let refused = push().await.unwrap_err();
        assert!(matches!(refused, RegistryError::Insecure { .. }), "{refused}");
    }
    assert_eq!(storage.seen(), [], "nobody went there");

    storage.answer("PUT /upload", Answer::of(507));
    goes_on_at(format!("https://{}/upload?id=1", storage.host()));
    push().await.unwrap_err();
    let there = storage.seen();
    let line =
        format!("PUT /upload?id=1&digest={}", Digest::of(&packed.config).to_string().replace(':', "%3A"));
    assert_eq!(there.iter().map(|seen| seen.line.as_str()).collect::<Vec<_>>(), [line]);
    assert!(there.iter().all(|seen| !seen.authorized), "{there:?}");
}

#[tokio::test]
async fn signatures_are_added_and_found() {
    let Some(scene) = Scene::start().await else { return };
    let packed = scene.push("p", &module(100)).await;
    let image = scene.image("p");
    let keys = [Algorithm::P256, Algorithm::Ed25519].map(|kind| SigningKey::generate(kind).unwrap().0);
    for (count, key) in keys.iter().enumerate() {
        assert_eq!(scene.pull(&image).await.unwrap().signatures.len(), count);
        let payload = payload(&image, packed.manifest_digest);
        let signature = key.sign(&payload).unwrap();
        let (signed, manifest) = (SignedPayload { payload, signature }, packed.manifest_digest);
        let public = key.public();
        scene.client.add_signature(&image, Some(&robot()), manifest, &signed, &public).await.unwrap();
    }
    let bundle = scene.pull(&image).await.unwrap();
    for key in &keys {
        let rule = TrustRule {
            prefix: scene.registry.host(),
            keys: vec![("k".into(), key.public())],
            required: true,
        };
        let accepted = accept(&image, &bundle, &Trust::new(vec![rule]), LIMIT).unwrap();
        assert_eq!(accepted.signed_by.as_deref(), Some("k"));
    }
    // What is known needs no second transfer, signatures are looked up anew.
    let front = scene.registry.front().await;
    let behind = crate::image(&front.host(), "p");
    let again = scene
        .client
        .pull(&behind, Some(&robot()), LIMIT, Signatures::Fetch, Some(&bundle), None)
        .await
        .unwrap();
    assert_eq!(again, bundle);
    let module_digest = packed.module_digest.to_string();
    assert!(!front.seen().iter().any(|seen| seen.line.contains(&module_digest)));
}

#[tokio::test]
async fn a_registry_that_is_down_is_no_missing_module() {
    let Some(mut scene) = Scene::start().await else { return };
    scene.push("p", &module(100)).await;
    scene.registry.stop();
    let down = scene.pull(&scene.image("p")).await.unwrap_err();
    assert!(matches!(down, RegistryError::Unreachable { .. }), "{down}");
    scene.registry.restart().await;
    scene.pull(&scene.image("p")).await.unwrap();
}
