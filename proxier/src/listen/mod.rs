//! The listeners of vnodes: one per port that a vnode claims, kept in step with the vnodes (PX-205, PX-210).

pub(crate) mod certificate;
pub(crate) mod connection;
pub(crate) mod gate;
pub(crate) mod socket;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubeocean_runtime::events::{Event, Regarding, Severity};
use tokio::{
    net::TcpListener,
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    proxier::Shared,
    vnodes::{Vnode, plan::Conflict},
};
use connection::{Door, accept};

/// First pause after a port could not be opened.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Failures after which the vnode's owner is told.
const TELL_AFTER: u32 = 3;

/// Keeps one listener per vnode port until `cancel`. A panic of one is a panic of this: the process must be replaced.
pub(crate) async fn keep_listeners(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut changes = shared.vnodes.subscribe();
    let mut running: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    let mut listeners = JoinSet::new();
    loop {
        changes.borrow_and_update();
        let wanted = shared.vnodes.ports();
        running.retain(|port, stop| {
            let stays = wanted.contains_key(port);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for port in wanted.keys() {
            running.entry(*port).or_insert_with(|| {
                let stop = cancel.child_token();
                listeners.spawn(listen(Arc::clone(&shared), *port, stop.clone()));
                stop
            });
        }
        for conflict in shared.vnodes.conflicts() {
            tell_conflict(&shared, &conflict);
        }
        let stays = loop {
            tokio::select! {
                () = cancel.cancelled() => break false,
                changed = changes.changed() => break changed.is_ok(),
                Some(ended) = listeners.join_next() => pass_on(ended),
            }
        };
        if !stays {
            break;
        }
    }
    while let Some(ended) = listeners.join_next().await {
        pass_on(ended);
    }
}

/// Panics as a task did.
fn pass_on(ended: Result<(), JoinError>) {
    if let Some(panic) = ended.err().and_then(|error| error.try_into_panic().ok()) {
        std::panic::resume_unwind(panic);
    }
}

async fn listen(shared: Arc<Shared>, port: u16, cancel: CancellationToken) {
    let Some(listener) = open(&shared, port, &cancel).await else { return };
    shared.metrics.listener("open", 1);
    tracing::debug!(port, "listening for a virtual node");
    accept(Arc::clone(&shared), listener, Door::Vnode(port), cancel).await;
    shared.metrics.listener("open", -1);
}

/// Opens a port, as often as it takes.
async fn open(shared: &Shared, port: u16, cancel: &CancellationToken) -> Option<TcpListener> {
    let (mut pause, mut failures) = (RETRY_FIRST, 0);
    loop {
        let error = match socket::bind(shared.config.bind_address, port) {
            Ok(listener) => {
                if failures > 0 {
                    shared.metrics.listener("failed", -1);
                    tracing::info!(port, "the port of a virtual node is free at last");
                }
                return Some(listener);
            }
            Err(error) => error,
        };
        failures += 1;
        if failures == 1 {
            shared.metrics.listener("failed", 1);
        }
        tracing::warn!(port, %error, "the port of a virtual node cannot be opened, retrying");
        if failures == TELL_AFTER
            && let Some(vnode) = shared.vnodes.on_port(port)
        {
            let message = format!(
                "the Proxier at {} cannot listen on port {port}: {error}; logs and exec of this node fail until the port is free",
                shared.config.advertise_address
            );
            publish(shared, &vnode, "ProxierPortUnavailable", message);
        }
        tokio::select! {
            () = cancel.cancelled() => {
                shared.metrics.listener("failed", -1);
                return None;
            }
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
        }
    }
}

fn tell_conflict(shared: &Shared, conflict: &Conflict) {
    let Some(loser) = shared.vnodes.named(&conflict.loser) else { return };
    let message = format!(
        "port {} belongs to the older node {}; logs and exec of this node fail until it has a port of its own",
        conflict.port, conflict.owner
    );
    publish(shared, &loser, "ProxierPortConflict", message);
}

fn publish(shared: &Shared, vnode: &Vnode, reason: &'static str, message: String) {
    shared.events.publish(Event {
        regarding: Regarding {
            api_version: "v1",
            kind: "Node",
            namespace: String::new(),
            name: vnode.name.to_string(),
            uid: vnode.uid.clone(),
        },
        severity: Severity::Warning,
        reason,
        message,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::panic::AssertUnwindSafe;

    #[tokio::test]
    async fn a_listener_that_panics_is_not_alone_with_it() {
        let mut listeners = JoinSet::new();
        listeners.spawn(async {});
        listeners.spawn(async { assert!(tokio::runtime::Handle::try_current().is_err(), "a bug") });
        let ending = async {
            while let Some(ended) = listeners.join_next().await {
                pass_on(ended);
            }
        };
        assert!(AssertUnwindSafe(ending).catch_unwind().await.is_err());
    }
}
