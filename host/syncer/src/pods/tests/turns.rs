//! Whose turn it is: a tenant with thousands of pods does not hold up another (TD section 19).

use kubeocean_api::name::ObjectKey;

use super::builders::scope;
use crate::pods::index::PodStore;

#[tokio::test]
async fn a_namespace_full_of_pods_delays_a_pod_of_another_by_one_turn() {
    let store = PodStore::new("cls-a", scope());
    let pod = |namespace: &str, number: u32| ObjectKey::new(namespace, format!("web-{number}"));
    store.queue().add_all((0..100).map(|number| pod("team-a", number)));
    store.queue().add(pod("team-b", 0));
    assert_eq!(store.queue().next().await, pod("team-a", 0));
    assert_eq!(store.queue().next().await, pod("team-b", 0));
}
