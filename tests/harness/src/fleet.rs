//! A computing cluster and its worker clusters, and the fleet that all tests of a test binary share.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::future::try_join_all;
use tokio::sync::OnceCell;

use crate::assets::Binary;
use crate::cluster::start::obtain;
use crate::cluster::{Cluster, ClusterSpec};

/// One computing cluster and `n` worker clusters. They know nothing of each other yet, see [`crate::Site`].
#[derive(Debug)]
pub struct Fleet {
    pub computing: Cluster,
    pub workers: Vec<Cluster>,
    start_time: Duration,
}

impl Fleet {
    /// Starts all clusters side by side.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start(workers: usize) -> Result<Self> {
        let workers = (1..=workers).map(|number| ClusterSpec::worker(format!("worker-{number}"))).collect();
        Self::start_with(ClusterSpec::computing(), workers).await
    }

    /// As [`Fleet::start`], with full control.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(computing: ClusterSpec, workers: Vec<ClusterSpec>) -> Result<Self> {
        // Once, before the clusters ask for them side by side.
        obtain(&Binary::CONTROL_PLANE).await?;
        let started = Instant::now();
        let (computing, workers) = futures::try_join!(
            Cluster::start(computing),
            try_join_all(workers.into_iter().map(Cluster::start))
        )?;
        Ok(Self { computing, workers, start_time: started.elapsed() })
    }

    /// The first worker cluster.
    ///
    /// # Panics
    /// The fleet was started without workers.
    pub fn worker(&self) -> &Cluster {
        &self.workers[0]
    }

    /// How long the start of all clusters took.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }
}

/// The pair of clusters that the tests of this process share: started by the first test that asks, gone with the
/// process. Each test brings its own namespaces, nodes and bindings.
///
/// # Panics
/// It cannot be started; every test then fails with the same message.
pub async fn shared() -> &'static Fleet {
    static SHARED: OnceCell<Result<Fleet, String>> = OnceCell::const_new();
    let fleet =
        SHARED.get_or_init(async || Fleet::start(1).await.map_err(|error| format!("{error:#}"))).await;
    #[expect(clippy::panic, reason = "without control planes every test of the process fails")]
    match fleet.as_ref().map_err(|error| anyhow!("{error}")) {
        Ok(fleet) => fleet,
        Err(error) => panic!("the shared control planes did not start: {error}"),
    }
}
