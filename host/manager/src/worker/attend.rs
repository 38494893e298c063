//! The attendant of one binding: follows its Secret, asks its worker, and hands what it finds to the index.
//!
//! A changed Secret is used at once. A worker that answers is asked once in an interval; one that does not is asked
//! again sooner, with growing pauses, so that it is back soon after it is mended. One broken worker concerns only its
//! own attendant.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use kube::{Client, config::KubeConfigOptions};
use kubeocean_runtime::{
    binding::{
        kubeconfig::{self, KUBECONFIG_KEY, KubeconfigError},
        watch::{SecretState, follow_secret},
    },
    clock::Clock,
    error::ApplyError,
    first_failure::FirstFailure,
    request::{get_json, paths},
};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ask::{Answer, ask, resolves},
    credentials::{Life, is_insecure, life},
    report::{Connection, Credentials, Past, Report, Silence},
    rights::{Need, describe},
};
use crate::{
    bindings::{index::Index, view::Target},
    config::{ManagerConfig, SecretAccess},
    metrics::ManagerMetrics,
};

/// First pause after a worker did not answer.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// How long the watch of a Secret may take until the Secret is read instead.
const WATCH_PATIENCE: Duration = Duration::from_secs(1);
/// Pause after the computing cluster did not answer.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// What all attendants share.
pub struct Attendants {
    config: ManagerConfig,
    computing: Client,
    index: Arc<Index>,
    clock: Arc<dyn Clock>,
    metrics: Arc<ManagerMetrics>,
    working: Mutex<BTreeMap<String, (Target, CancellationToken)>>,
    tracker: TaskTracker,
    failure: FirstFailure,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Attendants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attendants").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Attendants {
    /// None yet. A panic in one is reported to `failure`.
    pub fn new(
        config: ManagerConfig,
        computing: Client,
        around: (Arc<Index>, Arc<dyn Clock>, Arc<ManagerMetrics>),
        failure: FirstFailure,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        let (index, clock, metrics) = around;
        let (working, tracker) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { config, computing, index, clock, metrics, working, tracker, failure, cancel })
    }

    /// Has `target` attended to, and nothing else under the name of its binding.
    pub fn attend(self: &Arc<Self>, target: &Target) {
        let mut working = self.working.lock();
        if working.get(&target.binding).is_some_and(|(present, _)| present == target) {
            return;
        }
        let cancel = self.cancel.child_token();
        if let Some((_, earlier)) = working.insert(target.binding.clone(), (target.clone(), cancel.clone())) {
            earlier.cancel();
        }
        let (all, target) = (Arc::clone(self), target.clone());
        self.tracker.spawn(async move {
            let binding = target.binding.clone();
            let attendant = tokio::spawn(Attendant { all: Arc::clone(&all), target, cancel }.run());
            if let Err(error) = attendant.await {
                all.failure.report(format!("the attendant of {binding} failed: {error}"));
            }
        });
    }

    /// Ends the attendant of a binding.
    pub fn leave(&self, binding: &str) {
        let mut working = self.working.lock();
        if let Some((_, cancel)) = working.remove(binding) {
            cancel.cancel();
        }
        drop(working);
        self.metrics.forget_worker(binding);
    }

    /// Waits for the end of all, after their cancellation.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

struct Attendant {
    all: Arc<Attendants>,
    target: Target,
    cancel: CancellationToken,
}

/// Why a Secret was not read.
enum Unread {
    /// The role does not allow it.
    Forbidden(Credentials),
    /// The computing cluster does not answer now, which says nothing about the Secret.
    NoAnswer,
}

/// How often in a row a worker did not answer.
#[derive(Clone, Copy)]
struct Silent {
    failures: u32,
    past: Past,
}

/// What was found, and how long the worker took if it was asked.
struct Found {
    report: Report,
    took: Option<Duration>,
}

impl Found {
    /// The worker was not asked.
    fn unusable(credentials: Credentials) -> Self {
        let report =
            Report { credentials, connection: None, version: None, expires_at: None, insecure: false };
        Self { report, took: None }
    }
}

/// A worker that can be asked, as long as its Secret stays the same.
struct Worker {
    client: Client,
    server: http::Uri,
    life: Option<Life>,
    insecure: bool,
}

