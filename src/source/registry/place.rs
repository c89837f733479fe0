//! One place where an image may be: a registry or a mirror of it, over one protocol.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::client::{
    BlobResponse, Certificate, Client, ClientConfig, ClientProtocol, SizedStream,
};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryTokenType;
use oci_client::{Reference, RegistryOperation};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::auth::{self, Login};
use super::failure::{self, Failure, Kind};
use super::name::Repository;
use super::{Patience, certs};
use crate::digest::Digest;
use crate::source::SourceError;

/// What this program calls itself.
const USER_AGENT: &str = concat!("tarnfs/", env!("CARGO_PKG_VERSION"));

/// A repository on one host, asked over one protocol.
pub(super) struct Place {
    /// Where.
    pub(super) repository: Repository,
    /// Whether this is the place before it once more, without TLS.
    pub(super) plain: bool,
    insecure: bool,
    reference: Reference,
    certificates: Vec<Certificate>,
    certificate_dirs: Vec<PathBuf>,
    patience: Patience,
    logins: Arc<auth::Lookup>,
    login: Arc<OnceCell<Option<Login>>>,
    // One of the crate's clients that knows a login greets the registry before every request, and
    // takes a token that it is not given for none; so it is one that asks for tokens, where errors
    // are seen, and another one that uses them.
    tokens: OnceLock<Client>,
    requests: OnceLock<Client>,
    greeted: OnceCell<()>,
}

/// What a place is made from.
pub(super) struct Settings {
    /// Where logins are.
    pub(super) logins: Arc<auth::Lookup>,
    /// Where certificates of authorities are.
    pub(super) certificate_dirs: Vec<PathBuf>,
    /// How long to wait.
    pub(super) patience: Patience,
}

/// Bytes of a blob, from some byte on.
pub(super) struct Blob {
    /// The bytes.
    pub(super) stream: SizedStream,
    /// The number of the first one: what was asked for, or 0.
    pub(super) from: u64,
}

impl Place {
    /// `repository` with TLS, and where it may be asked without, that as a second place.
    ///
    /// # Errors
    /// Certificates that cannot be read.
    pub(super) fn all(
        repository: &Repository,
        insecure: bool,
        settings: &Settings,
    ) -> Result<Vec<Self>, SourceError> {
        let certificates = certs::certificates(&settings.certificate_dirs, &repository.host)?;
        let login = Arc::new(OnceCell::new());
        let may_be_plain = insecure || repository.is_loopback();
        let protocols: &[bool] = if may_be_plain {
            &[false, true]
        } else {
            &[false]
        };
        let place = |plain| Self {
            repository: repository.clone(),
            plain,
            insecure,
            // The tag is never asked for; who asks says what.
            reference: Reference::with_tag(
                repository.host.clone(),
                repository.path.clone(),
                String::new(),
            ),
            certificates: certificates.clone(),
            certificate_dirs: settings.certificate_dirs.clone(),
            patience: settings.patience,
            logins: Arc::clone(&settings.logins),
            login: Arc::clone(&login),
            tokens: OnceLock::new(),
            requests: OnceLock::new(),
            greeted: OnceCell::new(),
        };
        Ok(protocols.iter().copied().map(place).collect())
    }

    /// The manifest or index of a tag or digest, of `limit` bytes at most.
    pub(super) async fn manifest(&self, wanted: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        // The crate's own way to a manifest takes one of any length into memory. Its streams do
        // not, but lead to `blobs/` alone: from there the address goes on to where manifests are
        // (RFC 3986, 5.2.4). The stream then ends with an error, since its bytes are not those of
        // the digest that the crate believes in; whoever reads it here knows the right one.
        let path = format!("sha256:/../../manifests/{wanted}");
        self.whole(&path, limit).await
    }

