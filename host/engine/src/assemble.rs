//! Keeps the entries of a host as its policies want them: slots, wishes, loads (PO-703, PO-704).
//!
//! In: policy specs and module bytes. Out: [`Pipelines`] and loaded slots. Caller: `host`.
//! Invariant: an entry that is not asked to change is not touched.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use jiff::tz::TimeZone;
use kubeocean_api::validate;
use parking_lot::Mutex;

use crate::behind::{Behind, Due};
use crate::civil::civil_now;
use crate::config::{MAX_ENTRIES, MAX_EVALUATORS};
use crate::engine::Engine;
use crate::entry::slot::{Slot, Wanted, Wish};
use crate::facts::{NodeFacts, PolicyFacts};
use crate::host::{ModuleClaims, ModuleFetch, OnChange, PolicySpec};
use crate::legacy::{self, Enforcement, EntrySpec, LEGACY_NODE_SELECTOR, ModuleSource, from_entry};
use crate::load::builtin::{builtin_of_digest, builtin_with_digest};
use crate::load::cache::Digest;
use crate::load::error::{LoadCode, LoadError};
use crate::load::prepare::{Bytes, LoadInput};
use crate::load::trial::SAMPLE_NODES;
use crate::module::{ModuleLimits, call_limits};
use crate::pipeline::{Entry, Pipelines, Policy, Role};
use crate::record::Recorder;
use crate::wasm::unit::Caller;

/// Slots by policy and entry.
pub(crate) type Slots = BTreeMap<(String, String), Arc<Slot>>;

/// What a host is; shared with its background loads.
pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) binding: Arc<PolicyFacts>,
    pub(crate) zone: TimeZone,
    pub(crate) changed: OnChange,
    pub(crate) pipelines: ArcSwap<Pipelines>,
    /// Held while the pipelines are edited.
    pub(crate) edit: Mutex<()>,
    pub(crate) slots: Mutex<Slots>,
    pub(crate) samples: Mutex<VecDeque<Arc<NodeFacts>>>,
    pub(crate) recorder: Arc<Recorder>,
    /// Digests of fetched modules that somebody still holds: every edit of a policy passes all of them again.
    pub(crate) digests: Mutex<Vec<(Weak<[u8]>, Digest)>>,
    pub(crate) behind: Mutex<Behind>,
}

impl Inner {
    pub(crate) fn policy(
        &self,
        slots: &mut Slots,
        spec: PolicySpec,
        budget: &mut usize,
        due: &mut Vec<Due>,
    ) -> Policy {
        let invalid = validate::policy(&spec.spec).err();
        let zone = spec.spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok());
        let zone = zone.unwrap_or_else(|| self.zone.clone());
        let facts =
            Arc::new(PolicyFacts { binding: self.binding.binding.clone(), policy: spec.name.clone() });
        let legacy = legacy::from_legacy(&spec.spec);
        let legacy =
            legacy.into_iter().filter(|entry| invalid.is_none() || entry.name == LEGACY_NODE_SELECTOR);
        let mut enforce: Vec<Entry> =
            legacy.map(|entry| self.entry(slots, &facts, &zone, entry, None, due)).collect();
        let mut listed = Vec::new();
        for (index, entry) in spec.spec.policies.iter().enumerate() {
            let fits = index < MAX_ENTRIES && *budget > 0;
            // One that is refused takes no place from a younger policy.
            *budget -= usize::from(fits);
            let entry_spec = from_entry(entry);
            let fetch = spec.modules.get(&entry.name).cloned().unwrap_or_default();
            let fetch = if fits { fetch } else { too_many() };
            listed.push(self.entry(slots, &facts, &zone, entry_spec, Some(&fetch), due));
        }
        enforce.extend(listed.iter().filter(|entry| entry.spec.enforcement == Enforcement::Enforce).cloned());
        let audit =
            listed.iter().filter(|entry| entry.spec.enforcement == Enforcement::Audit).cloned().collect();
        let pinned = listed
            .iter()
            .all(|entry| !matches!(&entry.spec.module, ModuleSource::Fetched { digest: None, .. }));
        Policy {
            generation: spec.generation,
            zero_limits: validate::zero_limits(&spec.spec),
            name: spec.name,
            uid: spec.uid,
            facts,
            zone,
            invalid,
            pinned,
            enforce,
            audit,
            listed,
        }
    }

    /// Finds or makes the slot of an entry and notes what is wanted of it. `fetch` is `None` for legacy entries.
    pub(crate) fn entry(
        &self,
        slots: &mut Slots,
        facts: &Arc<PolicyFacts>,
        zone: &TimeZone,
        spec: EntrySpec,
        fetch: Option<&ModuleFetch>,
        due: &mut Vec<Due>,
    ) -> Entry {
        let key = (facts.policy.clone(), spec.name.clone());
        let slot = slots.entry(key).or_insert_with(|| {
            let every = self.engine.config().recheck_every;
            Arc::new(Slot::new(&facts.policy, &spec.name, Arc::clone(&self.recorder), every))
        });
        let slot = Arc::clone(slot);
        let (bytes, named_digest, fetch_error) = self.source(&spec, fetch);
        let role = role(bytes.as_ref().map(|(_, digest)| *digest));
        let limits = call_limits(ModuleLimits { timeout_ms: spec.timeout_ms, memory_mib: spec.memory_mib });
        let (signed, claims) = match fetch {
            Some(ModuleFetch::Ready(module)) => (module.signed, module.claims.clone()),
            _ => (false, ModuleClaims::default()),
        };
        let must_pin = matches!(spec.module, ModuleSource::Fetched { must_pin: true, .. })
            && !signed
            && !self.engine.config().allow_unpinned;
        let wanted = Wanted {
            digest: bytes.as_ref().map(|(_, digest)| *digest),
            named_digest: named_digest.clone(),
            settings: spec.settings.clone(),
            decisions: spec.decisions.clone(),
            limits,
            must_pin,
            claims: claims.clone(),
            fetch_error,
        };
        if let (Wish::Load(generation), Some((bytes, digest))) =
            (slot.wish(wanted, crate::clock::now()), bytes)
        {
            let input = LoadInput {
                bytes,
                digest,
                wanted_digest: named_digest,
                must_pin,
                claims,
                settings: spec.settings.clone(),
                decisions: spec.decisions.clone(),
                caller: Caller {
                    entry: Arc::clone(&slot.label),
                    limits,
                    metered: self.engine.config().metered,
                },
                facts: PolicyFacts::clone(facts),
                now: civil_now(crate::clock::now(), zone),
            };
            due.push(Due { slot: Arc::clone(&slot), generation, input });
        }
        Entry { spec, role, slot }
    }

    /// Loads what is due and makes the new picture visible. Built-in modules are loaded before that, because they
    /// cost microseconds and old policies know nothing else (PO-704); others in the background.
    pub(crate) fn commit(self: &Arc<Self>, pipelines: Pipelines, due: Vec<Due>) {
        let (now, later): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|due| matches!(due.input.bytes, Bytes::Builtin(_)));
        let jobs = now
            .into_iter()
            .map(|due| {
                let host = Arc::clone(self);
                let job: Box<dyn FnOnce() + Send> = Box::new(move || {
                    // Whoever commits decides anew in any case.
                    host.attempt(due);
                });
                job
            })
            .collect();
        self.engine.inner.units.run_all(jobs);
        self.drop_unused_slots(&pipelines);
        self.pipelines.store(Arc::new(pipelines));
        self.load_behind(later);
    }

    fn drop_unused_slots(&self, pipelines: &Pipelines) {
        let used: std::collections::BTreeSet<(String, String)> = pipelines
            .binding_selector
            .iter()
            .chain(pipelines.policies.iter().flat_map(|policy| policy.enforce.iter().chain(&policy.listed)))
            .map(|entry| (entry.slot.policy.to_string(), entry.slot.entry.to_string()))
            .collect();
        self.slots.lock().retain(|key, slot| {
            let kept = used.contains(key);
            if !kept {
                slot.abandon();
            }
            kept
        });
    }

    /// Real nodes for trial calls.
    pub(crate) fn remember_samples(&self, nodes: &[Arc<NodeFacts>]) {
        let mut samples = self.samples.lock();
        for node in nodes.iter().take(SAMPLE_NODES) {
            samples.retain(|known| known.node_name != node.node_name);
            if samples.len() >= SAMPLE_NODES {
                samples.pop_front();
            }
            samples.push_back(Arc::clone(node));
        }
    }
}

