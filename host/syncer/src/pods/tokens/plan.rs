//! Names, manifests and times of token Secrets. Pure.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{objects::Scope, pods::vpod_identity::VpodIdentity};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use kubeocean_api::{
    keys::{annotation, label},
    name::token_secret_name,
};
use kubeocean_runtime::clock::{parse_rfc3339, rfc3339};
use serde_json::{Value, json};

/// The vpod whose tokens they are; also the key of the renewal queue.
pub type TokenOwner = VpodIdentity;

/// After a restart the lifetime of a token is not known, only its end: it is renewed at least this long before, so that
/// the kubelet has time to bring it into the container.
const REFRESH_MARGIN: SignedDuration = SignedDuration::from_secs(120);
/// Renewals of one Secret are at least this far apart, whatever the clocks say: each is a request to either cluster.
const RENEWALS_APART: SignedDuration = SignedDuration::from_secs(30);
/// Renewals of tokens that were issued together are spread over this many milliseconds.
const JITTER_MILLIS: u64 = 10_000;

/// One projected volume with tokens; it has one Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenVolume {
    /// Name of the Secret (TD-302).
    pub secret: String,
    /// Its tokens, in the order of the volume's sources.
    pub sources: Vec<TokenSource>,
}

/// One token of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// Data key in the Secret.
    pub key: String,
    /// Audience; `None` is the API server's own.
    pub audience: Option<String>,
    /// Wanted lifetime; `None` leaves it to the API server.
    pub expiration_seconds: Option<i64>,
}

/// A token as issued.
pub(super) struct Issued {
    pub(super) token: String,
    /// By the API server's clock.
    pub(super) expires: Timestamp,
    /// How long it is good for, if the answer says so.
    pub(super) life: Option<SignedDuration>,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Name of the Secret for a volume of a pod (TD-302).
pub fn secret_name(pod: &VpodIdentity, volume: &str) -> String {
    token_secret_name(&pod.key.name, volume, &pod.uid, &pod.key.namespace)
}

/// Data key of the `ordinal`-th token of a volume: `token`, then `token-1`, `token-2`.
pub fn token_key(ordinal: usize) -> String {
    if ordinal == 0 { "token".to_owned() } else { format!("token-{ordinal}") }
}

/// ServiceAccount of a vpod; `None` if it has none, and then no tokens either.
pub(super) fn service_account(vpod: &Value) -> Option<&str> {
    vpod.pointer("/spec/serviceAccountName").and_then(Value::as_str).filter(|name| !name.is_empty())
}

/// The volumes of a vpod that contain tokens.
pub fn token_volumes(vpod: &Value) -> Vec<TokenVolume> {
    let (Some(owner), Some(_)) = (VpodIdentity::of(vpod), service_account(vpod)) else { return Vec::new() };
    let volumes = vpod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    volumes
        .filter_map(|volume| {
            let name = volume.get("name")?.as_str()?;
            let sources: Vec<TokenSource> = volume
                .pointer("/projected/sources")?
                .as_array()?
                .iter()
                .filter_map(|source| source.get("serviceAccountToken").filter(|token| token.is_object()))
                .enumerate()
                .map(|(ordinal, token)| TokenSource {
                    key: token_key(ordinal),
                    audience: token
                        .get("audience")
                        .and_then(Value::as_str)
                        .filter(|a| !a.is_empty())
                        .map(str::to_owned),
                    expiration_seconds: token.get("expirationSeconds").and_then(Value::as_i64),
                })
                .collect();
            (!sources.is_empty()).then(|| TokenVolume { secret: secret_name(&owner, name), sources })
        })
        .collect()
}

/// Body of a token request, bound to the vpod so that the token ends with it.
pub(super) fn request_body(owner: &TokenOwner, source: &TokenSource) -> Value {
    let mut spec = json!({
        "audiences": source.audience.iter().collect::<Vec<_>>(),
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": &*owner.key.name, "uid": owner.uid},
    });
    if let Some(seconds) = source.expiration_seconds {
        spec["expirationSeconds"] = seconds.into();
    }
    json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
}

/// The answer to a token request; `None` if it has no token or no end.
pub(super) fn issued(answer: &Value) -> Option<Issued> {
    let status = answer.get("status")?;
    let seconds = answer.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    Some(Issued {
        token: status.get("token")?.as_str()?.to_owned(),
        expires: parse_rfc3339(status.get("expirationTimestamp")?.as_str()?)?,
        life: seconds.filter(|seconds| *seconds > 0).map(SignedDuration::from_secs),
    })
}

/// Earliest end of the tokens.
fn earliest(tokens: &[(String, Issued)]) -> Option<Timestamp> {
    tokens.iter().map(|(_, token)| token.expires).min()
}

/// How long the first of the tokens to end is good for. Our clock is not that of the API server, which tells the end: it counts
/// only where the answer tells no more than that.
pub(super) fn shortest_life(tokens: &[(String, Issued)], now: Timestamp) -> Option<SignedDuration> {
    tokens.iter().map(|(_, token)| token.life.unwrap_or_else(|| now.duration_until(token.expires))).min()
}

/// The Secret with a volume's tokens.
pub(super) fn manifest(
    scope: &Scope,
    owner: &TokenOwner,
    service_account: &str,
    secret: &str,
    tokens: &[(String, Issued)],
) -> Value {
    let data: BTreeMap<&str, String> =
        tokens.iter().map(|(key, token)| (key.as_str(), STANDARD.encode(&token.token))).collect();
    let mut annotations = BTreeMap::from([
        (annotation::VIRTUAL_POD_NAMESPACE, owner.key.namespace.to_string()),
        (annotation::VIRTUAL_POD_NAME, owner.key.name.to_string()),
        (annotation::VIRTUAL_POD_UID, owner.uid.clone()),
        (annotation::SERVICE_ACCOUNT, service_account.to_owned()),
        (annotation::COMPUTING_CLUSTER_UID, scope.computing_uid.clone()),
    ]);
    if let Some(expires) = earliest(tokens) {
        annotations.insert(annotation::TOKEN_EXPIRATION, rfc3339(expires));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret,
            "namespace": scope.mount_namespace,
            "labels": {
                label::MANAGED_BY: label::MANAGED_BY_VALUE,
                label::SERVICE_ACCOUNT_TOKEN: "true",
                label::CLUSTER_BINDING: scope.binding,
            },
            "annotations": annotations,
        },
        "type": "Opaque",
        "data": data,
    })
}

