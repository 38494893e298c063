//! What belongs to one binding: its vnodes, the index of its ppods, the connection to its worker. Added and removed while
//! the process runs (MC-134); a broken one concerns only itself (MC-137).

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use kube::{Api, Client, runtime::watcher};
use kubeocean_api::{binding::SecretRef, keys::label, validate};
use kubeocean_runtime::{
    binding::{
        KubeconfigRules,
        connection::{ConnectOptions, connection},
        watch::{BindingState, SecretState, follow_secret},
    },
    watch::{WatchHealth, WatchSpec, watch_into},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    authn::authorities::{CurrentAuthorities, UNKNOWN},
    resolve::{PodView, PpodIndex},
    vnodes::{VnodeSink, Vnodes, watch_vnodes},
    worker::WorkerLink,
};

/// Whether a binding's vnodes are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindingHealth {
    /// Not yet, and why; in words for people.
    Waiting(String),
    /// They are. A worker that cannot be reached later does not change this (PX-1201).
    Ready,
}

/// One binding.
#[derive(Debug)]
pub(crate) struct BindingPart {
    name: Arc<str>,
    ppods: Arc<PpodIndex>,
    worker: ArcSwapOption<WorkerLink>,
    health: watch::Sender<BindingHealth>,
}

/// Where the worker's side of a binding is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    secret: SecretRef,
    mount_namespace: String,
}

impl BindingPart {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            ppods: Arc::default(),
            worker: ArcSwapOption::empty(),
            health: watch::Sender::new(BindingHealth::Waiting("it was just added".to_owned())),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn ppods(&self) -> &PpodIndex {
        &self.ppods
    }

    /// The worker cluster, if it was ever reached.
    pub(crate) fn worker(&self) -> Option<Arc<WorkerLink>> {
        self.worker.load_full()
    }

    pub(crate) fn health(&self) -> watch::Receiver<BindingHealth> {
        self.health.subscribe()
    }

    /// Not served yet; once it was, a bad moment does not change that.
    fn waits(&self, why: impl Into<String>) {
        let why = why.into();
        self.health.send_if_modified(|health| {
            let changed = *health != BindingHealth::Ready && *health != BindingHealth::Waiting(why.clone());
            if changed {
                *health = BindingHealth::Waiting(why);
            }
            changed
        });
    }

    /// Its worker is another one from now on: nothing of the former one counts.
    fn starts_anew(&self, why: &str) {
        self.health.send_replace(BindingHealth::Waiting(why.to_owned()));
        self.worker.store(None);
        self.ppods.clear();
    }

    /// Requests go over `link` from now on.
    fn connected(&self, link: WorkerLink) {
        if self.worker().is_some_and(|former| !former.is_same_cluster(&link)) {
            tracing::info!(binding = self.name(), "the kubeconfig leads to another cluster");
            self.starts_anew("the lists of another worker cluster are not complete yet");
        }
        self.worker.store(Some(Arc::new(link)));
    }

    /// Serves the binding until `cancel`; then nothing of it is left. A panic of any of its watches is one of this.
    pub(crate) async fn serve(
        self: Arc<Self>,
        computing: Client,
        vnodes: Arc<Vnodes>,
        states: watch::Receiver<BindingState>,
        rules: KubeconfigRules,
        authorities: Arc<CurrentAuthorities>,
        cancel: CancellationToken,
    ) {
        let sink = Arc::new(VnodeSink { vnodes: Arc::clone(&vnodes), binding: Arc::clone(&self) });
        let listed = Arc::new(WatchHealth::default());
        let follow = Follow {
            part: Arc::clone(&self),
            computing: computing.clone(),
            rules,
            authorities,
            vnodes_listed: Arc::clone(&listed),
            cancel: cancel.clone(),
        };
        tokio::join!(watch_vnodes(computing, sink, listed, cancel), follow.run(states));
        vnodes.reset(&self, Vec::new());
        self.worker.store(None);
        self.ppods.clear();
    }
}

/// Follows the binding and its Secret, and keeps the worker's link up to date.
struct Follow {
    part: Arc<BindingPart>,
    computing: Client,
    rules: KubeconfigRules,
    authorities: Arc<CurrentAuthorities>,
    vnodes_listed: Arc<WatchHealth>,
    cancel: CancellationToken,
}