fn too_many() -> ModuleFetch {
    let message = format!("at most {MAX_ENTRIES} entries in a policy and {MAX_EVALUATORS} in all policies");
    ModuleFetch::Refused { code: LoadCode::TooManyPolicies, message }
}

/// What an entry is beside an ordinary one, by its code and not by where that comes from.
fn role(digest: Option<Digest>) -> Role {
    match digest.and_then(builtin_of_digest) {
        Some("time-windows") => Role::TimeWindows,
        Some("node-labels") => Role::Selector,
        Some(_) | None => Role::Ordinary,
    }
}

/// Bytes, the digest the policy names, and why there are no bytes.
type Source = (Option<(Bytes, Digest)>, Option<String>, Option<LoadError>);

impl Inner {
    fn source(&self, spec: &EntrySpec, fetch: Option<&ModuleFetch>) -> Source {
        let failed = |error: LoadError| (None, None, Some(error));
        // Nobody tries again for these: the policy itself has to change.
        let refused = |code, message: &str| failed(LoadError::new(code, message).lasting());
        if let Some(ModuleFetch::Refused { code, message }) = fetch {
            return refused(*code, message);
        }
        match &spec.module {
            ModuleSource::Builtin { name, digest } => match builtin_with_digest(name) {
                Some((bytes, own)) => (Some((Bytes::Builtin(bytes), own)), digest.clone(), None),
                None => refused(LoadCode::ModuleNotFound, &format!("there is no built-in module {name:?}")),
            },
            ModuleSource::Fetched { digest, .. } => match fetch {
                None | Some(ModuleFetch::Pending | ModuleFetch::Refused { .. }) => {
                    (None, digest.clone(), None)
                }
                Some(ModuleFetch::Ready(module)) => {
                    let own = self.digest_of(&module.bytes);
                    (Some((Bytes::Fetched(Arc::clone(&module.bytes)), own)), digest.clone(), None)
                }
                Some(ModuleFetch::Failed { code, message }) => {
                    (None, digest.clone(), Some(LoadError::new(*code, message)))
                }
            },
            ModuleSource::Missing => {
                let message = "exactly one of builtin, configMap, oci and file is required";
                refused(LoadCode::ModuleNotFound, message)
            }
        }
    }

    /// Hashes a module once for as long as somebody holds it.
    fn digest_of(&self, bytes: &Arc<[u8]>) -> Digest {
        let mut digests = self.digests.lock();
        digests.retain(|(known, _)| known.strong_count() > 0);
        let same = |known: &Weak<[u8]>| known.upgrade().is_some_and(|known| Arc::ptr_eq(&known, bytes));
        if let Some((_, digest)) = digests.iter().find(|(known, _)| same(known)) {
            return *digest;
        }
        let digest = Digest::of(bytes);
        digests.push((Arc::downgrade(bytes), digest));
        digest
    }
}
