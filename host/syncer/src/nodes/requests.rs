//! What a pod asks of its node, by the scheduler's rule (BU section 5 *Do better*).
//!
//! In: the used part of a pod as it comes off the wire. Out: base units per resource, rounded up.
//! `max(sum(containers) + sum(sidecars), max over init i of (init_i + sidecars before i)) + overhead`; a pod-level
//! request replaces the aggregate for cpu, memory and huge pages. A resized container counts with the larger of what
//! it asks for and what it still has.

use std::{collections::BTreeMap, sync::Arc};

use kubeocean_api::{
    quantity::Rounding,
    resource::{CPU, HUGEPAGES_PREFIX, MEMORY, to_base_units},
};
use serde::Deserialize;

use super::{host_ports::WirePort, view::Texts};
use kubeocean_runtime::{
    meta::PackedMeta,
    shared::{self, Shared},
};

/// Requested base units by resource, sorted by name, without zeros. Most pods ask for what many others ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests(Arc<[(Arc<str>, i64)]>);

impl Requests {
    /// Resource and amount.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        self.0.iter().map(|(resource, amount)| (resource, *amount))
    }

    /// Amount of one resource.
    pub fn get(&self, resource: &str) -> i64 {
        self.0.iter().find(|(name, _)| **name == *resource).map_or(0, |(_, amount)| *amount)
    }
}

impl<S: AsRef<str>> FromIterator<(S, i64)> for Requests {
    fn from_iter<I: IntoIterator<Item = (S, i64)>>(amounts: I) -> Self {
        static REQUESTS: Shared<[(Arc<str>, i64)]> = Shared::new();
        let sorted: BTreeMap<Arc<str>, i64> =
            amounts.into_iter().map(|(resource, amount)| (shared::text(resource.as_ref()), amount)).collect();
        let amounts: Vec<_> = sorted.into_iter().filter(|(_, amount)| *amount != 0).collect();
        Self(REQUESTS.get(amounts.as_slice()))
    }
}

