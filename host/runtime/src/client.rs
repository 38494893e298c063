//! How we talk to an API server: HTTP/2, all requests of a client on one connection and all its watches on another.
//!
//! kube's own stack speaks HTTP/1.1, where each request in flight and each watch needs a connection with a TLS handshake
//! and buffers of its own. A hundred workers then cost a hundred connections; here they cost none, and answers that come
//! together are read together. A connection that died silently is noticed by pings, watches included.
//!
//! Watches stay away from requests, because an API server takes a hundred streams on a connection, watches included, and
//! sends in turns what they have to say: in a burst a watch would wait behind a hundred answers, and the server ends a watch
//! that does not take its events in time.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Builder, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt, retry::RetryPolicy},
};
use tower::{BoxError, Service, ServiceBuilder, retry::RetryLayer};

use crate::{
    connect::OneByOne,
    rate::{RateLayer, RequestRate},
};

/// Limit of TCP and TLS together until there is a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is asked for a sign of life this often, and given up without one.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is busy (429) or not ready (503, 504) is asked again after these pauses, growing from the first to the
/// last, or after what it says in `Retry-After`. Then whoever asked knows: watches and queues have pauses of their own.
const BUSY_FIRST: Duration = Duration::from_millis(100);
const BUSY_MAX: Duration = Duration::from_secs(2);
const BUSY_TIMES: u32 = 5;

/// A client without a time limit on the whole connection: each request has its own, and a watch must not be cut.
///
/// Each call makes a client with connections of its own. Errors: certificates, keys or headers of `config` that cannot
/// be used.
pub fn client(mut config: Config, rate: Option<RequestRate>) -> Result<Client, kube::Error> {
    let rate = rate.map(RateLayer::new);
    if config.proxy_url.is_some() {
        // kube knows the kinds of proxies.
        config.read_timeout = None;
        config.write_timeout = None;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let builder = ClientBuilder::try_from(config)?;
        return Ok(match rate {
            Some(rate) => builder.with_layer(&rate).build(),
            None => builder.build(),
        });
    }
    let tls = config.rustls_client_config()?;
    let mut connector = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|error| kube::Error::Service(Box::new(error)))?;
        connector = connector.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // HTTP/1.1 stays for servers, and load balancers in front of them, that know nothing else.
    let connector = connector.enable_http1().enable_http2().wrap_connector(tcp);
    let http = || {
        let mut connector = TimeoutConnector::new(OneByOne::new(connector.clone()));
        // A server that takes a connection and stays silent must not hold up a watch for ever.
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build::<_, Body>(connector)
    };
    let http = Apart { requests: http(), watches: http() };
    let busy = RetryPolicy::new(BUSY_FIRST, BUSY_MAX, BUSY_TIMES, true)
        .map_err(|error| kube::Error::Service(Box::new(error)))?;
    let service = ServiceBuilder::new()
        .option_layer(rate)
        .layer(config.base_uri_layer())
        .layer(RetryLayer::new(busy))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Two connections, so to speak.
#[derive(Clone)]
struct Apart<S> {
    requests: S,
    watches: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Apart<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.requests.poll_ready(context) {
            Poll::Ready(Ok(())) => self.watches.poll_ready(context),
            other => other,
        }
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let service = if is_watch(&request) { &mut self.watches } else { &mut self.requests };
        service.call(request)
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().unwrap_or_default().split('&').any(|pair| pair == "watch=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_a_connection_and_stays_silent_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = silent.local_addr().expect("an address");
        let accepting = tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Ok((connection, _)) = silent.accept().await {
                taken.push(connection);
            }
        });
        let config = Config::new(format!("https://{address}").parse().expect("an address"));
        let client = client(config, None).expect("a client");
        let answer = tokio::time::timeout(CONNECT_TIMEOUT * 3, client.apiserver_version()).await;
        assert!(matches!(answer, Ok(Err(_))), "{answer:?}");
        accepting.abort();
    }
}
