//! Signatures under their tag and those that refer to a manifest, on a real registry and on one that answers oddly.

use http::HeaderValue;
use kubeocean_harness::registry::{Answer, Front, PASSWORD, Registry, Tls, USER};
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{
    artifact::{Labels, MANIFEST, Package, canonical, package},
    client::ClientConfig,
    keys::{Algorithm, SigningKey, VerifyingKey},
    signature::with_signature,
};

const MODULE: &[u8] = b"\0asm\x0d\0\x01\0";
const LIMIT: Demands = Demands { digest: None, max_bytes: 1 << 20 };

/// A registry with one module in it, and a front before it.
struct Scene {
    registry: Registry,
    front: Front,
    client: Client,
    packed: Package,
}

impl Scene {
    async fn start() -> Option<Self> {
        let registry = Registry::start(Tls::On).await?;
        let authorities = Some(std::fs::read(registry.authority()).unwrap());
        let client = Client::new(&ClientConfig { authorities, ..ClientConfig::default() }).unwrap();
        let (front, packed) = (registry.front().await, package(MODULE, &Labels::default()));
        let scene = Self { registry, front, client, packed };
        let image = scene.image();
        let module = Bytes::from_static(MODULE);
        scene.client.push(&image, Some(&robot()), module, &scene.packed, None).await.unwrap();
        Some(scene)
    }

    fn image(&self) -> Reference {
        format!("{}/policies/p:1", self.registry.host()).parse().unwrap()
    }

    /// The same behind the front.
    fn fronted(&self) -> Reference {
        format!("{}/policies/p:1", self.front.host()).parse().unwrap()
    }

    /// Tag of the signatures.
    fn tag(&self) -> String {
        signature_tag(self.packed.manifest_digest)
    }

    /// Puts a manifest of signatures, with what it names.
    async fn put(&self, selector: &str, manifest: &Manifest, config: Vec<u8>, signed: &[SignedPayload]) {
        let (image, robot) = (self.image(), robot());
        let mut session = self.client.session(&image, Some(&robot));
        session.put_blob(config.into(), None).await.unwrap();
        for signed in signed {
            session.put_blob(signed.payload.clone().into(), None).await.unwrap();
        }
        session.put_manifest(selector, &canonical(manifest)).await.unwrap();
    }

    /// Puts signatures under the tag, the first first.
    async fn put_under_the_tag(&self, signed: &[SignedPayload]) {
        let mut whole = None;
        let mut config = Vec::new();
        for signed in signed.iter().rev() {
            let (of_this, manifest) = with_signature(whole, signed);
            (whole, config) = (Some(manifest), of_this);
        }
        self.put(&self.tag(), &whole.unwrap(), config, signed).await;
    }

    /// Puts a signature that refers to the module; what a list of referrers says about it.
    async fn put_referrer(&self, signed: &SignedPayload) -> Value {
        let (config, mut manifest) = with_signature(None, signed);
        manifest.subject = Some(Descriptor::of(MANIFEST, &self.packed.manifest));
        let bytes = canonical(&manifest);
        let digest = Digest::of(&bytes).to_string();
        self.put(&digest, &manifest, config, std::slice::from_ref(signed)).await;
        let mut referrer = Descriptor::of(MANIFEST, &bytes);
        referrer.artifact_type = Some(SIGNATURE_ARTIFACT.to_owned());
        serde_json::to_value(referrer).unwrap()
    }

    /// What the front answers to the question for referrers.
    fn lists(&self, answer: Answer) {
        self.front.answer(format!("GET /v2/policies/p/referrers/{}", self.packed.manifest_digest), answer);
    }

    async fn found(&self) -> Result<Vec<SignedPayload>, RegistryError> {
        self.client.signatures(&self.fronted(), Some(&robot()), self.packed.manifest_digest).await
    }

    async fn add(&self, signed: &SignedPayload, key: &VerifyingKey) -> Result<(), RegistryError> {
        let manifest = self.packed.manifest_digest;
        self.client.add_signature(&self.fronted(), Some(&robot()), manifest, signed, key).await
    }

    /// Whether anything was put into the registry through the front since the last look.
    fn something_was_put(&self) -> bool {
        self.front.seen().iter().any(|seen| seen.line.starts_with("PUT "))
    }
}

fn robot() -> Credentials {
    Credentials { username: USER.into(), password: PASSWORD.into() }
}

