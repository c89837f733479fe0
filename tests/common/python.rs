//! What Python scripts of tests share.

use std::path::Path;

use super::ok;

/// `by(user, act, args…)`: how that ends in a process of an ordinary user, or of root (0): 0, the
/// errno, or 255 for another failure.
pub(crate) const BY: &str = r"
def by(user, act, *args):
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            if user:
                os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
            act(*args)
            code = 0
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
";

/// Runs a script in the directory `at`, which is also its `sys.argv[1]`; gives what it prints.
pub(crate) fn python(at: &Path, script: &str) -> String {
    let script = format!("import os, sys\nos.chdir(sys.argv[1])\n{script}");
    ok("python3", ["-c".as_ref(), script.as_ref(), at.as_os_str()])
}
