//! Follows the one binding and the one kubeconfig Secret of this Syncer.

use std::sync::Arc;

use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, runtime::watcher};
use kubeocean_api::ClusterBinding;
use serde::Deserialize;
use std::collections::BTreeMap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Binding, KubeconfigRules, kubeconfig::KUBECONFIG_KEY};
use crate::{
    meta::trimmed_meta,
    partial_resource,
    sink::{Denial, Sink},
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// What is known of the binding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BindingState {
    /// Not listed yet.
    #[default]
    Unknown,
    /// There is no binding of that name.
    Missing,
    /// The binding as it is.
    Present(Arc<Binding>),
}

#[derive(Debug)]
struct BindingSink(watch::Sender<BindingState>);

impl BindingSink {
    fn set(&self, state: BindingState) {
        self.0.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

impl Sink<ClusterBinding> for BindingSink {
    fn apply(&self, object: ClusterBinding) {
        self.set(BindingState::Present(Arc::new(Binding::of(&object))));
    }
    fn delete(&self, _: ClusterBinding) {
        self.set(BindingState::Missing);
    }
    fn reset(&self, all: Vec<ClusterBinding>) {
        self.set(
            all.first()
                .map_or(BindingState::Missing, |one| BindingState::Present(Arc::new(Binding::of(one)))),
        );
    }
}

/// Follows the binding `name`; the task is the caller's to spawn.
pub fn follow_binding(
    client: &Client,
    name: &str,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) -> (watch::Receiver<BindingState>, impl Future<Output = ()> + Send + use<>) {
    let (sender, receiver) = watch::channel(BindingState::Unknown);
    let spec = WatchSpec {
        name: "binding",
        api: Api::<ClusterBinding>::all(client.clone()),
        config: watcher::Config::default().fields(&format!("metadata.name={name}")),
    };
    (receiver, watch_into(spec, Arc::new(BindingSink(sender)), health, cancel))
}

/// The kubeconfig bytes of the Secret; only held while a connection is made from them, never logged.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum SecretState {
    /// Not read yet.
    #[default]
    Unknown,
    /// There is no such Secret.
    Missing,
    /// We may not read it.
    Forbidden,
    /// Bindings may not use Secrets of its namespace, which is said here.
    NotPermitted(String),
    /// The Secret; `None` if it lacks the key.
    Present(Option<Arc<[u8]>>),
}

impl std::fmt::Debug for SecretState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "Unknown",
            Self::Missing => "Missing",
            Self::Forbidden => "Forbidden",
            Self::NotPermitted(_) => "NotPermitted",
            Self::Present(_) => "Present(redacted)",
        })
    }
}

#[derive(Clone, Deserialize)]
struct KubeconfigSecret {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
}
partial_resource!(KubeconfigSecret, k8s_openapi::api::core::v1::Secret);

impl std::fmt::Debug for KubeconfigSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeconfigSecret").field("metadata", &self.metadata.name).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct SecretSink(watch::Sender<SecretState>);

impl SecretSink {
    fn set(&self, secret: Option<KubeconfigSecret>) {
        let state = match secret {
            None => SecretState::Missing,
            Some(mut secret) => {
                SecretState::Present(secret.data.remove(KUBECONFIG_KEY).map(|bytes| Arc::from(bytes.0)))
            }
        };
        self.0.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

impl Sink<KubeconfigSecret> for SecretSink {
    fn apply(&self, object: KubeconfigSecret) {
        self.set(Some(object));
    }
    fn delete(&self, _: KubeconfigSecret) {
        self.set(None);
    }
    fn reset(&self, mut all: Vec<KubeconfigSecret>) {
        self.set(all.pop());
    }
    /// A Secret that was read before stays as it was: the connection made from it works.
    fn denied(&self, _: Denial) {
        self.0.send_if_modified(|current| {
            let first = matches!(current, SecretState::Unknown | SecretState::Missing);
            if first {
                *current = SecretState::Forbidden;
            }
            first
        });
    }
}

/// Follows the kubeconfig Secret that a binding names; the task is the caller's to spawn. What the rules do not permit is
/// never read, whatever rights this process has.
pub fn follow_secret(
    client: &Client,
    rules: &KubeconfigRules,
    namespace: &str,
    name: &str,
    cancel: CancellationToken,
) -> (watch::Receiver<SecretState>, impl Future<Output = ()> + Send + use<>) {
    let permitted = rules.permit(namespace);
    let first =
        if permitted { SecretState::Unknown } else { SecretState::NotPermitted(namespace.to_owned()) };
    let (sender, receiver) = watch::channel(first);
    let spec = WatchSpec {
        name: "kubeconfig secret",
        api: Api::<KubeconfigSecret>::namespaced(client.clone(), namespace),
        config: watcher::Config::default().fields(&format!("metadata.name={name}")),
    };
    let sink = Arc::new(SecretSink(sender));
    let watching = async move {
        if permitted {
            watch_into(spec, sink, Arc::default(), cancel).await;
        } else {
            cancel.cancelled().await;
            // Until then the receiver must not think that nobody follows.
            drop(sink);
        }
    };
    (receiver, watching)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(kubeconfig: &str) -> KubeconfigSecret {
        let data = [(KUBECONFIG_KEY.to_owned(), ByteString(kubeconfig.into()))];
        KubeconfigSecret { metadata: ObjectMeta::default(), data: data.into() }
    }

    #[test]
    fn a_secret_that_may_not_be_read_is_told_until_it_may() {
        let (sender, states) = watch::channel(SecretState::Unknown);
        let sink = SecretSink(sender);
        sink.denied(Denial::Forbidden);
        assert_eq!(*states.borrow(), SecretState::Forbidden);
        sink.reset(vec![secret("a")]);
        sink.denied(Denial::Unauthorized);
        assert!(matches!(*states.borrow(), SecretState::Present(Some(_))), "what was read stands");
        sink.delete(secret("a"));
        assert_eq!(*states.borrow(), SecretState::Missing);
    }
}