/// When tokens that were issued at `now` are renewed: after 80 % of their life, minus a spread that depends on the Secret.
pub(super) fn renew_at(secret: &str, now: Timestamp, life: SignedDuration) -> Timestamp {
    most_of(secret, now, life).max(not_before(now))
}

/// When tokens found at the start are renewed: their lifetime is unknown, their end is not. Without an end they are
/// renewed at once, which writes one; so are those that have ended, also if only our clock says so.
pub(super) fn renew_found_at(secret: &str, now: Timestamp, expires: Option<Timestamp>) -> Timestamp {
    let Some(expires) = expires else { return now };
    let by_life = most_of(secret, now, now.duration_until(expires));
    let by_margin = expires.saturating_sub(REFRESH_MARGIN).unwrap_or(expires);
    by_life.min(by_margin).max(now)
}

/// When tokens of a Secret that changed at `now` are renewed at the earliest.
pub(super) fn not_before(now: Timestamp) -> Timestamp {
    now.saturating_add(RENEWALS_APART).unwrap_or(Timestamp::MAX)
}

/// The moment when most of a life that begins at `now` is over.
fn most_of(secret: &str, now: Timestamp, life: SignedDuration) -> Timestamp {
    let life = life.max(SignedDuration::ZERO);
    // A fifth of the life keeps the spread inside it, however short the life is.
    let spread = jitter(secret).min(life / 20);
    now.saturating_add(life / 5 * 4 - spread).unwrap_or(Timestamp::MAX)
}

/// Time from `now` to `at`, zero if it has passed.
pub(super) fn until(now: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(now.duration_until(at)).unwrap_or(Duration::ZERO)
}

