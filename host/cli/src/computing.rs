//! The connection to the computing cluster: `--kubeconfig`, then `KUBECONFIG`, then the pod's ServiceAccount, then
//! `~/.kube/config`.

use std::path::Path;

use anyhow::Context;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeocean_runtime::rate::RequestRate;

/// Connects as the flags and the environment say.
pub(crate) async fn connect(kubeconfig: Option<&Path>, rate: Option<RequestRate>) -> anyhow::Result<Client> {
    client(config(kubeconfig).await?, rate)
}

/// A client of a configuration.
pub(crate) fn client(config: Config, rate: Option<RequestRate>) -> anyhow::Result<Client> {
    kubeocean_runtime::client::client(config, rate).context("the kubeconfig's data cannot be used")
}

/// Where the computing cluster is, and who we are there.
pub(crate) async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let options = KubeConfigOptions::default();
    Ok(match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read --kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options)
                .await
                .with_context(|| format!("--kubeconfig {} cannot be used", path.display()))?
        }
        None => match Kubeconfig::from_env().context("cannot read the file named by KUBECONFIG")? {
            Some(file) => Config::from_custom_kubeconfig(file, &options)
                .await
                .context("the file named by KUBECONFIG cannot be used")?,
            // `Config::infer` would look at the home folder first (MC-101).
            None => match Config::incluster() {
                Ok(config) => config,
                Err(_) => Config::infer().await.context(
                    "no computing cluster: give --kubeconfig, set KUBECONFIG, or run in a pod with a ServiceAccount",
                )?,
            },
        },
    })
}
