//! Who asks badly: the mount goes on, and who asks well is answered afterwards.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::common::{Mount, can_mount};
use super::{Bench, exposition, fs};
use tarnfs::mount::control::Client;

/// No answer takes so long.
const LONG: Duration = Duration::from_secs(120);

/// A mount with an endpoint for Prometheus, and its address.
fn with_metrics(bench: &Bench) -> (Mount<'_>, SocketAddr) {
    let log = bench.at("log");
    let options = ["--metrics", "127.0.0.1:0", "--log", "info", "--log-file"];
    let mount = bench.mount(&[&options[..], &[log.to_str().unwrap()]].concat());
    let read = fs::read_to_string(&log).unwrap();
    let (_, rest) = read.split_once("metrics address=").unwrap();
    let address = rest.split_whitespace().next().unwrap();
    (mount, address.parse().unwrap())
}

fn http(mut stream: impl Read + Write, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get_tcp(address: SocketAddr, request: &str) -> String {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    http(stream, request)
}

fn body(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = format!("Content-Length: {}", body.len());
    assert!(head.lines().any(|line| line == length), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    body.to_owned()
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\nUser-Agent: test\r\n\r\n";

/// The metrics of a unix endpoint.
pub(crate) fn get_unix(path: &Path) -> String {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    body(&http(stream, GET))
}

#[test]
fn prometheus_is_answered() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (mount, address) = with_metrics(&bench);
    fs::read(mount.at("dir/1")).unwrap();
    bench.settled();
    let told = exposition::check(&body(&get_tcp(address, GET)));
    let open = told["tarnfs_requests_total{op=\"open\"}"];
    assert_eq!(open, 1.0);
    assert_eq!(told["tarnfs_request_seconds_count{op=\"open\"}"], 1.0);
    assert_eq!(told["tarnfs_build_info{version=\"0.1.0\"}"], 1.0);
    assert!(told["process_resident_memory_bytes"] > 0.0);
    let (head, rest) = ("HEAD /metrics HTTP/1.0\r\n\r\n", "\r\n\r\n");
    let answer = get_tcp(address, head);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(rest));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "405",
        ),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = get_tcp(address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
}

/// Sends until it is sent away, and how much that was.
fn flood(mut stream: impl Write, part: &[u8], most: usize) -> usize {
    let mut sent = 0;
    while sent < most {
        match stream.write(part) {
            Ok(n) => sent += n,
            Err(_) => break,
        }
    }
    sent
}

fn works(mount: &Mount<'_>) {
    for n in 0..10 {
        assert_eq!(
            fs::read(mount.at(format!("dir/{n}"))).unwrap().len(),
            super::SMALL
        );
    }
    let name = mount.at("written");
    fs::write(&name, "x").unwrap();
    fs::remove_file(&name).unwrap();
}

#[test]
fn endless_lines_are_cut_off() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (mount, address) = with_metrics(&bench);
    const MUCH: usize = 1 << 30;
    let part = vec![b'a'; 1 << 16];
    let sent = flood(UnixStream::connect(bench.socket()).unwrap(), &part, MUCH);
    assert!(sent < MUCH, "all of it was taken");
    let sent = flood(TcpStream::connect(address).unwrap(), &part, MUCH);
    assert!(sent < MUCH, "all of it was taken");
    works(&mount);
    bench.stats();
    exposition::check(&body(&get_tcp(address, GET)));
}

#[test]
fn who_never_reads_takes_nothing_from_others() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let (mount, address) = with_metrics(&bench);
    let mut held = Vec::new();
    for _ in 0..8 {
        let stream = UnixStream::connect(bench.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        // Until the server takes no more, since nobody takes its answers.
        flood(&stream, &b"{\"stats\":{}}\n".repeat(100), 1 << 22);
        held.push(stream);
        let mut half = UnixStream::connect(bench.socket()).unwrap();
        half.write_all(b"{\"stats\"").unwrap();
        held.push(half);
    }
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metr").unwrap();
        waiting.push(stream);
    }
    works(&mount);
    bench.stats();
    exposition::check(&body(&get_tcp(address, GET)));
    // With all of them there.
    mount.unmount();
    drop((held, waiting));
}

#[test]
fn a_thousand_connections() {
    if !can_mount() {
        return;
    }
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let bench = Bench::new();
    let (mount, address) = with_metrics(&bench);
    let descriptors = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", mount.server())).unwrap();
        fds.count()
    };
    let before = descriptors();
    let unix: Vec<_> = (0..1000)
        .map(|_| UnixStream::connect(bench.socket()).unwrap())
        .collect();
    let tcp: Vec<_> = (0..1000)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    works(&mount);
    let during = descriptors();
    assert!(during < before + 100, "{before}, then {during}");
    drop((unix, tcp));
    // Who was there first is noticed to be gone; until then the places are taken.
    while !Client::connect(&bench.socket()).is_ok_and(|mut client| client.stats().is_ok()) {
        std::thread::yield_now();
    }
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut answer = String::new();
        let asked = stream.write_all(GET.as_bytes());
        if asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && !answer.is_empty() {
            exposition::check(&body(&answer));
            break;
        }
    }
    assert!(descriptors() < before + 10);
}
