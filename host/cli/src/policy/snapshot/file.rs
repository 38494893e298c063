//! The form of a snapshot: JSON lines, so that it can be written while it is recorded and read where it was cut off.
//!
//! Pure. The first line is the [`Header`]; each further one is a [`Line`]: a node with the members of its facts that
//! changed, a node that went, or the end.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kubeocean_engine::NodeFacts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The only version so far.
const VERSION: u32 = 1;

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    /// Version of the form.
    kubeocean_snapshot: u32,
    /// The binding whose pods count as leased; empty when none was.
    pub(crate) binding: String,
    pub(crate) cluster_id: String,
    /// When it begins.
    pub(crate) at: Timestamp,
    /// Names of nodes are not their own.
    pub(crate) hashed: bool,
}

impl Header {
    pub(crate) fn new(binding: &str, cluster_id: &str, at: Timestamp, hashed: bool) -> Self {
        let (binding, cluster_id) = (binding.to_owned(), cluster_id.to_owned());
        Self { kubeocean_snapshot: VERSION, binding, cluster_id, at, hashed }
    }
}

/// What happened at an instant, unix seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Node { at: i64, node: String, facts: Map<String, Value> },
    Gone { at: i64, gone: String },
    End { at: i64, end: bool },
}

/// Turns states of nodes into lines.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    known: BTreeMap<String, Map<String, Value>>,
}

impl Writer {
    pub(crate) fn header(header: &Header) -> String {
        line(header)
    }

    /// The line that says how a node is now; `None`: it is as it was.
    pub(crate) fn node(&mut self, at: i64, facts: &NodeFacts) -> Option<String> {
        let Ok(Value::Object(now)) = serde_json::to_value(facts) else { return None };
        let before = self.known.insert(facts.node_name.clone(), now.clone()).unwrap_or_default();
        let changed: Map<String, Value> =
            now.into_iter().filter(|(member, value)| before.get(member) != Some(value)).collect();
        let node = facts.node_name.clone();
        (!changed.is_empty()).then(|| line(&Line::Node { at, node, facts: changed }))
    }

    /// The line that says that a node went; `None`: it was not there.
    pub(crate) fn gone(&mut self, at: i64, node: &str) -> Option<String> {
        self.known.remove(node)?;
        Some(line(&Line::Gone { at, gone: node.to_owned() }))
    }

    pub(crate) fn end(at: i64) -> String {
        line(&Line::End { at, end: true })
    }

    /// Nodes that are there.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &String> {
        self.known.keys()
    }
}

fn line(value: &impl Serialize) -> String {
    // Maps with text keys and numbers always are JSON.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// A node as it is from an instant on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) at: i64,
    pub(crate) node: Arc<str>,
    /// `None`: it went.
    pub(crate) facts: Option<Arc<NodeFacts>>,
}

/// A snapshot that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) header: Header,
    /// In order of time.
    pub(crate) changes: Vec<Change>,
    /// Last instant it says something about.
    pub(crate) end: i64,
}

impl Snapshot {
    /// Reads all lines. The last one may have been cut off.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().ok_or("it is empty")?;
        let header: Header = serde_json::from_str(first)
            .map_err(|_| "it does not begin as a snapshot; kubeocean policy snapshot makes one".to_owned())?;
        if header.kubeocean_snapshot != VERSION {
            return Err(format!(
                "it has version {}, this program reads {VERSION}",
                header.kubeocean_snapshot
            ));
        }
        let mut known: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        let (mut changes, mut end) = (Vec::new(), header.at.as_second());
        let cut_off = !text.ends_with('\n');
        let mut lines = lines.peekable();
        while let Some((number, text)) = lines.next() {
            let of_line = |why: String| format!("line {}: {why}", number + 1);
            let line = match serde_json::from_str(text) {
                Ok(line) => line,
                Err(_) if cut_off && lines.peek().is_none() => break,
                Err(error) => return Err(of_line(error.to_string())),
            };
            let (at, change) = match line {
                Line::Node { at, node, facts } => {
                    let merged = known.entry(node.clone()).or_default();
                    merged.extend(facts);
                    let facts: NodeFacts = serde_json::from_value(Value::Object(merged.clone()))
                        .map_err(|error| of_line(error.to_string()))?;
                    (at, Some((node, Some(Arc::new(facts)))))
                }
                Line::Gone { at, gone } => {
                    known.remove(&gone);
                    (at, Some((gone, None)))
                }
                Line::End { at, .. } => (at, None),
            };
            if at < end {
                return Err(of_line("it is earlier than the line before".to_owned()));
            }
            end = at;
            changes.extend(change.map(|(node, facts)| Change { at, node: node.into(), facts }));
        }
        Ok(Self { header, changes, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpu: i64) -> NodeFacts {
        NodeFacts {
            node_name: "a".into(),
            allocatable: [("cpu".to_owned(), cpu)].into(),
            ready: true,
            ..NodeFacts::default()
        }
    }

    fn written() -> String {
        let mut writer = Writer::default();
        let mut text = Writer::header(&Header::new("b", "c1", Timestamp::from_second(100).unwrap(), false));
        for (at, cpu) in [(100, 1), (101, 1), (102, 2)] {
            text.push_str(&writer.node(at, &node(cpu)).unwrap_or_default());
        }
        text.push_str(&writer.gone(103, "a").unwrap());
        assert_eq!(writer.gone(104, "a"), None);
        text + &Writer::end(105)
    }

    #[test]
    fn what_is_written_is_read_and_only_changes_are_written() {
        let text = written();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert_eq!(
            text.lines().nth(2).unwrap(),
            r#"{"at":102,"node":"a","facts":{"allocatable":{"cpu":2}}}"#
        );
        let read = Snapshot::parse(&text).unwrap();
        let change =
            |at, facts: Option<NodeFacts>| Change { at, node: "a".into(), facts: facts.map(Arc::new) };
        assert_eq!(read.changes, [change(100, Some(node(1))), change(102, Some(node(2))), change(103, None)]);
        assert_eq!((read.end, read.header.binding.as_str()), (105, "b"));
    }

    #[test]
    fn a_recording_that_was_interrupted_is_read_as_far_as_it_goes() {
        let text = written();
        let read = Snapshot::parse(text.trim_end().trim_end_matches('}')).unwrap();
        assert_eq!((read.changes.len(), read.end), (3, 103));
        let broken = text.replacen("{\"at\":102", "{\"at\":}", 1);
        assert!(Snapshot::parse(&broken).unwrap_err().contains("line 3"));
        let unordered = text.replacen("{\"at\":102", "{\"at\":99", 1);
        assert!(Snapshot::parse(&unordered).unwrap_err().contains("line 3: it is earlier"));
        assert!(Snapshot::parse("{}").unwrap_err().contains("does not begin as a snapshot"));
        let newer = text.replacen("\"kubeoceanSnapshot\":1", "\"kubeoceanSnapshot\":2", 1);
        assert!(Snapshot::parse(&newer).unwrap_err().contains("version 2"));
    }
}
