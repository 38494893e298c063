//! The API server's audit log as data: who asked for what, and what was answered.
//!
//! Tests use it to count requests and to prove that something was *not* asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::wait::try_wait_until;

/// How long after its effect a request is in the log at the latest, on a busy machine.
const LOGGED_WITHIN: Duration = Duration::from_secs(10);
/// How long a request too many has to show.
const SURPLUS_WITHIN: Duration = Duration::from_millis(200);

/// A place in the audit log, to read from later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditMark(u64);

/// One request. Long ones (watch, exec) appear when their answer starts, others when it is complete.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    #[serde(rename = "auditID")]
    pub id: String,
    pub verb: String,
    #[serde(rename = "requestURI")]
    pub uri: String,
    pub user: AuditUser,
    #[serde(default)]
    pub user_agent: String,
    /// Absent for requests that are not about an object, such as `/readyz`.
    #[serde(default)]
    pub object_ref: AuditObject,
    #[serde(default)]
    pub response_status: AuditStatus,
    /// Among others why the request was allowed, as `authorization.k8s.io/reason`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339 with microseconds.
    pub request_received_timestamp: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct AuditUser {
    /// For example `system:serviceaccount:kubeocean-system:kubeocean-syncer`.
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a request is about; empty strings where it does not say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditObject {
    /// Plural, for example `pods`.
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub api_group: String,
    pub api_version: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AuditStatus {
    /// The HTTP status; 0 if unknown.
    pub code: u16,
    /// The reason of a failure, for example `Conflict`.
    pub reason: String,
}

impl AuditEvent {
    /// Whether it changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
    }
}

impl Cluster {
    /// The end of the audit log now.
    ///
    /// # Errors
    /// The cluster writes no audit log.
    pub fn audit_mark(&self) -> Result<AuditMark> {
        let path = self.audit_log_path();
        let metadata = std::fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(AuditMark(metadata.len()))
    }

    /// All requests so far.
    ///
    /// # Errors
    /// The cluster writes no audit log, or a line is not an audit event.
    pub fn audit_events(&self) -> Result<Vec<AuditEvent>> {
        self.audit_events_since(AuditMark::default())
    }

    /// The requests that were logged after `mark`, each once, in the order of the log.
    ///
    /// # Errors
    /// As [`Cluster::audit_events`].
    pub fn audit_events_since(&self, mark: AuditMark) -> Result<Vec<AuditEvent>> {
        let path = self.audit_log_path();
        let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        file.seek(SeekFrom::Start(mark.0)).context("reading the audit log")?;
        let mut text = String::new();
        file.read_to_string(&mut text).context("reading the audit log")?;
        parse(&text)
    }

    /// Of the requests that were logged after `mark` those that `picked` picks, once there are `expected` and a moment has
    /// passed in which there could be more. Others see what a request did before it is logged, so a test that saw it waits
    /// here. Fewer are returned after ten seconds: the caller knows what is wrong with them.
    ///
    /// # Errors
    /// As [`Cluster::audit_events`].
    pub async fn audit_events_until(
        &self,
        mark: AuditMark,
        expected: usize,
        picked: impl Fn(&AuditEvent) -> bool,
    ) -> Result<Vec<AuditEvent>> {
        let read = || {
            let events = self.audit_events_since(mark)?;
            anyhow::Ok(events.into_iter().filter(|event| picked(event)).collect::<Vec<_>>())
        };
        let mut enough = None;
        let settled = try_wait_until("requests in the audit log", LOGGED_WITHIN, async || match read() {
            Ok(events) if events.len() < expected => Err(events.len()),
            Ok(events) if enough.get_or_insert_with(Instant::now).elapsed() < SURPLUS_WITHIN => {
                Err(events.len())
            }
            settled => Ok(settled),
        });
        settled.await.unwrap_or_else(|_| read())
    }
}

fn parse(text: &str) -> Result<Vec<AuditEvent>> {
    let mut seen = std::collections::HashSet::new();
    let mut events = Vec::new();
    // The server may be in the middle of the last line.
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in complete.lines().filter(|line| !line.is_empty()) {
        let event: AuditEvent =
            serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
        if seen.insert(event.id.clone()) {
            events.push(event);
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"kind":"Event","auditID":"a","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/n/pods/p","verb":"patch","user":{"username":"u","groups":["g"]},"userAgent":"x/1","objectRef":{"resource":"pods","namespace":"n","name":"p","apiVersion":"v1","subresource":"status"},"responseStatus":{"metadata":{},"code":409,"reason":"Conflict"},"requestReceivedTimestamp":"2026-01-02T03:04:05.000000Z"}"#;

    #[test]
    fn a_line_becomes_an_event() {
        let events = parse(&format!("{LINE}\n")).unwrap();
        assert_eq!(events.len(), 1);
        let event = &events[0];
        assert_eq!(
            (event.object_ref.resource.as_str(), event.object_ref.subresource.as_str()),
            ("pods", "status")
        );
        assert_eq!((event.response_status.code, event.is_write()), (409, true));
    }

    #[test]
    fn a_request_counts_once_and_an_unfinished_line_not_at_all() {
        assert_eq!(parse(&format!("{LINE}\n{LINE}\n{}", &LINE[..50])).unwrap().len(), 1);
    }
}
