//! `kubeocean worker kubeconfig`: a bounded token of the chart's ServiceAccount in a kubeconfig that was tried.
//!
//! In: an admin's context of the worker cluster. Out: the Secret for the computing cluster. Nothing is printed before
//! the server has answered to exactly this kubeconfig as exactly this account.

use std::{path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use jiff::Timestamp;
use kube::{Client, config::Kubeconfig};
use kubeocean_api::keys::namespace;
use kubeocean_runtime::{
    binding::kubeconfig::parse,
    error::ApplyError,
    request::{create_json, paths},
};
use serde_json::{Value, json};

use super::{
    manifest::{self, Account, Endpoint},
    trust,
};
use crate::{
    cluster::{self, ClusterFlags, get},
    failure::{Failure, OrFailure},
    output::{print, write_private},
    program::duration,
};

/// How a refusal for want of the account is remedied.
const INSTALL: [&str; 2] = [
    "install the worker chart first: helm upgrade --install kubeocean-worker charts/kubeocean-worker -n kubeocean-worker --create-namespace",
    "install the chart of the computing cluster first: helm upgrade --install kubeocean charts/kubeocean -n kubeocean-system --create-namespace",
];

/// Which account of which cluster, and where the result goes.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    worker: ClusterFlags,
    /// Namespace of the ServiceAccount: that of the worker chart, or of one of its tenants
    #[arg(long, default_value = "kubeocean-worker")]
    namespace: String,
    /// ServiceAccount whose rights the Syncer gets
    #[arg(long, default_value = "kubeocean-syncer")]
    service_account: String,
    /// Address of the API server as the computing cluster reaches it [default: that of the context]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Certificate authority of that address, PEM [default: that of the context, then the cluster's own]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Name in the server's certificate, when it is not that of the address
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// How long the token is valid; the server may grant less
    #[arg(long, default_value = "168h", value_parser = duration)]
    ttl: Duration,
    /// ClusterBinding the Secret is for; it is then called `NAME-kubeconfig`
    #[arg(long, value_name = "NAME")]
    binding_name: Option<String>,
    /// Name of the Secret
    #[arg(long, value_name = "NAME", conflicts_with = "binding_name")]
    secret: Option<String>,
    /// Namespace of the Secret in the computing cluster
    #[arg(long, value_name = "NAME", default_value = namespace::SYSTEM)]
    secret_namespace: String,
    /// What to print
    #[arg(long, default_value = "secret")]
    format: Form,
    /// File to write, readable by its owner only; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A Secret for the computing cluster
    Secret,
    /// The kubeconfig itself
    Kubeconfig,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let secret = match (&args.secret, &args.binding_name, args.format) {
        (Some(name), _, _) => name.clone(),
        (None, Some(binding), _) => format!("{binding}-kubeconfig"),
        (None, None, Form::Kubeconfig) => String::new(),
        (None, None, Form::Secret) => {
            return Err(Failure::unusable(
                "give --binding-name, after which the Secret is named, or --secret, or --format kubeconfig",
            ));
        }
    };
    if args.server.as_ref().is_some_and(|server| !server.starts_with("https://")) {
        return Err(Failure::unusable(
            "--server must begin with https://, a token does not travel in the clear",
        ));
    }
    let text = cluster::block_on(make(args))?;
    let text = match args.format {
        Form::Kubeconfig => text,
        Form::Secret => yaml(&manifest::secret(&args.secret_namespace, &secret, &text))?,
    };
    if args.output.as_os_str() == "-" {
        return print(&text);
    }
    write_private(&args.output, &text).or_unusable()
}

