mod corpus;

use serde_json::{Value, json};

use super::*;
use crate::config::CLUSTER_DOMAIN;

const NODE: &str = "worker-node-1";

fn services() -> ServiceEnvironment {
    ServiceEnvironment {
        api_address: "10.0.0.1".parse().unwrap(),
        api_port: 6443,
        dns_address: Some("10.0.0.53".parse().unwrap()),
        cluster_domain: CLUSTER_DOMAIN.into(),
    }
}

fn context(services: &ServiceEnvironment) -> TransformContext<'_> {
    TransformContext {
        binding: "east",
        computing_uid: "cc-uid",
        mount_namespace: "kubeocean-worker",
        worker_node: NODE,
        scheduling: Scheduling::ByAffinity,
        priority_class: "kubeocean-default",
        workload_type: "deployment",
        workload_name: "web",
        expected_metadata: Some("e30="),
        services,
    }
}

fn transform(vpod: &Value) -> Value {
    to_worker_pod(vpod, &context(&services())).unwrap()
}

/// A pod with the given spec fields beside the smallest valid ones.
#[expect(clippy::needless_pass_by_value, reason = "callers write JSON in place")]
fn vpod(fields: Value) -> Value {
    let mut vpod = json!({
        "metadata": {"namespace": "team-a", "name": "web-0", "uid": "v-uid"},
        "spec": {
            "nodeName": "vnode-cls-e-worker-node-1",
            "serviceAccountName": "runner",
            "containers": [{"name": "app", "image": "app:1"}],
        },
    });
    vpod["spec"].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    vpod
}

fn spec_of(fields: Value) -> Value {
    transform(&vpod(fields))["spec"].take()
}

/// The value of a variable in the first container.
fn variable<'a>(spec: &'a Value, name: &str) -> &'a Value {
    let env = spec["containers"][0]["env"].as_array().unwrap();
    env.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn a_rich_pod() {
    let rich: Value = serde_json::from_str(include_str!("testdata/rich_pod.json")).unwrap();
    insta::assert_json_snapshot!(transform(&rich));
}

#[test]
fn direct_scheduling_names_the_node_and_nothing_else() {
    let services = services();
    let ctx = TransformContext { scheduling: Scheduling::Direct, ..context(&services) };
    let vpod = vpod(json!({"affinity": {"podAntiAffinity": {}}, "nodeSelector": {"a": "b"}}));
    let ppod = to_worker_pod(&vpod, &ctx).unwrap();
    assert_eq!(ppod["spec"]["nodeName"], NODE);
    assert_eq!(ppod["spec"].get("affinity"), None);
    assert_eq!(ppod["spec"].get("nodeSelector"), None);
}

#[test]
fn what_only_the_computing_cluster_understands_does_not_travel() {
    let spec = spec_of(json!({
        "preemptionPolicy": "Never", "priority": 7, "priorityClassName": "team", "overhead": {"cpu": "1"},
        "readinessGates": [{"conditionType": "x"}], "schedulingGates": [{"name": "g"}],
        "workloadRef": {"name": "training", "podGroup": "workers"}, "schedulingGroup": {"podGroupName": "g"},
        "topologySpreadConstraints": [{"maxSkew": 1}], "schedulerName": "mine",
        "ephemeralContainers": [{"name": "debug"}], "serviceAccount": "runner",
        "automountServiceAccountToken": true, "enableServiceLinks": true,
    }));
    for field in [
        "preemptionPolicy",
        "priority",
        "overhead",
        "readinessGates",
        "schedulingGates",
        "topologySpreadConstraints",
        "workloadRef",
        "schedulingGroup",
        "schedulerName",
        "ephemeralContainers",
        "serviceAccount",
        "serviceAccountName",
        "nodeName",
    ] {
        assert_eq!(spec.get(field), None, "{field}");
    }
    assert_eq!(spec["priorityClassName"], "kubeocean-default");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["enableServiceLinks"], false);
}

