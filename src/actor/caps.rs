//! Capability names (capabilities(7)) and the set that a container's root gets.

/// Names by number: `NAMES[0]` is capability 0.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What container engines leave the root of a container by default: enough for package managers
/// and servers, nothing that reaches the host.
pub const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The bits of `names` (bit n = capability n).
///
/// # Errors
/// The first name that is none.
pub fn bits<S: AsRef<str>>(names: &[S]) -> Result<u64, String> {
    names.iter().try_fold(0_u64, |bits, name| {
        let name = name.as_ref();
        match NAMES.iter().position(|&known| known == name) {
            Some(bit) => Ok(bits | (1 << bit)),
            None => Err(name.to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        // linux/capability.h
        assert_eq!(bits(&["CAP_CHOWN"]).unwrap(), 1);
        assert_eq!(bits(&["CAP_SYS_ADMIN"]).unwrap(), 1 << 21);
        assert_eq!(bits(&["CAP_SETFCAP"]).unwrap(), 1 << 31);
        assert_eq!(bits(&["CAP_CHECKPOINT_RESTORE"]).unwrap(), 1 << 40);
        assert_eq!(bits(&DEFAULT).unwrap().count_ones(), 14);
    }

    #[test]
    fn an_unknown_name_is_named() {
        assert_eq!(bits(&["CAP_KILL", "CAP_FLY"]).unwrap_err(), "CAP_FLY");
    }
}