fn signed(text: &str) -> SignedPayload {
    SignedPayload { payload: text.into(), signature: format!("signature of {text}").into() }
}

fn index(manifests: &[Value]) -> Vec<u8> {
    canonical(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }))
}

/// What a client writes for a registry that lists no referrers: an index under the tag that stands for the list.
#[tokio::test]
async fn a_signature_that_refers_to_a_manifest_is_found() {
    let Some(scene) = Scene::start().await else { return };
    let signed = signed("payload");
    let referrer = scene.put_referrer(&signed).await;
    let mut other = referrer.clone();
    other["artifactType"] = json!("application/spdx+json");
    let (image, robot) = (scene.image(), robot());
    let mut session = scene.client.session(&image, Some(&robot));
    let url = session.url(&format!("manifests/{}", referrers_tag(scene.packed.manifest_digest))).unwrap();
    let index = index(&[other, referrer]);
    let mut ask = Ask { body: index.into(), ..Ask::new(Method::PUT, url) };
    ask.headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(INDEX));
    assert_eq!(session.ask(ask).await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(scene.found().await.unwrap(), std::slice::from_ref(&signed));
    // So it is where the registry answers oddly.
    for odd in [Answer::of(406), Answer::of(501), Answer::of(200).body("<html>"), Answer::of(200).body("{}")]
    {
        scene.lists(odd);
        assert_eq!(scene.found().await.unwrap(), std::slice::from_ref(&signed));
    }
}

#[tokio::test]
async fn a_list_of_referrers_that_cannot_be_had_hides_no_signature_and_proves_none_missing() {
    let Some(scene) = Scene::start().await else { return };
    let outages = [Answer::of(429), Answer::of(503)];
    let refusals = [Answer::of(403)];
    for answer in &outages {
        scene.lists(answer.clone());
        let failure = scene.found().await.unwrap_err();
        assert!(matches!(failure, RegistryError::Unreachable { .. }), "{failure}");
    }
    for answer in &refusals {
        scene.lists(answer.clone());
        let failure = scene.found().await.unwrap_err();
        assert!(matches!(failure, RegistryError::Forbidden { .. }), "{failure}");
    }
    // As ghcr.io does: a redirect to a host that is no registry.
    let elsewhere = scene.registry.front().await;
    elsewhere.answer("GET /packages", Answer::of(429));
    scene.lists(Answer::of(303).header("Location", format!("https://{}/packages", elsewhere.host())));
    let failure = scene.found().await.unwrap_err();
    assert!(matches!(failure, RegistryError::Unreachable { .. }), "{failure}");
    elsewhere.answer("GET /packages", Answer::of(404));
    assert_eq!(scene.found().await.unwrap(), [], "that is no registry with a list");

    scene.put_under_the_tag(&[signed("a")]).await;
    for answer in outages.into_iter().chain(refusals) {
        scene.lists(answer);
        assert_eq!(scene.found().await.unwrap(), [signed("a")]);
    }
}

/// While a list cannot be had, what it named before is not as if it had never been there.
#[tokio::test]
async fn in_an_outage_the_signatures_that_were_known_count() {
    let Some(scene) = Scene::start().await else { return };
    scene.put_under_the_tag(&[signed("a")]).await;
    let referrer = scene.put_referrer(&signed("b")).await;
    let pull = async |known: Option<&Bundle>| {
        let (image, robot) = (scene.fronted(), robot());
        scene.client.pull(&image, Some(&robot), LIMIT, Signatures::Fetch, known, None).await.unwrap()
    };
    scene.lists(Answer::of(200).body(index(&[referrer])));
    let whole = pull(None).await;
    assert_eq!(whole.signatures, [signed("a"), signed("b")]);
    scene.lists(Answer::of(503));
    let part = pull(None).await;
    assert_eq!(part.signatures, [signed("a")]);
    let with_known = pull(Some(&whole)).await;
    assert_eq!(with_known.signatures, whole.signatures);
    // Whoever finds the wanted signature among them may use it; whoever does not learns no more than that.
    for bundle in [&part, &with_known] {
        assert!(bundle.incomplete.as_ref().is_some_and(|why| why.contains("503")), "{:?}", bundle.incomplete);
    }
    assert_eq!(whole.incomplete, None);
    let of_another = Bundle { manifest: b"{}".to_vec(), ..whole.clone() };
    assert_eq!(pull(Some(&of_another)).await.signatures, [signed("a")]);
    scene.lists(Answer::of(404));
    assert_eq!(pull(Some(&whole)).await.signatures, [signed("a")], "what is taken away is gone");
}

