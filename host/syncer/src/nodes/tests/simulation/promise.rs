//! What was announced for the loss of a policy (BU-907), remembered apart from the vnode that says it.

use jiff::Timestamp;
use kubeocean_api::keys::annotation;
use serde_json::Value;

use super::{
    World,
    oracle::{self, Lease},
};
use crate::nodes::decide::Work;

impl World {
    /// A vnode was made, or brought to its content, for a lease.
    pub(super) fn announce(&mut self, vnode: &Value, lease: &Lease) {
        if lease.valid {
            let uid = vnode["metadata"]["uid"].as_str().unwrap().to_owned();
            self.announced.insert(uid, lease.evicts_after);
        }
    }

    /// An invalid policy announces nothing, and takes nothing back.
    pub(super) fn check_announced(&self, vnode: &Value, action: &str) {
        let announced = self.announced.get(vnode["metadata"]["uid"].as_str().unwrap());
        let announced = announced.map(|after| match after {
            None => "keep".to_owned(),
            Some(0) => "force".to_owned(),
            Some(grace) => format!("graceful:{grace}"),
        });
        let said = vnode["metadata"]["annotations"][annotation::RECLAIM].as_str();
        assert_eq!(said, announced.as_deref(), "{action}: {vnode}");
    }

    /// A withdrawal for a policy's or selector's sake waits for the grace that was announced.
    pub(super) fn check_promise(&mut self, work: &Work, now: Timestamp) {
        let (Some(vnode), Some(pnode)) = (&work.snapshot.vnode, &work.snapshot.pnode) else { return };
        let replaced = vnode.annotation_or_label(annotation::PHYSICAL_NODE_UID) != Some(pnode.uid());
        if replaced || oracle::must_go(&self.syncer.view(), pnode.name()) {
            return;
        }
        let promised = self.announced[vnode.uid()].filter(|grace| *grace > 0);
        let Some(promised) = promised else { return };
        let since: Timestamp = vnode.annotation(annotation::DELETION_TAINT_TIME).unwrap().parse().unwrap();
        let passed = now.duration_since(since).as_secs();
        assert!(passed + 1 >= promised, "{} is deleted {passed} s after {since}", vnode.name());
        self.met.waited += 1;
    }
}
