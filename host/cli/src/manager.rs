//! `kubeocean manager`: flags of MC-101 and MC-109, and the process around the Manager.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args as ClapArgs, ValueEnum};
use kubeocean_manager::{
    components::Components,
    config::{ENDS_WITHIN, ManagerConfig},
    extender::{
        apart::SyncersApart,
        certificate::{CertificateFiles, server_config},
        known::KnownBindings,
        places::Places,
        serve::serve as serve_extender,
    },
    process::{OtherMetrics, ProcessConfig},
};
use kubeocean_proxier::Proxier;
use kubeocean_runtime::{rate::RequestRate, server::listen};
use kubeocean_syncer::process::start_engine;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    computing,
    in_process::{AllSyncers, Handle, InProcess, Settings},
    logging, process,
    program::{ProgramFlags, duration},
    proxier::{ServingArgs, Surroundings},
    syncer::SyncerFlags,
};

/// Flags of the Manager. Each is also an environment variable `KUBEOCEAN_<FLAG>`; the flag wins.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// How Syncers and Proxiers run: as Deployments, or as tasks of this process
    #[arg(long, default_value = "deployment")]
    runtime: Runtime,
    #[command(flatten)]
    program: ProgramFlags,
    /// Name of the leader Lease
    #[arg(long, default_value = "kubeocean-manager-leader")]
    leader_election_id: String,
    /// Namespaces in which bindings may have their kubeconfig Secret, beside the system namespace [default: any]
    #[arg(long, value_delimiter = ',', value_name = "NAMESPACE,...")]
    kubeconfig_namespaces: Vec<String>,
    /// How often each worker cluster is asked whether it answers
    #[arg(long, default_value = "60s", value_parser = duration)]
    worker_probe_interval: Duration,
    /// Requests per second of the Manager itself to the computing cluster, Leases apart; 0 is unlimited
    #[arg(long, default_value_t = 0.0, hide_short_help = true)]
    kube_client_qps: f64,
    /// Requests of the Manager itself at once, where their rate is limited; 0 is 10
    #[arg(long, default_value_t = 0, hide_short_help = true)]
    kube_client_burst: u32,
    /// Address of the scheduler extender (HTTPS); 0 turns it off
    #[arg(long, default_value = "0")]
    scheduler_extender_bind_address: String,
    /// Folder with tls.crt and tls.key of the scheduler extender, read again when they change [default: a certificate
    /// made at start, which nobody vouches for]
    #[arg(long, default_value = "")]
    scheduler_extender_cert_dir: String,
    /// Authorities whose certificates callers of the scheduler extender must show [default: none is asked for]
    #[arg(long, default_value = "")]
    scheduler_extender_client_ca_file: String,
    /// What the scheduler's configuration says as httpTimeout of the extender; answers come within four fifths of it
    #[arg(long, default_value = "1s", value_parser = duration)]
    scheduler_extender_timeout: Duration,
    #[command(flatten, next_help_heading = "Syncers in this process")]
    syncer: SyncerFlags,
    #[command(flatten, next_help_heading = "Proxiers in this process")]
    serving: ServingArgs,
    #[command(flatten)]
    log: logging::LogFlags,
}

