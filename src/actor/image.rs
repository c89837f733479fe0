//! What an image says about the programs in it (the OCI image specification's config.md).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ActorError;

/// The environment's `PATH` where an image gives none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `config` of an OCI image configuration: the defaults for a container of the image. A bare tar
/// has none, which is [`ImageConfig::default`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`; empty is root.
    #[serde(deserialize_with = "null_is_empty")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// What every command is an argument of.
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or the entry point's arguments, where none is given.
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts; empty is `/`.
    #[serde(deserialize_with = "null_is_empty")]
    pub working_dir: String,
}

/// Docker and older tools write `null` for an empty list, and Go's readers take it for any field.
fn null_is_empty<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What a person asked for on top of the image's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// The command; empty is the image's own.
    pub command: Vec<Vec<u8>>,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<Vec<u8>>>,
    /// `NAME=value` to set; `NAME` alone takes the value of [`Asked::outer_env`].
    pub env: Vec<Vec<u8>>,
    /// Start from an empty environment instead of `PATH`, `HOME`, `TERM` and the image's.
    pub clear_env: bool,
    /// The environment that `NAME` and `TERM` are taken from.
    pub outer_env: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Replaces the image's working directory.
    pub cwd: Option<Vec<u8>>,
    /// Replaces the image's user.
    pub user: Option<String>,
}

/// What is to be run: the image's defaults and what was asked for, put together. Bytes, since
/// arguments on Linux are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments; empty means a shell of the image, whichever it has.
    pub args: Vec<Vec<u8>>,
    /// Its environment, without `HOME` unless it was given.
    pub env: Vec<Vec<u8>>,
    /// Where it starts: absolute, without `..`.
    pub cwd: Vec<u8>,
    /// As [`ImageConfig::user`].
    pub user: String,
    /// Whether `HOME` is to be added from the user's entry in /etc/passwd.
    pub add_home: bool,
}

/// The shells to look for, in this order, when there is no command at all.
pub const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

impl Program {
    /// Puts `asked` on top of `config`.
    ///
    /// # Errors
    /// [`ActorError::Refused`] for an environment entry without a name, a working directory that
    /// is not absolute or goes through `..`, and a NUL byte in any of them.
    pub fn new(config: &ImageConfig, asked: &Asked) -> Result<Self, ActorError> {
        let bytes = |list: &[String]| -> Vec<Vec<u8>> {
            list.iter().map(|s| s.clone().into_bytes()).collect()
        };
        // A new entry point makes the image's command meaningless, as engines have it.
        let (mut args, default_cmd) = match &asked.entrypoint {
            Some(entrypoint) => (entrypoint.clone(), Vec::new()),
            None => (bytes(&config.entrypoint), bytes(&config.cmd)),
        };
        args.extend(if asked.command.is_empty() {
            default_cmd
        } else {
            asked.command.clone()
        });

        let mut env: Vec<Vec<u8>> = Vec::new();
        if !asked.clear_env {
            set(&mut env, [b"PATH=", DEFAULT_PATH.as_bytes()].concat());
            if let Some(term) = asked.outer_env.get(&b"TERM"[..]) {
                set(&mut env, [b"TERM=", &term[..]].concat());
            }
            for entry in bytes(&config.env) {
                set(&mut env, entry);
            }
        }
        for entry in &asked.env {
            if name_of(entry).is_empty() {
                let entry = String::from_utf8_lossy(entry).into_owned();
                return Err(ActorError::Refused(format!(
                    "environment entry {entry:?} has no name; write NAME=value"
                )));
            }
            if entry.contains(&b'=') {
                set(&mut env, entry.clone());
            } else if let Some(value) = asked.outer_env.get(entry) {
                set(&mut env, [&entry[..], b"=", value].concat());
            }
        }
        let cwd = match &asked.cwd {
            Some(cwd) => cwd.clone(),
            None if config.working_dir.is_empty() => b"/".to_vec(),
            None => config.working_dir.clone().into_bytes(),
        };
        if !cwd.starts_with(b"/") || cwd.split(|&c| c == b'/').any(|part| part == b"..") {
            let cwd = String::from_utf8_lossy(&cwd).into_owned();
            return Err(ActorError::Refused(format!(
                "working directory {cwd:?} must be absolute and without \"..\""
            )));
        }
        if args
            .iter()
            .chain(&env)
            .chain([&cwd])
            .any(|text| text.contains(&0))
        {
            return Err(ActorError::Refused(
                "a NUL byte in an argument, the environment or the working directory".into(),
            ));
        }
        let add_home = !asked.clear_env && !env.iter().any(|e| name_of(e) == b"HOME");
        let user = asked.user.clone().unwrap_or_else(|| config.user.clone());
        Ok(Self {
            args,
            env,
            cwd,
            user,
            add_home,
        })
    }
}

