//! Single requests on JSON values, each with a time limit and the preconditions its caller decided on.
//!
//! Answers stay JSON where fields newer than our types must survive. The functions in `_as` decode of an answer what its
//! type has, and no more: a pod has ten times as much, and a write to thousands of objects answers with each of them.

use std::time::Duration;

use http::{
    Method, Request,
    header::{ACCEPT, CONTENT_TYPE},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Value, json};

use super::error::{ApplyError, Verb};

/// Longest wait for one answer. Watches have no such limit.
const TIMEOUT: Duration = Duration::from_secs(30);
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
/// JSON is YAML, so a JSON body is a valid apply configuration.
const APPLY_PATCH: &str = "application/apply-patch+yaml";

/// Fields that a server does not know it drops in any case. To warn of them, which nobody would read, it decodes each object
/// that is written in a slower way.
const UNKNOWN_FIELDS: &str = "fieldValidation=Ignore";
/// An object of which only the metadata is sent.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// A list of which only the objects' metadata is sent.
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Objects asked for at a time where a list may be long.
pub const PAGE: usize = 500;

/// What a deletion met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The object is gone, or another one has its name.
    Gone,
    /// Deletion has started; the object ends after its finalizers or grace period.
    Started,
}

/// Preconditions and grace of a deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Only the object with this UID.
    pub uid: Option<String>,
    /// Grace period in seconds; `None` takes the object's own.
    pub grace_seconds: Option<i64>,
}

/// Reads an object; `None` if there is none.
pub async fn get_json(client: &Client, path: &str) -> Result<Option<Value>, ApplyError> {
    match send(client, Verb::Get, Method::GET, path, JSON, None).await {
        Ok(object) => Ok(Some(object)),
        Err(ApplyError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the metadata of an object; `None` if there is none.
pub async fn get_metadata(client: &Client, path: &str) -> Result<Option<ObjectMeta>, ApplyError> {
    let request = Request::builder().method(Method::GET).uri(path).header(ACCEPT, METADATA);
    match perform::<Item>(client, Verb::Get, path, request, Vec::new()).await {
        Ok(object) => Ok(Some(object.metadata)),
        Err(ApplyError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the metadata of a whole list, `page` objects at a time; `path` may have a query. A list that changes meanwhile
/// is the list as it was when the first page was read.
pub async fn list_metadata(client: &Client, path: &str, page: usize) -> Result<Vec<ObjectMeta>, ApplyError> {
    let mut found = Vec::new();
    let mut next = String::new();
    loop {
        let at = page_path(path, page, &next);
        let request = Request::builder().method(Method::GET).uri(&at).header(ACCEPT, METADATA_LIST);
        let list: List = perform(client, Verb::List, &at, request, Vec::new()).await?;
        found.extend(list.items.into_iter().flatten().map(|item| item.metadata));
        next = list.metadata.next;
        if next.is_empty() {
            return Ok(found);
        }
    }
}

/// Whether a list has an object that is `wanted`, read `page` objects at a time until there is one.
pub async fn any_listed(
    client: &Client,
    path: &str,
    page: usize,
    wanted: impl Fn(&Value) -> bool,
) -> Result<bool, ApplyError> {
    let mut next = String::new();
    loop {
        let list: Value =
            send(client, Verb::List, Method::GET, &page_path(path, page, &next), JSON, None).await?;
        if list.get("items").and_then(Value::as_array).into_iter().flatten().any(&wanted) {
            return Ok(true);
        }
        match list.pointer("/metadata/continue").and_then(Value::as_str) {
            Some(more) if !more.is_empty() => more.clone_into(&mut next),
            _ => return Ok(false),
        }
    }
}

/// One page of a list.
#[derive(Debug, Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    /// `null` in an empty list of metadata.
    items: Option<Vec<Item>>,
}

#[derive(Debug, Default, Deserialize)]
struct ListMeta {
    /// Where the next page begins; empty on the last one.
    #[serde(rename = "continue", default)]
    next: String,
}

#[derive(Debug, Deserialize)]
struct Item {
    metadata: ObjectMeta,
}

fn with_query(path: &str, parameter: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}{parameter}")
}

fn page_path(path: &str, page: usize, next: &str) -> String {
    let mut at = with_query(path, &format!("limit={page}"));
    if !next.is_empty() {
        at.push_str("&continue=");
        at.push_str(next);
    }
    at
}

/// Creates an object in the collection `path` and returns it as stored.
pub async fn create_json(client: &Client, path: &str, object: &Value) -> Result<Value, ApplyError> {
    create_as(client, path, object).await
}

/// The same; returns what `T` has of the object.
pub async fn create_as<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    object: &Value,
) -> Result<T, ApplyError> {
    send(client, Verb::Create, Method::POST, path, JSON, Some(object)).await
}

/// The same; returns nothing.
pub async fn create_only(client: &Client, path: &str, object: &Value) -> Result<(), ApplyError> {
    create_as::<IgnoredAny>(client, path, object).await.map(drop)
}

/// What a role may allow on the core API group's objects.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// For example `patch`.
    pub verb: &'a str,
    /// For example `pods`.
    pub resource: &'a str,
    /// For example `ephemeralcontainers`; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace of the objects.
    pub namespace: &'a str,
}

/// Asks the API server whether we have a right; every account may ask that of itself.
pub async fn is_permitted(client: &Client, right: &Right<'_>) -> Result<bool, ApplyError> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "verb": right.verb, "resource": right.resource, "subresource": right.subresource,
            "namespace": right.namespace,
        }},
    });
    let answer = create_json(client, paths::ACCESS_REVIEWS, &review).await?;
    Ok(answer.pointer("/status/allowed") == Some(&Value::Bool(true)))
}