#[tokio::test]
async fn a_list_of_referrers_is_read_page_by_page() {
    let Some(scene) = Scene::start().await else { return };
    let (a, b) = (scene.put_referrer(&signed("a")).await, scene.put_referrer(&signed("b")).await);
    let next = |address: &str| ("Link", format!("<{address}>; rel=\"next\""));
    let page = |of: &[Value], (name, value): (&'static str, String)| {
        Answer::of(200).header(name, value).body(index(of))
    };
    scene.lists(page(&[a], next("/v2/policies/p/more?last=a")));
    let absolute = format!("https://{}/v2/policies/p/more?last=b", scene.front.host());
    scene.front.answer("/more?last=a", page(&[], next(&absolute)));
    scene.front.answer("/more?last=b", Answer::of(200).body(index(&[b])));
    assert_eq!(scene.found().await.unwrap(), [signed("a"), signed("b")]);

    // What was listed before the list breaks off counts; if that is nothing, nothing is known.
    for (status, end) in [(404, "breaks off"), (503, "503")] {
        scene.front.answer("/more?last=a", Answer::of(status));
        assert_eq!(scene.found().await.unwrap(), [signed("a")]);
        scene.lists(page(&[], next("/v2/policies/p/more?last=a")));
        let failure = scene.found().await.unwrap_err().to_string();
        assert!(failure.contains(end), "{failure}");
        let (a, more) = (scene.put_referrer(&signed("a")).await, next("/v2/policies/p/more?last=a"));
        scene.lists(page(&[a], more));
    }

    let elsewhere = scene.registry.front().await;
    scene.lists(page(&[], next(&format!("https://{}/v2/", elsewhere.host()))));
    let failure = scene.found().await.unwrap_err().to_string();
    assert!(failure.contains("goes on elsewhere"), "{failure}");
    assert_eq!(elsewhere.seen(), [], "nobody went there");

    scene.lists(page(&[], next("/v2/policies/p/more?last=a")));
    scene.front.answer("/more?last=a", page(&[], next("/v2/policies/p/more?last=a")));
    scene.front.seen();
    let failure = scene.found().await.unwrap_err().to_string();
    assert!(failure.contains("more than 16 pages"), "{failure}");
    let pages = scene.front.seen().iter().filter(|seen| seen.line.contains("/more?")).count();
    assert!(pages < 2 * MAX_PAGES, "{pages}");
}

#[tokio::test]
async fn a_signature_that_cannot_be_read_is_not_the_same_as_none() {
    let Some(scene) = Scene::start().await else { return };
    scene.put_under_the_tag(&[signed("a"), signed("b")]).await;
    let spoil = |text: &str, answer: Answer| {
        scene.front.answer(format!("GET /v2/policies/p/blobs/{}", Digest::of(text.as_bytes())), answer);
    };
    let large = || Answer::of(200).body(vec![0; 65 << 10]);
    let circle = || {
        let there = format!("/v2/policies/p/blobs/{}", Digest::of(b"a"));
        Answer::of(307).header("Location", there)
    };
    // Missing, too large, or something else: as if it were not there.
    for none in [Answer::of(404), large(), Answer::of(200).body("c")] {
        spoil("a", none);
        assert_eq!(scene.found().await.unwrap(), [signed("b")]);
    }
    // Not to be had: what can be read is enough, ...
    for odd in [Answer::of(403), Answer::of(418), circle()] {
        spoil("a", odd);
        assert_eq!(scene.found().await.unwrap(), [signed("b")]);
    }
    // ... nothing is not.
    spoil("b", Answer::of(404));
    let failure = scene.found().await.unwrap_err();
    assert!(failure.to_string().contains("redirects"), "{failure}");
    spoil("a", Answer::of(403));
    let failure = scene.found().await.unwrap_err();
    assert!(matches!(failure, RegistryError::Forbidden { .. }), "{failure}");
    spoil("a", Answer::of(404));
    assert_eq!(scene.found().await.unwrap(), []);
    // An outage is one whatever else there is.
    spoil("a", Answer::of(503));
    spoil("b", Answer::of(200).body("b"));
    let failure = scene.found().await.unwrap_err();
    assert!(matches!(failure, RegistryError::Unreachable { .. }), "{failure}");
}

