//! What the Manager knows of a Syncer and a Proxier: that they can be started, stopped and looked at. Whether they are
//! Deployments or tasks of this process is up to the implementation (MC-130).

use std::fmt::{Debug, Display, Formatter, Result};

use futures::future::BoxFuture;

/// One of the two programs that serve a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// Nodes up, pods down.
    Syncer,
    /// The kubelet API of the vnodes.
    Proxier,
}

impl Display for Component {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Syncer => "syncer",
            Self::Proxier => "proxier",
        })
    }
}

/// For whom components run. None of it changes while they do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Name of the binding.
    pub binding: String,
    /// UID of the binding.
    pub uid: String,
    /// `spec.clusterID`.
    pub cluster_id: String,
    /// `spec.mountNamespace`.
    pub mount_namespace: String,
}

/// How a component is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum State {
    /// It does not run.
    #[default]
    Stopped,
    /// It is starting, or waits for something that this message names.
    Progressing(String),
    /// It does its work.
    Available,
    /// It could not be created.
    CreateFailed(String),
}

/// The components of one binding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// For whom they run; `None` when none does.
    pub identity: Option<Identity>,
    /// The Syncer.
    pub syncer: State,
    /// The Proxier.
    pub proxier: State,
}

/// Runs the components of bindings.
pub trait Components: Send + Sync + Debug + 'static {
    /// Starts what does not run yet; one that runs for the same binding stays.
    fn start(&self, identity: &Identity);

    /// How the components of a binding are.
    fn look(&self, binding: &str) -> Running;

    /// Ends a component and returns when it has: no write of it comes later. One that does not run has ended.
    fn stop<'a>(&'a self, binding: &'a str, component: Component) -> BoxFuture<'a, ()>;

    /// Whom to tell, by name of the binding, that [`Self::look`] has news.
    fn tell(&self, changed: Box<dyn Fn(&str) + Send + Sync>);

    /// Returns when something failed that only a new process can mend, with what it was.
    fn failed(&self) -> BoxFuture<'_, String>;

    /// Begins to end everything at once, and returns when all has ended. What bindings have in the clusters stays.
    fn shut_down(&self) -> BoxFuture<'static, ()>;
}