#[test]
fn fields_newer_than_this_code_survive() {
    let spec = spec_of(json!({
        "futureField": {"a": [1]},
        "containers": [{"name": "app", "futureProbe": {"x": 1}}],
        "volumes": [{"name": "v", "configMap": {"name": "cm", "futureMode": 7}}, {"name": "w", "futureVolume": {}}],
    }));
    assert_eq!(spec["futureField"], json!({"a": [1]}));
    assert_eq!(spec["containers"][0]["futureProbe"], json!({"x": 1}));
    assert_eq!(spec["volumes"][0]["configMap"]["futureMode"], 7);
    assert_eq!(spec["volumes"][0]["configMap"]["name"], phys_name("cm", "team-a"));
    assert_eq!(spec["volumes"][1], json!({"name": "w", "futureVolume": {}}));
}

#[test]
fn a_tenant_cannot_forge_our_keys() {
    let mut vpod = vpod(json!({}));
    vpod["metadata"]["labels"] = json!({
        "app": "web", "kubeocean.io/managed-by": "me", "kubeocean.io/cluster-binding": "west",
        "kubeocean.io/synced-by-x": "true", "kubeocean.io/workload-name": "other", "kubeocean.io/role": "mine",
    });
    vpod["metadata"]["annotations"] = json!({
        "note": "", "kubeocean.io/virtual-pod-uid": "forged", "kubeocean.io/physical-pod-uid": "p",
        "kubeocean.io/computing-cluster-uid": "forged", "kubectl.kubernetes.io/last-applied-configuration": "{}",
        "kubeocean.io/running-daemonset": "true",
    });
    let ppod = transform(&vpod);
    assert_eq!(
        ppod["metadata"]["labels"],
        json!({
            "app": "web", "kubeocean.io/role": "mine", "kubeocean.io/managed-by": "kubeocean",
            "kubeocean.io/cluster-binding": "east", "kubeocean.io/virtual-namespace": "team-a",
            "kubeocean.io/workload-type": "deployment", "kubeocean.io/workload-name": "web",
        })
    );
    assert_eq!(
        ppod["metadata"]["annotations"],
        json!({
            "note": "", "kubeocean.io/running-daemonset": "true",
            "kubeocean.io/virtual-pod-namespace": "team-a", "kubeocean.io/virtual-pod-name": "web-0",
            "kubeocean.io/virtual-pod-uid": "v-uid",
            "kubeocean.io/virtual-node-name": "vnode-cls-e-worker-node-1",
            "kubeocean.io/expected-metadata": "e30=", "kubeocean.io/computing-cluster-uid": "cc-uid",
            "kubeocean.io/expected-spec": crate::pods::in_place::Mutable::of(&vpod["spec"]).encode(),
        })
    );
}

#[test]
fn a_pod_without_a_workload_has_no_workload_labels() {
    let services = services();
    let ctx = TransformContext { workload_type: "pod", workload_name: "", ..context(&services) };
    let ppod = to_worker_pod(&vpod(json!({})), &ctx).unwrap();
    assert_eq!(ppod["metadata"]["labels"]["kubeocean.io/workload-type"], "pod");
    assert_eq!(ppod["metadata"]["labels"].get("kubeocean.io/workload-name"), None);
}

#[test]
fn the_api_server_in_the_environment_is_always_ours_and_comes_first() {
    let spec = spec_of(json!({"containers": [{"name": "app", "env": [
        {"name": "URL", "value": "https://$(KUBERNETES_SERVICE_HOST)"},
        {"name": "KUBERNETES_SERVICE_PORT", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}},
    ]}]}));
    let env = spec["containers"][0]["env"].as_array().unwrap();
    let position = |name: &str| env.iter().position(|variable| variable["name"] == name).unwrap();
    assert!(position("KUBERNETES_SERVICE_HOST") < position("URL"), "references look backwards");
    assert_eq!(
        env[position("KUBERNETES_SERVICE_PORT")],
        json!({"name": "KUBERNETES_SERVICE_PORT", "value": "6443"})
    );
    assert_eq!(variable(&spec, "KUBERNETES_PORT_443_TCP")["value"], "tcp://10.0.0.1:6443");
}

#[test]
fn a_host_name_is_told_unless_the_user_or_the_host_says_it() {
    assert_eq!(variable(&spec_of(json!({})), "HOSTNAME")["value"], "web-0");
    assert_eq!(variable(&spec_of(json!({"hostname": "given"})), "HOSTNAME")["value"], "given");
    let own = json!({"containers": [{"name": "app", "env": [{"name": "HOSTNAME", "value": "mine"}]}]});
    assert_eq!(variable(&spec_of(own), "HOSTNAME")["value"], "mine");
    let overridden = json!({"hostname": "given", "hostnameOverride": "whatever.example"});
    assert_eq!(variable(&spec_of(overridden), "HOSTNAME")["value"], "whatever.example");
    for by_the_kubelet in ["hostNetwork", "setHostnameAsFQDN"] {
        assert_eq!(*variable(&spec_of(json!({by_the_kubelet: true})), "HOSTNAME"), Value::Null);
    }
}

