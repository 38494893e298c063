//! What is found in specs, and that exactly that is renamed.

use serde_json::json;

use super::{
    Need::{Optional, Required},
    *,
};

#[test]
fn names_are_found_wherever_a_pod_can_refer_to_them() {
    let found = references(
        "web",
        &json!({
            "imagePullSecrets": [{"name": "pull"}, {"name": ""}],
            "containers": [{
                "name": "a",
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-env", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k", "optional": true}}},
                    {"name": "C", "value": "plain"},
                ],
                "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "s-from"}}],
            }],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-init", "optional": true}}]}],
            "ephemeralContainers": [{"name": "d", "envFrom": [{"secretRef": {"name": "s-debug"}}]}],
            "volumes": [
                {"name": "a", "configMap": {"name": "cm-vol"}},
                {"name": "b", "secret": {"secretName": "s-vol", "optional": false}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "cm-proj"}}, {"secret": {"name": "s-proj", "optional": true}},
                ]}},
                {"name": "d", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "s-csi"}}},
                {"name": "e", "azureFile": {"secretName": "s-azure", "shareName": "x"}},
                {"name": "cinder", "cinder": {"volumeID": "x", "secretRef": {"name": "s-cinder"}}},
                {"name": "f", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}},
            ],
        }),
    );
    let names = |kind: ObjectKind| -> Vec<(&str, Need)> {
        let names = found.names.iter().filter(|((of, _), _)| *of == kind);
        names.map(|((_, name), need)| (&**name, *need)).collect()
    };
    assert_eq!(
        names(ObjectKind::ConfigMap),
        [
            ("cm-env", Required),
            ("cm-from", Required),
            ("cm-init", Optional),
            ("cm-proj", Required),
            ("cm-vol", Required),
        ]
    );
    assert_eq!(
        names(ObjectKind::Secret),
        [
            ("pull", Required),
            ("s-azure", Required),
            ("s-cinder", Required),
            ("s-csi", Required),
            ("s-debug", Optional),
            ("s-env", Optional),
            ("s-from", Required),
            ("s-proj", Optional),
            ("s-vol", Required),
        ]
    );
    assert_eq!(
        names(ObjectKind::PersistentVolumeClaim),
        [("data", Required), ("web-scratch", Required)],
        "an ephemeral volume is a claim with the pod's name"
    );
    let order: Vec<Need> = found.objects().map(|(_, _, need)| need).collect();
    assert!(order.is_sorted_by(|a, b| a >= b), "required ones first: {order:?}");
    assert_eq!(found.unsupported, Vec::<String>::new());
}

#[test]
fn a_debug_container_needs_what_it_names_itself() {
    let from = |secret: &str| json!([{"secretRef": {"name": secret}}]);
    let spec = json!({
        "volumes": [{"name": "a", "configMap": {"name": "of-the-pod"}}],
        "containers": [{"name": "main", "envFrom": from("of-the-pod")}],
        "resourceClaims": [{"name": "gpu"}],
        "ephemeralContainers": [
            {"name": "old", "envFrom": from("of-another")}, {"name": "new", "envFrom": from("own")},
        ],
    });
    let found = debug_references(&spec, &["new".into()]);
    assert_eq!(found.objects().collect::<Vec<_>>(), [(ObjectKind::Secret, "own", Optional)]);
    assert!(found.is_mapped());
}

#[test]
fn the_strongest_need_of_a_name_counts_whatever_the_order() {
    for flags in [[true, false], [false, true]] {
        let volumes: Vec<Value> = flags
            .iter()
            .map(|optional| json!({"name": "v", "configMap": {"name": "same", "optional": optional}}))
            .collect();
        let found = references("web", &json!({"volumes": volumes}));
        assert_eq!(found.objects().collect::<Vec<_>>(), [(ObjectKind::ConfigMap, "same", Required)]);
    }
}

#[test]
fn what_is_not_mapped_is_named_for_the_owner() {
    let found = references(
        "web",
        &json!({
            "resourceClaims": [{"name": "gpu"}],
            "volumes": [
                {"name": "old", "glusterfs": {"path": "/", "endpoints": "x"}},
                {"name": "ca", "projected": {"sources": [{"clusterTrustBundle": {"name": "x", "path": "p"}}]}},
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
                {"name": "files", "csi": {"driver": "file.csi.azure.com", "volumeAttributes": {
                    "SecretName": "theirs", "secretnamespace": "kubeocean-worker", "shareName": "x",
                }}},
                {"name": "vault", "csi": {"driver": "secrets-store.csi.k8s.io", "volumeAttributes": {
                    "secretProviderClass": "theirs",
                }}},
                {"name": "fine", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "own"}, "volumeAttributes": {
                    "share": "secret",
                }}},
            ],
        }),
    );
    assert_eq!(
        found.unsupported,
        [
            "resource claims (spec.resourceClaims)",
            "GlusterFS volume \"old\"",
            "cluster trust bundle in volume \"ca\"",
            "token without a ServiceAccount in volume \"token\"",
            "attribute \"SecretName\" of the CSI volume \"files\"",
            "attribute \"secretnamespace\" of the CSI volume \"files\"",
            "attribute \"secretProviderClass\" of the CSI volume \"vault\"",
        ]
    );
}

#[test]
fn exactly_the_found_names_are_renamed() {
    let mut spec = json!({});
    for (number, site) in SITES.iter().enumerate() {
        plant(&mut spec, site.path, site.field, &format!("name-{number}"));
    }
    let before = references("web", &spec);
    assert_eq!(before.names.len(), SITES.len());
    rename(&mut spec, &|name| format!("copy-of-{name}"));
    let after = references("web", &spec);
    let renamed = |((kind, name), need): (&(ObjectKind, Box<str>), &Need)| {
        ((*kind, format!("copy-of-{name}").into_boxed_str()), *need)
    };
    assert_eq!(after.names, before.names.iter().map(renamed).collect());
}

/// Puts `name` at a site, each site in list elements of its own.
fn plant(value: &mut Value, path: &[&str], field: &str, name: &str) {
    match path.split_first() {
        None => value[field] = name.into(),
        Some((head, rest)) if rest.first() == Some(&EACH) => {
            let mut item = json!({});
            plant(&mut item, &rest[1..], field, name);
            if value.get(*head).is_none() {
                value[*head] = json!([]);
            }
            value[*head].as_array_mut().unwrap().push(item);
        }
        Some((head, rest)) => {
            let mut inner = json!({});
            plant(&mut inner, rest, field, name);
            value[*head] = inner;
        }
    }
}

#[test]
fn a_pod_that_names_more_than_a_thousand_objects_is_refused_before_anything_is_copied() {
    let naming = |count: usize| {
        let from: Vec<_> = (0..count)
            .map(|n| json!({"configMapRef": {"name": format!("m-{n}"), "optional": true}}))
            .collect();
        references("web", &json!({"containers": [{"name": "a", "envFrom": from}]}))
    };
    assert!(naming(1000).is_mapped());
    let refused = naming(1001);
    assert_eq!(refused.objects().count(), 0);
    let why = refused.not_mapped().expect("it is too much");
    assert!(why.contains("1001 ConfigMaps, Secrets and claims (at most 1000)"), "{why}");
}
