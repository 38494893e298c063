//! The connection of a person's command to a cluster: a context of a kubeconfig, as kubectl takes it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args as ClapArgs;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

use crate::failure::{Failure, OrFailure};
use kubeocean_runtime::request::get_json;

/// Which cluster.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct ClusterFlags {
    /// Kubeconfig of the worker cluster [default: KUBECONFIG, then ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the worker cluster in it [default: its current context]
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// A kubeconfig as a person has it: it may name files and programs.
pub(crate) fn read_kubeconfig(path: Option<&Path>) -> Result<Kubeconfig, Failure> {
    match path {
        Some(path) => Kubeconfig::read_from(path)
            .with_context(|| format!("cannot read --kubeconfig {}", path.display())),
        None => Kubeconfig::read()
            .context("no kubeconfig: give --kubeconfig, set KUBECONFIG, or make ~/.kube/config"),
    }
    .or_unusable()
}

/// A client for a context of a kubeconfig, and where it is and who we are there.
pub(crate) async fn connect(
    kubeconfig: Kubeconfig,
    context: Option<&str>,
) -> Result<(Client, Config), Failure> {
    let named = context.or(kubeconfig.current_context.as_deref()).unwrap_or_default().to_owned();
    let known = kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect::<Vec<_>>();
    if !known.contains(&named.as_str()) {
        let known = known.join(", ");
        return Err(Failure::unusable(format!(
            "the kubeconfig has no context {named:?}; choose one with --context: {known}"
        )));
    }
    let options = KubeConfigOptions { context: Some(named.clone()), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .with_context(|| format!("context {named} of the kubeconfig cannot be used"))
        .or_unusable()?;
    let client = kubeocean_runtime::client::client(config.clone(), None)
        .with_context(|| format!("context {named} of the kubeconfig cannot be used"))
        .or_unusable()?;
    Ok((client, config))
}

/// An object, or `None`.
pub(crate) async fn get(client: &Client, path: &str) -> Result<Option<Value>, Failure> {
    get_json(client, path).await.map_err(|error| Failure::of_request(&error))
}

/// The items of a list, or `None` when the server does not know the kind.
pub(crate) async fn list(client: &Client, path: &str) -> Result<Option<Vec<Value>>, Failure> {
    let Some(mut list) = get(client, path).await? else { return Ok(None) };
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(Some(items)),
        _ => Ok(Some(Vec::new())),
    }
}

/// Runs a command's requests.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    // A command may talk to several registries, one after the other: the first sets it for the process.
    let set = || rustls::crypto::CryptoProvider::get_default().is_some();
    if !set() && rustls::crypto::ring::default_provider().install_default().is_err() && !set() {
        return Err(Failure::unusable("no TLS provider can be installed"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .or_unusable()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
