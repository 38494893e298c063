//! Random pods to try a module's places with, as [`super::rows`] makes nodes.
//!
//! Pure: the same seed gives the same pods.

use std::collections::BTreeMap;

use kubeocean_engine::PodFacts;
use serde_json::Value;

use super::rows::{Random, amount, portion, scoped, texts, values};

/// What a module reads about pods.
#[derive(Clone, Debug, Default)]
pub(super) struct PodVocabulary {
    labels: Vec<String>,
    annotations: Vec<String>,
    node_selector: Vec<String>,
    resources: Vec<String>,
    texts: Vec<String>,
    /// Of pods, namespaces, owners and the like.
    names: Vec<String>,
}

impl PodVocabulary {
    /// From the facts about pods that a module declares, and the settings it runs with.
    pub(super) fn new(facts: &[String], settings: &Value) -> Self {
        let mut all = Self { resources: vec!["cpu".into(), "memory".into()], ..Self::default() };
        for (scope, key) in scoped(facts) {
            let list = match scope {
                "label" => &mut all.labels,
                "annotation" => &mut all.annotations,
                "node-selector" => &mut all.node_selector,
                _ => &mut all.resources,
            };
            list.push(key.to_owned());
        }
        all.resources.sort();
        all.resources.dedup();
        let mut of_settings = Vec::new();
        collect_members(settings, &mut of_settings);
        all.texts = texts(settings);
        all.names = all.texts.iter().filter(|text| is_name(text)).cloned().collect();
        all.names.extend(of_settings.iter().filter(|text| is_name(text)).cloned());
        all.names.extend(["default", "kube-system", "team-a"].map(str::to_owned));
        all.texts.extend(of_settings);
        all
    }
}

/// Settings may name namespaces and the like as members, too.
fn collect_members(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_members(item, into)),
        Value::Object(members) => {
            for (name, member) in members {
                into.push(name.clone());
                collect_members(member, into);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
}

/// The pod of this number.
pub(super) fn pod(random: &mut Random, vocabulary: &PodVocabulary, number: usize) -> PodFacts {
    let mut amounts = || {
        let mut requests = BTreeMap::new();
        let mut limits = BTreeMap::new();
        for resource in &vocabulary.resources {
            let limit = amount(random);
            if !random.chance(4) {
                requests.insert(resource.clone(), portion(random, limit));
            }
            if random.chance(2) {
                limits.insert(resource.clone(), limit);
            }
        }
        (requests, limits)
    };
    let (requests, limits) = amounts();
    let namespace = random.pick(&vocabulary.names).cloned().unwrap_or_default();
    let priority = priority(random);
    let mut name = || if random.chance(3) { None } else { random.pick(&vocabulary.names).cloned() };
    PodFacts {
        name: format!("random-{number}"),
        namespace,
        service_account: name(),
        priority_class: name(),
        scheduler_name: name(),
        owner_kind: name(),
        owner_name: name(),
        labels: values(random, &vocabulary.labels, &vocabulary.texts),
        annotations: values(random, &vocabulary.annotations, &vocabulary.texts),
        node_selector: values(random, &vocabulary.node_selector, &vocabulary.texts),
        requests,
        limits,
        priority,
        containers: 1 + random.below(8),
        host_network: random.chance(5),
        created_unix: (!random.chance(5)).then(|| 1_700_000_000 + random.below(100_000_000)),
    }
}

/// Absent, ordinary, and at the edges of what Kubernetes allows.
fn priority(random: &mut Random) -> Option<i64> {
    match random.below(6) {
        0 => None,
        1 => Some(0),
        2 => Some(i64::from(i32::MIN)),
        3 => Some(2_000_001_000),
        _ => Some(random.below(2000) - 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(seed: u64) -> Vec<PodFacts> {
        let facts = ["label/team", "?node-selector/pool", "request/nvidia.com/gpu", "pod.priority"];
        let settings = json!({"tenants": {"ci": "platform"}});
        let vocabulary = PodVocabulary::new(&facts.map(str::to_owned), &settings);
        let mut random = Random::new(seed);
        (0..200).map(|number| pod(&mut random, &vocabulary, number)).collect()
    }

    #[test]
    fn a_seed_gives_the_same_pods() {
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn pods_have_what_the_module_reads_and_its_settings_name() {
        let pods = made(7);
        let some = |test: &dyn Fn(&PodFacts) -> bool| pods.iter().any(test);
        assert!(some(&|pod| pod.namespace == "ci") && some(&|pod| pod.namespace == "platform"));
        assert!(some(&|pod| pod.labels.get("team").is_some_and(|team| team == "platform")));
        assert!(some(&|pod| !pod.labels.contains_key("team")));
        assert!(some(&|pod| pod.node_selector.contains_key("pool")));
        assert!(some(&|pod| pod.requests.get("nvidia.com/gpu") > Some(&0)));
        assert!(some(&|pod| !pod.requests.contains_key("nvidia.com/gpu")));
        assert!(some(&|pod| pod.priority.is_none()) && some(&|pod| pod.priority < Some(0)));
        assert!(pods.iter().all(|pod| !pod.namespace.is_empty()));
        assert!(pods.iter().flat_map(|pod| pod.requests.values()).all(|amount| *amount >= 0));
    }
}
