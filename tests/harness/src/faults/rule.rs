//! Which requests fail, and how.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts;

/// A choice of requests: all that every narrowing agrees with.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    verbs: Verbs,
    path: Option<String>,
    token: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verbs {
    #[default]
    All,
    /// Watches.
    Watch,
    /// Reads of objects and lists.
    Read,
    /// Everything that changes something; renewals of Leases are not among them.
    Write,
}

impl Requests {
    pub fn all() -> Self {
        Self::default()
    }

    pub fn watches() -> Self {
        Self { verbs: Verbs::Watch, ..Self::default() }
    }

    pub fn reads() -> Self {
        Self { verbs: Verbs::Read, ..Self::default() }
    }

    /// But for renewals of Leases.
    pub fn writes() -> Self {
        Self { verbs: Verbs::Write, ..Self::default() }
    }

    /// Whose path and query contain `part`.
    #[must_use]
    pub fn about(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// That carry this bearer token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(format!("Bearer {token}"));
        self
    }

    fn choose(&self, request: &Parts) -> bool {
        let path = request.uri.path_and_query().map_or("", |path| path.as_str());
        let verb = match self.verbs {
            Verbs::All => true,
            Verbs::Watch => is_watch(request),
            Verbs::Read => request.method == Method::GET && !is_watch(request),
            Verbs::Write => request.method != Method::GET && !path.contains("/leases/"),
        };
        let token = || request.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        verb && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
            && self.token.as_ref().is_none_or(|wanted| token() == Some(wanted.as_str()))
    }
}

pub(super) fn is_watch(request: &Parts) -> bool {
    let query = request.uri.query().unwrap_or_default();
    query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1")
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pause before each piece of the answer.
    Slow(Duration),
    /// The connection breaks after so many bytes of the answer.
    CutAfter(usize),
    /// The server is not asked.
    Refuse(Refusal),
    /// The server does what it is asked for, and the connection breaks instead of the answer.
    LoseAnswer,
    /// A watch begins, and its first event is the error 410: what it asks for is too old.
    ExpireWatch,
}

/// How an API server says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 409: somebody else was faster.
    Conflict,
    /// 410: that version, or that place in a list, is too old.
    Gone,
    /// 429, with `Retry-After` in seconds.
    TooManyRequests(u64),
    /// 500.
    InternalError,
    /// 503, without `Retry-After`.
    Unavailable,
    /// 401.
    Unauthorized,
    /// 404 in plain text, as a load balancer says it that finds no server.
    NoServer,
}

/// What happens to which requests.
#[derive(Clone, Debug)]
pub struct Rule {
    requests: Requests,
    fault: Fault,
    every: usize,
    times: usize,
}

impl Rule {
    /// Each of these requests, until the rule is removed.
    pub fn new(requests: Requests, fault: Fault) -> Self {
        Self { requests, fault, every: 1, times: usize::MAX }
    }

    /// Only each `n`th of them, so that the work goes on in between.
    #[must_use]
    pub fn every(mut self, n: usize) -> Self {
        self.every = n.max(1);
        self
    }

    /// At most so often.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }
}

/// A rule at work.
#[derive(Debug)]
pub(super) struct Active {
    rule: Rule,
    chosen: AtomicUsize,
    ended: AtomicBool,
}

impl Active {
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, chosen: AtomicUsize::new(0), ended: AtomicBool::new(false) }
    }

    pub(super) fn fault(&self) -> Fault {
        self.rule.fault
    }

    /// Whether this request fails.
    pub(super) fn takes(&self, request: &Parts) -> bool {
        if !self.rule.requests.choose(request) {
            return false;
        }
        let number = self.chosen.fetch_add(1, Ordering::Relaxed) + 1;
        number.is_multiple_of(self.rule.every) && number / self.rule.every <= self.rule.times
    }

    /// The rule, as long as it has had no request.
    pub(super) fn unmet(&self) -> Option<&Rule> {
        (self.chosen.load(Ordering::Relaxed) < self.rule.every).then_some(&self.rule)
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &Method, uri: &str) -> Parts {
        let request = http::Request::builder().method(method).uri(uri).header(AUTHORIZATION, "Bearer old");
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn requests_are_chosen_by_verb_path_and_token() {
        let watch = parts(&Method::GET, "https://a/api/v1/pods?watch=true&allowWatchBookmarks=true");
        let list = parts(&Method::GET, "https://a/api/v1/pods?limit=500");
        let renewal = parts(&Method::PATCH, "https://a/apis/coordination.k8s.io/v1/namespaces/n/leases/l");
        let write = parts(&Method::POST, "https://a/api/v1/namespaces/n/pods");
        let chosen = |requests: Requests| [&watch, &list, &renewal, &write].map(|it| requests.choose(it));
        assert_eq!(chosen(Requests::all()), [true; 4]);
        assert_eq!(chosen(Requests::watches()), [true, false, false, false]);
        assert_eq!(chosen(Requests::reads()), [false, true, false, false]);
        assert_eq!(chosen(Requests::writes()), [false, false, false, true]);
        assert_eq!(chosen(Requests::all().about("/pods?")), [true, true, false, false]);
        assert_eq!(chosen(Requests::all().with_token("old")), [true; 4]);
        assert_eq!(chosen(Requests::all().with_token("new")), [false; 4]);
    }

    #[test]
    fn each_nth_fails_and_only_so_often() {
        let write = parts(&Method::POST, "/api/v1/namespaces/n/pods");
        let rule = Rule::new(Requests::writes(), Fault::LoseAnswer).every(2).times(2);
        let active = Active::new(rule);
        let taken: Vec<bool> = (0..6).map(|_| active.takes(&write)).collect();
        assert_eq!(taken, [false, true, false, true, false, false]);
    }

    #[test]
    fn a_rule_is_met_by_the_first_request_that_fails() {
        let write = parts(&Method::POST, "/api/v1/namespaces/n/pods");
        let active = Active::new(Rule::new(Requests::writes(), Fault::LoseAnswer).every(2));
        assert!(!active.takes(&write) && active.unmet().is_some());
        assert!(active.takes(&write) && active.unmet().is_none());
    }
}
