//! Which events a change of a policy's entries is worth (PO-1503).
//!
//! Pure. In: what the engine said before and says now. Out: events, in the entries' order.

use kubeocean_api::{ResourceLeasingPolicyStatus, condition::policy_type};
use kubeocean_engine::{EntryState, EntryStatus, LoadCode, LoadError, PolicyStatus};

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

/// See the module documentation. `stored` is what the object's status says: what an earlier process told there is told.
pub fn news(
    before: Option<&PolicyStatus>,
    now: &PolicyStatus,
    stored: &ResourceLeasingPolicyStatus,
) -> Vec<News> {
    let mut all: Vec<News> = now
        .entries
        .iter()
        .flat_map(|entry| {
            let earlier =
                before.and_then(|before| before.entries.iter().find(|other| other.name == entry.name));
            let known = earlier.is_none() && is_stored(entry, stored);
            let of_state = if known { None } else { of_entry(earlier, entry) };
            of_state.into_iter().chain(impurity(earlier, entry))
        })
        .collect();
    let told = match before {
        Some(before) => before.generation == now.generation,
        None => stored.conditions.iter().any(|condition| {
            condition.type_ == policy_type::VALID && condition.observed_generation == Some(now.generation)
        }),
    };
    if !now.zero_limits.is_empty() && !told {
        all.push(News {
            warning: true,
            reason: "ZeroLimitApplied",
            message: format!("a limit of 0 leases nothing of {}", now.zero_limits.join(", ")),
        });
    }
    all
}

/// The object says already that this module runs.
fn is_stored(entry: &EntryStatus, stored: &ResourceLeasingPolicyStatus) -> bool {
    entry.state == EntryState::Active
        && stored.policies.iter().any(|known| {
            known.name == entry.name
                && known.state.as_deref() == Some(EntryState::Active.as_str())
                && known.digest == entry.digest
        })
}

/// An entry that goes on deciding gave answers it may not give (PO-1005, PO-1006).
fn impurity(before: Option<&EntryStatus>, now: &EntryStatus) -> Option<News> {
    let known = before.map_or(0, |before| before.counters.impure);
    (now.counters.impure > known).then(|| failure("PolicyNotPure", now))
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
            let error = now.failure.as_ref()?;
            let same = |known: &LoadError| known.code == error.code && known.message == error.message;
            let told = before.and_then(|before| before.failure.as_ref()).is_some_and(same);
            let message = format!("{}: {error}", now.name);
            (!told).then(|| News { warning: true, reason: failure_reason(error.code), message })
        }
        _ => None,
    }
}

fn failure(reason: &'static str, entry: &EntryStatus) -> News {
    let text = entry.last_error.as_ref().map_or("", |(text, _)| text.as_str());
    News { warning: true, reason, message: format!("{}: {text}", entry.name) }
}

fn failure_reason(code: LoadCode) -> &'static str {
    match code {
        LoadCode::SettingsInvalid => "SettingsInvalid",
        LoadCode::SignatureRejected => "SignatureRejected",
        LoadCode::DigestMismatch => "DigestMismatch",
        LoadCode::NotPure => "PolicyNotPure",
        _ => "PolicyLoadFailed",
    }
}
