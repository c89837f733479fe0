//! Who asks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::socket;
use crate::metrics::Snapshot;
#[cfg(doc)]
use crate::overlay;

/// How long a server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read.
const LONGEST: u64 = 16 << 20;

/// A connection to the control socket of a server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

/// While this is there, nothing is changed in the mount.
#[derive(Debug)]
pub struct Freeze(Client);

/// While this is there, the mount is changed, but what is overwritten of some files is kept in a
/// log: [`Freeze::keep`].
#[derive(Debug)]
pub struct Keep {
    client: Client,
    log: String,
}

impl Client {
    /// Connects to the server whose socket is at `path`, however long that is.
    ///
    /// # Errors
    /// connect(2)'s: ECONNREFUSED where the server is dead; EAGAIN where it does not answer.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = socket::connect_to(path, PATIENCE)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// What the server knows of itself.
    ///
    /// # Errors
    /// It does not answer, or not with that.
    pub fn stats(&mut self) -> io::Result<Snapshot> {
        self.stats_json().map(|stats| Snapshot::from_json(&stats))
    }

    /// The same as the server has said it, which may be more.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub fn stats_json(&mut self) -> io::Result<Value> {
        self.ask("stats")
    }

    /// Holds all changes in the mount, as long as what is given is there; also the end of this
    /// process ends it. The server may take as long for it as a write takes that is under way, and
    /// is waited for.
    ///
    /// # Errors
    /// The server says why not.
    pub fn freeze(mut self) -> io::Result<Freeze> {
        self.ask_long("freeze", &json!({}))?;
        Ok(Freeze(self))
    }

    fn ask(&mut self, what: &str) -> io::Result<Value> {
        self.ask_with(what, &json!({}))
    }

    /// Asks for what may take long.
    fn ask_long(&mut self, what: &str, with: &Value) -> io::Result<Value> {
        self.stream.get_ref().set_read_timeout(None)?;
        let answer = self.ask_with(what, with);
        self.stream.get_ref().set_read_timeout(Some(PATIENCE))?;
        answer
    }

    fn ask_with(&mut self, what: &str, with: &Value) -> io::Result<Value> {
        let line = format!("{}\n", json!({ what: with }));
        let silent = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the server has not answered within {PATIENCE:?}"),
            ),
            // It went without having read all.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => hung_up(),
            _ => error,
        };
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(silent)?;
        let mut answer = Vec::new();
        (&mut self.stream)
            .take(LONGEST)
            .read_until(b'\n', &mut answer)
            .map_err(silent)?;
        if answer.is_empty() {
            return Err(hung_up());
        }
        let mut answer: Value = serde_json::from_slice(&answer)?;
        if let Some(why) = answer.get("error") {
            let why = why.as_str().unwrap_or("for no reason");
            return Err(io::Error::other(why.to_owned()));
        }
        answer
            .get_mut(what)
            .map(Value::take)
            .ok_or_else(something_else)
    }

    fn end(&mut self) {
        if let Err(error) = self.stream.get_ref().shutdown(std::net::Shutdown::Both) {
            tracing::debug!("the connection has ended already: {error}");
        }
    }
}

fn something_else() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the server has answered something else",
    )
}

fn hung_up() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the server has hung up: it is ending, has too many clients, or does not know you",
    )
}

