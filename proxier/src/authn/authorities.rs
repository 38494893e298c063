//! Which authorities count at the moment: the cluster's ConfigMap, watched, and a file, read again when it changes
//! (PX-410).

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher};
use kubeocean_runtime::{
    meta::trimmed_meta,
    partial_resource,
    sink::{Denial, Sink},
    watch::{WatchHealth, WatchSpec, watch_into},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::certificate::Authorities;

/// Where every cluster publishes how its callers prove themselves.
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";
/// Why no client certificate counts yet.
pub(crate) const UNKNOWN: &str = "the authorities of callers are not known: reading ConfigMap \
     kube-system/extension-apiserver-authentication takes the Role extension-apiserver-authentication-reader there";
/// How soon a changed file is seen.
const FILE_EVERY: Duration = Duration::from_secs(10);

/// The authorities of this moment.
#[derive(Debug, Default)]
pub(crate) struct CurrentAuthorities {
    current: ArcSwap<Authorities>,
    sources: Mutex<Sources>,
    health: Arc<WatchHealth>,
}

#[derive(Debug, Default)]
struct Sources {
    cluster: Option<String>,
    file: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Published {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}
partial_resource!(Published, k8s_openapi::api::core::v1::ConfigMap);

impl CurrentAuthorities {
    /// The authorities now.
    pub(crate) fn load(&self) -> Arc<Authorities> {
        self.current.load_full()
    }

    /// Whether the cluster's answer is known.
    pub(crate) fn is_known(&self) -> bool {
        self.health.is_synced()
    }

    /// Ends when the cluster's answer is known.
    pub(crate) async fn known(&self) {
        self.health.synced().await;
    }

    fn set(&self, change: impl FnOnce(&mut Sources)) {
        let mut sources = self.sources.lock();
        change(&mut sources);
        let bundles = [sources.cluster.as_deref().map(str::as_bytes), sources.file.as_deref()];
        let (authorities, unreadable) = Authorities::of_pem(bundles.into_iter().flatten());
        if unreadable > 0 {
            tracing::warn!(unreadable, "some client authorities cannot be read and do not count");
        }
        if authorities.count() == 0 {
            tracing::warn!("there is no client authority: no client certificate counts");
        } else {
            tracing::debug!(authorities = authorities.count(), "client authorities read");
        }
        self.current.store(Arc::new(authorities));
    }

    /// Follows the cluster's ConfigMap until `cancel`.
    pub(crate) async fn follow(self: Arc<Self>, computing: Client, cancel: CancellationToken) {
        let spec = WatchSpec {
            name: "client authorities",
            api: Api::<Published>::namespaced(computing, NAMESPACE),
            config: watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}")),
        };
        let health = Arc::clone(&self.health);
        watch_into(spec, self, health, cancel).await;
    }

    /// Follows a file until `cancel`. What cannot be read leaves what was read before.
    pub(crate) async fn follow_file(self: Arc<Self>, path: PathBuf, cancel: CancellationToken) {
        let mut ticks = tokio::time::interval(FILE_EVERY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match tokio::fs::read(&path).await {
                Ok(bytes) => {
                    let known = self.sources.lock().file.as_ref() == Some(&bytes);
                    if !known {
                        self.set(|sources| sources.file = Some(bytes));
                    }
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "cannot read --client-ca-file"),
            }
        }
    }

    fn publish(&self, published: Option<Published>) {
        let bundle = published.and_then(|mut object| object.data.remove(KEY));
        self.set(|sources| sources.cluster = bundle);
    }
}

#[cfg(test)]
impl CurrentAuthorities {
    /// As if the cluster had published these.
    pub(crate) fn trust(&self, pem: String) {
        self.set(|sources| sources.cluster = Some(pem));
    }
}

impl Sink<Published> for CurrentAuthorities {
    fn apply(&self, object: Published) {
        self.publish(Some(object));
    }
    fn delete(&self, _: Published) {
        self.publish(None);
    }
    fn reset(&self, mut all: Vec<Published>) {
        self.publish(all.pop());
    }
    /// PX-417: which role it takes is said.
    fn denied(&self, _: Denial) {
        tracing::warn!("{UNKNOWN}");
    }
}
