//! `cargo demo`: two worker clusters lease their nodes to a computing cluster, on this machine, in front of your eyes.
//!
//! In: nothing but a Rust toolchain and Go. Out: a live table and `kubectl` commands to try, or with `--once` a list of
//! checked results and an exit code. The control planes, the charts, the Manager and the custom policy are real; the
//! nodes are kwok's.
//!
//! ```text
//! scene (what exists) -> script (what happens) -> checks (what must be true)
//!                           observe -> table -> screen (what you see)
//! ```
//!
//! Invariant: nothing is left when it ends, however it ends; see `kubeocean_harness::reaper`.

mod checks;
mod clock;
mod latency;
mod module;
mod observe;
mod scene;
mod screen;
mod script;
mod table;

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;
use kubeocean_harness::assets::{self, Binary};
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::{ClusterSpec, Fleet, Site};

use checks::Report;
use latency::Latency;
use scene::Scene;
use screen::Screen;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Run the script once, check every result, print a summary, and fail if any result differs
    #[arg(long)]
    pub(crate) once: bool,
}

/// How a demo ended.
enum End {
    /// The script came to its end.
    Done,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting")?;
    let result = runtime.block_on(async {
        let mut report = Report::default();
        let up = Cell::new(false);
        let early = async {
            interrupted().await?;
            // Once everything is up, the demo itself ends it in order.
            if up.get() { std::future::pending::<Result<End>>().await } else { Ok(End::Interrupted) }
        };
        let end = tokio::select! {
            end = demo(args, &mut report, &up) => end?,
            end = early => end?,
        };
        match end {
            End::Interrupted if args.once => bail!("interrupted"),
            End::Done if args.once => report.finish(),
            End::Interrupted | End::Done => Ok(()),
        }
    });
    // A build that is still under way must not hold up the end; its processes end with this one.
    runtime.shutdown_background();
    result
}

async fn demo(args: &Args, report: &mut Report, up: &Cell<bool>) -> Result<End> {
    let screen = Screen::new(!args.once && std::io::stdout().is_terminal());
    introduce(&screen, args.once)?;
    let module =
        timed(&screen, "custom policy examples/policies/night-gpu compiled to WebAssembly", module::build())
            .await?;
    screen.say("     building the program kubeocean, if it is not there yet (some minutes the first time)");
    timed(&screen, "program kubeocean", async {
        tokio::task::spawn_blocking(kubeocean_binary).await.context("building kubeocean")?.map(drop)
    })
    .await?;
    let fleet = timed(&screen, "one computing and two worker clusters started", start_fleet()).await?;
    let site = timed(&screen, "charts installed", Site::install(&fleet)).await?;
    let mut scene =
        timed(&screen, "nodes, bindings, policies, Manager", Box::pin(Scene::set(&site, module, args.once)))
            .await?;
    up.set(true);
    let latency = Latency::default();
    let end = {
        let scene = &scene;
        let watching = latency.follow(scene.computing.clone());
        let showing = screen::show(&screen, scene, &latency);
        let acting = async {
            script::act(scene, &screen, &latency, report).await?;
            if !args.once {
                farewell(&screen, scene);
                std::future::pending::<()>().await;
            }
            Ok(End::Done)
        };
        tokio::select! {
            end = acting => end,
            error = watching => Err(error),
            error = showing => Err(error),
            result = interrupted() => result.map(|()| End::Interrupted),
        }
    };
    if let Ok(End::Interrupted) = end {
        screen.say("\nstopping; nothing is left behind");
    }
    if end.is_err() || report.failed() {
        scene.show_logs(&screen);
    }
    // Gracefully: a Manager that does not end within its time is a failed result, too.
    let stopped = scene.stop().await;
    if args.once {
        report.note("the Manager and all it runs stop on SIGTERM", stopped);
    }
    end
}

fn introduce(screen: &Screen, once: bool) -> Result<()> {
    screen.say(
        "Kubeocean: two worker clusters lease their idle nodes to a computing cluster, as policies decide.",
    );
    screen.say("");
    let mut missing = Vec::new();
    for binary in Binary::CONTROL_PLANE.into_iter().chain([Binary::Helm]) {
        if assets::find(binary)?.is_none() {
            missing.push(binary.file_name());
        }
    }
    if missing.is_empty() {
        screen.say("The control planes are built already; the clusters are up in about half a minute.");
    } else {
        screen.say(&format!(
            "The first run builds {} from pinned sources: 10 to 15 minutes on two cores, once for this machine.",
            missing.join(", ")
        ));
    }
    screen.say(if once {
        "The script runs once, every result is checked, and the exit code says whether all are as expected.\n"
    } else {
        "It stays until Ctrl-C, and leaves nothing behind.\n"
    });
    Ok(())
}

async fn start_fleet() -> Result<Fleet> {
    // Nobody reads the audit logs here.
    let quiet = |spec: ClusterSpec| ClusterSpec { audit: false, ..spec };
    let workers = ["dc-east", "dc-west"].map(|name| quiet(ClusterSpec::worker(name)));
    Fleet::start_with(quiet(ClusterSpec::computing()), workers.to_vec()).await
}

/// Runs one step and says how long it took.
async fn timed<T>(screen: &Screen, what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let value = step.await.with_context(|| format!("this step failed: {what}"))?;
    screen.say(&format!("  ok {what} ({})", seconds(started.elapsed())));
    Ok(value)
}

/// `1.2 s`.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Ctrl-C or SIGTERM.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("listening for Ctrl-C"),
        received = terminate.recv() => match received {
            Some(()) => Ok(()),
            None => bail!("signals cannot be received any more"),
        },
    }
}

/// What one can do while the clusters are up.
fn farewell(screen: &Screen, scene: &Scene<'_>) {
    let kubectl = assets::find(Binary::Kubectl)
        .ok()
        .flatten()
        .map_or_else(|| "kubectl".to_owned(), |path| path.display().to_string());
    let fleet = scene.site.fleet();
    let path = |cluster: &kubeocean_harness::Cluster| cluster.kubeconfig_path().display().to_string();
    let binding_label = kubeocean_api::keys::label::CLUSTER_BINDING;
    let (computing, east, west) = (path(&fleet.computing), path(&fleet.workers[0]), path(&fleet.workers[1]));
    screen.say(&format!(
        "\nTry, in another terminal:\n\n\
         export KUBECONFIG={computing}\n\
         alias k={kubectl}\n\
         k get nodes -L {binding_label}\n\
         k get pods -n demo -o wide\n\
         k get node vnode-dc-east-batch-0 -o jsonpath='{{.metadata.annotations.kubeocean\\.io/policy-decision}}'\n\
         k scale -n demo deployment/web --replicas 20\n\
         \n\
         k --kubeconfig {east} get resourceleasingpolicies\n\
         k --kubeconfig {east} patch resourceleasingpolicy half-cpu --type merge \
         -p '{{\"spec\":{{\"resourceLimits\":[{{\"resource\":\"cpu\",\"percent\":10}}]}}}}'\n\
         k --kubeconfig {east} get pods -A -o wide\n\
         \n\
         k --kubeconfig {west} get resourceleasingpolicy night-gpu -o jsonpath='{{.status.policies}}'\n\
         k --kubeconfig {west} patch resourceleasingpolicy night-gpu --type json \
         -p '[{{\"op\":\"add\",\"path\":\"/spec/policies/0/settings\",\"value\":{{\"from\":0,\"until\":0,\"percent\":75}}}}]'\n\
         \n\
         Ctrl-C ends everything.\n"
    ));
}
