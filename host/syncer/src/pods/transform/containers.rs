//! Environment of containers: the computing cluster's API server instead of the worker's (TD-702), and downward API
//! fields that speak of the vpod (TD-604).

use kubeocean_api::keys::annotation;
use serde_json::{Map, Value, json};

use super::{ServiceEnvironment, VpodIdentity};

const HOSTNAME: &str = "HOSTNAME";

/// Rewrites the environment of every container of `spec`.
pub(super) fn rewrite(spec: &mut Value, identity: &VpodIdentity, services: &ServiceEnvironment) {
    let text = |field: &str| {
        spec.get(field).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let account = text("serviceAccountName").unwrap_or_else(|| "default".to_owned());
    let is_set = |field: &str| spec.get(field).and_then(Value::as_bool).unwrap_or(false);
    // On the host network the host's name is the right one, and a whole domain name is made by the worker's kubelet.
    let named_there = is_set("hostNetwork") || is_set("setHostnameAsFQDN");
    let host_name = (!named_there).then(|| {
        let own = text("hostnameOverride").or_else(|| text("hostname"));
        own.unwrap_or_else(|| identity.key.name.to_string())
    });
    let forced = services.variables();

    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let env = match container.remove("env") {
                Some(Value::Array(env)) => env,
                _ => Vec::new(),
            };
            container
                .insert("env".to_owned(), environment(env, &forced, host_name.as_deref(), &account).into());
        }
    }
}

/// Rewrites one container's environment. Variables that are added come first, so that `$(KUBERNETES_SERVICE_HOST)` in
/// the container's own variables finds ours and not the one the worker's kubelet injects.
fn environment(
    mut env: Vec<Value>,
    forced: &[(&'static str, String)],
    host_name: Option<&str>,
    service_account: &str,
) -> Vec<Value> {
    for variable in &mut env {
        let Some(variable) = variable.as_object_mut() else { continue };
        let name = variable.get("name").and_then(Value::as_str);
        if let Some((name, value)) = forced.iter().find(|(forced, _)| name == Some(forced)) {
            *variable = Map::from_iter([
                ("name".to_owned(), Value::from(*name)),
                ("value".to_owned(), value.as_str().into()),
            ]);
        } else if field_path(variable) == Some("spec.serviceAccountName") {
            // The ppod has none, so the field has no value there.
            variable.remove("valueFrom");
            variable.insert("value".to_owned(), service_account.into());
        } else if let Some(field) = variable.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            rewrite_field(field);
        }
    }
    let present = |env: &[Value], wanted: &str| {
        env.iter().any(|variable| variable.get("name").and_then(Value::as_str) == Some(wanted))
    };
    let mut added: Vec<Value> = forced
        .iter()
        .filter(|(name, _)| !present(&env, name))
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    if let Some(host_name) = host_name.filter(|_| !present(&env, HOSTNAME)) {
        added.push(json!({"name": HOSTNAME, "value": host_name}));
    }
    added.append(&mut env);
    added
}

fn field_path(variable: &Map<String, Value>) -> Option<&str> {
    variable.get("valueFrom")?.get("fieldRef")?.get("fieldPath")?.as_str()
}

/// Points an `ObjectFieldSelector` at the back reference where the field itself would speak of the ppod.
pub(super) fn rewrite_field(field: &mut Value) {
    let key = match field.get("fieldPath").and_then(Value::as_str) {
        Some("metadata.namespace") => annotation::VIRTUAL_POD_NAMESPACE,
        Some("metadata.name") => annotation::VIRTUAL_POD_NAME,
        Some("metadata.uid") => annotation::VIRTUAL_POD_UID,
        Some("spec.nodeName") => annotation::VIRTUAL_NODE_NAME,
        _ => return,
    };
    field["fieldPath"] = format!("metadata.annotations['{key}']").into();
}