fn name_of(entry: &[u8]) -> &[u8] {
    entry.split(|&c| c == b'=').next().unwrap_or_default()
}

/// Sets one `NAME=value`, replacing an earlier one in its place.
fn set(env: &mut Vec<Vec<u8>>, entry: Vec<u8>) {
    match env.iter_mut().find(|old| name_of(old) == name_of(&entry)) {
        Some(old) => *old = entry,
        None => env.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|s| s.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_bare_tar_gets_a_path_and_nothing_to_run() {
        let program = Program::new(&ImageConfig::default(), &Asked::default()).unwrap();
        assert!(program.args.is_empty());
        assert_eq!(program.env, [[b"PATH=", DEFAULT_PATH.as_bytes()].concat()]);
        assert_eq!(program.cwd, b"/");
        assert!(program.add_home);
    }

    #[test]
    fn what_is_asked_wins_over_the_image() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"User":"app","Env":["PATH=/x","A=1","A2=2"],"Entrypoint":["/init"],"Cmd":["serve"],
                "WorkingDir":"/srv","Labels":null,"ExposedPorts":{"80/tcp":{}}}"#,
        )
        .unwrap();
        let plain = Program::new(&config, &Asked::default()).unwrap();
        assert_eq!(plain.args, words(&["/init", "serve"]));
        assert_eq!(plain.env, words(&["PATH=/x", "A=1", "A2=2"]));
        assert_eq!(
            (plain.cwd.as_slice(), plain.user.as_str()),
            (&b"/srv"[..], "app")
        );

        let asked = Asked {
            command: words(&["other"]),
            env: words(&["A=3", "B", "C", "HOME=/h"]),
            outer_env: [
                (b"B".to_vec(), b"b=b".to_vec()),
                (b"TERM".to_vec(), b"vt".to_vec()),
            ]
            .into(),
            cwd: Some(b"/w".to_vec()),
            user: Some("0:0".into()),
            ..Asked::default()
        };
        let program = Program::new(&config, &asked).unwrap();
        assert_eq!(program.args, words(&["/init", "other"]));
        assert_eq!(
            program.env,
            words(&["PATH=/x", "TERM=vt", "A=3", "A2=2", "B=b=b", "HOME=/h"])
        );
        assert!(!program.add_home);
        assert_eq!(
            (program.cwd.as_slice(), program.user.as_str()),
            (&b"/w"[..], "0:0")
        );

        let asked = Asked {
            entrypoint: Some(words(&["/e"])),
            clear_env: true,
            ..Asked::default()
        };
        let program = Program::new(&config, &asked).unwrap();
        assert_eq!((program.args, program.env), (words(&["/e"]), vec![]));
    }

    #[test]
    fn null_is_empty() {
        let config: ImageConfig = serde_json::from_str(
            r#"{"Env":null,"Cmd":null,"Entrypoint":null,"User":null,"WorkingDir":null}"#,
        )
        .unwrap();
        assert_eq!(config, ImageConfig::default());
    }

    #[test]
    fn refuses_what_cannot_be_meant() {
        let refused = |asked: &Asked| Program::new(&ImageConfig::default(), asked).is_err();
        assert!(refused(&Asked {
            env: words(&["=x"]),
            ..Asked::default()
        }));
        assert!(refused(&Asked {
            cwd: Some(b"tmp".to_vec()),
            ..Asked::default()
        }));
        assert!(refused(&Asked {
            cwd: Some(b"/a/../b".to_vec()),
            ..Asked::default()
        }));
        assert!(refused(&Asked {
            command: words(&["a\0b"]),
            ..Asked::default()
        }));
    }
}