/// The kubeconfig's text, tried.
async fn make(args: &Args) -> Result<String, Failure> {
    let admin = cluster::read_kubeconfig(args.worker.kubeconfig.as_deref())?;
    let (client, _) = cluster::connect(admin.clone(), args.worker.context.as_deref()).await?;
    let account = Account { namespace: args.namespace.clone(), name: args.service_account.clone() };
    let token = request_token(&client, &account, args.ttl).await?;
    let endpoint = endpoint(args, &admin, &client).await?;
    if !endpoint.server.starts_with("https://") {
        let server = &endpoint.server;
        return Err(Failure::unusable(format!(
            "the context's server {server} is not https, a token does not travel in the clear: give --server"
        )));
    }
    let text = yaml(&manifest::kubeconfig(&endpoint, &account, &token.text))?;
    try_out(&text, &endpoint, &account).await?;
    eprintln!("{} answers as {}, the token is valid until {}", endpoint.server, account.user(), token.until);
    if token.is_cut(args.ttl) {
        eprintln!("note: the server granted less than --ttl");
    }
    Ok(text)
}

/// A token and its end. No `Debug`: it would print the token.
struct Token {
    text: String,
    until: Timestamp,
}

impl Token {
    fn is_cut(&self, wanted: Duration) -> bool {
        let granted = self.until.duration_since(Timestamp::now());
        // Requests take a moment, and servers round.
        let missing = i64::try_from(wanted.as_secs()).unwrap_or(i64::MAX).saturating_sub(granted.as_secs());
        missing > 60
    }
}

async fn request_token(client: &Client, account: &Account, ttl: Duration) -> Result<Token, Failure> {
    let path = paths::service_account_token(&account.namespace, &account.name);
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": ttl.as_secs()},
    });
    let answer = match create_json(client, &path, &request).await {
        Ok(answer) => answer,
        Err(ApplyError::NotFound { .. }) => return Err(missing(client, account).await),
        Err(ApplyError::Api { source, .. }) if trust::problem(&*source).is_some() => {
            let why = trust::problem(&*source).unwrap_or_default();
            return Err(Failure::unreachable(format!("the worker cluster cannot be trusted: {why}")));
        }
        Err(error) => return Err(Failure::of_request(&error)),
    };
    let of = |key: &str| answer.pointer(key).and_then(Value::as_str).unwrap_or_default();
    let until = of("/status/expirationTimestamp").parse();
    match (of("/status/token"), until) {
        ("", _) | (_, Err(_)) => Err(Failure::unusable("the server's answer to a TokenRequest has no token")),
        (token, Ok(until)) => Ok(Token { text: token.to_owned(), until }),
    }
}

/// Which of the two does not exist.
async fn missing(client: &Client, account: &Account) -> Failure {
    let what = match get(client, &paths::namespace(&account.namespace)).await {
        Ok(None) => format!("namespace {}", account.namespace),
        _ => format!("ServiceAccount {}/{}", account.namespace, account.name),
    };
    // The Manager's account, too, is given to a Manager outside of the cluster by this command.
    let install = INSTALL[usize::from(account.namespace == namespace::SYSTEM)];
    Failure::unusable(format!("the cluster has no {what}; {install}"))
}

/// From the flags, then the admin's context, then the cluster.
async fn endpoint(args: &Args, admin: &Kubeconfig, client: &Client) -> Result<Endpoint, Failure> {
    let context = args.worker.context.as_deref().or(admin.current_context.as_deref()).unwrap_or_default();
    let context = admin.contexts.iter().find(|named| named.name == context);
    let name = context.and_then(|named| named.context.as_ref()).map(|context| context.cluster.clone());
    let name = name.unwrap_or_default();
    let cluster = admin.clusters.iter().find(|named| named.name == name);
    let cluster = cluster.and_then(|named| named.cluster.clone()).unwrap_or_default();
    let authority = match &args.ca_file {
        Some(path) => Some(
            std::fs::read(path)
                .with_context(|| format!("cannot read --ca-file {}", path.display()))
                .or_unusable()?,
        ),
        None => match authority_of(&cluster)? {
            Some(authority) => Some(authority),
            None if cluster.insecure_skip_tls_verify == Some(true) => own_authority(client, args).await?,
            None => None,
        },
    };
    if args.server.is_none() && cluster.proxy_url.is_some() {
        return Err(Failure::unusable(
            "the context reaches its cluster through proxy-url, which is for this machine only: give --server with an \
             address that the computing cluster reaches without a proxy",
        ));
    }
    // The context's name of the certificate belongs to its address.
    let known_name = if args.server.is_some() { None } else { cluster.tls_server_name };
    Ok(Endpoint {
        name,
        server: args.server.clone().or(cluster.server).unwrap_or_default(),
        authority,
        tls_server_name: args.tls_server_name.clone().or(known_name),
    })
}

