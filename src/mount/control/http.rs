//! The endpoint for Prometheus: `GET /metrics`, and nothing else of HTTP (RFC 9112).

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Control;
use crate::metrics::CONTENT_TYPE;

/// The longest head of a request that is read.
const LONGEST: usize = 8192;

/// How long a client may take for it, and for taking the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long, and how much, is listened to who goes on after his answer: closing at once would take
/// the answer from him (tcp(7): a reset).
const LINGER: Duration = Duration::from_secs(1);
const REST: u64 = 64 << 10;

/// What a request is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Metrics { body: bool },
    BadRequest,
    NotFound,
    NotAllowed,
    TooLong,
    Timeout,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Self::Metrics { .. } => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::NotAllowed => "405 Method Not Allowed",
            Self::TooLong => "431 Request Header Fields Too Large",
            Self::Timeout => "408 Request Timeout",
        }
    }
}

/// What the head of a request, which is whole, is answered with.
fn judge(head: &[u8]) -> Status {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or(head);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(version), None) = (method, target, version, words.next())
    else {
        return Status::BadRequest;
    };
    if !version.starts_with(b"HTTP/1.") || !target.starts_with(b"/") {
        return Status::BadRequest;
    }
    let path = target.split(|&byte| byte == b'?').next();
    match (path, method) {
        (Some(b"/metrics"), b"GET") => Status::Metrics { body: true },
        (Some(b"/metrics"), b"HEAD") => Status::Metrics { body: false },
        (Some(b"/metrics"), _) => Status::NotAllowed,
        _ => Status::NotFound,
    }
}

/// Reads the head of a request; `None`: there will be none.
async fn read_head(from: &mut (impl AsyncRead + Unpin)) -> Option<Status> {
    let mut head = Vec::new();
    loop {
        let mut part = [0; 1024];
        match from.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => head.extend_from_slice(part.get(..n).unwrap_or(&[])),
        }
        let ends = |end: &[u8]| head.windows(end.len()).any(|part| part == end);
        if ends(b"\r\n\r\n") || ends(b"\n\n") {
            return Some(judge(&head));
        }
        if head.len() > LONGEST {
            return Some(Status::TooLong);
        }
    }
}

/// Answers one request, and ends the connection.
pub(super) async fn answer<S>(mut stream: S, control: Arc<dyn Control>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = timeout(PATIENCE, read_head(&mut stream)).await;
    let Some(status) = asked.unwrap_or(Some(Status::Timeout)) else {
        return;
    };
    let text = match status {
        Status::Metrics { .. } => {
            match spawn_blocking(move || control.stats().to_prometheus()).await {
                Ok(text) => text,
                Err(error) => {
                    tracing::error!("metrics: {error}");
                    return;
                }
            }
        }
        _ => format!("{}\n", status.line()),
    };
    let kind = match status {
        Status::Metrics { .. } => CONTENT_TYPE,
        _ => "text/plain; charset=utf-8",
    };
    let allow = match status {
        Status::NotAllowed => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let mut answer = format!(
        "HTTP/1.1 {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        status.line(),
        text.len()
    );
    if status != (Status::Metrics { body: false }) {
        answer.push_str(&text);
    }
    let sent = timeout(PATIENCE, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        let mut rest = stream.take(REST);
        let mut nowhere = tokio::io::sink();
        let listened = tokio::io::copy(&mut rest, &mut nowhere);
        // Whatever it was, nobody wants it.
        drop(timeout(LINGER, listened).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered() {
        for (head, status) in [
            (
                "GET /metrics HTTP/1.1\r\n\r\n",
                Status::Metrics { body: true },
            ),
            (
                "GET /metrics?x=y HTTP/1.0\n\n",
                Status::Metrics { body: true },
            ),
            (
                "HEAD /metrics HTTP/1.1\r\n\r\n",
                Status::Metrics { body: false },
            ),
            ("POST /metrics HTTP/1.1\r\n\r\n", Status::NotAllowed),
            ("GET / HTTP/1.1\r\n\r\n", Status::NotFound),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Status::NotFound),
            ("DELETE /x HTTP/1.1\r\n\r\n", Status::NotFound),
            ("GET /metrics\r\n\r\n", Status::BadRequest),
            ("GET /metrics HTTP/2\r\n\r\n", Status::BadRequest),
            ("GET  /metrics HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET metrics HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("\r\n\r\n", Status::BadRequest),
        ] {
            assert_eq!(judge(head.as_bytes()), status, "{head:?}");
        }
        assert_eq!(judge(b"\xff\0 \xfe \n\n"), Status::BadRequest);
    }
}
