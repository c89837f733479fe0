//! Names of images in registries: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, with Docker's defaults
//! (`docker.io`, `library/`, `latest`).
//!
//! The forms are those of the distribution specification ("Pulling manifests") and of the
//! reference grammar that Docker and podman share; IPv6 addresses stand in brackets.

use std::fmt;
use std::net::IpAddr;

use crate::digest::Digest;
use crate::source::SourceError;

/// The registry that names without one are of.
const DOCKER: &str = "docker.io";

/// Its name of old, which its login files still have.
const DOCKER_INDEX: &str = "index.docker.io";

/// Most bytes of a repository's name (the reference grammar's limit).
const LONGEST_REPOSITORY: usize = 255;

/// Most bytes of a tag.
const LONGEST_TAG: usize = 128;

/// Most bytes of a host's name and its port.
const LONGEST_HOST: usize = 255 + 6;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Where it is.
    pub(super) repository: Repository,
    /// The tag; `latest` where neither a tag nor a digest was written.
    pub(super) tag: Option<String>,
    /// The digest of its manifest or index, which counts where both are written.
    pub(super) digest: Option<Digest>,
}

/// A repository: the images of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    /// `HOST[:PORT]`.
    pub(super) host: String,
    /// `library/debian`.
    pub(super) path: String,
}

impl Name {
    /// Reads what a person wrote behind `docker://`.
    ///
    /// # Errors
    /// [`SourceError::Asked`].
    pub(super) fn parse(text: &str) -> Result<Self, SourceError> {
        let bad = |why: &str| {
            SourceError::Asked(format!(
                "image {text:?}: {why}: write [HOST[:PORT]/]NAME[:TAG][@sha256:DIGEST]"
            ))
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(digest.parse().map_err(|e| bad(&format!("{e}")))?),
            ),
            None => (text, None),
        };
        // A colon behind the last slash begins the tag; before it, a port.
        let name_starts = rest.rfind('/').map_or(0, |n| n + 1);
        let (rest, tag) = match rest.rfind(':') {
            Some(colon) if colon >= name_starts => {
                let (rest, tag) = rest.split_at(colon);
                let tag = tag.trim_start_matches(':');
                if !good_tag(tag) {
                    return Err(bad("no tag is written so"));
                }
                (rest, Some(tag.to_owned()))
            }
            _ => (rest, None),
        };
        let tag = match (tag, digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag,
        };
        let repository = Repository::parse(rest).map_err(bad)?;
        Ok(Self {
            repository,
            tag,
            digest,
        })
    }

    /// What to ask a registry for: the digest, else the tag.
    pub(super) fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.repository, f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl Repository {
    /// With Docker's defaults: the first part is a host where it looks like one.
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text.split_once('/') {
            Some((first, _))
                if first.contains(['.', ':']) || first == "localhost" || has_upper(first) =>
            {
                Self::exactly(text)
            }
            Some(_) => Self::new(DOCKER, text),
            None => Self::new(DOCKER, &format!("library/{text}")),
        }
    }

    /// `HOST[:PORT]/PATH`.
    pub(super) fn exactly(text: &str) -> Result<Self, &'static str> {
        let (host, path) = text.split_once('/').ok_or("no name stands behind HOST/")?;
        Self::new(host, path)
    }

    fn new(host: &str, path: &str) -> Result<Self, &'static str> {
        if !good_host(host) {
            return Err("no host is written so");
        }
        let host = if host == DOCKER_INDEX { DOCKER } else { host };
        let path = if host == DOCKER && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if has_upper(&path) {
            return Err("names are in lower case");
        }
        if path.len() > LONGEST_REPOSITORY {
            return Err("the name is longer than 255 bytes");
        }
        if !path.split('/').all(good_part) {
            return Err("no name is written so");
        }
        Ok(Self {
            host: host.to_owned(),
            path,
        })
    }

    /// The same images elsewhere: `prefix` of this name replaced by `location`. None where it is
    /// no prefix; a prefix ends between two parts of the name.
    pub(super) fn mirrored(
        &self,
        prefix: &str,
        location: &str,
    ) -> Option<Result<Self, &'static str>> {
        let name = self.to_string();
        let rest = name.strip_prefix(prefix.trim_end_matches('/'))?;
        if !rest.is_empty() && !rest.starts_with('/') {
            return None;
        }
        let location = location.trim_end_matches('/');
        Some(Self::exactly(&format!("{location}{rest}")))
    }

    /// Whether the registry is of this machine: plain HTTP does no harm there.
    pub(super) fn is_loopback(&self) -> bool {
        let host = match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        };
        host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The keys under which login files can have it, the longest first (containers-auth.json(5)).
    pub(super) fn keys(&self) -> Vec<String> {
        let mut keys = vec![self.to_string()];
        let mut rest = self.path.as_str();
        while let Some((shorter, _)) = rest.rsplit_once('/') {
            keys.push(format!("{}/{shorter}", self.host));
            rest = shorter;
        }
        keys.push(self.host.clone());
        if self.host == DOCKER {
            keys.push(DOCKER_INDEX.to_owned());
        }
        keys
    }

    /// How Docker's credential helpers call the registry.
    pub(super) fn server(&self) -> &str {
        if self.host == DOCKER {
            "https://index.docker.io/v1/"
        } else {
            &self.host
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn good_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b".-".contains(&b))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn good_part(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = [part.bytes().next(), part.bytes().next_back()];
    ends.iter().all(|b| b.is_some_and(plain))
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|sign| matches!(sign, "" | "." | "_" | "__") || sign.bytes().all(|b| b == b'-'))
}

