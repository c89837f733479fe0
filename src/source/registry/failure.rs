//! Why a request gave nothing: the kinds that decide what is done next, and words for a person.
//!
//! Invariant: no text here has an address with its query (redirects carry signatures there), a
//! token or a password.

use std::error::Error;
use std::io;

use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope, OciErrorCode};

use crate::source::SourceError;

/// Most characters of a registry's own words that are shown.
const LONGEST_WORDS: usize = 200;

/// What is to be done about a failure depends on this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// 401: it wants a login, or another one.
    Login,
    /// 403.
    Denied,
    /// 404.
    Missing,
    /// 429.
    Busy,
    /// 5xx.
    Server,
    /// No connection: no such host, nobody listens.
    Unreachable,
    /// A connection, but no TLS on it.
    NoTls,
    /// TLS, but the certificate is not trusted.
    Certificate,
    /// The connection broke off, or nothing came for too long.
    Broken,
    /// The part that was asked for cannot be had; the whole may.
    Range,
    /// It came, and is not what it should be; or anything else that asking again does not help.
    Content,
    /// It lies with this machine: a login file, a helper, a certificate file.
    Here,
}

/// A failed request.
#[derive(Debug)]
pub(super) struct Failure {
    /// Its kind.
    pub(super) kind: Kind,
    /// One line.
    pub(super) why: String,
}

impl Failure {
    /// A failure in our own words.
    pub(super) fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self {
            kind,
            why: why.into(),
        }
    }

    /// Whether the same request may do better a little later.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self.kind,
            Kind::Busy | Kind::Server | Kind::Broken | Kind::Range
        )
    }

    /// The failure of the last of so many tries.
    pub(super) fn after(self, tries: u32) -> Self {
        match tries {
            0 | 1 => self,
            _ => Self {
                why: format!("{} (tried {tries} times)", self.why),
                ..self
            },
        }
    }

    /// Whether plain HTTP may do better, where it is allowed. A certificate that is not trusted
    /// is no reason to do without one.
    pub(super) fn may_be_plain(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::NoTls)
    }

    /// For a person: `what` was asked for.
    pub(super) fn of(self, what: String) -> SourceError {
        let kind = match self.kind {
            Kind::Content => {
                return SourceError::Image {
                    what,
                    why: self.why,
                };
            }
            Kind::Login | Kind::Denied => io::ErrorKind::PermissionDenied,
            Kind::Missing => io::ErrorKind::NotFound,
            Kind::Busy => io::ErrorKind::ResourceBusy,
            Kind::Unreachable => io::ErrorKind::HostUnreachable,
            Kind::Broken => io::ErrorKind::ConnectionAborted,
            Kind::Server | Kind::NoTls | Kind::Certificate | Kind::Range | Kind::Here => {
                io::ErrorKind::Other
            }
        };
        SourceError::Io {
            what,
            source: io::Error::new(kind, self.why),
        }
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::new(Kind::Here, error.to_string())
    }
}

impl From<DigestError> for Failure {
    fn from(error: DigestError) -> Self {
        let why = match error {
            DigestError::VerificationError { expected, actual } => {
                format!(
                    "came damaged: its bytes are {actual}, not {}",
                    clip(&expected)
                )
            }
            other => format!(
                "has a digest that makes no sense: {}",
                clip(&other.to_string())
            ),
        };
        Self::new(Kind::Content, why)
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Self {
        match error {
            OciDistributionError::UnauthorizedError { .. } => Self::new(Kind::Login, ""),
            OciDistributionError::AuthenticationFailure(words) => token_refused(&words),
            OciDistributionError::RegistryError { envelope, .. } => enveloped(&envelope),
            OciDistributionError::ServerError { code, message, .. } => {
                let kind = match code {
                    401 => Kind::Login,
                    403 => Kind::Denied,
                    404 => Kind::Missing,
                    408 => Kind::Broken,
                    416 => Kind::Range,
                    429 => Kind::Busy,
                    500.. => Kind::Server,
                    _ => Kind::Content,
                };
                Self::new(kind, answered(code, &message))
            }
            OciDistributionError::DigestError(error) => error.into(),
            OciDistributionError::RequestError(error) => {
                let kind = if error.is_redirect() || error.is_builder() {
                    Kind::Content
                } else if error.is_connect() {
                    Kind::Unreachable
                } else {
                    Kind::Broken
                };
                broken(kind, &error.without_url())
            }
            OciDistributionError::IoError(error) => broken(Kind::Broken, &error),
            OciDistributionError::RegistryTokenDecodeError(_) => Self::new(
                Kind::Content,
                "gives no token that can be read: is it a registry?",
            ),
            other => Self::new(Kind::Content, clip(&other.to_string())),
        }
    }
}

/// What a stream of a blob ends with.
pub(super) fn of_stream(error: &io::Error) -> Failure {
    let digest = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<DigestError>());
    match digest {
        Some(DigestError::VerificationError { expected, actual }) => {
            DigestError::VerificationError {
                expected: expected.clone(),
                actual: actual.clone(),
            }
            .into()
        }
        _ => broken(Kind::Broken, error),
    }
}

