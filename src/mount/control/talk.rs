//! The protocol of the control socket: a JSON object a line, and one in answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Control, Frozen, Kept};

/// The longest line that is read: so many numbers must fit as [`MOST_FILES`] says.
const LONGEST: usize = 128 << 10;

/// Of so many files what is overwritten can be kept.
const MOST_FILES: usize = 4096;

/// How long a client may take for a line, and for taking an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Stats,
    Freeze,
    /// The numbers of the files.
    Keep(Vec<u64>),
    Thaw,
}

/// What a line asks.
fn parse(line: &[u8]) -> Result<Asked, String> {
    let said: Value = serde_json::from_slice(line).map_err(|error| format!("no JSON: {error}"))?;
    let one = said.as_object().filter(|object| object.len() == 1);
    let Some((name, with)) = one.and_then(|object| object.iter().next()) else {
        return Err("a request is an object with one key, such as {\"stats\":{}}".to_owned());
    };
    if name == "keep" {
        return parse_keep(with).map(Asked::Keep);
    }
    if with.as_object().is_none_or(|with| !with.is_empty()) {
        return Err(format!("{name:?} takes an empty object"));
    }
    match name.as_str() {
        "stats" => Ok(Asked::Stats),
        "freeze" => Ok(Asked::Freeze),
        "thaw" => Ok(Asked::Thaw),
        _ => Err(format!(
            "there is no request {name:?}, but \"stats\", \"freeze\", \"keep\" and \"thaw\""
        )),
    }
}

/// The numbers of the files that a `keep` names.
fn parse_keep(with: &Value) -> Result<Vec<u64>, String> {
    let one = with.as_object().filter(|with| with.len() == 1);
    let Some(files) = one
        .and_then(|with| with.get("files"))
        .and_then(Value::as_array)
    else {
        return Err("\"keep\" takes {\"files\":[…]}".to_owned());
    };
    if files.len() > MOST_FILES {
        return Err(format!("\"files\" may be {MOST_FILES} at most"));
    }
    let number = |file: &Value| {
        file.as_u64()
            .ok_or_else(|| "\"files\" are numbers of inodes".to_owned())
    };
    files.iter().map(number).collect()
}

/// The line that a connection sends next.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// It has sent all, or broke off.
    End,
}

/// Reads lines.
#[derive(Debug, Default)]
struct Lines {
    /// What has been read and is no whole line yet.
    rest: Vec<u8>,
}

impl Lines {
    /// May be dropped before it is done: nothing that was read is lost.
    async fn next(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Line {
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let rest = self.rest.split_off(end.saturating_add(1));
                let mut line = std::mem::replace(&mut self.rest, rest);
                line.pop();
                return Line::Whole(line);
            }
            if self.rest.len() > LONGEST {
                return Line::TooLong;
            }
            let mut part = [0; 1024];
            match from.read(&mut part).await {
                Ok(0) | Err(_) => return Line::End,
                Ok(n) => self.rest.extend_from_slice(part.get(..n).unwrap_or(&[])),
            }
        }
    }
}

/// What one connection has frozen; it thaws when this is dropped.
struct Held {
    what: What,
    _only: OwnedSemaphorePermit,
}

enum What {
    Frozen(Box<dyn Frozen>),
    Kept(Box<dyn Kept>),
}

/// Who may freeze, one at a time.
#[derive(Debug, Clone)]
pub(super) struct Freezing(Arc<Semaphore>);

impl Freezing {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// Answers one connection until it ends or has done wrong. What it has frozen thaws then.
pub(super) async fn talk<S>(mut stream: S, control: Arc<dyn Control>, freezing: Freezing)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut held = None;
    let mut lines = Lines::default();
    loop {
        let line = lines.next(&mut stream);
        let line = if held.is_some() {
            // As long as it likes.
            line.await
        } else {
            timeout(PATIENCE, line).await.unwrap_or(Line::End)
        };
        let (answer, goes_on) = match line {
            Line::Whole(line) => (answer(&line, &control, &freezing, &mut held).await, true),
            Line::TooLong => (error("the line is too long"), false),
            Line::End => break,
        };
        let mut answer = answer.to_string();
        answer.push('\n');
        let sent = timeout(PATIENCE, stream.write_all(answer.as_bytes())).await;
        if !goes_on || !matches!(sent, Ok(Ok(()))) {
            break;
        }
    }
    if let Err(why) = thaw(held).await {
        tracing::debug!("who froze the mount has gone: {why}");
    }
}