fn jitter(secret: &str) -> SignedDuration {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(secret);
    SignedDuration::from_millis(i64::try_from(hash % JITTER_MILLIS).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vpod() -> Value {
        json!({
            "metadata": {"namespace": "test-ns", "name": "test-pod", "uid": "test-uid-123"},
            "spec": {
                "serviceAccountName": "runner",
                "volumes": [
                    {"name": "data", "emptyDir": {}},
                    {"name": "kube-api-access-xyz", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
                    ]}},
                ],
            },
        })
    }

    #[test]
    fn each_token_source_of_a_volume_has_a_key_of_its_own() {
        let source = |key: &str, audience: Option<&str>, seconds| TokenSource {
            key: key.to_owned(),
            audience: audience.map(str::to_owned),
            expiration_seconds: Some(seconds),
        };
        assert_eq!(
            token_volumes(&vpod()),
            [TokenVolume {
                secret: "test-pod-kube-api-access-xyz-t-b70a6c2e342892263f296b4f4deaa821".to_owned(),
                sources: vec![source("token", None, 3607), source("token-1", Some("vault"), 600)],
            }]
        );
    }

    #[test]
    fn a_pod_without_an_account_has_no_tokens() {
        let mut vpod = vpod();
        vpod["spec"]["serviceAccountName"] = "".into();
        assert_eq!(token_volumes(&vpod), []);
    }

    #[test]
    fn requests_are_bound_to_the_pod() {
        let vpod = vpod();
        let owner = VpodIdentity::of(&vpod).unwrap();
        let body = request_body(&owner, &token_volumes(&vpod)[0].sources[1]);
        assert_eq!(
            body["spec"],
            json!({
                "audiences": ["vault"], "expirationSeconds": 600,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "test-pod", "uid": "test-uid-123"},
            })
        );
    }

    #[test]
    fn a_secret_says_whose_it_is_and_when_it_ends_and_its_debug_form_hides_the_token() {
        let vpod = vpod();
        let owner = VpodIdentity::of(&vpod).unwrap();
        let scope = Scope {
            binding: "east".to_owned(),
            cluster_id: "cls-e".to_owned(),
            computing_uid: "cc-uid".to_owned(),
            mount_namespace: "kubeocean-worker".to_owned(),
        };
        let token = |token: &str, expires: &str| Issued {
            token: token.to_owned(),
            expires: expires.parse().unwrap(),
            life: None,
        };
        let tokens = [
            ("token".to_owned(), token("very-secret", "2026-01-01T02:00:00Z")),
            ("token-1".to_owned(), token("other", "2026-01-01T01:00:00Z")),
        ];
        assert!(!format!("{tokens:?}").contains("very-secret"));
        insta::assert_json_snapshot!(manifest(&scope, &owner, "runner", "name", &tokens));
    }

    /// Our clock may be hours away from that of the API server.
    #[test]
    fn how_long_a_token_lives_is_what_its_answer_says_and_not_what_the_clocks_say() {
        let answer = |spec: Value| {
            let status = json!({"token": "t", "expirationTimestamp": "2026-01-01T01:00:00Z"});
            let issued = issued(&json!({"spec": spec, "status": status})).unwrap();
            [("token".to_owned(), issued)]
        };
        let seconds = SignedDuration::from_secs;
        for (now, left) in [("2025-12-31T21:00:00Z", 14_400), ("2026-01-01T00:50:00Z", 600)] {
            let now: Timestamp = now.parse().unwrap();
            let told = answer(json!({"expirationSeconds": 600}));
            assert_eq!(shortest_life(&told, now), Some(seconds(600)), "{now}");
            assert_eq!(shortest_life(&answer(json!({})), now), Some(seconds(left)), "nothing else is known");
        }
        let late: Timestamp = "2026-01-01T05:00:00Z".parse().unwrap();
        let told = answer(json!({"expirationSeconds": 600}));
        let at = renew_at("a", late, shortest_life(&told, late).unwrap());
        assert!(at >= late + seconds(450) && at <= late + seconds(480), "{at}");
        let ended = shortest_life(&answer(json!({"expirationSeconds": 0})), late).unwrap();
        assert_eq!(renew_at("a", late, ended), late + RENEWALS_APART, "it is not asked for again and again");
    }

    proptest! {
        #[test]
        fn tokens_are_renewed_before_they_end(life in 600_i64..100_000, age in 0_i64..100_000, secret in "[a-z]{1,20}") {
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            let end = start + SignedDuration::from_secs(life);
            let at = renew_at(&secret, start, SignedDuration::from_secs(life));
            prop_assert!(start < at && at <= start + SignedDuration::from_secs(life) / 5 * 4);
            prop_assert!(at >= start + SignedDuration::from_secs(life) / 4 * 3);
            let now = start + SignedDuration::from_secs(age);
            let found = renew_found_at(&secret, now, Some(end));
            prop_assert!(found == now || found <= end - REFRESH_MARGIN);
        }
    }
}