/// What is left of the end after the Manager's own; then the process ends, whatever hangs.
const LAST: Duration = Duration::from_secs(10);
/// Shorter ones are mistakes: no Syncer answers in them.
const LEAST_EXTENDER_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    Deployment,
    InProcess,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.runtime == Runtime::Deployment {
        anyhow::bail!(
            "--runtime=deployment is not part of this version; run with --runtime=in-process, or start a `kubeocean \
             syncer` for each binding"
        );
    }
    logging::start(&args.log)?;
    process::block_on(serve(args))
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    let program = &args.program;
    let listeners = program.listeners().await?;
    let connection = computing::config(program.kubeconfig.as_deref()).await?;
    let server = connection.cluster_url.clone();
    let rate = RequestRate::of(args.kube_client_qps, args.kube_client_burst);
    // Those who serve users and bindings are not held back by what the Manager asks.
    let shared = computing::client(connection.clone(), None)?;
    let leases = computing::client(connection.clone(), None)?;
    let for_extender = shared.clone();
    let computing = computing::client(connection, rate)?;
    let cancel = CancellationToken::new();
    process::stop_on_signal(cancel.clone())?;
    if !program.leader_elect {
        tracing::info!("leader election is off: no other Manager or Syncer may run beside this one");
    }
    let mut config = ManagerConfig {
        system_namespace: program.system_namespace.clone(),
        kubeconfig_namespaces: args
            .kubeconfig_namespaces
            .iter()
            .filter(|one| !one.is_empty())
            .cloned()
            .collect(),
        allow_unsafe_kubeconfig: args.syncer.allow_unsafe_kubeconfig,
        worker_probe_interval: at_least(
            Duration::from_secs(1),
            args.worker_probe_interval,
            "--worker-probe-interval",
        )?,
        ends_within: ENDS_WITHIN,
    };
    // The name of the binding is filled in for each.
    let mut syncer = args.syncer.config("", &program.system_namespace)?;
    syncer.kubeconfig_rules = config.kubeconfig_rules();
    let election = program.election(&args.leader_election_id);
    let surroundings = Surroundings {
        system_namespace: program.system_namespace.clone(),
        kubeconfig_rules: config.kubeconfig_rules(),
        bind_address: None,
        // Callers find this process by the vnodes' address, not by a Service that must first forget it.
        drain_delay: Duration::ZERO,
        termination_grace_period: Duration::from_secs(5),
        // Readiness is said per binding, in its condition.
        ready_with_bindings: false,
    };
    let serving = args.serving.config(&server, surroundings)?;
    // Users' streams may go on for as long as somebody said.
    config.ends_within = ENDS_WITHIN.saturating_add(serving.drain_delay).saturating_add(serving.stream_grace);
    let (proxier, proxier_events) = Proxier::start(serving, shared.clone())?;
    let components = InProcess::new(Settings {
        engine: start_engine(&syncer)?,
        syncer,
        // Its Leases are beside those of Syncers that run as Deployments.
        election: program.election("kubeocean-syncer"),
        kubeconfig: program.kubeconfig.clone(),
        computing_rate: args.syncer.computing_rate(),
        computing: shared,
        leases,
        proxier,
    });
    components.run_proxier(proxier_events);
    let others: OtherMetrics = {
        let components = Arc::clone(&components);
        Arc::new(move |text| components.metrics(text))
    };
    let apart = SyncersApart::new(for_extender, program.lease_namespace());
    let known = KnownBindings::default();
    let syncers = AllSyncers::new(&components, known.clone(), apart);
    let extending = extender(args, Places::new(syncers), cancel.clone()).await?;
    let components: Arc<dyn Components> = Arc::new(Handle(components));
    let surroundings = ProcessConfig { election, listeners, known };
    let ended = kubeocean_manager::process::run(
        config,
        surroundings,
        computing,
        (components, others),
        cancel.clone(),
    )
    .await;
    cancel.cancel();
    end_soon();
    extending.await?;
    ended.map_err(Into::into)
}

/// Ends the process if nothing else does: what is dropped at the end may wait for a thread that hangs.
fn end_soon() {
    std::thread::spawn(|| {
        std::thread::sleep(LAST);
        tracing::error!("something still hangs, stopping at once");
        std::process::exit(1);
    });
}

/// Opens the scheduler extender, if it is on.
async fn extender(args: &Args, places: Places, cancel: CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    let address = &args.scheduler_extender_bind_address;
    let flag = "--scheduler-extender-bind-address";
    let Some(listener) = listen(address, "the scheduler extender", flag).await? else {
        return Ok(tokio::spawn(async {}));
    };
    let timeout = args.scheduler_extender_timeout;
    let timeout = at_least(LEAST_EXTENDER_TIMEOUT, timeout, "--scheduler-extender-timeout")?;
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let files = CertificateFiles {
        folder: path(&args.scheduler_extender_cert_dir),
        client_ca: path(&args.scheduler_extender_client_ca_file),
    };
    let tls = Arc::new(server_config(&files, listener.local_addr()?.ip())?);
    Ok(tokio::spawn(serve_extender(listener, tls, Arc::new(places), timeout, cancel)))
}

fn at_least(least: Duration, given: Duration, flag: &str) -> anyhow::Result<Duration> {
    anyhow::ensure!(given >= least, "{flag} must be at least {least:?}");
    Ok(given)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clap::Parser;
    use futures::future::BoxFuture;
    use kubeocean_api::place::{Answer, Question};
    use kubeocean_manager::extender::places::{Served, Syncers};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    /// Nobody is asked.
    #[derive(Debug)]
    struct Nobody;

    impl Syncers for Nobody {
        fn served(&self) -> Option<Vec<Served>> {
            None
        }

        fn ask(&self, _: Served, _: Arc<Question>, _: Instant) -> BoxFuture<'static, Option<Answer>> {
            Box::pin(async { None })
        }
    }

    #[tokio::test]
    async fn a_timeout_in_which_no_syncer_can_answer_is_refused() {
        let open = async |timeout: &str| {
            let bind = "--scheduler-extender-bind-address=127.0.0.1:0";
            let timeout = format!("--scheduler-extender-timeout={timeout}");
            let args = Program::try_parse_from(["manager", bind, timeout.as_str()]).unwrap().args;
            let cancel = CancellationToken::new();
            cancel.cancel();
            extender(&args, Places::new(Arc::new(Nobody)), cancel).await.map(drop)
        };
        for short in ["0", "1ms", "99ms"] {
            let refused = open(short).await.unwrap_err().to_string();
            assert_eq!(refused, "--scheduler-extender-timeout must be at least 100ms");
        }
        open("100ms").await.unwrap();
    }
}