impl Follow {
    async fn run(&self, mut states: watch::Receiver<BindingState>) {
        while let Some(place) = self.place(&mut states).await {
            let following = self.cancel.child_token();
            let SecretRef { name, namespace } = &place.secret;
            let (secrets, watching) =
                follow_secret(&self.computing, &self.rules, namespace, name, following.clone());
            let work = self.keep_connected(&place, secrets, following.clone());
            tokio::select! {
                // Ends only when cancelled.
                () = async { tokio::join!(watching, work); } => {}
                () = place_changed(&mut states, &place) => {
                    tracing::info!(binding = self.part.name(), "the binding refers to another worker, reconnecting");
                }
            }
            following.cancel();
            if self.cancel.is_cancelled() {
                return;
            }
            self.part.starts_anew("the ClusterBinding refers to another worker");
        }
    }

    /// Waits for a binding that says where its worker is. `None` when cancelled.
    async fn place(&self, states: &mut watch::Receiver<BindingState>) -> Option<Place> {
        loop {
            let why = match &*states.borrow_and_update() {
                BindingState::Unknown => "ClusterBinding not read yet".to_owned(),
                BindingState::Missing => "ClusterBinding not found".to_owned(),
                BindingState::Present(binding) => match validate::binding(&binding.spec) {
                    Ok(()) => return Some(place_of(binding)),
                    Err(problem) => format!("ClusterBinding is invalid: {problem}"),
                },
            };
            if why != "ClusterBinding not read yet" {
                tracing::warn!(binding = self.part.name(), why, "waiting for a change");
            }
            self.part.waits(why);
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                changed = states.changed() => if changed.is_err() {
                    self.cancel.cancelled().await;
                    return None;
                },
            }
        }
    }

    /// Connects, and connects anew when the Secret changes. What works stays until something better does.
    async fn keep_connected(
        &self,
        place: &Place,
        mut secrets: watch::Receiver<SecretState>,
        cancel: CancellationToken,
    ) {
        let secret = format!("{}/{}", place.secret.namespace, place.secret.name);
        let options = ConnectOptions { allow_unsafe: self.rules.allow_unsafe, ..ConnectOptions::default() };
        let mut watching = std::future::pending().boxed();
        loop {
            self.part.waits("no connection to the worker cluster yet");
            let connecting = connection(&secret, &mut secrets, options, &cancel, |error| {
                tracing::warn!(binding = self.part.name(), %error, "no connection to the worker cluster, retrying");
                self.part.waits(error.to_string());
            });
            let connected = tokio::select! {
                connected = connecting => connected,
                () = &mut watching => return,
            };
            let Some(connected) = connected else { return };
            match WorkerLink::new(&connected, &place.mount_namespace) {
                Ok(link) => {
                    self.part.connected(link);
                    watching = self.watch_ppods(connected.client, place, cancel.clone()).boxed();
                }
                Err(error) => {
                    tracing::error!(binding = self.part.name(), %error, "the kubeconfig cannot be used for streams");
                    self.part.waits(format!("the kubeconfig cannot be used for streams: {error}"));
                }
            }
            tokio::select! {
                // Ends only when cancelled.
                () = &mut watching => return,
                changed = secrets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tracing::info!(binding = self.part.name(), secret, "kubeconfig changed, reconnecting");
                }
                () = cancel.cancelled() => return,
            }
        }
    }

    /// Watches ppods until `cancel`, and tells when the binding is ready.
    async fn watch_ppods(&self, worker: Client, place: &Place, cancel: CancellationToken) {
        let health = Arc::new(WatchHealth::default());
        let spec = WatchSpec {
            name: "worker pods",
            api: Api::<PodView>::namespaced(worker, &place.mount_namespace),
            config: watcher::Config::default().labels(&format!(
                "{}={}",
                label::MANAGED_BY,
                label::MANAGED_BY_VALUE
            )),
        };
        self.part.waits("the lists of virtual nodes and of worker pods are not complete yet");
        let watching = watch_into(spec, Arc::clone(&self.part.ppods), Arc::clone(&health), cancel);
        let listed = async {
            tokio::join!(health.synced(), self.vnodes_listed.synced());
            if !self.authorities.is_known() {
                self.part.waits(UNKNOWN);
                self.authorities.known().await;
            }
            self.part.health.send_replace(BindingHealth::Ready);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = watching => {}
            () = listed => {}
        }
    }
}

fn place_of(binding: &kubeocean_runtime::binding::Binding) -> Place {
    Place { secret: binding.spec.secret_ref.clone(), mount_namespace: binding.spec.mount_namespace.clone() }
}

/// Waits until the binding says something else. A binding that is gone keeps its worker: whoever deleted it ends us.
async fn place_changed(states: &mut watch::Receiver<BindingState>, used: &Place) {
    let other = |state: &BindingState| match state {
        BindingState::Present(binding) => {
            validate::binding(&binding.spec).is_ok() && place_of(binding) != *used
        }
        BindingState::Unknown | BindingState::Missing => false,
    };
    if states.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
