//! What a plan can ask for.

use std::time::Duration;

use kubeocean_api::ClusterBindingStatus;
use kubeocean_runtime::events::Severity;

use super::view::Target;
use crate::components::{Component, Identity};

/// One step. Steps are carried out in order; when one fails, the rest waits for the next plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Have the worker asked, from now on, whether it answers.
    Attend(Target),
    /// Ask it no more.
    Leave,
    /// Put the Manager's finalizer on the binding.
    AddFinalizer,
    /// Take it off. What is known of the binding goes with it.
    RemoveFinalizer,
    /// Write the status fields that are the Manager's.
    WriteStatus(Box<ClusterBindingStatus>),
    /// Start the components that do not run.
    Start(Identity),
    /// Stop a component and wait for its end.
    Stop(Component),
    /// Do the computing cluster's half of the cleanup without the worker, take the Syncer's finalizer off, and tell what is
    /// left.
    Detach(Reach),
    /// Tell the binding's owner.
    Tell(News),
}

/// What of a binding is cleaned up without its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Whatever is under its clusterID.
    ClusterId,
    /// Vnodes that its labels are on, and nothing else: the clusterID is another binding's.
    OwnVnodes,
}

/// An event on a binding (MC-204).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// How serious it is.
    pub severity: Severity,
    /// Reason of MC-204 or API-810.
    pub reason: &'static str,
    /// For humans.
    pub message: String,
}

/// What to do now, and when to look again without being told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// `None` waits for the next trigger.
    pub again: Option<Duration>,
}
