//! Random nodes to try a module on: what it reads gets values at the edges, absent ones and ones its settings name.
//!
//! Pure: the same seed gives the same nodes, so a failure can be repeated.

use std::collections::BTreeMap;

use kubeocean_engine::NodeFacts;
use serde_json::Value;

/// SplitMix64: small, fast, and good enough to choose test cases.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Random(u64);

impl Random {
    pub(in crate::policy) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`; 0 when `end` is not above 0.
    pub(in crate::policy) fn below(&mut self, end: i64) -> i64 {
        let end = u64::try_from(end).unwrap_or(0).max(1);
        i64::try_from(self.next() % end).unwrap_or(0)
    }

    pub(super) fn chance(&mut self, one_in: i64) -> bool {
        self.below(one_in) == 0
    }

    pub(super) fn pick<'a>(&mut self, from: &'a [String]) -> Option<&'a String> {
        let index = self.below(i64::try_from(from.len()).unwrap_or(0));
        from.get(usize::try_from(index).unwrap_or(0))
    }
}

/// What a module reads, as far as nodes are concerned.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct Vocabulary {
    labels: Vec<String>,
    annotations: Vec<String>,
    taints: Vec<String>,
    resources: Vec<String>,
    texts: Vec<String>,
}

impl Vocabulary {
    /// From the facts and caps a module declares, and the settings it runs with.
    pub(in crate::policy) fn new(facts: &[String], caps: &[String], settings: &Value) -> Self {
        let mut all = Self { resources: vec!["cpu".into(), "memory".into()], ..Self::default() };
        for (scope, key) in scoped(facts) {
            let list = match scope {
                "label" => &mut all.labels,
                "annotation" => &mut all.annotations,
                "taint" => &mut all.taints,
                _ => &mut all.resources,
            };
            list.push(key.to_owned());
        }
        all.resources.extend(caps.iter().cloned());
        all.resources.sort();
        all.resources.dedup();
        all.texts = texts(settings);
        all
    }
}

/// Scope and key of the facts that have one, such as `label/pool`.
pub(super) fn scoped(facts: &[String]) -> impl Iterator<Item = (&str, &str)> {
    facts.iter().filter_map(|fact| fact.trim_start_matches('?').split_once('/'))
}

/// Values of labels and the like: odd ones, and those of the settings.
pub(super) fn texts(settings: &Value) -> Vec<String> {
    let mut all: Vec<String> =
        ["", "true", "false", "0", "17", "2026-03-07T12:00:00Z", "zone-a", "ä ö", "%s{}\\\"\n"]
            .map(str::to_owned)
            .into();
    collect_texts(settings, &mut all);
    all
}

/// Every text of the settings may be what the module compares a label with.
fn collect_texts(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, into)),
        Value::Object(members) => members.values().for_each(|member| collect_texts(member, into)),
        Value::Number(number) => into.push(number.to_string()),
        Value::Null | Value::Bool(_) => {}
    }
}

/// `count` nodes.
pub(in crate::policy) fn nodes(random: &mut Random, vocabulary: &Vocabulary, count: usize) -> Vec<NodeFacts> {
    (0..count).map(|number| node(random, vocabulary, number)).collect()
}

fn node(random: &mut Random, vocabulary: &Vocabulary, number: usize) -> NodeFacts {
    let mut facts = NodeFacts {
        node_name: format!("random-{number}"),
        vnode_name: format!("vnode-random-{number}"),
        arch: if random.chance(4) { "arm64" } else { "amd64" }.to_owned(),
        os: "linux".to_owned(),
        ready: !random.chance(5),
        schedulable: !random.chance(5),
        created_unix: 1_700_000_000 + random.below(100_000_000),
        vnode_exists: random.chance(2),
        ..NodeFacts::default()
    };
    for (keys, map) in [
        (&vocabulary.labels, &mut facts.labels),
        (&vocabulary.annotations, &mut facts.annotations),
        (&vocabulary.taints, &mut facts.taints),
    ] {
        *map = values(random, keys, &vocabulary.texts);
    }
    for resource in &vocabulary.resources {
        if random.chance(8) {
            continue;
        }
        let total = amount(random);
        facts.allocatable.insert(resource.clone(), total);
        // Others may ask for more than there is, by pods of nodes that shrank.
        facts.used.insert(resource.clone(), portion(random, total));
        facts.leased.insert(resource.clone(), portion(random, total));
        if random.chance(2) {
            facts.usage.insert(resource.clone(), portion(random, total));
        }
    }
    facts
}

/// Most of the keys, each with one of the texts.
pub(super) fn values(random: &mut Random, keys: &[String], texts: &[String]) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for key in keys {
        if !random.chance(4)
            && let Some(value) = random.pick(texts)
        {
            map.insert(key.clone(), value.clone());
        }
    }
    map
}

/// From nothing over a few to more than any node has.
pub(super) fn amount(random: &mut Random) -> i64 {
    match random.below(8) {
        0 => 0,
        1 => 1,
        2 => random.below(8),
        3 => i64::MAX,
        4 => 1 << random.below(62),
        _ => random.below(1 << 38),
    }
}

pub(super) fn portion(random: &mut Random, total: i64) -> i64 {
    match random.below(6) {
        0 => 0,
        1 => total,
        2 => total.saturating_add(1 + random.below(1000)),
        _ => random.below(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made(seed: u64) -> Vec<NodeFacts> {
        let facts = ["label/pool", "?annotation/until", "used/nvidia.com/gpu", "node.ready"];
        let vocabulary =
            Vocabulary::new(&facts.map(str::to_owned), &["cpu".to_owned()], &json!({"pools": ["online"]}));
        nodes(&mut Random::new(seed), &vocabulary, 500)
    }

    #[test]
    fn a_seed_gives_the_same_nodes() {
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn nodes_have_what_the_module_reads_at_its_edges() {
        let nodes = made(7);
        let some = |test: &dyn Fn(&NodeFacts) -> bool| nodes.iter().any(test);
        assert!(some(&|node| node.labels.get("pool").is_some_and(|value| value == "online")));
        assert!(some(&|node| !node.labels.contains_key("pool")));
        assert!(some(&|node| node.annotations.contains_key("until")));
        assert!(some(&|node| !node.allocatable.contains_key("nvidia.com/gpu")));
        assert!(some(&|node| node.allocatable.get("cpu") == Some(&0)));
        assert!(some(&|node| node.allocatable.get("memory") == Some(&i64::MAX)));
        assert!(some(&|node| node.used.get("cpu") > node.allocatable.get("cpu")));
        assert!(nodes.iter().flat_map(|node| node.used.values()).all(|amount| *amount >= 0));
    }
}
