//! What a converged Syncer costs: CPU, Leases, and any other write that should not be.

use std::time::Instant;

use anyhow::{Context, Result};
use kubeocean_bench::{Figure, Renewals, RequestCount, traffic};

use crate::run::Run;

/// A heartbeat of a worker node is passed on at most this often (bottom-up spec, section 6).
const HEARTBEAT_SECONDS: f64 = 300.0;

impl Run<'_> {
    pub(crate) async fn idle(&mut self) -> Result<Vec<Figure>> {
        self.quiet().await?;
        eprintln!("watching the idle Syncer for {:?}", self.scale.idle);
        let (computing, worker) = (self.binding.computing(), self.binding.worker());
        let marks = (computing.audit_mark()?, worker.audit_mark()?);
        let process = self.syncer.process().id().context("the Syncer does not run")?;
        let before = traffic(process);
        let (cpu, started) = (self.cpu()?, Instant::now());
        tokio::time::sleep(self.scale.idle).await;
        let (seconds, cpu) = (started.elapsed().as_secs_f64(), self.cpu()? - cpu);
        let traffic = before.zip(traffic(process));

        let events = computing.audit_events_since(marks.0)?;
        let renewals = Renewals::of(&Self::computing_account(), &events);
        let most_of_one =
            RequestCount::most_writes_of_one(&Self::computing_account(), "nodes/status", &events);
        let mut writes = RequestCount::writes(&Self::computing_account(), "computing", &events);
        let events = worker.audit_events_since(marks.1)?;
        writes.merge(RequestCount::writes(&self.worker_account(), "worker", &events));
        for (line, number) in writes.lines() {
            eprintln!("  {number:>8} {line}");
        }

        let nodes = f64::from(self.scale.nodes);
        let heartbeats = (seconds / HEARTBEAT_SECONDS).floor() + 1.0;
        let lines = writes.lines();
        let of_vnodes =
            lines.iter().filter(|(line, _)| line.ends_with(" nodes/status")).map(|(_, count)| count);
        let other = writes.total() - of_vnodes.sum::<u32>();
        let mut figures = vec![
            Figure::new("idle CPU", cpu / seconds * 100.0, "% of a core").budget(1.0),
            Figure::new(
                format!("writes but Leases in {seconds:.0} idle seconds"),
                f64::from(writes.total()),
                "",
            )
            .budget(nodes * heartbeats),
            Figure::new("of them no heartbeat of a node", f64::from(other), "").budget(0.0),
            Figure::new("most heartbeats of one vnode", f64::from(most_of_one), "").budget(heartbeats),
            Figure::new(
                "renewals of a Lease a minute",
                f64::from(renewals.total()) / nodes / seconds * 60.0,
                "",
            )
            .budget(6.5),
        ];
        if let Some(unevenness) = renewals.unevenness() {
            figures.push(Figure::new("Lease renewals, fullest second to mean", unevenness, "").budget(2.0));
        }
        match traffic {
            #[expect(clippy::cast_precision_loss, reason = "a run sends far less than 2^52 bytes")]
            Some((before, after)) => {
                let bytes = after.bytes_sent.saturating_sub(before.bytes_sent) as f64;
                let each = bytes / f64::from(renewals.total().max(1));
                figures.push(Figure::new("bytes sent a renewal, with HTTP and TLS", each, ""));
                // Requests and watches of both clusters, and Leases; a probe may end.
                let connections = f64::from(after.connections);
                figures.push(Figure::new("connections to both clusters", connections, "").budget(6.0));
            }
            None => eprintln!("  connections are not measured: `ss` (package iproute2) is missing"),
        }
        Ok(figures)
    }
}
