//! Why a TLS connection to an API server was refused, in words an administrator can act on.
//!
//! Decided by the type of the error deep inside the client's, never by its text.

use std::error::Error;

use rustls::{CertificateError, Error as TlsError};

/// What is wrong with the server's certificate; `None` when that is not the reason.
pub(super) fn problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = tls(error) {
            return Some(words(found));
        }
        cause = error.source();
    }
    None
}

/// An I/O error hides what it wraps from its chain of sources.
fn tls<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e TlsError> {
    if let Some(found) = error.downcast_ref::<TlsError>() {
        return Some(found);
    }
    let inner: &'e (dyn Error + 'static) = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    tls(inner)
}

fn words(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is not signed by the given authority; give the right one with --ca-file"
                .to_owned()
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for another name; give one it has with --tls-server-name".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_reason_is_found_inside_an_io_error() {
        let unknown = TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = Outer(std::io::Error::new(std::io::ErrorKind::InvalidData, unknown));
        assert!(problem(&error).unwrap().contains("--ca-file"));
        let name = TlsError::InvalidCertificate(CertificateError::NotValidForName);
        assert!(problem(&name).unwrap().contains("--tls-server-name"));
        assert_eq!(problem(&std::io::Error::other("refused")), None);
    }
}