#[tokio::test]
async fn no_more_is_read_than_anybody_looks_at() {
    let Some(scene) = Scene::start().await else { return };
    scene.put_under_the_tag(&vec![signed("a"); MAX_SIGNATURES]).await;
    assert_eq!(scene.found().await.unwrap().len(), MAX_SIGNATURES);
    let more = scene.front.seen().into_iter().find(|seen| seen.line.contains("/referrers/"));
    assert_eq!(more, None, "nobody asks for more");

    let path = format!("GET /v2/policies/p/manifests/{}", scene.tag());
    scene.front.answer(path, Answer::of(200).body(vec![b' '; (512 << 10) + 1]));
    let failure = scene.found().await.unwrap_err().to_string();
    assert!(failure.contains("has more than 524288 bytes"), "{failure}");
}

#[tokio::test]
async fn a_key_signs_once_and_a_full_manifest_takes_no_more() {
    let Some(scene) = Scene::start().await else { return };
    let key = SigningKey::generate(Algorithm::P256).unwrap().0;
    let sign = || {
        let payload = b"text".to_vec();
        SignedPayload { signature: key.sign(&payload).unwrap(), payload }
    };
    let first = sign();
    scene.add(&first, &key.public()).await.unwrap();
    assert!(scene.something_was_put());
    scene.add(&sign(), &key.public()).await.unwrap();
    assert!(!scene.something_was_put(), "it is signed already");
    assert_eq!(scene.found().await.unwrap(), [first]);
    // A key may have signed something else before.
    let other = SigningKey::generate(Algorithm::Ed25519).unwrap().0;
    let second = SignedPayload { signature: other.sign(b"more").unwrap(), payload: b"more".to_vec() };
    scene.add(&second, &other.public()).await.unwrap();
    assert_eq!(scene.found().await.unwrap()[0], second, "the newest is read first");

    let others = vec![signed("a"); MAX_SIGNATURES];
    scene.put_under_the_tag(&others).await;
    scene.front.seen();
    let full = scene.add(&sign(), &key.public()).await.unwrap_err().to_string();
    assert!(full.contains("32 signatures") && full.contains(&scene.tag()), "{full}");
    assert!(!scene.something_was_put());
    assert_eq!(scene.found().await.unwrap(), others);
}

#[tokio::test]
async fn signatures_that_cannot_be_read_are_not_replaced() {
    let Some(scene) = Scene::start().await else { return };
    let key = SigningKey::generate(Algorithm::Ed25519).unwrap().0;
    scene
        .front
        .answer(format!("GET /v2/policies/p/manifests/{}", scene.tag()), Answer::of(200).body(index(&[])));
    scene.front.seen();
    let refused = scene.add(&signed("a"), &key.public()).await.unwrap_err().to_string();
    assert!(refused.contains("no manifest of signatures") && refused.contains(&scene.tag()), "{refused}");
    assert!(!scene.something_was_put());
}

#[rstest]
#[case(400, true)]
#[case(404, true)]
#[case(405, true)]
#[case(406, true)]
#[case(415, true)]
#[case(501, true)]
#[case(401, false)]
#[case(403, false)]
#[case(408, false)]
#[case(429, false)]
#[case(500, false)]
#[case(503, false)]
#[case(204, false)]
fn what_says_that_a_registry_has_no_list(#[case] status: u16, #[case] expected: bool) {
    assert_eq!(lists_no_referrers(StatusCode::from_u16(status).unwrap()), expected);
}

#[rstest]
#[case("</v2/p/referrers/x?n=1&last=y>; rel=\"next\"", Some("/v2/p/referrers/x?n=1&last=y"))]
#[case("</a,b;c>;rel=next", Some("/a,b;c"))]
#[case("</a>; rel=\"prev\", </b>; title=\"x\"; REL=\"last Next\"", Some("/b"))]
#[case("</a>; rel=\"prev\"", None)]
#[case("</a>", None)]
#[case("</a; rel=\"next\"", None)]
#[case("/a; rel=\"next\"", None)]
#[case("", None)]
fn where_a_list_goes_on(#[case] link: &str, #[case] expected: Option<&str>) {
    assert_eq!(next_of(link), expected);
}
