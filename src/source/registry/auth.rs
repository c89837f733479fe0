//! Logins: the files that `podman login`, `skopeo login` and `docker login` write
//! (containers-auth.json(5), Docker's config.json), and the helpers that these name.
//!
//! Invariant: a password or token is in a [`Login`] and in the request alone. Nothing here puts
//! it, or a part of a file that holds one, into an error, a log or a `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::failure::clip;
use super::name::Repository;
use crate::source::SourceError;

/// Most bytes of a login file.
const LONGEST_FILE: u64 = 1 << 20;

/// The user of logins that are an identity token. Registries that give such tokens out take them
/// as the password of this user.
const IDENTITY_USER: &str = "00000000-0000-0000-0000-000000000000";

/// What helpers write for the user where the secret is an identity token.
const IDENTITY_MARK: &str = "<token>";

/// Where logins are looked for.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    /// The files, the first one first.
    pub(super) files: Vec<PathBuf>,
    /// Whether the files must be there: somebody named them.
    pub(super) must_exist: bool,
    /// Where helpers lie; None: in `PATH`.
    pub(super) helpers: Option<PathBuf>,
    /// How long a helper may take.
    pub(super) patience: Duration,
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Login {
    /// The secret.
    pub(super) auth: RegistryAuth,
    /// Where it was found, for a person.
    pub(super) from: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

/// A login file.
#[derive(Deserialize)]
struct Logins {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

/// What a login file has for one key.
#[derive(Deserialize)]
struct Entry {
    /// `user:password` in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity: Option<String>,
    #[serde(rename = "registrytoken")]
    bearer: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// The login files of a user, in the order in which they are looked at: those of podman and
/// skopeo, then Docker's (containers-auth.json(5)). The directories are `XDG_RUNTIME_DIR`,
/// `XDG_CONFIG_HOME` and `HOME`; the configuration is below the home where none is given.
#[must_use]
pub fn default_auth_files(
    runtime_dir: Option<&Path>,
    config_home: Option<&Path>,
    home: Option<&Path>,
) -> Vec<PathBuf> {
    let config = match (config_home, home) {
        (Some(config), _) => Some(config.to_owned()),
        (None, Some(home)) => Some(home.join(".config")),
        (None, None) => None,
    };
    let mut files = Vec::new();
    files.extend(runtime_dir.map(|dir| dir.join("containers/auth.json")));
    files.extend(config.map(|dir| dir.join("containers/auth.json")));
    files.extend(home.map(|dir| dir.join(".docker/config.json")));
    files
}

/// The login for a repository: of the first file that has one, the one with the longest key.
///
/// # Errors
/// A file that cannot be read, or a helper that fails.
pub(super) async fn find(
    lookup: &Lookup,
    repository: &Repository,
) -> Result<Option<Login>, SourceError> {
    for file in &lookup.files {
        let Some(logins) = read(file, lookup.must_exist)? else {
            continue;
        };
        if let Some(login) = of_file(lookup, file, &logins, repository).await? {
            tracing::debug!(registry = repository.host, from = login.from, "login");
            return Ok(Some(login));
        }
    }
    Ok(None)
}

async fn of_file(
    lookup: &Lookup,
    file: &Path,
    logins: &Logins,
    repository: &Repository,
) -> Result<Option<Login>, SourceError> {
    let keys = repository.keys();
    let helpers = logins.helpers.iter().flatten();
    let mut helpers = helpers.filter(|(key, _)| keys.iter().any(|k| k == bare(key)));
    if let Some((_, helper)) = helpers.next()
        && let Some(login) = ask(lookup, file, helper, repository).await?
    {
        return Ok(Some(login));
    }
    let auths = logins.auths.iter().flatten();
    for key in &keys {
        for (written, entry) in auths.clone() {
            if bare(written) != key {
                continue;
            }
            let auth = entry.auth().map_err(|why| SourceError::Image {
                what: file.display().to_string(),
                why: format!("the login for {:?} {why}", clip(written)),
            })?;
            if let Some(auth) = auth {
                return Ok(Some(Login {
                    auth,
                    from: file.display().to_string(),
                }));
            }
        }
    }
    match &logins.store {
        Some(helper) => ask(lookup, file, helper, repository).await,
        None => Ok(None),
    }
}

/// A key as Docker wrote it once, `https://HOST/v1/`, without what stands around the host.
fn bare(key: &str) -> &str {
    let address = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    match address {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => key,
    }
}

fn read(file: &Path, must_exist: bool) -> Result<Option<Logins>, SourceError> {
    let what = || file.display().to_string();
    let mut bytes = Vec::new();
    let result = File::open(file).and_then(|f| f.take(LONGEST_FILE).read_to_end(&mut bytes));
    match result {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(source) => {
            return Err(SourceError::Io {
                what: what(),
                source,
            });
        }
    }
    // The parser's own words may quote the file.
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| SourceError::Image {
            what: what(),
            why: format!("no login file: line {}, column {}", e.line(), e.column()),
        })
}

impl Entry {
    /// None where the entry is empty: Docker writes such ones where a helper has the secret.
    fn auth(&self) -> Result<Option<RegistryAuth>, &'static str> {
        let full = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = full(&self.bearer) {
            return Ok(Some(RegistryAuth::Bearer(token)));
        }
        if let Some(token) = full(&self.identity) {
            return Ok(Some(RegistryAuth::Basic(IDENTITY_USER.to_owned(), token)));
        }
        if let Some(auth) = full(&self.auth) {
            let text = base64(&auth)
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or("is not in base64")?;
            let (user, password) = text.split_once(':').ok_or("has no password")?;
            let password = password.trim_end_matches('\0');
            return Ok(Some(RegistryAuth::Basic(
                user.to_owned(),
                password.to_owned(),
            )));
        }
        Ok(full(&self.username)
            .zip(full(&self.password))
            .map(|(user, password)| RegistryAuth::Basic(user, password)))
    }
}

/// Asks `docker-credential-HELPER get`. None where it has no login for the registry.
async fn ask(
    lookup: &Lookup,
    file: &Path,
    helper: &str,
    repository: &Repository,
) -> Result<Option<Login>, SourceError> {
    let fails = |why: String| SourceError::Image {
        what: file.display().to_string(),
        why: format!("the helper docker-credential-{} {why}", clip(helper)),
    };
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if helper.is_empty() || !helper.bytes().all(good) {
        return Err(fails("is no name of a program".to_owned()));
    }
    let program = format!("docker-credential-{helper}");
    let program = match &lookup.helpers {
        Some(dir) => dir.join(program),
        None => program.into(),
    };
    let cannot = |e: io::Error| fails(format!("cannot be run: {e}"));
    // The name is far shorter than what a pipe holds, so nobody has to wait for the helper.
    let (input, mut to) = io::pipe().map_err(cannot)?;
    to.write_all(repository.server().as_bytes())
        .map_err(cannot)?;
    drop(to);
    let child = Command::new(program)
        .arg("get")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cannot)?;
    let output = timeout(lookup.patience, child.wait_with_output())
        .await
        .map_err(|_| {
            let seconds = lookup.patience.as_secs_f32();
            fails(format!("does not answer within {seconds} s"))
        })?
        .map_err(cannot)?;
    if !output.status.success() {
        // What it says to a person, on the one output or the other (docker-credential-helpers).
        let words = [&output.stderr, &output.stdout]
            .map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned())
            .join(" ");
        if words.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fails(format!("fails: {}: {}", output.status, clip(&words))));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| fails("gives an answer that makes no sense".to_owned()))?;
    let user = match answer.user.as_str() {
        IDENTITY_MARK => IDENTITY_USER.to_owned(),
        _ => answer.user,
    };
    Ok(Some(Login {
        auth: RegistryAuth::Basic(user, answer.secret),
        from: format!("docker-credential-{helper} ({})", file.display()),
    }))
}

/// Bytes of their text in base64 (RFC 4648, 4), padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len());
    let (mut bits, mut held) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            let [.., byte] = (bits >> held).to_be_bytes();
            bytes.push(byte);
        }
    }
    // One digit more is no byte.
    (held < 6).then_some(bytes)
}

#[cfg(test)]
mod tests;
