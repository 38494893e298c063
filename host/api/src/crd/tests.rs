//! The generated CRDs keep every constraint of the original and match what the charts ship.

use super::*;

fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or_else(|| panic!("{path} is missing in {value:#}"))
}

fn schema(crd: &Value) -> &Value {
    at(crd, "/spec/versions/0/schema/openAPIV3Schema")
}

#[test]
fn the_charts_ship_the_generated_definitions() {
    for (crd, file) in [
        (cluster_binding(), "../../charts/kubeocean/files/crds/clusterbindings.cloud.tencent.com.yaml"),
        (
            resource_leasing_policy(),
            "../../charts/kubeocean-worker/files/crds/resourceleasingpolicies.cloud.tencent.com.yaml",
        ),
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let shipped: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(shipped, crd, "run `cargo xtask generate` to rewrite {file}");
    }
}

#[test]
fn binding_fields_keep_the_originals_constraints() {
    let crd = cluster_binding();
    let spec = at(schema(&crd), "/properties/spec");
    assert_eq!(at(spec, "/required"), &json!(["clusterID", "secretRef"]));
    assert_eq!(at(spec, "/properties/clusterID/maxLength"), 24);
    assert_eq!(at(spec, "/properties/clusterID/pattern"), "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$");
    assert_eq!(at(spec, "/properties/secretRef/x-kubernetes-map-type"), "atomic");
    assert_eq!(at(spec, "/properties/nodeSelector/x-kubernetes-map-type"), "atomic");
    assert_eq!(at(spec, "/properties/nodeSelector/required"), &json!(["nodeSelectorTerms"]));
    assert_eq!(
        at(
            spec,
            "/properties/nodeSelector/properties/nodeSelectorTerms/items/properties/matchExpressions/items/required"
        ),
        &json!(["key", "operator"])
    );
    assert!(schema(&crd).get("required").is_none(), "spec itself is not required (API-103)");
}

#[test]
fn policy_fields_keep_the_originals_constraints() {
    let crd = resource_leasing_policy();
    let spec = at(schema(&crd), "/properties/spec");
    assert_eq!(at(spec, "/required"), &json!(["cluster"]));
    let limit = at(spec, "/properties/resourceLimits/items");
    assert_eq!(at(limit, "/required"), &json!(["resource"]));
    assert_eq!(
        at(limit, "/properties/percent"),
        &json!({
            "type": "integer", "format": "int32",
            "description": at(limit, "/properties/percent/description"),
        })
    );
    assert_eq!(at(limit, "/properties/quantity/x-kubernetes-int-or-string"), true);
    assert_eq!(at(limit, "/properties/quantity/anyOf"), &json!([{"type": "integer"}, {"type": "string"}]));
    assert_eq!(at(spec, "/properties/timeWindows/items/required"), &json!(["start", "end"]));
    assert_eq!(at(spec, "/properties/policies/maxItems"), 16);
    assert_eq!(at(spec, "/properties/policies/x-kubernetes-list-map-keys"), &json!(["name"]));
}

/// API-101, API-102, API-201, API-202: what `kubectl` shows and how it finds the kinds.
#[test]
fn names_columns_and_subresources_are_the_originals() {
    for (crd, names, own_columns) in [
        (
            cluster_binding(),
            ["ClusterBinding", "ClusterBindingList", "clusterbindings", "clusterbinding", "cb"],
            ["ClusterID", "Phase", "Age"].as_slice(),
        ),
        (
            resource_leasing_policy(),
            [
                "ResourceLeasingPolicy",
                "ResourceLeasingPolicyList",
                "resourceleasingpolicies",
                "resourceleasingpolicy",
                "rlp",
            ],
            ["Cluster", "Phase", "Active", "Age"].as_slice(),
        ),
    ] {
        let [kind, list, plural, singular, short] = names;
        assert_eq!(at(&crd, "/metadata/name"), &json!(format!("{plural}.cloud.tencent.com")));
        assert_eq!(at(&crd, "/spec/group"), "cloud.tencent.com");
        assert_eq!(at(&crd, "/spec/scope"), "Cluster");
        let expected = json!({
            "kind": kind, "listKind": list, "plural": plural, "singular": singular, "shortNames": [short],
        });
        assert_eq!(at(&crd, "/spec/names"), &expected);
        let versions = at(&crd, "/spec/versions").as_array().unwrap();
        assert_eq!(versions.len(), 1);
        let version = &versions[0];
        assert_eq!(
            (&version["name"], &version["served"], &version["storage"]),
            (&json!("v1beta1"), &json!(true), &json!(true))
        );
        assert_eq!(version["subresources"], json!({"status": {}}), "no scale");
        let columns = version["additionalPrinterColumns"].as_array().unwrap();
        let shown: Vec<&str> = columns
            .iter()
            .filter(|column| column.get("priority").is_none())
            .map(|column| column["name"].as_str().unwrap())
            .collect();
        assert_eq!(shown, own_columns, "columns we add have priority 1");
        assert_eq!(columns.last().unwrap()["name"], "Age", "the last one stays the last one");
    }
}

/// API-901: rules about fields the original had only compare with what was stored; rules about fields we add may judge.
#[test]
fn only_transitions_of_original_fields_are_judged() {
    fn walk(path: &str, schema: &Value) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let added = path.starts_with(".spec.policies");
            assert!(rule["rule"].as_str().unwrap().contains("oldSelf") != added, "{path}: {rule}");
            assert!(rule.get("optionalOldSelf").is_none(), "{path} needs a newer server");
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), property);
        }
        if let Some(items) = schema.get("items") {
            walk(path, items);
        }
    }
    for crd in [cluster_binding(), resource_leasing_policy()] {
        walk("", schema(&crd));
    }
}

/// Every property has a description and none has a default or a null alternative (API-807, API-103).
#[test]
fn every_field_is_explained_and_nothing_has_a_default() {
    fn walk(path: &str, schema: &Value) {
        assert!(schema.get("default").is_none(), "{path} has a default");
        assert!(!schema.to_string().contains("\"null\""), "{path} allows null");
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            for (name, property) in properties {
                let path = format!("{path}.{name}");
                assert!(
                    name == "metadata" || property.get("description").is_some(),
                    "{path} has no description for kubectl explain"
                );
                walk(&path, property);
            }
        }
        if let Some(items) = schema.get("items") {
            walk(&format!("{path}[]"), items);
        }
    }
    for crd in [cluster_binding(), resource_leasing_policy()] {
        walk("", schema(&crd));
    }
}