impl Freeze {
    /// Lets changes go on, but has what they overwrite of some files, by their numbers in the
    /// upper, written to a log first. What the log is like is said of [`overlay::Kept`]; it must be
    /// open before [`Keep::thaw`].
    ///
    /// # Errors
    /// The server says why not, and all is frozen still. Where it has not answered, or not as it
    /// should, that is not known: the connection has ended, and thawing will fail.
    pub fn keep(mut self, files: &[u64]) -> Result<Keep, (Self, io::Error)> {
        let kept = self.0.ask_long("keep", &json!({ "files": files }));
        let log = kept.and_then(|kept| {
            let log = kept.get("log").and_then(Value::as_str);
            let log =
                log.filter(|log| !matches!(*log, "" | "." | "..") && !log.contains(['/', '\0']));
            log.map(str::to_owned).ok_or_else(something_else)
        });
        match log {
            Ok(log) => Ok(Keep {
                client: self.0,
                log,
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::Other {
                    // Changes may be going on: who copies must not take them for held back.
                    self.0.end();
                }
                Err((self, error))
            }
        }
    }

    /// Ends it, waits until it has ended, and gives the connection back.
    ///
    /// # Errors
    /// The server does not answer; it ends with the connection then.
    pub fn thaw(self) -> io::Result<Client> {
        let mut client = self.0;
        client.ask("thaw")?;
        Ok(client)
    }
}

impl Keep {
    /// The log's name, in the directory `work` of the work directory. It is no path.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Ends it, waits until it has ended, and gives the connection back: nothing more is written to
    /// the log, and all is there.
    ///
    /// # Errors
    /// The server could not keep all; or it does not answer, and it ends with the connection then.
    pub fn thaw(self) -> io::Result<Client> {
        let mut client = self.client;
        client.ask_long("thaw", &json!({}))?;
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who freezes a server that answers with these lines, and then hangs up.
    fn frozen(answers: &'static [&str]) -> Freeze {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut heard = BufReader::new(&theirs).lines();
            for answer in answers {
                heard.next().unwrap().unwrap();
                writeln!(&theirs, "{answer}").unwrap();
            }
        });
        let stream = BufReader::new(ours);
        Client { stream }.freeze().unwrap()
    }

    const FROZEN: &str = r#"{"freeze":{}}"#;

    #[test]
    fn what_is_kept_is_thawed() {
        let freeze = frozen(&[FROZEN, r##"{"keep":{"log":"#3"}}"##, r#"{"thaw":{}}"#]);
        let keep = freeze.keep(&[1, u64::MAX]).unwrap();
        assert_eq!(keep.log(), "#3");
        keep.thaw().unwrap();
        let lost = [
            FROZEN,
            r##"{"keep":{"log":"#3"}}"##,
            r#"{"error":"no room"}"#,
        ];
        let lost: &[&str] = Box::leak(Box::new(lost));
        let keep = frozen(lost).keep(&[]).unwrap();
        assert_eq!(keep.thaw().unwrap_err().to_string(), "no room");
    }

    #[test]
    fn who_is_refused_has_it_frozen_still() {
        let freeze = frozen(&[FROZEN, r#"{"error":"no"}"#, r#"{"thaw":{}}"#]);
        let (freeze, error) = freeze.keep(&[1]).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "no");
        freeze.thaw().unwrap();
    }

    #[test]
    fn who_is_answered_nonsense_does_not_take_it_for_frozen() {
        let nonsense = [
            r#"{"keep":{"log":"../upper/file"}}"#,
            r#"{"keep":{"log":"/etc/passwd"}}"#,
            r#"{"keep":{"log":".."}}"#,
            r#"{"keep":{"log":"."}}"#,
            r#"{"keep":{"log":""}}"#,
            r#"{"keep":{"log":"a\u0000b"}}"#,
            r#"{"keep":{"log":7}}"#,
            r#"{"keep":{}}"#,
            r#"{"thaw":{}}"#,
            "nonsense",
            "",
        ];
        for answer in nonsense {
            let answers: &[&str] = Box::leak(Box::new([FROZEN, answer, r#"{"thaw":{}}"#]));
            let (freeze, _) = frozen(answers).keep(&[1]).map(drop).unwrap_err();
            assert!(freeze.thaw().is_err(), "{answer}");
        }
        let (freeze, _) = frozen(&[FROZEN]).keep(&[1]).map(drop).unwrap_err();
        assert!(freeze.thaw().is_err());
    }
}
