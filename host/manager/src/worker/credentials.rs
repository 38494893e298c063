//! How long the credentials of a kubeconfig last: `exp` of a token, `notAfter` of a client certificate (MC section 3).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use kube::config::{AuthInfo, Kubeconfig};
use secrecy::ExposeSecret;
use serde::Deserialize;

/// Before this much time is left, at the latest, somebody is told.
const WARN_AT_MOST: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Life of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its start, if it says so.
    pub from: Option<Timestamp>,
    /// Its end.
    pub until: Timestamp,
}

impl Life {
    /// Whether a fifth of it, or seven days, whichever is less, is all that is left.
    pub fn ends_soon(&self, now: Timestamp) -> bool {
        let fifth = self.from.map_or(WARN_AT_MOST, |from| self.until.duration_since(from) / 5);
        self.until.duration_since(now) < fifth.min(WARN_AT_MOST)
    }
}

/// Life of what the current user of `kubeconfig` presents; of several the one that ends first. `None` if nothing ends.
pub fn life(kubeconfig: &Kubeconfig) -> Option<Life> {
    let user = current_user(kubeconfig)?;
    let token = user.token.as_ref().and_then(|token| token_life(token.expose_secret()));
    let certificate = user.client_certificate_data.as_deref().and_then(certificate_life);
    [token, certificate].into_iter().flatten().min_by_key(|life| life.until)
}

fn current_user(kubeconfig: &Kubeconfig) -> Option<&AuthInfo> {
    let context = kubeconfig.current_context.as_ref()?;
    let context = kubeconfig.contexts.iter().find(|named| named.name == *context)?.context.as_ref()?;
    let user = context.user.as_ref()?;
    kubeconfig.auth_infos.iter().find(|named| named.name == *user)?.auth_info.as_ref()
}

/// Whether verification of the server's certificate is turned off.
pub fn is_insecure(kubeconfig: &Kubeconfig) -> bool {
    let named = |context: &String| {
        kubeconfig
            .contexts
            .iter()
            .find(|named| named.name == *context)
            .and_then(|named| named.context.as_ref())
    };
    let Some(context) = kubeconfig.current_context.as_ref().and_then(named) else { return false };
    kubeconfig
        .clusters
        .iter()
        .filter(|named| named.name == context.cluster)
        .filter_map(|named| named.cluster.as_ref())
        .any(|cluster| cluster.insecure_skip_tls_verify == Some(true))
}

fn token_life(token: &str) -> Option<Life> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
        nbf: Option<i64>,
        iat: Option<i64>,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let at = |seconds: i64| Timestamp::from_second(seconds).ok();
    Some(Life { from: claims.nbf.or(claims.iat).and_then(at), until: at(claims.exp)? })
}

fn certificate_life(base64: &str) -> Option<Life> {
    let pem = STANDARD.decode(base64.trim()).ok()?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let validity = certificate.validity();
    let at = |seconds: i64| Timestamp::from_second(seconds).ok();
    Some(Life { from: at(validity.not_before.timestamp()), until: at(validity.not_after.timestamp())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str) -> Kubeconfig {
        Kubeconfig::from_yaml(&format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: w\n\
             contexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n\
             clusters: [{{name: w, cluster: {{server: 'https://127.0.0.1', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: w, user: {user}}}]\n"
        ))
        .unwrap()
    }

    fn token(claims: &str) -> String {
        format!("h.{}.s", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_says_when_it_ends() {
        let config = kubeconfig(&format!("{{token: {}}}", token(r#"{"nbf": 1000, "exp": 2000}"#)));
        let life = life(&config).unwrap();
        assert_eq!(life.until.as_second(), 2000);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(!life.ends_soon(at(1799)) && life.ends_soon(at(1801)));
        assert!(is_insecure(&config));
    }

    #[test]
    fn a_token_without_end_or_of_another_kind_has_no_life() {
        for token in [token(r#"{"iss": "x"}"#), "opaque".to_owned()] {
            assert_eq!(life(&kubeconfig(&format!("{{token: {token}}}"))), None);
        }
    }

    #[test]
    fn a_certificate_says_when_it_ends() {
        let mut parameters = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let config = kubeconfig(&format!("{{client-certificate-data: {}}}", STANDARD.encode(pem)));
        assert_eq!(life(&config).unwrap().until.to_string(), "2040-01-01T00:00:00Z");
    }

    #[test]
    fn a_long_life_is_told_of_a_week_before_its_end() {
        let day = 24 * 3600;
        let at = |day_number: i64| Timestamp::from_second(day_number * day).unwrap();
        let year = Life { from: Some(at(0)), until: at(365) };
        assert!(!year.ends_soon(at(357)) && year.ends_soon(at(359)));
    }
}
