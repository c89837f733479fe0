//! What CPUs do that have nothing to do: halt, or look for work
//! (Documentation/power/pm_qos_interface.rst, Documentation/virt/guest-halt-polling.rst).

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

const LATENCY: &str = "/dev/cpu_dma_latency";
const GOVERNOR: &str = "/sys/devices/system/cpu/cpuidle/current_governor_ro";

/// Microseconds that an idle CPU may take to come back; with none it looks for work instead of
/// halting, under each of the kernel's governors (`latency_req == 0` in drivers/cpuidle/governors).
const NONE: i32 = 0;
/// `PM_QOS_DEFAULT_VALUE`, include/linux/pm_qos.h: as if nothing were asked for.
const ANY: i32 = -1;

/// A right to have this machine's idle CPUs look for work instead of halting.
#[derive(Debug)]
pub struct Idle {
    latency: File,
}

/// All idle CPUs look for work while this lives.
#[derive(Debug)]
pub struct Awake<'a> {
    idle: &'a Idle,
}

impl Idle {
    /// # Errors
    /// The system's: it is root's alone, and not every kernel has it.
    pub fn open() -> io::Result<Self> {
        // Opened, it asks for nothing yet.
        let latency = OpenOptions::new().write(true).open(LATENCY)?;
        Ok(Self { latency })
    }

    /// Keeps idle CPUs from halting. The kernel takes it back when this process ends, however it
    /// does.
    ///
    /// # Errors
    /// The system's.
    pub fn keep_awake(&self) -> io::Result<Awake<'_>> {
        self.ask(NONE)?;
        Ok(Awake { idle: self })
    }

    fn ask(&self, microseconds: i32) -> io::Result<()> {
        (&self.latency).write_all(&microseconds.to_ne_bytes())
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        // The kernel refuses no number, and forgets it with the descriptor in any case.
        drop(self.idle.ask(ANY));
    }
}

/// Is this a virtual machine whose CPUs halt through the hypervisor (the `haltpoll` governor)?
#[must_use]
pub fn halts_through_hypervisor() -> bool {
    std::fs::read_to_string(GOVERNOR).is_ok_and(|governor| governor.trim() == "haltpoll")
}

/// How many CPUs this machine has running, whoever may use them.
#[must_use]
pub fn cpus() -> usize {
    // SAFETY: asks for a number, and touches no memory of ours.
    let online = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(online).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel has been asked for by all: the least of it.
    fn asked() -> i32 {
        let bytes = std::fs::read(LATENCY).unwrap();
        i32::from_ne_bytes(bytes[..4].try_into().unwrap())
    }

    #[test]
    fn asks_while_it_is_kept() {
        let idle = match Idle::open() {
            Ok(idle) => idle,
            Err(error) => {
                let none = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
                assert!(none.contains(&error.kind()), "{error}");
                return;
            }
        };
        let awake = idle.keep_awake().unwrap();
        assert_eq!(asked(), NONE);
        drop(awake);
        // Servers of other tests may ask as well, for moments.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while asked() == NONE {
            assert!(std::time::Instant::now() < patience, "not taken back");
            std::thread::yield_now();
        }
    }

    #[test]
    fn there_is_a_cpu() {
        assert!(cpus() >= std::thread::available_parallelism().map_or(1, usize::from));
    }
}
