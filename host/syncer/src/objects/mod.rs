//! Copies of the ConfigMaps, Secrets and volumes that pods on vnodes refer to (TD sections 10 to 13).
//!
//! An object is copied when the first pod needs it, follows its original while pods use it, comes back when somebody
//! removes or edits it in the worker, and goes when nobody has used it for a while or the original or the binding is
//! deleted. Names and places are pure functions; annotations are written for readers of the original's format and never
//! read for location. All kinds share one planner; what differs is in `kinds/`, one file each. A claim brings its volume
//! along, and a volume the Secrets its driver needs (`links.rs`).
//!
//! ```text
//! computing: labelled originals --metadata--> index --key--> live read of both --> plan --> writes
//! worker:    managed copies     --metadata-->   |
//! pods:      ensure(references) ----------------'          missing? one metadata stream per namespace
//! ```

mod apply;
mod content;
mod directory;
mod index;
mod kind;
mod kinds;
mod links;
mod ownership;
mod plan;
mod pod_security;
mod reconcile;
mod refusal;
#[cfg(test)]
mod tests;
mod view;
mod waiting;
mod watch;

pub(crate) use content::difference;
pub(crate) use refusal::is_of_worker;

pub use apply::{Clusters, EnsureError, Leftovers};
#[cfg(test)]
pub(crate) use directory::Woken;
pub use directory::{PodDirectory, Pods};
pub use index::ObjectStore;
pub use kind::{ObjectKind, ObjectRef};
pub use kinds::Around;
pub use ownership::OwnedCopy;
pub use plan::{Action, Plan, Purpose, Scope, Snapshot, Verdict, Wanted, plan_object};
pub use reconcile::{IdleTimes, ObjectSync};
pub use view::{MetadataOf, Original, WorkerCopy};
pub use watch::{ObjectHealth, run_objects};
