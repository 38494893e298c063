//! ConfigMaps (TD-1011).

use serde_json::Value;

use super::{Around, Change, Content, MappedKind, WorkerCopy, data_change};

/// `v1` ConfigMap.
pub(in crate::objects) struct ConfigMaps;

impl MappedKind for ConfigMaps {
    fn name(&self) -> &'static str {
        "ConfigMap"
    }
    fn plural(&self) -> &'static str {
        "configmaps"
    }
    fn wanted(&self, original: &Value, _: &Around<'_>) -> Content {
        self.stored(original)
    }
    fn stored(&self, object: &Value) -> Content {
        Content::of(object, &["data", "binaryData"])
    }
    fn change(&self, wanted: &Content, copy: &WorkerCopy, _: &Around<'_>) -> Change {
        data_change(wanted, copy)
    }
}
