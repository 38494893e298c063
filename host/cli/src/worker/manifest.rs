//! The documents that `kubeocean worker kubeconfig` prints.
//!
//! Pure. Nothing here is logged: both documents hold a token.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_runtime::binding::kubeconfig::KUBECONFIG_KEY;
use serde_json::{Value, json};

/// How a cluster is reached and trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Name of the cluster in the kubeconfig.
    pub(super) name: String,
    /// URL of the API server.
    pub(super) server: String,
    /// PEM; `None` trusts the authorities of the machine.
    pub(super) authority: Option<Vec<u8>>,
    /// Name in the server's certificate, when it is not that of the URL.
    pub(super) tls_server_name: Option<String>,
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Account {
    /// The user name the API server gives it.
    pub(super) fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// A kubeconfig with one cluster, one user and one context, all data inline.
pub(super) fn kubeconfig(endpoint: &Endpoint, account: &Account, token: &str) -> Value {
    let context = format!("{}@{}", account.name, endpoint.name);
    let mut cluster = json!({"server": endpoint.server});
    if let Some(authority) = &endpoint.authority {
        cluster["certificate-authority-data"] = STANDARD.encode(authority).into();
    }
    if let Some(name) = &endpoint.tls_server_name {
        cluster["tls-server-name"] = name.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": endpoint.name, "cluster": cluster}],
        "users": [{"name": account.name, "user": {"token": token}}],
        "contexts": [{"name": context, "context": {
            "cluster": endpoint.name, "user": account.name, "namespace": account.namespace,
        }}],
        "current-context": context,
    })
}

/// The Secret a ClusterBinding refers to.
pub(super) fn secret(namespace: &str, name: &str, kubeconfig: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {KUBECONFIG_KEY: STANDARD.encode(kubeconfig)},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubeocean_runtime::binding::kubeconfig::parse;

    fn made() -> String {
        let endpoint = Endpoint {
            name: "dc-east".into(),
            server: "https://203.0.113.7:6443".into(),
            authority: Some(b"PEM".to_vec()),
            tls_server_name: Some("kubernetes".into()),
        };
        let account = Account { namespace: "kubeocean-worker".into(), name: "kubeocean-syncer".into() };
        assert_eq!(account.user(), "system:serviceaccount:kubeocean-worker:kubeocean-syncer");
        serde_saphyr::to_string(&kubeconfig(&endpoint, &account, "t0ken")).unwrap()
    }

    #[test]
    fn a_kubeconfig_holds_one_of_each_inline() {
        insta::assert_snapshot!(made());
    }

    #[test]
    fn the_syncer_accepts_what_the_secret_holds() {
        let mut secret = secret("kubeocean-system", "dc-east-kubeconfig", &made());
        let data = STANDARD.decode(secret["data"]["kubeconfig"].as_str().unwrap()).unwrap();
        assert_eq!(data, made().into_bytes());
        parse("kubeocean-system/dc-east-kubeconfig", Some(&data), false).unwrap();
        secret["data"]["kubeconfig"] = "...".into();
        insta::assert_snapshot!(secret.to_string(), @r#"{"apiVersion":"v1","data":{"kubeconfig":"..."},"kind":"Secret","metadata":{"name":"dc-east-kubeconfig","namespace":"kubeocean-system"},"type":"Opaque"}"#);
    }
}