/// Whether a stream ended, and only the digest of its bytes was wrong.
pub(super) fn is_digest(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<DigestError>())
}

/// A failed connection: the deepest of its causes is what a person can do something about.
fn broken(kind: Kind, error: &(dyn Error + 'static)) -> Failure {
    let mut cause = error;
    loop {
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn Error + 'static));
        match cause.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::InvalidCertificate(why)) => {
                return Failure::new(Kind::Certificate, clip(&format!("{why}")));
            }
            Some(why) => return Failure::new(Kind::NoTls, clip(&why.to_string())),
            None => {}
        }
        match inner.or_else(|| cause.source()) {
            Some(next) => cause = next,
            None => return Failure::new(kind, clip(&cause.to_string())),
        }
    }
}

/// The errors that a registry lists (the distribution specification, "Error Codes").
fn enveloped(envelope: &OciEnvelope) -> Failure {
    let Some(first) = envelope.errors.first() else {
        return Failure::new(Kind::Content, "answers with an error that it does not name");
    };
    let kind = match first.code {
        OciErrorCode::Unauthorized => Kind::Login,
        OciErrorCode::Denied => Kind::Denied,
        OciErrorCode::BlobUnknown
        | OciErrorCode::ManifestBlobUnknown
        | OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::NotFound => Kind::Missing,
        OciErrorCode::Toomanyrequests => Kind::Busy,
        _ => Kind::Content,
    };
    let message = if first.message.is_empty() {
        serde_json::to_string(&first.code).unwrap_or_default()
    } else {
        first.message.clone()
    };
    Failure::new(kind, format!("answers {:?}", clip(&message)))
}

/// What the server of tokens said; its status is not known here.
fn token_refused(words: &str) -> Failure {
    let envelope: Option<OciEnvelope> = serde_json::from_str(words).ok();
    match envelope.as_ref().map(enveloped) {
        Some(failure) if failure.kind == Kind::Busy => failure,
        Some(failure) => Failure::new(Kind::Login, failure.why),
        None => Failure::new(Kind::Login, answered_words(words)),
    }
}

fn answered(code: u16, words: &str) -> String {
    let words = answered_words(words);
    if words.is_empty() {
        format!("answers {code}")
    } else {
        format!("answers {code}, {words}")
    }
}

/// A registry's own words, where they are any: no web pages.
fn answered_words(words: &str) -> String {
    let words = words.trim();
    if words.is_empty() || words.starts_with('<') {
        String::new()
    } else {
        format!("{:?}", clip(words))
    }
}

/// Somebody else's words on one line: short, without control characters.
pub(super) fn clip(words: &str) -> String {
    let mut clean: String = words
        .trim()
        .chars()
        .take(LONGEST_WORDS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if clean.len() < words.trim().len() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_short_line() {
        assert_eq!(clip(" a\nb\u{1b}[31m "), "a b [31m");
        assert!(clip(&"é".repeat(1 << 20)).len() < 1000);
        assert_eq!(answered(500, "<html>no</html>"), "answers 500");
        assert_eq!(answered(500, "no\nspace"), "answers 500, \"no space\"");
    }

    #[test]
    fn errors_that_registries_list() {
        for (body, kind) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#, Kind::Missing),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Kind::Denied),
            (r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#, Kind::Busy),
            (
                r#"{"errors":[{"code":"ODD","message":"x"}]}"#,
                Kind::Content,
            ),
            (r#"{"errors":[]}"#, Kind::Content),
        ] {
            let envelope = serde_json::from_str(body).unwrap();
            assert_eq!(enveloped(&envelope).kind, kind, "{body}");
        }
        let busy = token_refused(r#"{"errors":[{"code":"TOOMANYREQUESTS"}]}"#);
        assert_eq!(busy.kind, Kind::Busy);
        assert_eq!(token_refused("wrong password").kind, Kind::Login);
    }
}
