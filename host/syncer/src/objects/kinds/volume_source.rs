//! Which storage a PersistentVolume stands for.
//!
//! The source of a volume cannot be changed, so that of a copy differs from its original's only in the Secrets, which are
//! renamed, and in what API servers of different releases fill in.

use serde_json::Value;

use super::Content;

/// For each plugin the members that say which storage it is; another plugin is known by its name only.
const SOURCES: &[(&str, &[&str])] = &[
    ("awsElasticBlockStore", &["volumeID", "partition"]),
    ("azureDisk", &["diskURI"]),
    ("azureFile", &["shareName"]),
    ("cephfs", &["monitors", "path"]),
    ("cinder", &["volumeID"]),
    ("csi", &["driver", "volumeHandle"]),
    ("fc", &["targetWWNs", "lun", "wwids"]),
    ("flexVolume", &["driver", "options"]),
    ("flocker", &["datasetName", "datasetUUID"]),
    ("gcePersistentDisk", &["pdName", "partition"]),
    ("glusterfs", &["endpoints", "path"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn", "lun"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("rbd", &["monitors", "image", "pool"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName", "volumeNamespace"]),
    ("vsphereVolume", &["volumePath"]),
];

/// Whether two volumes stand for the same storage.
pub(super) fn is_same(volume: &Content, other: &Content) -> bool {
    SOURCES.iter().all(|(plugin, members)| {
        let source = |volume: &Content| {
            volume.get(&format!("/spec/{plugin}")).filter(|source| source.is_object()).cloned()
        };
        match (source(volume), source(other)) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                members.iter().all(|member| says(&one, member) == says(&other, member))
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    })
}

/// A member; `None` if it is empty, zero or absent, which is the same to every API server.
fn says<'a>(source: &'a Value, member: &str) -> Option<&'a Value> {
    source.get(member).filter(|value| !(value.is_null() || **value == "" || **value == 0))
}

/// The volume is a path of whatever node its pod is on.
pub(super) fn is_of_a_node(volume: &Value) -> bool {
    ["hostPath", "local"]
        .iter()
        .any(|plugin| volume.pointer(&format!("/spec/{plugin}")).is_some_and(Value::is_object))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn volume(spec: &Value) -> Content {
        Content::of(&json!({"spec": spec}), &["spec"])
    }

    #[rstest]
    #[case::renamed_secrets(
        json!({"csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "a", "namespace": "b"}}}),
        json!({"csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "c", "namespace": "d"}}}),
        true
    )]
    #[case::filled_in(json!({"hostPath": {"path": "/a"}}), json!({"hostPath": {"path": "/a", "type": ""}}), true)]
    #[case::zero_is_absent(
        json!({"iscsi": {"targetPortal": "p", "iqn": "i"}}), json!({"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}}), true
    )]
    #[case::another_handle(
        json!({"csi": {"driver": "d", "volumeHandle": "h"}}), json!({"csi": {"driver": "d", "volumeHandle": "other"}}), false
    )]
    #[case::another_path(json!({"nfs": {"server": "s", "path": "/a"}}), json!({"nfs": {"server": "s", "path": "/"}}), false)]
    #[case::another_plugin(json!({"nfs": {"server": "s", "path": "/a"}}), json!({"hostPath": {"path": "/a"}}), false)]
    #[case::one_more(
        json!({"nfs": {"server": "s", "path": "/a"}}),
        json!({"nfs": {"server": "s", "path": "/a"}, "hostPath": {"path": "/"}}), false
    )]
    fn storage_is_known_by_what_names_it(#[case] one: Value, #[case] other: Value, #[case] same: bool) {
        assert_eq!(is_same(&volume(&one), &volume(&other)), same);
        assert_eq!(is_same(&volume(&other), &volume(&one)), same);
    }
}