impl Attendant {
    async fn run(self) {
        let all = &self.all;
        let access = all.config.secret_access(&self.target.secret.namespace);
        let mut watched = None;
        if access == SecretAccess::Watch {
            let secret = &self.target.secret;
            let (states, watching) = follow_secret(
                &all.computing,
                &all.config.kubeconfig_rules(),
                &secret.namespace,
                &secret.name,
                self.cancel.clone(),
            );
            all.tracker.spawn(watching);
            watched = Some(states);
        }
        let mut used = SecretState::Unknown;
        let mut worker: Option<Worker> = None;
        let mut round: u64 = 0;
        // After a start of the Manager a worker that was connected is not given up at its first silence.
        let past =
            if all.index.was_connected(&self.target.binding) { Past::Connected } else { Past::Unknown };
        let mut silent = Silent { failures: 0, past };
        loop {
            let state = match access {
                SecretAccess::Denied => Err(self.denied()),
                SecretAccess::Watch | SecretAccess::Read => {
                    match self.cancel.run_until_cancelled(self.secret(watched.as_mut())).await {
                        None => return,
                        Some(Ok(state)) => Ok(state),
                        Some(Err(Unread::Forbidden(credentials))) => Err(credentials),
                        Some(Err(Unread::NoAnswer)) => {
                            tokio::select! {
                                () = self.cancel.cancelled() => return,
                                () = tokio::time::sleep(READ_AGAIN) => continue,
                            }
                        }
                    }
                }
            };
            if state.as_ref().ok() != Some(&used) {
                // What the worker did with another kubeconfig says nothing about this one.
                if used != SecretState::Unknown {
                    silent.past = Past::Unknown;
                }
                used = state.as_ref().ok().cloned().unwrap_or_default();
                worker = None;
                silent.failures = 0;
            }
            let found = match state {
                Err(credentials) => Found::unusable(credentials),
                Ok(state) => {
                    let asking = self.ask(&state, &mut worker, &mut silent);
                    let Some(found) = self.cancel.run_until_cancelled(asking).await else { return };
                    found
                }
            };
            if found.report.connection == Some(Connection::Up) {
                silent = Silent { failures: 0, past: Past::Connected };
            }
            let pause = self.pause(silent, round);
            round += 1;
            self.tell(found);
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = changed(watched.as_mut()) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Hands over what was found, unless nobody wants to know any more.
    fn tell(&self, found: Found) {
        let all = &self.all;
        // Whoever ends this attendant forgets the worker after that, and not in between.
        let working = all.working.lock();
        if self.cancel.is_cancelled() {
            return;
        }
        if let Some(took) = found.took {
            all.metrics.probed(&self.target.binding, took);
        }
        all.metrics.set_worker(&self.target.binding, &found.report);
        drop(working);
        all.index.set_report(&self.target, found.report);
    }

    /// When to ask again without being told.
    /// Failures that do not count yet are an interval apart, so that together they span more than a restart of the worker.
    fn pause(&self, silent: Silent, round: u64) -> Duration {
        let interval = self.all.config.worker_probe_interval;
        let pause = match silent.failures.checked_sub(silent.past.patience()) {
            Some(more) => AGAIN_FIRST.saturating_mul(1 << more.min(10)).min(interval),
            None => interval,
        };
        // A tenth up or down, so that the workers are not all asked at once; from the name, so no randomness is needed.
        let spread =
            BuildHasherDefault::<DefaultHasher>::default().hash_one((&self.target.binding, round)) % 200;
        pause.mul_f64(0.9 + f64::from(u32::try_from(spread).unwrap_or(0)) / 1000.0)
    }

    fn denied(&self) -> Credentials {
        let error = KubeconfigError::NotPermitted(self.target.secret.namespace.clone());
        Credentials::Invalid { reason: "SecretForbidden", message: error.to_string() }
    }

    /// The Secret as watched, or read where it is not watched or the watch has not begun.
    async fn secret(
        &self,
        watched: Option<&mut watch::Receiver<SecretState>>,
    ) -> Result<SecretState, Unread> {
        if let Some(states) = watched {
            let known = states.wait_for(|state| *state != SecretState::Unknown);
            if let Ok(Ok(state)) = tokio::time::timeout(WATCH_PATIENCE, known)
                .await
                .map(|known| known.map(|state| state.clone()))
            {
                return Ok(state);
            }
        }
        let secret = &self.target.secret;
        match get_json(&self.all.computing, &paths::core("secrets", &secret.namespace, &secret.name)).await {
            Ok(None) => Ok(SecretState::Missing),
            Ok(Some(object)) => {
                let data = object.pointer("/data").and_then(|data| data.get(KUBECONFIG_KEY));
                let bytes = data.and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
                Ok(SecretState::Present(bytes.map(Into::into)))
            }
            Err(ApplyError::Forbidden { .. }) => {
                let message = KubeconfigError::Forbidden(self.target.secret_key()).to_string();
                Err(Unread::Forbidden(Credentials::Invalid { reason: "SecretForbidden", message }))
            }
            Err(error) => {
                tracing::warn!(error = error.chain(), "kubeconfig secret not read, retrying");
                Err(Unread::NoAnswer)
            }
        }
    }

    async fn ask(&self, state: &SecretState, worker: &mut Option<Worker>, silent: &mut Silent) -> Found {
        if worker.is_none() {
            match self.connect(state).await {
                Ok(made) => *worker = Some(made),
                Err(credentials) => return Found::unusable(credentials),
            }
        }
        let Some(worker) = worker else { return Found::unusable(Credentials::Unproven) };
        let started = Instant::now();
        let answer = ask(&worker.client, &self.target.mount_namespace).await;
        let took = Some(started.elapsed());
        let now = self.all.clock.now();
        let mut report = Report {
            credentials: Credentials::Unproven,
            connection: Some(Connection::Up),
            version: None,
            expires_at: worker.life.map(|life| life.until),
            insecure: worker.insecure,
        };
        match answer {
            Answer::Nothing { reason, detail } => {
                silent.failures += 1;
                let (reason, detail) = if reason == "ConnectivityFailed" && !resolves(&worker.server).await {
                    ("DNSFailed", "the name of the server has no address".to_owned())
                } else {
                    (reason, detail)
                };
                let message = format!(
                    "cluster connectivity test failed: failed to connect to cluster: {detail}; check the address, the \
                     network and the CA in secret {}",
                    self.target.secret_key()
                );
                let silence = Silence { reason, message };
                report.connection = Some(Connection::failed(silent.past, silent.failures, silence));
            }
            Answer::Unauthorized => report.credentials = self.unauthorized(worker.life, now),
            Answer::Accepted { version, lacking, absent } => {
                report.version = Some(version).filter(|version| !version.is_empty());
                let (required, optional): (Vec<_>, Vec<_>) =
                    lacking.into_iter().partition(|one| one.need == Need::Required);
                let mount = &self.target.mount_namespace;
                report.credentials = if required.is_empty() && absent.is_empty() {
                    valid(worker, &describe(&optional, mount), now)
                } else {
                    let mut texts = absent;
                    if !required.is_empty() {
                        texts.push(format!("the worker does not grant {}", describe(&required, mount)));
                    }
                    Credentials::Invalid { reason: "PermissionsMissing", message: texts.join("; ") }
                };
            }
        }
        Found { report, took }
    }

    fn unauthorized(&self, life: Option<Life>, now: Timestamp) -> Credentials {
        let why = match life {
            Some(life) if life.until <= now => format!("they expired at {}", life.until),
            _ => "they may have been revoked".to_owned(),
        };
        let message = format!(
            "the worker does not accept the credentials in secret {}: {why}; write a new kubeconfig into it",
            self.target.secret_key()
        );
        Credentials::Invalid { reason: "Unauthorized", message }
    }

    async fn connect(&self, state: &SecretState) -> Result<Worker, Credentials> {
        let secret = self.target.secret_key();
        let invalid = |reason, message| Credentials::Invalid { reason, message };
        let data = match state {
            SecretState::Present(data) => data.as_deref(),
            SecretState::Forbidden => {
                return Err(invalid("SecretForbidden", KubeconfigError::Forbidden(secret).to_string()));
            }
            SecretState::NotPermitted(_) => return Err(self.denied()),
            SecretState::Unknown | SecretState::Missing => {
                return Err(invalid("SecretNotFound", KubeconfigError::NotFound(secret).to_string()));
            }
        };
        let kubeconfig = kubeconfig::parse(&secret, data, self.all.config.allow_unsafe_kubeconfig)
            .map_err(|error| invalid(reason(&error), error.to_string()))?;
        let (life, insecure) = (life(&kubeconfig), is_insecure(&kubeconfig));
        // The loader's message may quote what it could not use.
        let unusable = |_| {
            let message = format!("invalid kubeconfig format in secret {secret}: its data cannot be used");
            invalid("KubeconfigInvalid", message)
        };
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let server = config.cluster_url.clone();
        let client =
            kubeocean_runtime::client::client(config, None).map_err(|error| unusable(error.to_string()))?;
        Ok(Worker { client, server, life, insecure })
    }
}

/// Waits for a change of the Secret; for ever where it is not watched.
async fn changed(watched: Option<&mut watch::Receiver<SecretState>>) {
    if let Some(states) = watched
        && states.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

fn valid(worker: &Worker, optional: &str, now: Timestamp) -> Credentials {
    let mut notes = Vec::new();
    let mut reason = "KubeconfigValid";
    if let Some(life) = worker.life.filter(|life| life.ends_soon(now)) {
        reason = "ExpiresSoon";
        notes.push(format!("the credentials expire at {}", life.until));
    }
    if worker.insecure {
        notes.push("the worker's certificate is not verified (insecure-skip-tls-verify)".to_owned());
    }
    if !optional.is_empty() {
        notes.push(format!("optional rights are missing, the features that need them are off: {optional}"));
    }
    Credentials::Valid { reason, note: notes.join("; ") }
}

fn reason(error: &KubeconfigError) -> &'static str {
    match error {
        KubeconfigError::NotFound(_) => "SecretNotFound",
        KubeconfigError::Forbidden(_) | KubeconfigError::NotPermitted(_) => "SecretForbidden",
        KubeconfigError::KeyMissing(_) | KubeconfigError::Empty(_) => "KeyMissing",
        KubeconfigError::Invalid { .. } => "KubeconfigInvalid",
        KubeconfigError::Unsafe { .. } => "KubeconfigUnsafe",
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_api::binding::SecretRef;
    use kubeocean_runtime::clock::SystemClock;
    use tokio::net::TcpListener;

    use super::*;

    fn client(server: &http::Uri) -> Client {
        kubeocean_runtime::client::client(kube::Config::new(server.clone()), None).unwrap()
    }

    fn attendant(metrics: &Arc<ManagerMetrics>) -> Attendant {
        // Nothing listens on the discard port of this machine.
        let nobody = client(&http::Uri::from_static("http://127.0.0.1:9"));
        let target = Target {
            binding: "b".to_owned(),
            uid: "u".to_owned(),
            secret: SecretRef { name: "s".to_owned(), namespace: "n".to_owned() },
            mount_namespace: "m".to_owned(),
        };
        let cancel = CancellationToken::new();
        let around = (Index::new(), Arc::new(SystemClock) as Arc<dyn Clock>, Arc::clone(metrics));
        let all = Attendants::new(
            ManagerConfig::default(),
            nobody,
            around,
            FirstFailure::default(),
            cancel.child_token(),
        );
        all.working.lock().insert(target.binding.clone(), (target.clone(), cancel.clone()));
        Attendant { all, target, cancel }
    }

    #[tokio::test]
    async fn nobody_waits_for_a_worker_that_is_not_wanted_any_more() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server: http::Uri = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
        let worker = Worker { client: client(&server), server, life: None, insecure: false };
        let attendant = attendant(&Arc::default());
        let (mut worker, mut failures) = (Some(worker), Silent { failures: 0, past: Past::Unknown });
        let asking = attendant.ask(&SecretState::Unknown, &mut worker, &mut failures);
        // It takes the connection, and stays silent.
        let (asked, taken) = tokio::join!(attendant.cancel.run_until_cancelled(asking), async {
            let taken = silent.accept().await.unwrap();
            attendant.all.leave("b");
            taken
        });
        assert!(asked.is_none());
        drop(taken);
    }

    #[tokio::test]
    async fn a_binding_that_is_left_has_no_series_whatever_its_worker_answers_then() {
        let metrics = Arc::<ManagerMetrics>::default();
        let attendant = attendant(&metrics);
        let took = Some(Duration::from_millis(3));
        let found = || Found { took, ..Found::unusable(Credentials::Unproven) };
        attendant.tell(found());
        assert!(metrics.encode().contains("worker_probe_duration_seconds{clusterbinding=\"b\"}"));
        attendant.all.leave("b");
        attendant.tell(found());
        assert!(!metrics.encode().contains("clusterbinding="), "{}", metrics.encode());
    }
}