/// Said to who has not.
const NOT_FROZEN: &str = "this connection has not frozen the mount";

fn error(why: impl Into<String>) -> Value {
    json!({ "error": why.into() })
}

async fn answer(
    line: &[u8],
    control: &Arc<dyn Control>,
    freezing: &Freezing,
    held: &mut Option<Held>,
) -> Value {
    match parse(line) {
        Err(why) => error(why),
        Ok(Asked::Stats) => {
            let control = Arc::clone(control);
            match spawn_blocking(move || control.stats().to_json()).await {
                Ok(stats) => json!({ "stats": stats }),
                Err(failed) => error(failed.to_string()),
            }
        }
        Ok(Asked::Freeze) => match freeze(control, freezing).await {
            Ok(frozen) => {
                *held = Some(frozen);
                json!({ "freeze": {} })
            }
            Err(why) => error(why),
        },
        Ok(Asked::Keep(files)) => match held.take() {
            Some(frozen) => {
                let (now, answer) = keep(frozen, files).await;
                *held = now;
                answer
            }
            None => error(NOT_FROZEN),
        },
        Ok(Asked::Thaw) if held.is_some() => match thaw(held.take()).await {
            Ok(()) => json!({ "thaw": {} }),
            Err(why) => error(why),
        },
        Ok(Asked::Thaw) => error(NOT_FROZEN),
    }
}

async fn freeze(control: &Arc<dyn Control>, freezing: &Freezing) -> Result<Held, String> {
    let only = Arc::clone(&freezing.0).try_acquire_owned();
    let only = only.map_err(|_| "the mount is frozen already".to_owned())?;
    let control = Arc::clone(control);
    // Whoever asked may be gone by then: what is given thaws where it is dropped.
    let frozen = spawn_blocking(move || {
        let frozen = control.freeze()?;
        Ok(Held {
            what: What::Frozen(frozen),
            _only: only,
        })
    });
    frozen
        .await
        .unwrap_or_else(|failed| Err(failed.to_string()))
}

/// What is held then, and the answer. Nothing is where keeping panicked: the next thaw is refused.
async fn keep(held: Held, files: Vec<u64>) -> (Option<Held>, Value) {
    let kept = spawn_blocking(move || {
        let Held { what, _only } = held;
        let (what, answer) = match what {
            What::Frozen(frozen) => match frozen.keep(&files) {
                Ok(kept) => {
                    let answer = json!({ "keep": { "log": kept.log() } });
                    (What::Kept(kept), answer)
                }
                Err((frozen, why)) => (What::Frozen(frozen), error(why)),
            },
            kept @ What::Kept(_) => (kept, error("this connection keeps files already")),
        };
        (Some(Held { what, _only }), answer)
    });
    kept.await
        .unwrap_or_else(|failed| (None, error(failed.to_string())))
}