    /// A blob of `limit` bytes at most.
    pub(super) async fn small_blob(
        &self,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<u8>, Failure> {
        self.whole(&digest.to_string(), limit).await
    }

    /// A blob from byte `from` on, or from its beginning where the registry has it so.
    pub(super) async fn blob(&self, digest: &Digest, from: u64) -> Result<Blob, Failure> {
        self.open(&digest.to_string(), from).await
    }

    async fn whole(&self, what: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        let too_long = || Failure::new(Kind::Content, format!("is longer than {limit} bytes"));
        let Blob { mut stream, .. } = self.open(what, 0).await?;
        let declared = stream.content_length;
        if declared.is_some_and(|len| usize::try_from(len).map_or(true, |len| len > limit)) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = self.next(&mut stream).await? {
            match piece {
                Ok(piece) if bytes.len().saturating_add(piece.len()) > limit => {
                    return Err(too_long());
                }
                Ok(piece) => bytes.extend_from_slice(&piece),
                // All of it came; it is compared with the right digest by who asked.
                Err(error) if failure::is_digest(&error) => break,
                Err(error) => return Err(self.explained(failure::of_stream(&error))),
            }
        }
        self.is_no_page(&bytes)?;
        if let Some(header) = &stream.digest_header_value
            && let Ok(told) = header.parse::<Digest>()
            && told != Digest::of(&bytes)
        {
            let why = format!(
                "came damaged: its bytes are {}, {} says {told} of them",
                Digest::of(&bytes),
                self.repository.host
            );
            return Err(Failure::new(Kind::Content, why));
        }
        Ok(bytes)
    }

    /// The next piece of a stream: an error where none comes for too long, None at its end.
    pub(super) async fn next(
        &self,
        stream: &mut SizedStream,
    ) -> Result<Option<io::Result<Vec<u8>>>, Failure> {
        match timeout(self.patience.stall, stream.next()).await {
            Ok(piece) => Ok(piece.map(|piece| piece.map(Vec::from))),
            Err(_) => Err(self.explained(stalled(self.patience.stall))),
        }
    }

    /// What stands where JSON should be.
    fn is_no_page(&self, bytes: &[u8]) -> Result<(), Failure> {
        let host = &self.repository.host;
        let what = match bytes.trim_ascii_start() {
            [b'<', ..] => "a web page",
            [0x1f, 0x8b, ..] => "something compressed, which was not asked for,",
            [] => "nothing",
            _ => return Ok(()),
        };
        Err(Failure::new(
            Kind::Content,
            format!("{host} answers with {what} instead of JSON: is it a registry?"),
        ))
    }

    async fn open(&self, what: &str, from: u64) -> Result<Blob, Failure> {
        tracing::debug!(
            host = self.repository.host,
            plain = self.plain,
            what,
            from,
            "asking"
        );
        self.greeted.get_or_try_init(|| self.greet()).await?;
        match self.request(what, from).await {
            // The token may be too old.
            Err(failure) if failure.kind == Kind::Login => {
                self.greet().await?;
                self.request(what, from).await
            }
            other => other,
        }
        .map_err(|failure| self.explained(failure))
    }

    /// Asks for a token, where the registry wants one.
    async fn greet(&self) -> Result<(), Failure> {
        const PULL: RegistryOperation = RegistryOperation::Pull;
        let tokens = self.client(&self.tokens)?;
        let login = self.login().await?;
        let auth = login.map_or(&RegistryAuth::Anonymous, |login| &login.auth);
        let greeting = tokens.auth(&self.reference, auth, PULL);
        let token = match timeout(self.patience.stall, greeting).await {
            Ok(Ok(token)) => token,
            Ok(Err(error)) => return Err(self.explained(error.into())),
            Err(_) => return Err(self.explained(stalled(self.patience.stall))),
        };
        let requests = self.client(&self.requests)?;
        match (token, auth) {
            (Some(token), _) => {
                // The crate panics at what is no header.
                if !token.bytes().all(|b| b.is_ascii_graphic()) {
                    let why = "gives a token that cannot be sent";
                    return Err(self.explained(Failure::new(Kind::Content, why)));
                }
                let auth = RegistryAuth::Bearer(token);
                // Keeps it, and asks nobody.
                requests
                    .auth(&self.reference, &auth, PULL)
                    .await
                    .map_err(|error| self.explained(error.into()))?;
            }
            (None, RegistryAuth::Basic(user, password)) => {
                let host = self.reference.resolve_registry();
                requests.store_auth_if_needed(host, auth).await;
                let login = RegistryTokenType::Basic(user.clone(), password.clone());
                requests.tokens.insert(&self.reference, PULL, login).await;
            }
            (None, _) => {}
        }
        Ok(())
    }

    async fn request(&self, what: &str, from: u64) -> Result<Blob, Failure> {
        let client = self.client(&self.requests)?;
        let request = async {
            if from == 0 {
                let stream = client.pull_blob_stream(&self.reference, what).await?;
                return Ok(Blob { stream, from: 0 });
            }
            let answer = client.pull_blob_stream_partial(&self.reference, what, from, None);
            Ok(match answer.await? {
                BlobResponse::Full(stream) => Blob { stream, from: 0 },
                BlobResponse::Partial(stream) => Blob { stream, from },
            })
        };
        match timeout(self.patience.stall, request).await {
            Ok(answer) => answer.map_err(|error: OciDistributionError| error.into()),
            Err(_) => Err(stalled(self.patience.stall)),
        }
    }

    async fn login(&self) -> Result<Option<&Login>, Failure> {
        let login = self
            .login
            .get_or_try_init(|| auth::find(&self.logins, &self.repository))
            .await?;
        Ok(login.as_ref())
    }

    /// A client that is made when it is needed first, which takes a look at all certificates.
    fn client<'a>(&self, client: &'a OnceLock<Client>) -> Result<&'a Client, Failure> {
        if let Some(client) = client.get() {
            return Ok(client);
        }
        use_ring();
        let made = Client::try_from(self.config()).map_err(|error| {
            let why = Failure::from(error).why;
            let dirs = self.certificate_paths();
            let why =
                format!("TLS cannot be set up: {why}: see the system's certificates, and {dirs}");
            Failure::new(Kind::Here, why)
        })?;
        Ok(client.get_or_init(|| made))
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig {
            protocol: if self.plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            accept_invalid_certificates: self.insecure,
            extra_root_certificates: self.certificates.clone(),
            connect_timeout: Some(self.patience.connect),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        };
        if self.repository.is_loopback() {
            // No proxy leads to this machine, whatever the environment says: one that is used for
            // no host takes the place of those.
            config.http_proxy = Some("http://localhost".to_owned());
            config.no_proxy = Some("*,0.0.0.0/0,::/0".to_owned());
        }
        config
    }

    fn certificate_paths(&self) -> String {
        let host = &self.repository.host;
        let dirs = self.certificate_dirs.iter();
        let dirs: Vec<_> = dirs
            .map(|dir| dir.join(host).join("*.crt").display().to_string())
            .collect();
        dirs.join(", ")
    }

    /// Says which host it was, and what a person can do.
    pub(super) fn explained(&self, failure: Failure) -> Failure {
        let Failure { kind, why } = failure;
        let host = &self.repository.host;
        let and_why = if why.is_empty() {
            String::new()
        } else {
            format!(" ({why})")
        };
        let login = self.login.get().and_then(Option::as_ref);
        let log_in = format!("`podman login {host}`, `skopeo login {host}`");
        let text = match (kind, login) {
            (Kind::Login, None) => {
                let files: Vec<_> = self
                    .logins
                    .files
                    .iter()
                    .map(|file| file.display().to_string())
                    .collect();
                let files = if files.is_empty() {
                    "no login file was looked at".to_owned()
                } else {
                    format!("none is in {}", files.join(", "))
                };
                format!("{host} wants a login, or has no such image{and_why}; {files}: {log_in}")
            }
            (Kind::Login, Some(login)) => format!(
                "{host} does not take the login from {}{and_why}: {log_in}",
                login.from
            ),
            (Kind::Denied, None) => format!("{host} denies access{and_why}: {log_in}"),
            (Kind::Denied, Some(login)) => format!(
                "{host} denies access to who logs in from {}{and_why}",
                login.from
            ),
            (Kind::Missing, _) => format!("{host} has no such image or tag{and_why}"),
            (Kind::Busy, None) => format!(
                "{host} gets too many requests{and_why}: wait, or log in for more: {log_in}"
            ),
            (Kind::Busy, Some(_)) => format!("{host} gets too many requests{and_why}: wait"),
            (Kind::Server, _) => format!("{host} has a fault: it {why}"),
            (Kind::Unreachable, _) => format!("{host} cannot be reached: {why}"),
            (Kind::NoTls, _) => format!(
                "{host} does not speak TLS as it should ({why}): where it has none at all, --insecure"
            ),
            (Kind::Certificate, _) => format!(
                "the certificate of {host} is not trusted ({why}): its authority's goes into {}, or --insecure",
                self.certificate_paths()
            ),
            (Kind::Broken, _) => format!("the connection to {host} broke off: {why}"),
            (Kind::Range | Kind::Content | Kind::Here, _) => format!("{host}: {why}"),
        };
        Failure { kind, why: text }
    }
}

fn stalled(patience: Duration) -> Failure {
    let seconds = patience.as_secs_f32();
    Failure::new(Kind::Broken, format!("nothing came for {seconds} s"))
}

/// Chooses who does the arithmetic of TLS, once for the process.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Somebody else's choice of before is as good.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
    });
}
