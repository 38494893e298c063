//! Why what is known of the worker cluster may be outdated: it does not answer, or one of the watches that decisions need
//! has delivered nothing for a minute.
//!
//! Pure. In: whether it answers, what the watches complain about. Out: [`WorkerLoss`], which every vnode tells (API-808):
//! its words name no address and no account of the worker cluster.

use kubeocean_runtime::{sink::Denial, watch::WatchFailure};

/// See the module documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerLoss {
    /// The kubeconfig leads to another cluster than before.
    OtherCluster,
    /// Its API does not answer.
    Silent,
    /// A watch of this kind, in the plural, is of no use.
    Watch(&'static str, WatchFailure),
}

impl WorkerLoss {
    /// The worst of all. A server that refuses answers; one that does not answer breaks every watch.
    pub fn judge(
        silent: bool,
        complaints: impl IntoIterator<Item = (&'static str, WatchFailure)>,
    ) -> Option<Self> {
        let mut broken = None;
        for (kind, failure) in complaints {
            match failure {
                WatchFailure::Denied(_) | WatchFailure::NotServed => return Some(Self::Watch(kind, failure)),
                WatchFailure::Broken | WatchFailure::NoList => {
                    broken.get_or_insert(Self::Watch(kind, failure));
                }
            }
        }
        if silent { Some(Self::Silent) } else { broken }
    }

    /// Reason of condition `WorkerReachable`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::OtherCluster => "OtherCluster",
            Self::Silent => "NoWorkerWatch",
            Self::Watch(..) => "WatchFailed",
        }
    }

    /// Message of condition `WorkerReachable`: what fails, and what would help.
    pub fn message(self) -> String {
        let (kind, failure) = match self {
            Self::OtherCluster => {
                return "the binding's kubeconfig leads to another cluster than before; an event on the ClusterBinding \
                        tells what to do"
                    .to_owned();
            }
            Self::Silent => {
                return "the API of the worker cluster has not answered for 60 seconds".to_owned();
            }
            Self::Watch(kind, failure) => (kind, failure),
        };
        let why = match failure {
            WatchFailure::Denied(Denial::Unauthorized) => {
                "401 Unauthorized; the kubeconfig needs valid credentials".to_owned()
            }
            WatchFailure::Denied(Denial::Forbidden) => {
                format!("403 Forbidden; the kubeconfig's account needs the rights to list and watch {kind}")
            }
            WatchFailure::NotServed => format!("404 Not Found; the worker cluster has to serve {kind}"),
            WatchFailure::Broken => "it fails again and again; the log of the Syncer tells why".to_owned(),
            WatchFailure::NoList => "its first list is not complete".to_owned(),
        };
        format!("{kind} of the worker cluster could not be watched for 60 seconds: {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: WatchFailure = WatchFailure::Denied(Denial::Forbidden);

    #[test]
    fn a_refusal_is_told_before_silence_and_silence_before_its_consequences() {
        let broken = ("nodes", WatchFailure::Broken);
        assert_eq!(WorkerLoss::judge(false, []), None);
        assert_eq!(WorkerLoss::judge(true, []), Some(WorkerLoss::Silent));
        assert_eq!(WorkerLoss::judge(true, [broken]), Some(WorkerLoss::Silent));
        assert_eq!(
            WorkerLoss::judge(false, [broken, ("pods", WatchFailure::NoList)]),
            Some(WorkerLoss::Watch("nodes", WatchFailure::Broken))
        );
        let refused = WorkerLoss::judge(true, [broken, ("pods", FORBIDDEN)]);
        assert_eq!(refused, Some(WorkerLoss::Watch("pods", FORBIDDEN)));
    }

    #[test]
    fn the_message_names_the_kind_and_what_would_help() {
        assert_eq!(
            WorkerLoss::Watch("pods", FORBIDDEN).message(),
            "pods of the worker cluster could not be watched for 60 seconds: 403 Forbidden; the kubeconfig's account \
             needs the rights to list and watch pods"
        );
    }
}