/// A DNS name, an IPv4 address, or an IPv6 address in brackets; with a port or without.
fn good_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return false;
            };
            if !address.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
                return false;
            }
            ("v6", port)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_is_good = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    port_is_good
        && host.len() <= LONGEST_HOST
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_become_whole() {
        let digest = |name: &str| format!("{name}@{DIGEST}");
        for (written, whole) in [
            ("debian", "docker.io/library/debian:latest".to_owned()),
            ("debian:12", "docker.io/library/debian:12".to_owned()),
            (
                "docker.io/debian:12",
                "docker.io/library/debian:12".to_owned(),
            ),
            (
                "index.docker.io/debian",
                "docker.io/library/debian:latest".to_owned(),
            ),
            (
                "grafana/grafana",
                "docker.io/grafana/grafana:latest".to_owned(),
            ),
            ("localhost/a:b", "localhost/a:b".to_owned()),
            (
                "host:5000/name/space:tag",
                "host:5000/name/space:tag".to_owned(),
            ),
            ("host:5000/name", "host:5000/name:latest".to_owned()),
            ("[::1]:5000/a/b", "[::1]:5000/a/b:latest".to_owned()),
            ("ghcr.io/a__b/c-d.e", "ghcr.io/a__b/c-d.e:latest".to_owned()),
            (&digest("debian"), digest("docker.io/library/debian")),
            (&digest("q.io/a:1"), digest("q.io/a:1")),
        ] {
            let name = Name::parse(written).unwrap();
            assert_eq!(name.to_string(), whole, "{written}");
            assert_eq!(Name::parse(&whole).unwrap(), name);
        }
        assert_eq!(Name::parse(&digest("q.io/a:1")).unwrap().wanted(), DIGEST);
    }

    #[test]
    fn other_texts_are_one_line() {
        let long_name = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            "/",
            ":tag",
            "Debian",
            "debian:",
            "debian:a/b",
            "debian:-a",
            "debian@",
            "debian@sha256:12",
            "debian@sha512:12",
            "host:99999/a",
            "host:/../a",
            "host:5000/",
            "host.io/a//b",
            "host.io/../../etc",
            "host.io/a/.b",
            "host.io/a/b-",
            "host.io/a..b",
            "host.io/a?x=y",
            "host.io/a#x",
            "host.io/%2e%2e/a",
            "user@host.io/a",
            "-host.io/a",
            "[::1/a",
            "[127.0.0.1]/a",
            "a\nb",
            "d\u{e9}bian",
            "https://host.io/a",
            &long_name,
            &long_tag,
        ] {
            let error = Name::parse(bad).unwrap_err().to_string();
            assert!(error.starts_with("image \""), "{bad}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn loopback_is_by_address() {
        for (name, is) in [
            ("localhost:5000/a", true),
            ("127.0.0.9/a", true),
            ("[::1]:5000/a", true),
            ("localhost.example.com/a", false),
            ("127.0.0.1.example.com/a", false),
            ("10.0.0.1:5000/a", false),
            ("[::2]/a", false),
        ] {
            let repository = Name::parse(name).unwrap().repository;
            assert_eq!(repository.is_loopback(), is, "{name}");
        }
    }

    #[test]
    fn mirrors_replace_whole_parts() {
        let debian = Name::parse("debian").unwrap().repository;
        for (prefix, location, to) in [
            ("docker.io", "m:1", Some("m:1/library/debian")),
            ("docker.io/library/", "m.io/hub/", Some("m.io/hub/debian")),
            ("docker.io/library/debian", "m.io/x", Some("m.io/x")),
            ("docker.io/lib", "m.io", None),
            ("quay.io", "m.io", None),
        ] {
            let mirrored = debian.mirrored(prefix, location);
            assert_eq!(
                mirrored.map(|m| m.unwrap().to_string()).as_deref(),
                to,
                "{prefix}"
            );
        }
        assert!(debian.mirrored("docker.io", "a b").unwrap().is_err());
    }

    #[test]
    fn keys_of_logins() {
        let keys = Name::parse("quay.io/a/b").unwrap().repository.keys();
        assert_eq!(keys, ["quay.io/a/b", "quay.io/a", "quay.io"]);
        let keys = Name::parse("debian").unwrap().repository.keys();
        assert!(keys.contains(&"index.docker.io".to_owned()));
    }
}
