//! A model of one object in two clusters. It knows merge patches, finalizers and nothing else; what API servers do is
//! tested against real ones.

use super::*;

pub(super) fn scope(cluster_id: &str, mount_namespace: &str) -> Scope {
    Scope {
        binding: format!("binding-{cluster_id}"),
        cluster_id: cluster_id.to_owned(),
        computing_uid: "cc".to_owned(),
        mount_namespace: mount_namespace.to_owned(),
    }
}

pub(super) fn east() -> Scope {
    scope("east", "mount")
}

/// One object in both clusters. UIDs count up; every write makes a new resource version.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) object: ObjectRef,
    pub(super) original: Option<Value>,
    pub(super) copy: Option<Value>,
    /// What its kind reads beside it: the volume of a claim, the copy of the claim of a volume.
    pub(super) neighbour: Option<Value>,
    pub(super) used_by_volume: bool,
    /// Whether the marks on the original were put there just now.
    pub(super) marks_are_new: bool,
    pub(super) clock: u32,
}

pub(super) fn claim_uid() -> Value {
    json!({"metadata": {"uid": "pc1", "labels": {(label::MANAGED_BY): label::MANAGED_BY_VALUE}}})
}

impl World {
    pub(super) fn new(kind: ObjectKind) -> Self {
        let namespace = if kind == ObjectKind::PersistentVolume { "" } else { "team-a" };
        let content = match kind {
            ObjectKind::ConfigMap | ObjectKind::Secret => json!({"data": {"a": "1", "b": "2"}}),
            ObjectKind::PersistentVolumeClaim => json!({
                "spec": {
                    "accessModes": ["ReadWriteMany"], "volumeName": "pv", "volumeMode": "Filesystem",
                    "storageClassName": "fast", "selector": {"matchLabels": {"a": "b"}},
                    "dataSource": {"kind": "PersistentVolumeClaim", "name": "seed"},
                    "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "seed"},
                    "resources": {"requests": {"storage": "1Gi"}},
                },
                "status": {"phase": "Bound"},
            }),
            ObjectKind::PersistentVolume => json!({
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
                    "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "fast",
                    "claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "resourceVersion": "7",
                        "namespace": "team-a", "name": "data", "uid": "vc1",
                    },
                    "csi": {
                        "driver": "example.test", "volumeHandle": "h",
                        "nodePublishSecretRef": {"name": "keys", "namespace": "vault"},
                        "nodeStageSecretRef": {"name": "stage", "namespace": "vault"},
                    },
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["vnode-east-n1"]},
                    ]}]}},
                },
                "status": {"phase": "Bound"},
            }),
        };
        let neighbour = match kind {
            ObjectKind::PersistentVolumeClaim => Some(json!({"spec": {
                "storageClassName": "fast",
                "claimRef": {"namespace": "team-a", "name": "settings", "uid": "v1"},
            }})),
            _ => None,
        };
        let mut original = json!({
            "metadata": {
                "name": "settings", "uid": "v1", "resourceVersion": "1",
                "labels": {"app": "web"},
                "annotations": {"note": "x", (annotation::LAST_APPLIED): "{\"data\":{}}"},
            },
        });
        if !namespace.is_empty() {
            original["metadata"]["namespace"] = namespace.into();
        }
        original.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        Self {
            object: ObjectRef::new(kind, namespace, "settings"),
            original: Some(original),
            copy: None,
            neighbour,
            used_by_volume: false,
            marks_are_new: false,
            clock: 1,
        }
    }

    pub(super) fn tick(&mut self) -> String {
        self.clock += 1;
        self.clock.to_string()
    }

    /// Calls `look` with the snapshot that the apply stage would make.
    pub(super) fn seen<T>(
        &self,
        scope: &Scope,
        purpose: Purpose,
        look: impl FnOnce(&Snapshot<'_>) -> T,
    ) -> T {
        let kind = self.object.kind.mapped();
        let mut original = self.original.as_ref().map(|json| Original::of(self.object.kind, json));
        if let Some(original) = &mut original {
            original.marks_are_new = self.marks_are_new;
        }
        let here = |place: &String| {
            let copy = self.copy.as_ref().filter(|copy| copy["metadata"]["name"] == **place);
            (place.clone(), copy.map(|json| WorkerCopy::of(self.object.kind, json)))
        };
        let found: Vec<_> = kind.places(&self.object, scope).iter().map(here).collect();
        let (place, copy) = &found[choose_place(scope, &self.object, original.as_ref(), &found)];
        let around = Around { scope, neighbour: self.neighbour.as_ref(), place_of: &ObjectRef::copy_name };
        let wanted = match &self.original {
            Some(json) if kind.needs(&self.object, json, self.neighbour.as_ref()) != Needs::Unbound => {
                Wanted::Content(kind.wanted(json, &around))
            }
            _ => Wanted::Unbound,
        };
        look(&Snapshot {
            object: &self.object,
            purpose,
            original: original.as_ref(),
            copy: copy.as_ref(),
            place,
            wanted: &wanted,
            around: &around,
            used_by_volume: self.used_by_volume,
        })
    }

    pub(super) fn plan(&self, scope: &Scope, purpose: Purpose) -> crate::objects::plan::Plan {
        self.seen(scope, purpose, |snapshot| plan_object(scope, snapshot))
    }

    /// What the copy shall contain, and how it gets there.
    pub(super) fn wanted(&self, scope: &Scope) -> (Content, Option<Change>) {
        self.seen(scope, Purpose::Keep, |snapshot| match snapshot.wanted {
            Wanted::Content(content) => (content.clone(), snapshot.change()),
            other => panic!("{other:?}"),
        })
    }

    pub(super) fn perform(&mut self, scope: &Scope, action: &Action) {
        let version = self.tick();
        match action {
            Action::ClaimOriginal { patch } | Action::ReleaseOriginal { patch } => {
                let original = self.original.as_mut().expect("it was there when it was planned");
                merge(original, patch);
                original["metadata"]["resourceVersion"] = version.into();
                let held = original["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
                if original["metadata"].get("deletionTimestamp").is_some() && !held {
                    self.original = None;
                }
            }
            Action::CreateCopy { metadata } => {
                assert!(self.copy.is_none());
                let mut copy = Value::Object(self.wanted(scope).0.manifest());
                copy["metadata"] = metadata.clone();
                copy["metadata"]["uid"] = format!("p{version}").into();
                copy["metadata"]["resourceVersion"] = version.into();
                self.copy = Some(copy);
            }
            Action::UpdateCopy { metadata, .. } => {
                let (_, change) = self.wanted(scope);
                let copy = self.copy.as_mut().unwrap();
                merge(copy, &json!({"metadata": metadata}));
                if let Some(Change::Patch(content)) = change {
                    merge(copy, &content.into());
                }
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::GrowCopy { .. } => {
                let (_, Some(Change::Grow(content))) = self.wanted(scope) else { panic!("it is not larger") };
                let copy = self.copy.as_mut().unwrap();
                merge(copy, &content.into());
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::LeaveCopy { patch, .. } => {
                let copy = self.copy.as_mut().unwrap();
                merge(copy, patch);
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::DeleteCopy { copy, version } => {
                assert_eq!(self.copy_meta()["uid"], *copy.uid());
                if let Some(version) = version {
                    assert_eq!(self.copy_meta()["resourceVersion"], *version);
                }
                self.copy = None;
            }
        }
    }

    /// Plans and performs until nothing is left to do; at most `limit` actions.
    pub(super) fn run(&mut self, scope: &Scope, purpose: Purpose) -> (Verdict, usize) {
        let mut done = 0;
        loop {
            let plan = self.plan(scope, purpose);
            let Some(action) = plan.actions.first() else { return (plan.verdict, done) };
            self.perform(scope, action);
            done += 1;
            assert!(done < 10, "no end: {plan:?}");
        }
    }

    pub(super) fn held(scope: &Scope) -> Self {
        Self::held_of(ObjectKind::ConfigMap, scope)
    }

    pub(super) fn held_of(kind: ObjectKind, scope: &Scope) -> Self {
        let mut world = Self::new(kind);
        assert_eq!(world.run(scope, Purpose::Keep), (Verdict::Ready, 2));
        world
    }

    pub(super) fn original_meta(&self) -> &Value {
        &self.original.as_ref().unwrap()["metadata"]
    }

    pub(super) fn copy_meta(&self) -> &Value {
        &self.copy.as_ref().unwrap()["metadata"]
    }

    pub(super) fn set_copy(&mut self, pointer: &str, key: &str, value: Value) {
        self.copy.as_mut().unwrap().pointer_mut(pointer).unwrap()[key] = value;
    }

    pub(super) fn set_original(&mut self, pointer: &str, key: &str, value: Value) {
        self.original.as_mut().unwrap().pointer_mut(pointer).unwrap()[key] = value;
    }

    pub(super) fn delete_original(&mut self) {
        self.original.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
}