/// Which cluster this is: the UID of its namespace `kube-system`; `None` if it has none.
pub async fn cluster_uid(client: &Client) -> Result<Option<String>, ApplyError> {
    let namespace = get_json(client, &paths::namespace("kube-system")).await?;
    Ok(namespace.and_then(|namespace| namespace.pointer("/metadata/uid")?.as_str().map(str::to_owned)))
}

/// JSON merge patch. Put `metadata.uid` and `metadata.resourceVersion` into the patch as preconditions.
pub async fn merge_patch(client: &Client, path: &str, patch: &Value) -> Result<Value, ApplyError> {
    merge_patch_as(client, path, patch).await
}

/// The same; returns what `T` has of the object.
pub async fn merge_patch_as<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    patch: &Value,
) -> Result<T, ApplyError> {
    send(client, Verb::Patch, Method::PATCH, path, MERGE_PATCH, Some(patch)).await
}

/// The same; returns nothing.
pub async fn merge_patch_only(client: &Client, path: &str, patch: &Value) -> Result<(), ApplyError> {
    merge_patch_as::<IgnoredAny>(client, path, patch).await.map(drop)
}

/// Strategic merge patch: lists of containers are merged by name. Preconditions as in [`merge_patch`].
pub async fn strategic_patch(client: &Client, path: &str, patch: &Value) -> Result<Value, ApplyError> {
    send(client, Verb::Patch, Method::PATCH, path, STRATEGIC_PATCH, Some(patch)).await
}

/// Server-side apply. With `force` fields of other managers are taken over.
pub async fn apply_patch(
    client: &Client,
    path: &str,
    manager: &str,
    force: Force,
    object: &Value,
) -> Result<Value, ApplyError> {
    let force = matches!(force, Force::Yes);
    let path = format!("{path}?fieldManager={manager}&force={force}");
    send(client, Verb::Patch, Method::PATCH, &path, APPLY_PATCH, Some(object)).await
}

/// Whether an apply takes over fields of other managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Take them over.
    Yes,
    /// Fail with a conflict.
    No,
}

/// Deletes an object. Not found, and another UID under that name, count as gone.
pub async fn delete_json(
    client: &Client,
    path: &str,
    options: &DeleteOptions,
) -> Result<Deletion, ApplyError> {
    delete(client, path, options, None).await
}

/// The same, if it is as it was in this version: whether it may go depended on what it says.
pub async fn delete_unchanged(
    client: &Client,
    path: &str,
    uid: &str,
    version: &str,
) -> Result<Deletion, ApplyError> {
    let options = DeleteOptions { uid: Some(uid.to_owned()), grace_seconds: None };
    delete(client, path, &options, Some(version)).await
}

async fn delete(
    client: &Client,
    path: &str,
    options: &DeleteOptions,
    version: Option<&str>,
) -> Result<Deletion, ApplyError> {
    let answer = delete_as::<Kept>(client, path, options, version).await?;
    let waits = answer.is_some_and(|object| object.metadata.is_kept(options.grace_seconds));
    Ok(if waits { Deletion::Started } else { Deletion::Gone })
}

