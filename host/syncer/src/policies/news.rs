//! Which events a change of a policy's entries is worth (PO-1503).
//!
//! Pure. In: what the engine said before and says now. Out: events, in the entries' order.

use kubeocean_engine::{EntryState, EntryStatus, PolicyStatus};

/// An event on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Warning instead of Normal.
    pub warning: bool,
    /// Reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// See the module documentation.
pub fn news(before: Option<&PolicyStatus>, now: &PolicyStatus) -> Vec<News> {
    let mut all: Vec<News> = now
        .entries
        .iter()
        .filter_map(|entry| {
            let earlier =
                before.and_then(|before| before.entries.iter().find(|other| other.name == entry.name));
            of_entry(earlier, entry)
        })
        .collect();
    let told = before.is_some_and(|before| before.generation == now.generation);
    if !now.zero_limits.is_empty() && !told {
        all.push(News {
            warning: true,
            reason: "ZeroLimitApplied",
            message: format!("a limit of 0 leases nothing of {}", now.zero_limits.join(", ")),
        });
    }
    all
}

fn of_entry(before: Option<&EntryStatus>, now: &EntryStatus) -> Option<News> {
    let was = before.map_or(EntryState::Loading, |before| before.state);
    let same_code = before.is_some_and(|before| before.digest == now.digest);
    let normal = |reason, message| Some(News { warning: false, reason, message });
    let version = now.version.as_deref().unwrap_or_default();
    let module = now.module.as_deref().unwrap_or("module");
    match (was, now.state) {
        (EntryState::Quarantined, EntryState::Active) => {
            normal("PolicyRecovered", format!("{}: {module} answers again", now.name))
        }
        (was, EntryState::Active) if was != EntryState::Active || !same_code => {
            normal("PolicyLoaded", format!("{}: {module} {version} decides", now.name).replace("  ", " "))
        }
        (was, EntryState::Quarantined) if was != EntryState::Quarantined => {
            Some(failure("PolicyQuarantined", now))
        }
        (_, EntryState::Degraded | EntryState::Invalid | EntryState::Loading) => {
            let error = now.last_error.as_ref()?;
            let told =
                before.and_then(|before| before.last_error.as_ref()).is_some_and(|known| known.0 == error.0);
            (!told).then(|| failure(failure_reason(&error.0), now))
        }
        _ => None,
    }
}

fn failure(reason: &'static str, entry: &EntryStatus) -> News {
    let text = entry.last_error.as_ref().map_or("", |(text, _)| text.as_str());
    News { warning: true, reason, message: format!("{}: {text}", entry.name) }
}

/// The code before the colon decides the reason.
fn failure_reason(error: &str) -> &'static str {
    match error.split(':').next().unwrap_or_default() {
        "SettingsInvalid" => "SettingsInvalid",
        "SignatureRejected" => "SignatureRejected",
        "DigestMismatch" => "DigestMismatch",
        "NotPure" => "PolicyNotPure",
        _ => "PolicyLoadFailed",
    }
}
