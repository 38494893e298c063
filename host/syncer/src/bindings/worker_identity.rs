//! A binding is for one worker cluster: the one it was first connected to, known by the UID of its namespace `kube-system`.
//!
//! A kubeconfig that leads to another cluster, where the same chart is installed, would make every vnode one whose node
//! is gone. Nothing is watched or written there before whoever manages the binding says that it is meant (BU-1802).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kube::Client;
use kubeocean_api::keys::{annotation::WORKER_CLUSTER_UID, manager};
use kubeocean_runtime::{
    binding::Binding,
    error::ApplyError,
    events::{Event, Regarding, Severity},
    request::{cluster_uid, merge_patch, paths},
};
use serde_json::json;
use tokio::sync::watch;

use crate::leader::Leader;

/// How soon a cluster that cannot be told yet is asked again.
const RETRY: Duration = Duration::from_secs(5);

/// What is known of a worker cluster.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It is the one, or nothing can be said against it.
    Ours,
    /// The binding has had none before.
    First,
    /// Another one.
    Other,
}

/// Pure. `found`: the cluster's UID, if it tells one.
fn judge(known: Option<&str>, found: Option<&str>) -> Verdict {
    match (known, found) {
        (_, None) => Verdict::Ours,
        (None, Some(_)) => Verdict::First,
        (Some(known), Some(found)) if known == found => Verdict::Ours,
        (Some(_), Some(_)) => Verdict::Other,
    }
}

/// Returns when the worker cluster is the one of the binding. Drop it to stop waiting.
pub(crate) async fn recognized(leader: &Leader, worker: &Client) {
    let mut binding = leader.binding.clone();
    let mut told = None;
    loop {
        let current = binding.borrow_and_update().clone();
        let pause = match identify(leader, worker, &current).await {
            Ok((Verdict::Ours | Verdict::First, _)) => {
                leader.stores.other_worker.store(false, Ordering::Relaxed);
                return;
            }
            Ok((Verdict::Other, found)) => {
                leader.stores.other_worker.store(true, Ordering::Relaxed);
                if told.as_ref() != Some(&found) {
                    tell(leader, &current, &found);
                    told = Some(found);
                }
                None
            }
            Err(error) => {
                tracing::warn!(error = error.chain(), "cannot tell which worker cluster this is, retrying");
                Some(RETRY)
            }
        };
        wait(&mut binding, pause).await;
    }
}

async fn wait(binding: &mut watch::Receiver<Arc<Binding>>, pause: Option<Duration>) {
    let asked_again = async {
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        changed = binding.changed() => if changed.is_err() { std::future::pending::<()>().await },
        () = asked_again => {}
    }
}

async fn identify(
    leader: &Leader,
    worker: &Client,
    binding: &Binding,
) -> Result<(Verdict, String), ApplyError> {
    let found = match cluster_uid(worker).await {
        Ok(found) => found,
        // A chart of before: nothing can be said against the cluster.
        Err(ApplyError::Forbidden { .. }) => None,
        Err(error) => return Err(error),
    };
    let verdict = judge(binding.worker_cluster_uid.as_deref(), found.as_deref());
    if let (Verdict::First, Some(found)) = (&verdict, &found) {
        remember(leader, binding, found).await?;
    }
    Ok((verdict, found.unwrap_or_default()))
}

/// Nobody else writes the annotation, but a user may take it off at any time: absent is written again.
async fn remember(leader: &Leader, binding: &Binding, found: &str) -> Result<(), ApplyError> {
    let patch = json!({"metadata": {"uid": binding.uid, "annotations": {WORKER_CLUSTER_UID: found}}});
    let path = format!("{}?fieldManager={}", paths::binding(&binding.name), manager::SYNCER);
    merge_patch(&leader.computing, &path, &patch).await.map(drop)
}

fn tell(leader: &Leader, binding: &Binding, found: &str) {
    let message = format!(
        "the kubeconfig in Secret {}/{} leads to another worker cluster than before (namespace kube-system has UID \
         {found}, not {}): nothing is changed in either cluster; correct the Secret or spec.secretRef, or, if the \
         binding is to move, remove annotation {WORKER_CLUSTER_UID} from ClusterBinding {}",
        binding.spec.secret_ref.namespace,
        binding.spec.secret_ref.name,
        binding.worker_cluster_uid.as_deref().unwrap_or_default(),
        binding.name
    );
    tracing::warn!(binding = binding.name, message);
    leader.events.publish(Event {
        regarding: Regarding::binding(&binding.name, &binding.uid),
        severity: Severity::Warning,
        reason: "OtherWorkerCluster",
        message,
    });
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::the_first(None, Some("a"), Verdict::First)]
    #[case::the_same(Some("a"), Some("a"), Verdict::Ours)]
    #[case::another(Some("a"), Some("b"), Verdict::Other)]
    #[case::one_that_tells_nothing(Some("a"), None, Verdict::Ours)]
    #[case::nothing_is_known(None, None, Verdict::Ours)]
    fn a_binding_is_for_the_cluster_it_was_first_connected_to(
        #[case] known: Option<&str>,
        #[case] found: Option<&str>,
        #[case] expected: Verdict,
    ) {
        assert_eq!(judge(known, found), expected);
    }
}