/// What the answer to a deletion says of whether the object is still there. It may also be a `Status`.
#[derive(Debug, Default, Deserialize)]
struct Kept {
    #[serde(default)]
    metadata: KeptMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptMeta {
    deletion_timestamp: Option<IgnoredAny>,
    finalizers: Option<Vec<IgnoredAny>>,
}

impl KeptMeta {
    /// Without a grace period only a finalizer keeps it.
    fn is_kept(&self, grace_seconds: Option<i64>) -> bool {
        let held = self.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty());
        self.deletion_timestamp.is_some() && (grace_seconds != Some(0) || held)
    }
}

/// As [`delete_json`]; returns the object as it is now, if something keeps it for the time being.
pub async fn delete_answered(
    client: &Client,
    path: &str,
    options: &DeleteOptions,
) -> Result<Option<Value>, ApplyError> {
    let answer: Option<Value> = delete_as(client, path, options, None).await?;
    Ok(answer.filter(|object| object.pointer("/metadata/deletionTimestamp").is_some()))
}

/// The answer to a deletion; `None` if the object is gone. A conflict is proof of another UID only after a look: the server
/// has other reasons for one.
async fn delete_as<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    options: &DeleteOptions,
    version: Option<&str>,
) -> Result<Option<T>, ApplyError> {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    if let Some(uid) = &options.uid {
        body["preconditions"]["uid"] = uid.as_str().into();
    }
    if let Some(version) = version {
        body["preconditions"]["resourceVersion"] = version.into();
    }
    if let Some(seconds) = options.grace_seconds {
        body["gracePeriodSeconds"] = seconds.into();
    }
    match send(client, Verb::Delete, Method::DELETE, path, JSON, Some(&body)).await {
        Ok(answer) => Ok(Some(answer)),
        Err(ApplyError::NotFound { .. }) => Ok(None),
        Err(conflict @ ApplyError::Conflict { .. }) => {
            let there = get_json(client, path).await?;
            let uid = there.as_ref().and_then(|there| there.pointer("/metadata/uid")?.as_str());
            if uid.is_some() && uid == options.uid.as_deref() { Err(conflict) } else { Ok(None) }
        }
        Err(error) => Err(error),
    }
}

async fn send<T: DeserializeOwned>(
    client: &Client,
    verb: Verb,
    method: Method,
    path: &str,
    content_type: &str,
    body: Option<&Value>,
) -> Result<T, ApplyError> {
    let body = body.map(|value| value.to_string().into_bytes()).unwrap_or_default();
    let uri = match verb {
        Verb::Create | Verb::Patch => with_query(path, UNKNOWN_FIELDS),
        _ => path.to_owned(),
    };
    let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, content_type);
    perform(client, verb, path, request, body).await
}

async fn perform<T: DeserializeOwned>(
    client: &Client,
    verb: Verb,
    path: &str,
    request: http::request::Builder,
    body: Vec<u8>,
) -> Result<T, ApplyError> {
    let request = request
        .body(body)
        .map_err(|error| ApplyError::from_kube(verb, path, kube::Error::HttpError(error)))?;
    let object = path.split('?').next().unwrap_or(path);
    match tokio::time::timeout(TIMEOUT, client.request::<T>(request)).await {
        Ok(answer) => answer.map_err(|error| ApplyError::from_kube(verb, object, error)),
        Err(_) => Err(ApplyError::Timeout { verb, object: object.to_owned(), seconds: TIMEOUT.as_secs() }),
    }
}

pub mod paths;

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::within_its_grace(json!({"metadata": {"deletionTimestamp": "t"}}), None, true)]
    #[case::by_force(json!({"metadata": {"deletionTimestamp": "t"}}), Some(0), false)]
    #[case::by_force_behind_a_finalizer(json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b"]}}), Some(0), true)]
    #[case::by_force_behind_none(json!({"metadata": {"deletionTimestamp": "t", "finalizers": []}}), Some(0), false)]
    #[case::at_once(json!({"metadata": {"name": "x"}}), None, false)]
    #[case::only_a_status(json!({"kind": "Status", "status": "Success"}), None, false)]
    fn what_keeps_a_deleted_object(
        #[case] answer: Value,
        #[case] grace_seconds: Option<i64>,
        #[case] kept: bool,
    ) {
        let answer: Kept = serde_json::from_value(answer).unwrap();
        assert_eq!(answer.metadata.is_kept(grace_seconds), kept);
    }

    #[test]
    fn each_page_is_asked_for_with_a_limit_and_the_query_stays() {
        assert_eq!(page_path("/api/v1/pods", 500, ""), "/api/v1/pods?limit=500");
        assert_eq!(
            page_path("/api/v1/pods?labelSelector=a", 500, "xyz"),
            "/api/v1/pods?labelSelector=a&limit=500&continue=xyz"
        );
    }
}
