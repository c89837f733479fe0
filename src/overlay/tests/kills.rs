//! Each operation in a process of its own that is killed before each change it makes (SIGKILL):
//! what the next mount finds is the tree before or after.
//!
//! The process is this test program, run anew for one test with what it is to do in its
//! environment; there it does the operation instead of judging one.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::fixture::{Fixture, Home};
use super::judge::{Judge, Trying, prepare};
use super::operations::{self, Case};
use crate::sys::faults::{self, Fault};

/// Where the victim's tree is, which operation is its own, and at which change it is to die.
const VICTIM: [&str; 3] = ["TARNFS_TEST_HOME", "TARNFS_TEST_CASE", "TARNFS_TEST_CHANGE"];

/// Kills each operation at every change it makes. `test` is the name of the test that calls.
fn kill(test: &str, cases: &[Case]) {
    if let [Some(home), Some(case), Some(n)] = VICTIM.map(std::env::var_os) {
        let number = |text: std::ffi::OsString| text.to_str().unwrap().parse::<usize>().unwrap();
        let f = Fixture::reopen(Home::Lent(home.into()));
        faults::plan(number(n), Fault::Kill);
        (cases[number(case)].operation)(&f).unwrap();
        return;
    }
    for (number, case) in cases.iter().enumerate() {
        let judge = Judge::new(case);
        for n in 1.. {
            let what = format!("{}: killed at change {n}", case.name);
            let _trying = Trying(&what);
            let Fixture { dir, fs } = prepare(case);
            drop(fs);
            let [home, number] = [dir.path().to_str().unwrap(), &number.to_string()];
            let victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", &format!("overlay::tests::kills::{test}")])
                .envs(VICTIM.into_iter().zip([home, number, &n.to_string()]))
                .stdout(Stdio::null())
                .status()
                .unwrap();
            let f = Fixture::reopen(dir);
            let is_after = judge.is_after(&f, &what);
            judge.again(&f, case, is_after, &what);
            if victim.success() {
                assert!(is_after, "{what}: success, but nothing happened");
                assert!(n > 1, "{what}: nobody was killed");
                break;
            }
            assert_eq!(victim.signal(), Some(libc::SIGKILL), "{what}");
        }
    }
}

#[test]
fn copy_ups() {
    kill("copy_ups", operations::COPY_UPS);
}

#[test]
fn data() {
    kill("data", operations::DATA);
}

#[test]
fn attributes() {
    kill("attributes", operations::ATTRIBUTES);
}

#[test]
fn new_entries() {
    kill("new_entries", operations::NEW);
}

#[test]
fn links() {
    kill("links", operations::LINKS);
}

#[test]
fn removals() {
    kill("removals", operations::REMOVALS);
}

#[test]
fn renames() {
    kill("renames", operations::RENAMES);
}

#[test]
fn renames_of_directories() {
    kill("renames_of_directories", operations::DIRECTORY_RENAMES);
}
