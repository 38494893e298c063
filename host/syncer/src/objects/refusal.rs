//! Who refused a request about an object or its copy.

use kubeocean_runtime::error::{ApplyError, Verb};

/// Whether the worker cluster answered a request about a vobj or its copy: only copies are made and deleted, and only they
/// have names of TD-301.
pub(crate) fn is_of_worker(error: &ApplyError) -> bool {
    let (ApplyError::Forbidden { verb, object, .. } | ApplyError::Rejected { verb, object, .. }) = error
    else {
        return true;
    };
    let name = object.split('?').next().and_then(|path| path.rsplit('/').next());
    let hash = name.and_then(|name| name.rsplit_once('-')).map(|(_, hash)| hash);
    let is_copy =
        hash.is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
    matches!(verb, Verb::Create | Verb::Delete) || is_copy
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const COPY: &str = "/api/v1/namespaces/mount/configmaps/settings-0123456789abcdef0123456789abcdef";
    const ORIGINAL: &str = "/api/v1/namespaces/team/configmaps/settings";

    #[rstest]
    #[case::a_copy_is_changed(Verb::Patch, COPY, true)]
    #[case::a_copy_is_read(Verb::Get, COPY, true)]
    #[case::a_copy_is_made(Verb::Create, "/api/v1/namespaces/mount/configmaps", true)]
    #[case::a_copy_is_deleted(Verb::Delete, COPY, true)]
    #[case::an_original_is_claimed(Verb::Patch, ORIGINAL, false)]
    #[case::an_original_is_read(Verb::Get, "/api/v1/namespaces/team/secrets/settings?x=y", false)]
    fn only_copies_are_the_workers(#[case] verb: Verb, #[case] object: &str, #[case] expected: bool) {
        let (object, message) = (object.to_owned(), String::new());
        let forbidden = ApplyError::Forbidden { verb, object: object.clone(), message: message.clone() };
        assert_eq!(is_of_worker(&forbidden), expected);
        let rejected = ApplyError::Rejected { verb, object, fields: Vec::new(), message };
        assert_eq!(is_of_worker(&rejected), expected);
    }
}
