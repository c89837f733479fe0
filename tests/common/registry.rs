//! A registry for tests, in this process: as much HTTP/1.1 as a client needs, one answer a
//! connection, and every kind of bad behaviour.

// Each test file uses its part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tarnfs::digest::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What a client asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With what stands behind `?`.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    /// How often the path was asked for before.
    pub(crate) nth: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The first byte of the range that was asked for.
    pub(crate) fn from(&self) -> usize {
        self.header("range").map_or(0, |range| {
            let range = range.strip_prefix("bytes=").unwrap();
            range.split('-').next().unwrap().parse().unwrap()
        })
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

/// What the registry does.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    declared: Option<usize>,
    stalls: bool,
    endless: bool,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            declared: None,
            stalls: false,
            endless: false,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The body ends after `n` bytes, in the middle of what was declared.
    pub(crate) fn cut(mut self, n: usize) -> Self {
        self.declared = self.declared.or(Some(self.body.len()));
        self.body.truncate(n);
        self
    }

    /// After `n` bytes nothing more comes, and the connection stays.
    pub(crate) fn stall(self, n: usize) -> Self {
        Self {
            stalls: true,
            ..self.cut(n)
        }
    }

    /// A length that is not the body's.
    pub(crate) fn declare(mut self, n: usize) -> Self {
        self.declared = Some(n);
        self
    }

    /// No length is declared; the body ends with the connection.
    pub(crate) fn endless(self) -> Self {
        Self {
            endless: true,
            ..self
        }
    }

    /// As a server that knows ranges.
    pub(crate) fn range(mut self, request: &Request) -> Self {
        let from = request.from();
        if request.header("range").is_some() {
            self.status = 206;
            let all = self.body.len();
            self = self.header("Content-Range", format!("bytes {from}-{}/{all}", all - 1));
            self.body.drain(..from);
        }
        self
    }
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

struct State {
    handler: Box<Handler>,
    requests: Mutex<Vec<Request>>,
    ended: (Mutex<bool>, Condvar),
    tls: Option<Arc<ServerConfig>>,
}

/// A registry that listens on this machine until it is dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Fake {
    pub(crate) fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::listen(None, handler)
    }

    /// With TLS, as who the certificate says.
    pub(crate) fn start_tls(
        certificate: &[u8],
        key: &[u8],
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let certificates = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .unwrap();
        Self::listen(Some(Arc::new(config)), handler)
    }

    fn listen(
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            handler: Box::new(handler),
            requests: Mutex::default(),
            ended: (Mutex::new(false), Condvar::new()),
            tls,
        });
        let of_thread = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if *of_thread.ended.0.lock().unwrap() {
                    break;
                }
                let state = Arc::clone(&of_thread);
                thread::spawn(move || {
                    // A client that goes away is its own affair.
                    drop(stream.map(|stream| state.connected(stream)));
                });
            }
        });
        Self { address, state }
    }

    /// `127.0.0.1:PORT/name`.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// How often a path with `part` in it was asked for.
    pub(crate) fn count(&self, part: &str) -> usize {
        let requests = self.requests();
        requests.iter().filter(|r| r.path.contains(part)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        *self.state.ended.0.lock().unwrap() = true;
        self.state.ended.1.notify_all();
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn connected(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut first = [0];
        stream.peek(&mut first)?;
        match &self.tls {
            Some(tls) => {
                let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                self.serve(StreamOwned::new(connection, stream))
            }
            // The beginning of TLS.
            None if first == [0x16] => Ok(()),
            None => self.serve(stream),
        }
    }

    fn serve(&self, stream: impl Read + Write) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let mut words = line.split_ascii_whitespace();
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Ok(());
        };
        let mut request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            nth: 0,
        };
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            request.headers.push((name.to_owned(), value.to_owned()));
        }
        {
            let mut requests = self.requests.lock().unwrap();
            request.nth = requests.iter().filter(|r| r.path == request.path).count();
            requests.push(request.clone());
        }
        let answer = (self.handler)(&request);
        let len = answer.declared.unwrap_or(answer.body.len());
        let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", answer.status);
        if !answer.endless {
            head.push_str(&format!("Content-Length: {len}\r\n"));
        }
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let stream = stream.get_mut();
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(&answer.body)?;
        }
        stream.flush()?;
        if answer.stalls {
            let ended = self.ended.0.lock().unwrap();
            drop(self.ended.1.wait_while(ended, |ended| !*ended).unwrap());
        }
        Ok(())
    }
}

/// Images as a registry has them: documents and blobs by what stands behind `/v2/NAME/`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Images {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Images {
    /// One image with these layers, not compressed, under the tag `latest`.
    pub(crate) fn of(layers: &[&[u8]]) -> Self {
        let mut images = Self::default();
        let manifest = images.image("amd64", layers);
        images.tag("latest", &manifest);
        images
    }

    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.files.insert(format!("blobs/{digest}"), bytes.to_vec());
        digest
    }

    pub(crate) fn document(&mut self, json: &Value) -> Vec<u8> {
        let bytes = serde_json::to_vec(json).unwrap();
        let digest = Digest::of(&bytes);
        self.files
            .insert(format!("manifests/{digest}"), bytes.clone());
        bytes
    }

    pub(crate) fn tag(&mut self, tag: &str, document: &[u8]) {
        self.files
            .insert(format!("manifests/{tag}"), document.to_vec());
    }

    /// An image for `linux/ARCHITECTURE`: its manifest.
    pub(crate) fn image(&mut self, architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
        let diff_ids: Vec<_> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config = described(CONFIG, &config, self);
        let layers: Vec<_> = layers.iter().map(|l| described(LAYER, l, self)).collect();
        self.document(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        }))
    }

    /// What a good registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        if request.path == "/v2/" {
            return Answer::new(200, "{}");
        }
        let place = ["/manifests/", "/blobs/"]
            .iter()
            .find_map(|part| request.path.find(part))
            .map_or("", |n| &request.path[n + 1..]);
        let Some(bytes) = self.files.get(place) else {
            let code = if request.is_blob() {
                "BLOB_UNKNOWN"
            } else {
                "MANIFEST_UNKNOWN"
            };
            let body = json!({"errors": [{"code": code, "message": "no such thing"}]});
            return Answer::new(404, body.to_string());
        };
        let digest = Digest::of(bytes).to_string();
        Answer::new(200, bytes.clone()).header("Docker-Content-Digest", digest)
    }
}

fn described(media_type: &str, bytes: &[u8], images: &mut Images) -> Value {
    let digest = images.blob(bytes).to_string();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

/// An entry of an index.
pub(crate) fn entry(architecture: &str, media_type: &str, document: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::of(document).to_string(),
        "size": document.len(),
        "platform": {"os": "linux", "architecture": architecture},
    })
}
