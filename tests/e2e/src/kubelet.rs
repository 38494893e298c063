//! A caller of a kubelet API, as raw requests: what kubectl never shows is asked here.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// One caller of one listener. The listener's certificate is not checked: nobody vouches for it.
#[derive(Clone)]
pub struct Kubelet {
    client: Client,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kubelet")
    }
}

impl Kubelet {
    /// A caller with the credentials of a kubeconfig for some cluster, or without any.
    ///
    /// # Errors
    /// The kubeconfig is not valid.
    pub async fn at(address: SocketAddr, kubeconfig: Option<&str>) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("https://{address}").parse().context("an address is a URL")?;
        let mut config = Config::new(url);
        if let Some(kubeconfig) = kubeconfig {
            let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("parsing a kubeconfig")?;
            let known = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            config.auth_info = known.auth_info;
        }
        config.accept_invalid_certs = true;
        config.default_retry = false;
        Ok(Self { client: Client::try_from(config)? })
    }

    /// Status and body of an answer.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.ask(Method::GET, path, &[]).await
    }

    /// As [`Kubelet::get`], with any method and headers.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = self.client.send(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect_bytes().await.expect("a body");
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}
