//! `explain --recorded`: what a binding's Syncer itself decided last about a node, asked of its policy server (PO-608).
//!
//! The server's address and certificate are on the Syncer's leader Lease. A pod is reached through the API server, which
//! forwards a port to it; a Syncer that runs outside the cluster has no pod and is called where it is.

use std::{fmt::Display, net::Ipv4Addr};

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Config};
use kubeocean_api::{
    keys::annotation,
    place::{DECISIONS_PATH, Endpoint, syncer_lease},
};
use kubeocean_engine::Recorded;
use kubeocean_runtime::{request::paths, tls::PinnedClient};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    cluster::{get, list},
    failure::Failure,
    policy::gather::Computing,
};

/// Largest answer: a thousand decisions of each kind.
const ANSWER_BYTES: usize = 256 << 20;

/// The computing cluster, and what is asked there.
pub(super) struct Asked<'a> {
    pub(super) client: &'a Client,
    pub(super) config: &'a Config,
    pub(super) namespace: &'a str,
    pub(super) binding: &'a str,
    pub(super) computing: &'a Computing,
}

impl Asked<'_> {
    /// The decisions about a node, oldest first.
    pub(super) async fn decisions(&self, node: &str) -> Result<Vec<Recorded>, Failure> {
        let server = self.endpoint().await?;
        let text = match self.pod_at(&server).await? {
            Some(pod) => self.through_the_api_server(&pod, server, node).await?,
            None => ask(&server, self.config, node).await?,
        };
        text.lines()
            .map(|line| Recorded::from_json(line).map_err(|error| self.wrong(format!("{error} in {line}"))))
            .collect()
    }

    fn wrong(&self, why: impl Display) -> Failure {
        Failure::unusable(format!("the Syncer of {} answers what is no record: {why}", self.binding))
    }

    async fn endpoint(&self) -> Result<Endpoint, Failure> {
        let names = [syncer_lease(&self.computing.binding.cluster_id), syncer_lease(self.binding)];
        for name in &names {
            let lease = get(self.client, &paths::lease(self.namespace, name)).await?;
            let said = lease
                .as_ref()
                .and_then(|lease| lease["metadata"]["annotations"][annotation::POLICY_ENDPOINT].as_str());
            if let Some(said) = said {
                return said.parse().map_err(|error| Failure::unusable(format!("Lease {name}: {error}")));
            }
        }
        Err(Failure::unusable(format!(
            "no Lease {} in namespace {} says where the policy server of {} is: its Syncer runs in the Manager's process, \
             with --policy-bind-address=0, or not at all",
            names[0], self.namespace, self.binding
        )))
    }

    /// The pod of the Syncer, if it is one.
    async fn pod_at(&self, server: &Endpoint) -> Result<Option<String>, Failure> {
        let query = format!("?fieldSelector=status.podIP%3D{}", server.address.ip());
        let pods = list(self.client, &(paths::pods(self.namespace) + &query)).await?;
        let running = |pod: &&Value| pod["status"]["phase"] == "Running";
        let pods = pods.unwrap_or_default();
        Ok(pods.iter().find(running).and_then(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned))
    }

    async fn through_the_api_server(
        &self,
        pod: &str,
        mut server: Endpoint,
        node: &str,
    ) -> Result<String, Failure> {
        let failed = |error: &dyn Display| {
            Failure::unreachable(format!("no port of pod {}/{pod} can be forwarded: {error}", self.namespace))
        };
        // Ours speaks HTTP/2, over which nothing is forwarded.
        let client = Client::try_from(self.config.clone()).map_err(|error| failed(&error))?;
        let pods: Api<Pod> = Api::namespaced(client, self.namespace);
        let port = server.address.port();
        let mut forwarder = pods.portforward(pod, &[port]).await.map_err(|error| failed(&error))?;
        let mut stream = forwarder.take_stream(port).ok_or_else(|| failed(&"there is no stream"))?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| failed(&error))?;
        server.address = listener.local_addr().map_err(|error| failed(&error))?;
        let relay = async {
            let (mut caller, _) = listener.accept().await?;
            tokio::io::copy_bidirectional(&mut caller, &mut stream).await?;
            Ok::<_, std::io::Error>(())
        };
        tokio::pin!(relay);
        let asking = ask(&server, self.config, node);
        tokio::pin!(asking);
        tokio::select! {
            answer = &mut asking => answer,
            // What was forwarded last may still be on its way to the answer.
            ended = &mut relay => match ended {
                Ok(()) => asking.await,
                Err(error) => Err(failed(&error)),
            },
        }
    }
}

async fn ask(server: &Endpoint, ours: &Config, node: &str) -> Result<String, Failure> {
    let client =
        PinnedClient::new(server, Some(ours)).map_err(|error| Failure::unusable(error.to_string()))?;
    // The names of nodes have no letters that a query could misunderstand.
    let request = Request::get(format!("{DECISIONS_PATH}?node={node}"))
        .body(Body::empty())
        .map_err(|error| Failure::unusable(error.to_string()))?;
    let answer = client.send(request).await.map_err(|error| Failure::unreachable(error.to_string()))?;
    let status = answer.status();
    let body = to_bytes(answer.into_body(), ANSWER_BYTES).await;
    let body = body.map_err(|error| Failure::unreachable(error.to_string()))?;
    let text = String::from_utf8_lossy(&body).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::UNAUTHORIZED => Err(Failure::unusable(
            "the Syncer does not know who asks: it needs a kubeconfig with a bearer token, a client certificate is not \
             enough",
        )),
        StatusCode::FORBIDDEN => {
            Err(Failure::unusable(format!("{}; ClusterRole kubeocean-policy-view allows it", text.trim())))
        }
        status => Err(Failure::unreachable(format!("the Syncer answers {status}: {}", text.trim()))),
    }
}
