//! A shell in an image, and what it says in a container.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::ok;

/// A hang is a failure.
const DEADLINE: Duration = Duration::from_secs(60);

/// Puts the machine's shell and `programs` into a tree, with their libraries.
pub(crate) fn put(tree: &Path, programs: &[&str]) {
    for program in [&["/bin/sh"], programs].concat() {
        for file in [program]
            .into_iter()
            .chain(ok("ldd", [program]).split_whitespace())
        {
            if let Some(inside) = file.strip_prefix('/') {
                let to = tree.join(inside);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(file, to).unwrap();
            }
        }
    }
}

/// A container's standard output, line by line.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(stream: impl Read + Send + 'static) -> Self {
        let (send, receive) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receive)
    }

    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(DEADLINE).unwrap()
    }

    /// All that comes before `last`.
    pub(crate) fn until(&self, last: &str) -> Vec<String> {
        std::iter::repeat_with(|| self.next())
            .take_while(|line| line != last)
            .collect()
    }

    /// All until nobody has it open.
    pub(crate) fn rest(self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.0.recv_timeout(DEADLINE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return lines,
                Err(error) => panic!("{error}: {lines:?}"),
            }
        }
    }
}