async fn thaw(held: Option<Held>) -> Result<(), String> {
    let Some(held) = held else {
        return Ok(());
    };
    // Whoever comes next may freeze when all has ended.
    let thawed = spawn_blocking(move || match held.what {
        What::Frozen(frozen) => {
            drop(frozen);
            Ok(())
        }
        What::Kept(kept) => kept.finish(),
    });
    thawed.await.unwrap_or_else(|failed| {
        tracing::error!("thawing: {failed}");
        Err(failed.to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncBufReadExt, BufReader, duplex};

    use super::*;
    use crate::metrics::{Snapshot, Value as Number, table};

    #[derive(Default)]
    struct Counting {
        frozen: Arc<AtomicUsize>,
    }

    struct Thaws(Arc<AtomicUsize>);

    impl Drop for Thaws {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Control for Counting {
        fn stats(&self) -> Snapshot {
            let mut snapshot = Snapshot::default();
            snapshot.put(&table::SLOW, &[], Number::Count(5));
            snapshot
        }

        fn freeze(&self) -> Result<Box<dyn Frozen>, String> {
            self.frozen.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Thaws(Arc::clone(&self.frozen))))
        }
    }

    /// Files of number 13 cannot be kept, and of what is written to number 14 not all is.
    struct Keeps {
        files: Vec<u64>,
        _thaws: Thaws,
    }

    impl Frozen for Thaws {
        fn keep(
            self: Box<Self>,
            files: &[u64],
        ) -> Result<Box<dyn Kept>, (Box<dyn Frozen>, String)> {
            if files.contains(&13) {
                return Err((self, "bad luck".to_owned()));
            }
            Ok(Box::new(Keeps {
                files: files.to_vec(),
                _thaws: *self,
            }))
        }
    }

    impl Kept for Keeps {
        fn log(&self) -> String {
            format!("of {}", self.files.len())
        }

        fn finish(self: Box<Self>) -> Result<(), String> {
            match self.files.contains(&14) {
                true => Err("not all".to_owned()),
                false => Ok(()),
            }
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work)
    }

    /// What is answered to `said`, and then to the end of it.
    async fn say(control: &Arc<dyn Control>, freezing: &Freezing, said: &[u8]) -> Vec<String> {
        let (ours, theirs) = duplex(1 << 16);
        let (mut from, mut to) = tokio::io::split(ours);
        let talking = talk(theirs, Arc::clone(control), freezing.clone());
        let saying = async {
            // It may hang up before it has heard all.
            drop(to.write_all(said).await);
            drop(to.shutdown().await);
            let mut all = Vec::new();
            from.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), heard) = tokio::join!(talking, saying);
        let heard = String::from_utf8(heard).unwrap();
        heard.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_asked_is_answered() {
        block_on(async {
            let counting = Counting::default();
            let frozen = Arc::clone(&counting.frozen);
            let control: Arc<dyn Control> = Arc::new(counting);
            let freezing = Freezing::new();
            let said = b"{\"stats\":{}}\n{\"thaw\":{}}\n{\"freeze\":{}}\n{\"freeze\":{}}\n{\"thaw\":{}}\n{\"freeze\":{}}\nno\n[]\n{\"x\":{}}\n{\"stats\":1}\n{\"stats\":{}";
            let heard = say(&control, &freezing, said).await;
            let is_error = |n: usize| heard[n].starts_with("{\"error\":\"");
            assert!(heard[0].starts_with("{\"stats\":{"), "{heard:?}");
            assert!(is_error(1), "not frozen yet: {heard:?}");
            assert_eq!(heard[2], "{\"freeze\":{}}");
            assert!(is_error(3), "frozen already: {heard:?}");
            assert_eq!(heard[4], "{\"thaw\":{}}");
            assert_eq!(heard[5], "{\"freeze\":{}}");
            assert!((6..10).all(is_error), "{heard:?}");
            assert_eq!(heard.len(), 10, "half a line is none");
            assert_eq!(frozen.load(Ordering::SeqCst), 0, "the end thaws");
        });
    }

    #[test]
    fn one_freezes_and_its_death_thaws() {
        block_on(async {
            let counting = Counting::default();
            let frozen = Arc::clone(&counting.frozen);
            let control: Arc<dyn Control> = Arc::new(counting);
            let freezing = Freezing::new();
            let (ours, theirs) = duplex(1 << 16);
            let first = tokio::spawn(talk(theirs, Arc::clone(&control), freezing.clone()));
            let mut ours = BufReader::new(ours);
            ours.write_all(b"{\"freeze\":{}}\n").await.unwrap();
            let mut line = String::new();
            ours.read_line(&mut line).await.unwrap();
            assert_eq!(
                (line.as_str(), frozen.load(Ordering::SeqCst)),
                ("{\"freeze\":{}}\n", 1)
            );
            let other = say(&control, &freezing, b"{\"freeze\":{}}\n").await;
            assert!(other[0].contains("frozen already"), "{other:?}");
            assert_eq!(frozen.load(Ordering::SeqCst), 1, "the other thaws nothing");
            drop(ours);
            first.await.unwrap();
            assert_eq!(frozen.load(Ordering::SeqCst), 0);
            let other = say(&control, &freezing, b"{\"freeze\":{}}\n").await;
            assert_eq!(other, ["{\"freeze\":{}}"]);
        });
    }

    #[test]
    fn what_is_overwritten_is_kept_until_the_thaw() {
        block_on(async {
            let counting = Counting::default();
            let frozen = Arc::clone(&counting.frozen);
            let control: Arc<dyn Control> = Arc::new(counting);
            let freezing = Freezing::new();
            let said: Vec<_> = [
                r#"{"keep":{"files":[1]}}"#,
                r#"{"freeze":{}}"#,
                r#"{"keep":{"files":[12,13]}}"#,
                r#"{"keep":{}}"#,
                r#"{"keep":[1]}"#,
                r#"{"keep":{"files":1}}"#,
                r#"{"keep":{"files":[-1]}}"#,
                r#"{"keep":{"files":[1.5]}}"#,
                r#"{"keep":{"files":["1"]}}"#,
                r#"{"keep":{"files":[18446744073709551616]}}"#,
                r#"{"keep":{"files":[1],"more":1}}"#,
                r#"{"keep":{"files":[1,18446744073709551615]}}"#,
                r#"{"keep":{"files":[]}}"#,
                r#"{"freeze":{}}"#,
                r#"{"thaw":{}}"#,
                r#"{"thaw":{}}"#,
                r#"{"freeze":{}}"#,
                r#"{"keep":{"files":[14]}}"#,
                r#"{"thaw":{}}"#,
                r#"{"freeze":{}}"#,
                r#"{"keep":{"files":[]}}"#,
            ]
            .join("\n")
            .into_bytes();
            let heard = say(&control, &freezing, &[&said[..], b"\n"].concat()).await;
            let is_error = |n: usize| heard[n].starts_with("{\"error\":\"");
            assert!(is_error(0), "not frozen yet: {heard:?}");
            assert_eq!(heard[2], r#"{"error":"bad luck"}"#);
            assert!((3..11).all(is_error), "{heard:?}");
            assert_eq!(heard[11], r#"{"keep":{"log":"of 2"}}"#, "still frozen");
            assert!(is_error(12) && is_error(13), "kept already: {heard:?}");
            assert_eq!(heard[14], r#"{"thaw":{}}"#);
            assert!(is_error(15), "thawed: {heard:?}");
            assert_eq!(heard[16], r#"{"freeze":{}}"#);
            assert_eq!(heard[18], r#"{"error":"not all"}"#);
            assert_eq!(heard[19], r#"{"freeze":{}}"#, "it has thawed all the same");
            assert_eq!(heard.len(), 21);
            assert_eq!(frozen.load(Ordering::SeqCst), 0, "the end ends that too");
        });
    }

    #[test]
    fn as_many_files_fit_as_may_be() {
        block_on(async {
            let control: Arc<dyn Control> = Arc::new(Counting::default());
            let keep = |n: usize| {
                let files = vec![u64::MAX; n];
                format!("{}\n", json!({ "keep": { "files": files } }))
            };
            let said = format!(
                "{{\"freeze\":{{}}}}\n{}{}",
                keep(MOST_FILES + 1),
                keep(MOST_FILES)
            );
            let heard = say(&control, &Freezing::new(), said.as_bytes()).await;
            assert!(heard[1].contains("4096 at most"), "{heard:?}");
            assert_eq!(heard[2], r#"{"keep":{"log":"of 4096"}}"#);
        });
    }

    #[test]
    fn endless_lines_end() {
        block_on(async {
            let control: Arc<dyn Control> = Arc::new(Counting::default());
            let heard = say(&control, &Freezing::new(), &vec![b'['; 1 << 20]).await;
            assert_eq!(heard, ["{\"error\":\"the line is too long\"}"]);
        });
    }
}
