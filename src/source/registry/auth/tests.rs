//! Tests of logins, without a network.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::source::registry::name::Name;
use crate::source::registry::worker::Worker;

/// `user:secret`
const AUTH: &str = "dXNlcjpzZWNyZXQ=";

struct Fixture {
    dir: TempDir,
    lookup: Lookup,
}

impl Fixture {
    fn new(files: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Vec::new();
        for (n, json) in files.iter().enumerate() {
            let path = dir.path().join(format!("{n}.json"));
            fs::write(&path, json).unwrap();
            paths.push(path);
        }
        let lookup = Lookup {
            files: paths,
            must_exist: true,
            helpers: Some(dir.path().to_owned()),
            patience: Duration::from_secs(60),
        };
        Self { dir, lookup }
    }

    fn helper(&self, name: &str, script: &str) {
        let path = self.dir.path().join(format!("docker-credential-{name}"));
        // Written by another process: a descriptor of this one, which a child that another test
        // begins has for a moment, would keep the script from being run (ETXTBSY).
        let status = std::process::Command::new("sh")
            .args([
                "-c",
                r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#,
                "sh",
            ])
            .args([path.as_os_str(), script.as_ref()])
            .status();
        assert!(status.unwrap().success());
    }

    fn find(&self, name: &str) -> Result<Option<Login>, SourceError> {
        let repository = Name::parse(name).unwrap().repository;
        let lookup = self.lookup.clone();
        let worker = Worker::start().unwrap();
        worker
            .run(async move { find(&lookup, &repository).await })
            .unwrap()
    }

    fn user(&self, name: &str) -> Option<String> {
        match self.find(name).unwrap()?.auth {
            RegistryAuth::Basic(user, _) => Some(user),
            RegistryAuth::Bearer(token) => Some(format!("bearer {token}")),
            RegistryAuth::Anonymous => None,
        }
    }

