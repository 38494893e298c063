//! What the store says of pods without a plan: whose they are and what they use.

use std::sync::Arc;

use kubeocean_api::keys::{annotation, label};
use rstest::rstest;
use serde::Deserialize;

use super::builders::*;
use crate::pods::{
    index::PodStore,
    view::{PpodObject, VpodObject},
};
use kubeocean_runtime::sink::Sink;

/// A store that the watches have told of these pods.
fn store(vpods: &[Pod], ppods: &[Pod]) -> Arc<PodStore> {
    let store = PodStore::new("cls-a", scope());
    for pod in vpods {
        store.apply(VpodObject::deserialize(&pod.0).unwrap());
    }
    for pod in ppods {
        store.apply(PpodObject::deserialize(&pod.0).unwrap());
    }
    store
}

#[rstest]
#[case::stamped(ppod(), 1)]
#[case::stamped_of_an_earlier_pod(ppod().annotate(annotation::VIRTUAL_POD_UID, "v0"), 1)]
#[case::of_the_original(unstamped(), 1)]
#[case::unstamped_of_a_pod_we_do_not_have(unstamped().annotate(annotation::VIRTUAL_POD_UID, "v0"), 0)]
#[case::of_another_binding(ppod().label(label::CLUSTER_BINDING, "west"), 0)]
fn only_ppods_that_will_be_ended_here_are_counted(#[case] copy: Pod, #[case] expected: usize) {
    assert_eq!(store(&[vpod()], &[copy]).ppod_count(), expected);
}

#[test]
fn a_stamped_ppod_is_counted_after_its_vpod_is_gone() {
    assert_eq!(store(&[], &[ppod()]).ppod_count(), 1);
    assert_eq!(store(&[], &[unstamped()]).ppod_count(), 0);
}
