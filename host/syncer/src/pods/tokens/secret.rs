//! Whose a Secret with tokens is (TD-1103), and the proof without which none is changed or removed.
//!
//! In: metadata of a Secret in the mount namespace, or the answer to a write. Out: a [`TokenSecret`], which can only be made
//! here, or an [`Unstamped`] one of the original, which becomes one when its vpod shows whose it is.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::{
    keys::{annotation, label},
    name::ObjectKey,
};
use kubeocean_runtime::clock::parse_rfc3339;
use serde::Deserialize;
use serde_json::Value;

use super::plan::TokenOwner;
use crate::objects::Scope;

/// How old an unstamped Secret must be before it is removed without its vpod: another computing cluster's original may have
/// made it for a pod that is just about to be created.
const LEFT_BEHIND_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// A token Secret that this binding owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSecret {
    name: String,
    uid: String,
    owner: TokenOwner,
    expires: Option<Timestamp>,
}

/// A token Secret as the original makes them: it names its vpod, but no binding and no computing cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unstamped {
    secret: TokenSecret,
    created: Option<Timestamp>,
}

/// A token Secret of the mount namespace that may be ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is.
    Ours(TokenSecret),
    /// If its vpod is.
    Unstamped(Unstamped),
}

impl Found {
    /// Reads the metadata of a Secret; `None` if it has no tokens, or those of somebody else.
    pub(crate) fn of(meta: &ObjectMeta, scope: &Scope) -> Option<Self> {
        let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let annotation = |key: &str| meta.annotations.as_ref()?.get(key).cloned();
        if label(label::SERVICE_ACCOUNT_TOKEN) != Some("true") {
            return None;
        }
        let secret = TokenSecret {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owner: TokenOwner {
                key: ObjectKey::new(
                    annotation(annotation::VIRTUAL_POD_NAMESPACE)?,
                    annotation(annotation::VIRTUAL_POD_NAME)?,
                ),
                uid: annotation(annotation::VIRTUAL_POD_UID)?,
            },
            expires: annotation(annotation::TOKEN_EXPIRATION).as_deref().and_then(parse_rfc3339),
        };
        match (annotation(annotation::COMPUTING_CLUSTER_UID), label(label::CLUSTER_BINDING)) {
            (None, None) => {
                let created = meta.creation_timestamp.as_ref().map(|time| time.0);
                Some(Self::Unstamped(Unstamped { secret, created }))
            }
            (uid, binding) => {
                let ours = uid.as_deref() == Some(scope.computing_uid.as_str())
                    && binding == Some(scope.binding.as_str());
                ours.then_some(Self::Ours(secret))
            }
        }
    }

    /// The vpod it says it is for.
    pub(super) fn owner(&self) -> &TokenOwner {
        match self {
            Self::Ours(secret) | Self::Unstamped(Unstamped { secret, .. }) => &secret.owner,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Ours(secret) | Self::Unstamped(Unstamped { secret, .. }) => &secret.name,
        }
    }

    /// It is ours, if it is for `served`, a vpod that this binding runs.
    pub(super) fn for_served(self, served: &TokenOwner) -> Option<TokenSecret> {
        match self {
            Self::Ours(secret) | Self::Unstamped(Unstamped { secret, .. }) => {
                (secret.owner == *served).then_some(secret)
            }
        }
    }
}

impl Unstamped {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.secret.name
    }

    /// The vpod it names.
    pub(super) fn owner(&self) -> &TokenOwner {
        &self.secret.owner
    }

    /// Whether it is this one, unchanged.
    pub(super) fn is(&self, secret: &TokenSecret) -> bool {
        self.secret == *secret
    }

    /// Its vpod runs on a vnode of ours.
    pub(super) fn adopt(self) -> TokenSecret {
        self.secret
    }

    /// Nobody in the mount namespace and nobody in the computing cluster uses it, which was found out just now. Says from
    /// when on that is proof enough to remove it.
    pub(super) fn left_behind(self, now: Timestamp) -> Result<TokenSecret, Timestamp> {
        let proven = self.created.unwrap_or(now).saturating_add(LEFT_BEHIND_AFTER).unwrap_or(Timestamp::MAX);
        if proven <= now { Ok(self.secret) } else { Err(proven) }
    }
}

impl TokenSecret {
    /// A Secret that was written just now for `owner`, by the API server's answer.
    pub(super) fn written(answer: &Value, owner: TokenOwner) -> Self {
        let meta = ObjectMeta::deserialize(&answer["metadata"]).unwrap_or_default();
        let expires = meta.annotations.as_ref().and_then(|all| all.get(annotation::TOKEN_EXPIRATION));
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            // As stored, so that the watch event of this write brings nothing new.
            expires: expires.map(String::as_str).and_then(parse_rfc3339),
            owner,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its UID; a precondition of every write.
    pub(super) fn uid(&self) -> &str {
        &self.uid
    }

    /// The vpod whose tokens it has.
    pub(super) fn owner(&self) -> &TokenOwner {
        &self.owner
    }

    /// When the first of its tokens ends, if it says so.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        self.expires
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    pub(in super::super) fn scope() -> Scope {
        Scope {
            binding: "east".to_owned(),
            cluster_id: "e".to_owned(),
            computing_uid: "cc".to_owned(),
            mount_namespace: "mount".to_owned(),
        }
    }

    /// A Secret for `pod`, made an hour before its tokens end.
    pub(in super::super) fn meta(
        name: &str,
        pod: &str,
        expires: &str,
        stamp: Option<(&str, &str)>,
    ) -> ObjectMeta {
        let ends: Timestamp = expires.parse().unwrap();
        let mut annotations = BTreeMap::from([
            (annotation::VIRTUAL_POD_NAMESPACE.to_owned(), "team-a".to_owned()),
            (annotation::VIRTUAL_POD_NAME.to_owned(), pod.to_owned()),
            (annotation::VIRTUAL_POD_UID.to_owned(), "u".to_owned()),
            (annotation::TOKEN_EXPIRATION.to_owned(), expires.to_owned()),
        ]);
        let mut labels = BTreeMap::from([(label::SERVICE_ACCOUNT_TOKEN.to_owned(), "true".to_owned())]);
        if let Some((uid, binding)) = stamp {
            annotations.insert(annotation::COMPUTING_CLUSTER_UID.to_owned(), uid.to_owned());
            labels.insert(label::CLUSTER_BINDING.to_owned(), binding.to_owned());
        }
        ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            creation_timestamp: Some(Time(ends - SignedDuration::from_hours(1))),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn foreign_stamps_are_not_ours() {
        let found = |stamp| Found::of(&meta("a", "web", "2026-01-01T01:00:00Z", stamp), &scope());
        assert!(matches!(found(Some(("cc", "east"))), Some(Found::Ours(_))));
        assert!(matches!(found(None), Some(Found::Unstamped(_))), "the original's");
        assert_eq!(found(Some(("other", "east"))), None);
        assert_eq!(found(Some(("cc", "west"))), None);
    }

    #[test]
    fn an_unstamped_secret_is_removed_only_when_nobody_can_be_about_to_use_it() {
        let found = Found::of(&meta("a", "web", "2026-01-01T01:00:00Z", None), &scope());
        let Some(Found::Unstamped(found)) = found else { panic!("it has no stamp") };
        let made: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(found.clone().left_behind(made), Err(made + LEFT_BEHIND_AFTER));
        assert!(found.left_behind(made + LEFT_BEHIND_AFTER).is_ok());
    }
}