/// The used part of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WirePod {
    pub(crate) metadata: PackedMeta,
    pub(crate) spec: WireSpec,
    pub(crate) status: WireStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WireSpec {
    pub(crate) node_name: String,
    containers: Vec<WireContainer>,
    init_containers: Vec<WireContainer>,
    resources: WireResources,
    overhead: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireContainer {
    name: String,
    restart_policy: String,
    resources: WireResources,
    ports: Vec<WirePort>,
}

impl WireSpec {
    /// Ports of all containers, those that only run at the start included.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &WirePort> {
        self.containers.iter().chain(&self.init_containers).flat_map(|container| &container.ports)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WireResources {
    requests: Texts,
    limits: Texts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WireStatus {
    pub(crate) phase: String,
    container_statuses: Vec<WireContainerStatus>,
    init_container_statuses: Vec<WireContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireContainerStatus {
    name: String,
    allocated_resources: Texts,
    resources: WireResources,
}

pub(crate) type Amounts = BTreeMap<String, i64>;

/// What a pod's spec asks for, whatever its status says.
pub(crate) fn requests_of(spec: &serde_json::Value) -> Amounts {
    let spec = WireSpec::deserialize(spec).unwrap_or_default();
    sum(&spec, |resources| &resources.requests, &WireStatus::default())
}

/// What a pod's spec limits it to; resources without a limit are absent.
pub(crate) fn limits_of(spec: &serde_json::Value) -> Amounts {
    let spec = WireSpec::deserialize(spec).unwrap_or_default();
    let mut limits = sum(&spec, |resources| &resources.limits, &WireStatus::default());
    // Overhead comes on top of a limit and is none by itself.
    let own = |resource: &String| {
        let all = spec.containers.iter().chain(&spec.init_containers).map(|one| &one.resources);
        all.chain([&spec.resources]).any(|resources| resources.limits.contains_key(resource))
    };
    limits.retain(|resource, _| own(resource));
    limits
}

/// See the module documentation.
pub(crate) fn of_pod(pod: &WirePod) -> Requests {
    sum(&pod.spec, |resources| &resources.requests, &pod.status).into_iter().collect()
}

/// Which amounts of a container count.
type Part = fn(&WireResources) -> &Texts;

fn sum(spec: &WireSpec, part: Part, status: &WireStatus) -> Amounts {
    let mut running = Amounts::new();
    for container in &spec.containers {
        add(&mut running, &of_container(container, part, &status.container_statuses));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in &spec.init_containers {
        let mut own = of_container(container, part, &status.init_container_statuses);
        if container.restart_policy == "Always" {
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            add(&mut own, &sidecars);
            raise(&mut starting, &own);
        }
    }
    add(&mut running, &sidecars);
    raise(&mut running, &starting);
    for (resource, amount) in amounts(part(&spec.resources)) {
        if resource == CPU || resource == MEMORY || resource.starts_with(HUGEPAGES_PREFIX) {
            running.insert(resource, amount);
        }
    }
    add(&mut running, &amounts(&spec.overhead));
    running
}

fn of_container(container: &WireContainer, part: Part, statuses: &[WireContainerStatus]) -> Amounts {
    let mut wanted = amounts(part(&container.resources));
    if let Some(status) = statuses.iter().find(|status| status.name == container.name) {
        raise(&mut wanted, &amounts(&status.allocated_resources));
        raise(&mut wanted, &amounts(&status.resources.requests));
    }
    wanted
}

/// What cannot be parsed cannot have been accepted by an API server; it counts as nothing.
fn amounts(written: &Texts) -> Amounts {
    written
        .iter()
        .filter_map(|(resource, text)| {
            Some((resource.clone(), to_base_units(resource, text, Rounding::Up).ok()?))
        })
        .collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

fn raise(bound: &mut Amounts, other: &Amounts) {
    for (resource, amount) in other {
        let entry = bound.entry(resource.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::containers_add_up(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 100m, memory: 1Gi}}}, {name: b, resources: {requests: {cpu: '0.15'}}}]}}",
        &[("cpu", 250), ("memory", 1 << 30)])]
    #[case::a_big_init_container_is_not_added(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1}}}], initContainers: [{name: i, resources: {requests: {cpu: 3}}}]}}",
        &[("cpu", 3000)])]
    #[case::a_small_init_container_does_not_count(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 2}}}], initContainers: [{name: i, resources: {requests: {cpu: 1}}}]}}",
        &[("cpu", 2000)])]
    #[case::sidecars_add_to_the_containers(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1}}}], initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 500m}}}]}}",
        &[("cpu", 1500)])]
    #[case::sidecars_before_an_init_container_add_to_it(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1}}}], initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 500m}}}, {name: i, resources: {requests: {cpu: 2}}}]}}",
        &[("cpu", 2500)])]
    #[case::sidecars_after_an_init_container_do_not_add_to_it(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1}}}], initContainers: [{name: i, resources: {requests: {cpu: 2}}}, {name: s, restartPolicy: Always, resources: {requests: {cpu: 500m}}}]}}",
        &[("cpu", 2000)])]
    #[case::overhead_is_added(
        "{spec: {overhead: {cpu: 250m, memory: 120Mi}, containers: [{name: a, resources: {requests: {cpu: 1}}}]}}",
        &[("cpu", 1250), ("memory", 120 << 20)])]
    #[case::a_pod_level_request_replaces_the_sum(
        "{spec: {resources: {requests: {cpu: 3, memory: 2Gi, example.com/dongle: 9}}, overhead: {cpu: 100m}, containers: [{name: a, resources: {requests: {cpu: 1, example.com/dongle: 2}}}]}}",
        &[("cpu", 3100), ("example.com/dongle", 2), ("memory", 2 << 30)])]
    #[case::a_pod_level_request_of_huge_pages_replaces_their_sum(
        "{spec: {resources: {requests: {hugepages-2Mi: 8Mi}}, containers: [{name: a, resources: {requests: {cpu: 1, hugepages-2Mi: 2Mi, hugepages-1Gi: 1Gi}}}, {name: b, resources: {requests: {hugepages-2Mi: 4Mi}}}]}}",
        &[("cpu", 1000), ("hugepages-1Gi", 1 << 30), ("hugepages-2Mi", 8 << 20)])]
    #[case::a_pod_level_request_of_volumes_does_not_count(
        "{spec: {resources: {requests: {attachable-volumes-x: 8}}, containers: [{name: a, resources: {requests: {attachable-volumes-x: 2}}}]}}",
        &[("attachable-volumes-x", 2)])]
    #[case::a_shrinking_container_counts_with_what_it_still_has(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1, memory: 1Gi}}}]}, status: {containerStatuses: [{name: a, allocatedResources: {cpu: 2, memory: 512Mi}}]}}",
        &[("cpu", 2000), ("memory", 1 << 30)])]
    #[case::actual_requests_count_too(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 1}}}]}, status: {containerStatuses: [{name: a, resources: {requests: {cpu: 1500m}}}]}}",
        &[("cpu", 1500)])]
    #[case::a_growing_sidecar_counts_with_what_it_asks_for(
        "{spec: {containers: [{name: a}], initContainers: [{name: s, restartPolicy: Always, resources: {requests: {cpu: 2}}}]}, status: {initContainerStatuses: [{name: s, allocatedResources: {cpu: 1}}]}}",
        &[("cpu", 2000)])]
    #[case::fractions_round_up(
        "{spec: {containers: [{name: a, resources: {requests: {cpu: 100u, memory: 1500m}}}]}}",
        &[("cpu", 1), ("memory", 2)])]
    #[case::a_pod_without_requests("{spec: {containers: [{name: a}]}}", &[])]
    fn requests_of_a_pod(#[case] yaml: &str, #[case] expected: &[(&str, i64)]) {
        let pod: WirePod = serde_saphyr::from_str(yaml).unwrap();
        assert_eq!(of_pod(&pod), expected.iter().copied().collect());
    }

    #[test]
    fn equal_names_and_requests_share_their_memory() {
        assert!(Arc::ptr_eq(&shared::text("example.com/one"), &shared::text("example.com/one")));
        let [one, other] = [(); 2].map(|()| Requests::from_iter([("cpu", 250), ("memory", 1 << 20)]));
        assert!(Arc::ptr_eq(&one.0, &other.0));
    }
}
