//! The worker kubeconfig: what of it is accepted, and what is wrong with it (MC section 3).
//!
//! Only inline data is taken. A kubeconfig that runs a program or names a file of this machine would let whoever
//! writes a Secret read files or run commands here.

use kube::config::{AuthInfo, Kubeconfig};

/// Data key of the kubeconfig in its Secret.
pub const KUBECONFIG_KEY: &str = "kubeconfig";

/// Why a kubeconfig Secret cannot be used. Texts start as the original's (MC-301); none carries kubeconfig content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KubeconfigError {
    /// The Secret does not exist.
    #[error(
        "failed to read kubeconfig secret: kubeconfig secret {0} not found; create it with `kubectl create secret generic` and the data key `kubeconfig`"
    )]
    NotFound(String),
    /// The role does not allow reading the Secret.
    #[error(
        "failed to read kubeconfig secret: reading secret {0} is not permitted; grant this program's account `get`, `list` and `watch` on it"
    )]
    Forbidden(String),
    /// Bindings may not use Secrets of its namespace.
    #[error(
        "failed to read kubeconfig secret: bindings may not use secrets of namespace {0}; it is not among --kubeconfig-namespaces"
    )]
    NotPermitted(String),
    /// The Secret has no such key.
    #[error("failed to read kubeconfig secret: kubeconfig key not found in secret {0}")]
    KeyMissing(String),
    /// The value is empty.
    #[error("failed to read kubeconfig secret: kubeconfig data is empty in secret {0}")]
    Empty(String),
    /// Not a kubeconfig.
    #[error("invalid kubeconfig format in secret {secret}: {detail}")]
    Invalid {
        /// Which Secret.
        secret: String,
        /// What is wrong, without content.
        detail: String,
    },
    /// It refers to files or programs.
    #[error(
        "kubeconfig in secret {secret} is unsafe: {field} is not accepted, use inline data (for example `kubectl config view --raw --flatten --minify`)"
    )]
    Unsafe {
        /// Which Secret.
        secret: String,
        /// Which field.
        field: &'static str,
    },
}

/// Reads a kubeconfig from a Secret's data. `secret` is `namespace/name`, for messages.
pub fn parse(secret: &str, data: Option<&[u8]>, allow_unsafe: bool) -> Result<Kubeconfig, KubeconfigError> {
    let bytes = data.ok_or_else(|| KubeconfigError::KeyMissing(secret.to_owned()))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(KubeconfigError::Empty(secret.to_owned()));
    }
    let invalid =
        |detail: &str| KubeconfigError::Invalid { secret: secret.to_owned(), detail: detail.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8"))?;
    // The parser's message quotes the document, which may hold a token.
    let kubeconfig =
        Kubeconfig::from_yaml(text).map_err(|_| invalid("it is not a kubeconfig in YAML or JSON"))?;
    let context = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let context = context.ok_or_else(|| invalid("current-context is not set"))?;
    let known = kubeconfig.contexts.iter().any(|named| named.name == context);
    if !known {
        return Err(invalid("current-context names no context"));
    }
    check_safe(secret, &kubeconfig, allow_unsafe)?;
    Ok(kubeconfig)
}

fn check_safe(secret: &str, kubeconfig: &Kubeconfig, allow_unsafe: bool) -> Result<(), KubeconfigError> {
    let reject = |field| Err(KubeconfigError::Unsafe { secret: secret.to_owned(), field });
    for user in kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref()) {
        let AuthInfo { exec, auth_provider, token_file, client_certificate, client_key, .. } = user;
        if exec.is_some() {
            return reject("users[].user.exec");
        }
        if allow_unsafe {
            continue;
        }
        if auth_provider.is_some() {
            return reject("users[].user.auth-provider");
        }
        if token_file.is_some() {
            return reject("users[].user.tokenFile");
        }
        if client_certificate.is_some() {
            return reject("users[].user.client-certificate");
        }
        if client_key.is_some() {
            return reject("users[].user.client-key");
        }
    }
    let named_file = kubeconfig
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref())
        .any(|cluster| cluster.certificate_authority.is_some());
    if named_file && !allow_unsafe {
        return reject("clusters[].cluster.certificate-authority");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const GOOD: &str = r"
apiVersion: v1
kind: Config
current-context: w
contexts: [{name: w, context: {cluster: w, user: w}}]
clusters: [{name: w, cluster: {server: 'https://127.0.0.1:6443'}}]
users: [{name: w, user: {token: abc}}]
";

    fn check(text: &str) -> Result<(), String> {
        parse("ns/s", Some(text.as_bytes()), false).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn inline_data_is_accepted() {
        assert_eq!(check(GOOD), Ok(()));
    }

    #[rstest]
    #[case(
        "token: abc",
        "exec: {command: sh, apiVersion: client.authentication.k8s.io/v1}",
        "users[].user.exec"
    )]
    #[case("token: abc", "tokenFile: /etc/passwd", "users[].user.tokenFile")]
    #[case("token: abc", "client-key: /etc/key", "users[].user.client-key")]
    fn programs_and_files_are_refused(#[case] from: &str, #[case] to: &str, #[case] field: &str) {
        let message = check(&GOOD.replace(from, to)).unwrap_err();
        assert!(message.contains(field) && message.contains("ns/s"), "{message}");
    }

    #[rstest]
    #[case("", "kubeconfig data is empty in secret ns/s")]
    #[case("{not: [a", "invalid kubeconfig format in secret ns/s")]
    #[case("apiVersion: v1\nkind: Config\n", "current-context is not set")]
    fn other_mistakes_are_named_without_content(#[case] text: &str, #[case] expected: &str) {
        let message = check(text).unwrap_err();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn a_missing_key_is_named() {
        let message = parse("ns/s", None, false).unwrap_err().to_string();
        assert_eq!(message, "failed to read kubeconfig secret: kubeconfig key not found in secret ns/s");
    }
}