#[test]
fn host_names_are_labels() {
    for (pod, expect) in [
        ("web-0", "web-0".to_owned()),
        ("api.v1.example", "api-v1-example".to_owned()),
        (&"a".repeat(80), "a".repeat(63)),
        (&format!("{}.b", "a".repeat(62)), "a".repeat(62)),
    ] {
        assert_eq!(host_name(pod), expect);
    }
    assert_eq!(spec_of(json!({"hostname": "kept"}))["hostname"], "kept");
}

#[test]
fn downward_fields_speak_of_the_vpod() {
    let env =
        |path: &str| json!({"name": "X", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let spec = |path: &str| spec_of(json!({"containers": [{"name": "app", "env": [env(path)]}]}));
    for (path, expect) in [
        ("metadata.name", "metadata.annotations['kubeocean.io/virtual-pod-name']"),
        ("metadata.namespace", "metadata.annotations['kubeocean.io/virtual-pod-namespace']"),
        ("metadata.uid", "metadata.annotations['kubeocean.io/virtual-pod-uid']"),
        ("spec.nodeName", "metadata.annotations['kubeocean.io/virtual-node-name']"),
        ("status.podIP", "status.podIP"),
        ("metadata.labels['app']", "metadata.labels['app']"),
    ] {
        assert_eq!(*variable(&spec(path), "X"), env(expect), "{path}");
    }
    assert_eq!(*variable(&spec("spec.serviceAccountName"), "X"), json!({"name": "X", "value": "runner"}));
}

#[test]
fn a_cordoned_node_is_tolerated_under_its_own_key() {
    let ours = json!({"key": "kubeocean.io/physical-node-unschedulable", "operator": "Exists", "effect": "NoSchedule"});
    let theirs =
        json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"});
    assert_eq!(spec_of(json!({"tolerations": [ours]}))["tolerations"], json!([ours, theirs]));
    assert_eq!(worker_tolerations(&[ours.clone(), theirs.clone()]), [ours, theirs]);
    assert_eq!(spec_of(json!({})).get("tolerations"), None);
}

#[test]
fn each_token_of_a_volume_becomes_an_item_of_one_secret() {
    let spec = spec_of(json!({"volumes": [{"name": "t", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"serviceAccountToken": {"path": "vault/token", "audience": "vault"}},
    ]}}]}));
    let vpod = vpod(json!({}));
    let secret = crate::pods::tokens::secret_name(&VpodIdentity::of(&vpod).unwrap(), "t");
    assert_eq!(
        spec["volumes"][0]["projected"]["sources"],
        json!([
            {"secret": {"name": secret, "items": [{"key": "token", "path": "token"}]}},
            {"configMap": {
                "name": phys_name("kube-root-ca.crt", "team-a"), "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }},
            {"secret": {"name": secret, "items": [{"key": "token-1", "path": "vault/token"}]}},
        ])
    );
}

#[test]
fn a_pod_is_refused_whole_when_a_part_is_not_mapped() {
    let vpod = vpod(json!({"resourceClaims": [{"name": "gpu"}]}));
    let error = to_worker_pod(&vpod, &context(&services())).unwrap_err();
    assert_eq!(error.to_string(), "not supported on leased nodes: resource claims (spec.resourceClaims)");
}

#[test]
fn debug_containers_are_rewritten_for_their_ppod() {
    let vpod = vpod(json!({"ephemeralContainers": [
        {"name": "debug", "targetContainerName": "app", "envFrom": [{"secretRef": {"name": "s"}}]},
    ]}));
    let debug = worker_debug_containers(&vpod, &services()).unwrap();
    assert_eq!(debug[0]["envFrom"][0]["secretRef"]["name"], phys_name("s", "team-a"));
    assert_eq!(debug[0]["targetContainerName"], "app");
    assert_eq!(debug[0]["env"][0], json!({"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"}));
}