    fn error(&self, name: &str) -> String {
        let error = self.find(name).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

fn entry(user: &str) -> String {
    format!(r#"{{"username":"{user}","password":"secret"}}"#)
}

#[test]
fn the_longest_key_counts() {
    let auths = [
        ("quay.io", "host"),
        ("quay.io/a", "space"),
        ("quay.io/a/b", "repository"),
        ("https://index.docker.io/v1/", "docker"),
        ("http://old.io/v2/", "old"),
        ("host.io:5000", "port"),
    ];
    let auths: Vec<_> = auths
        .iter()
        .map(|(key, user)| format!(r#""{key}":{}"#, entry(user)))
        .collect();
    let fixture = Fixture::new(&[&format!(r#"{{"auths":{{{}}}}}"#, auths.join(","))]);
    for (name, user) in [
        ("quay.io/a/b:1", Some("repository")),
        ("quay.io/a/bc", Some("space")),
        ("quay.io/ab", Some("host")),
        ("debian", Some("docker")),
        ("old.io/x", Some("old")),
        ("host.io:5000/x", Some("port")),
        ("host.io:5001/x", None),
        ("host.io/x", None),
        ("other.io/x", None),
    ] {
        assert_eq!(fixture.user(name).as_deref(), user, "{name}");
    }
}

#[test]
fn every_way_to_write_a_login() {
    for (entry, user) in [
        (format!(r#"{{"auth":"{AUTH}"}}"#), Some("user")),
        (r#"{"auth":"dTpwOng"}"#.to_owned(), Some("u")),
        (r#"{"registrytoken":"t"}"#.to_owned(), Some("bearer t")),
        (
            format!(r#"{{"auth":"{AUTH}","identitytoken":"t"}}"#),
            Some(IDENTITY_USER),
        ),
        ("{}".to_owned(), None),
        (r#"{"auth":""}"#.to_owned(), None),
    ] {
        let fixture = Fixture::new(&[&format!(r#"{{"auths":{{"q.io":{entry}}}}}"#)]);
        assert_eq!(fixture.user("q.io/a").as_deref(), user, "{entry}");
    }
}

#[test]
fn the_first_file_that_has_one_counts() {
    let of = |user: &str| format!(r#"{{"auths":{{"q.io":{}}}}}"#, entry(user));
    let mut fixture = Fixture::new(&["{}", r#"{"auths":null}"#, &of("first"), &of("second")]);
    assert_eq!(fixture.user("q.io/a").as_deref(), Some("first"));
    fixture.lookup.files.insert(0, "/nonexistent".into());
    assert!(fixture.error("q.io/a").contains("/nonexistent"));
    fixture.lookup.must_exist = false;
    assert_eq!(fixture.user("q.io/a").as_deref(), Some("first"));
}

#[test]
fn damaged_files_are_named_and_not_quoted() {
    for bad in [
        "{\"auths\":{\"q.io\":{\"auth\":\"SECRET",
        "{\"auths\":{\"q.io\":\"SECRET\"}}",
        "{\"auths\":{\"q.io\":{\"auth\":\"SECRET!\"}}}",
        "{\"auths\":{\"q.io\":{\"auth\":\"U0VDUkVU\"}}}",
    ] {
        let error = Fixture::new(&[bad]).error("q.io/a");
        assert!(error.contains("0.json"), "{error}");
        assert!(!error.contains("SECRET"), "{error}");
    }
}

#[test]
fn helpers_are_asked() {
    let fixture = Fixture::new(&[r#"{"credHelpers":{"q.io":"one"},"credsStore":"all"}"#]);
    fixture.helper(
        "one",
        r#"echo "{\"Username\":\"$(cat)-$1\",\"Secret\":\"s\"}""#,
    );
    fixture.helper(
        "all",
        r#"echo "{\"Username\":\"<token>\",\"Secret\":\"s\"}""#,
    );
    assert_eq!(fixture.user("q.io/a").as_deref(), Some("q.io-get"));
    assert_eq!(fixture.user("r.io/a").as_deref(), Some(IDENTITY_USER));
    let from = fixture.find("q.io/a").unwrap().unwrap().from;
    assert!(from.starts_with("docker-credential-one ("), "{from}");
}

#[test]
fn helpers_without_a_login_and_broken_ones() {
    let mut fixture = Fixture::new(&[r#"{"credsStore":"h"}"#]);
    assert!(fixture.error("q.io/a").contains("cannot be run"));
    fixture.helper("h", "echo credentials not found in native keychain; exit 1");
    assert_eq!(fixture.user("q.io/a"), None);
    fixture.helper("h", "echo the keyring is >&2; echo locked >&2; exit 3");
    let error = fixture.error("q.io/a");
    assert!(error.contains("the keyring is locked"), "{error}");
    fixture.helper("h", "echo SECRET");
    assert!(!fixture.error("q.io/a").contains("SECRET"));
    fixture.helper("h", "exec sleep 1000");
    fixture.lookup.patience = Duration::from_millis(1);
    assert!(fixture.error("q.io/a").contains("does not answer"));

    let fixture = Fixture::new(&[r#"{"credsStore":"../h"}"#]);
    assert!(fixture.error("q.io/a").contains("no name of a program"));
}

#[test]
fn files_of_a_user() {
    let path = |text: &'static str| Some(Path::new(text));
    assert_eq!(
        default_auth_files(path("/run/user/1"), path("/c"), path("/h")),
        [
            "/run/user/1/containers/auth.json",
            "/c/containers/auth.json",
            "/h/.docker/config.json"
        ]
        .map(PathBuf::from)
    );
    assert_eq!(
        default_auth_files(None, None, path("/h")),
        ["/h/.config/containers/auth.json", "/h/.docker/config.json"].map(PathBuf::from)
    );
    assert!(default_auth_files(None, None, None).is_empty());
}

#[test]
fn a_login_does_not_show_itself() {
    let login = Login {
        auth: RegistryAuth::Basic("USER".into(), "SECRET".into()),
        from: "file".into(),
    };
    let shown = format!("{login:?}");
    assert!(
        !shown.contains("SECRET") && !shown.contains("USER"),
        "{shown}"
    );
}

#[test]
fn base64_of_all_lengths() {
    for (text, bytes) in [
        ("", Some("")),
        ("Zg==", Some("f")),
        ("Zm8=", Some("fo")),
        ("Zm9v", Some("foo")),
        ("Zm9vYmE", Some("fooba")),
        ("Z", None),
        ("Zm9v\n", None),
        ("Zm9-", None),
    ] {
        let expected = bytes.map(|b| b.as_bytes().to_vec());
        assert_eq!(base64(text), expected, "{text:?}");
    }
}