fn authority_of(cluster: &kube::config::Cluster) -> Result<Option<Vec<u8>>, Failure> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    if let Some(data) = &cluster.certificate_authority_data {
        return STANDARD
            .decode(data)
            .map(Some)
            .context("certificate-authority-data of the context is not base64")
            .or_unusable();
    }
    let Some(path) = &cluster.certificate_authority else { return Ok(None) };
    std::fs::read(path).map(Some).with_context(|| format!("cannot read the context's {path}")).or_unusable()
}

/// The authority every pod of the cluster is given. For an admin who does not check it, the Syncer shall.
async fn own_authority(client: &Client, args: &Args) -> Result<Option<Vec<u8>>, Failure> {
    let path = paths::core("configmaps", &args.namespace, "kube-root-ca.crt");
    let found = get(client, &path).await?;
    let text = found.as_ref().and_then(|object| object.pointer("/data/ca.crt")).and_then(Value::as_str);
    Ok(text.map(|text| text.as_bytes().to_vec()))
}

/// One call with nothing but the new kubeconfig, as the Syncer would make it.
async fn try_out(text: &str, endpoint: &Endpoint, account: &Account) -> Result<(), Failure> {
    let kubeconfig = parse("the new kubeconfig", Some(text.as_bytes()), false)
        .context("the new kubeconfig is not one the Syncer accepts")
        .or_unusable()?;
    let (client, config) = cluster::connect(kubeconfig, None).await.map_err(|failure| match failure {
        Failure::Unusable(error) if endpoint.authority.is_some() => {
            Failure::Unusable(error.context("the new kubeconfig cannot be used; is the authority PEM?"))
        }
        other => other,
    })?;
    let server = config.cluster_url;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = create_json(&client, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await;
    let user = match answer {
        Ok(answer) => {
            answer.pointer("/status/userInfo/username").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Err(ApplyError::Api { source, .. }) if trust::problem(&*source).is_some() => {
            let why = trust::problem(&*source).unwrap_or_default();
            return Err(Failure::unreachable(format!("{server} cannot be trusted: {why}")));
        }
        Err(ApplyError::Unauthorized { message, .. } | ApplyError::Forbidden { message, .. }) => {
            return Err(Failure::unusable(format!(
                "{server} does not accept the new token; is it the API server of another cluster? ({message})"
            )));
        }
        Err(error) => {
            return Err(match Failure::of_request(&error) {
                Failure::Unreachable(error) => {
                    Failure::Unreachable(error.context(format!("{server} does not answer")))
                }
                other => other,
            });
        }
    };
    if user == account.user() {
        return Ok(());
    }
    Err(Failure::unusable(format!("{server} takes the new token for {user:?} instead of {}", account.user())))
}

fn yaml(value: &Value) -> Result<String, Failure> {
    serde_saphyr::to_string(value).context("cannot be written as YAML").or_unusable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_token_than_asked_for_is_noticed() {
        let token = |seconds: i64| Token {
            text: String::new(),
            until: Timestamp::now() + jiff::SignedDuration::from_secs(seconds),
        };
        assert!(!token(3600).is_cut(Duration::from_hours(1)));
        assert!(token(3600).is_cut(Duration::from_hours(2)));
    }
}
