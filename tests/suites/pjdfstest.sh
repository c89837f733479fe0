#!/usr/bin/env bash
# tests/suites/pjdfstest.sh [PATTERN…]: the Rust pjdfstest, as root, remounts included, over an
# image that holds files where the cases run. Every case that passes on ext4 must pass on tarnfs.
#
# The cases that want a read-only filesystem call `mount -o remount,ro`, which needs tarnfs as
# mount(8)'s helper: it is one in this script's mount namespace.
#
# `link::link_count_max` runs only where pathconf(3) knows the limit, and glibc knows it of a few
# filesystems by their statfs(2) type; of any other it says 127, which the case takes for "not
# known". Of FUSE and overlayfs we tell it what is true here: ext4's 65,000.
#
# See lib.sh for the sides and PEERS=1, TARNFS=path.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$(readlink -f "$0")")/lib.sh"
needs cc
pjdfstest=$(crate pjdfstest 0.2.2)

mkdir -p "$work/root/cases/deep"
for i in {1..50}; do echo "$i" >"$work/root/cases/file$i"; done
ln "$work/root/cases/file1" "$work/root/cases/deep/link"
chmod 1777 "$work/root/cases"

mkdir "$work/helpers"
ln -s "$TARNFS" "$work/helpers/mount.fuse.tarnfs"
# Over each directory that mount(8) may look in; no upper, so nothing can be written.
mount -t overlay overlay -o "lowerdir=$work/helpers:/usr/sbin" /usr/sbin
[[ /sbin -ef /usr/sbin ]] || mount --bind /usr/sbin /sbin

cc -shared -fPIC -O1 -x c -o "$work/bin/link_max.so" - <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/vfs.h>
#include <unistd.h>

long pathconf(const char *path, int name)
{
    struct statfs fs;
    /* FUSE_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC; EXT4_LINK_MAX of the filesystem below. */
    if (name == _PC_LINK_MAX && statfs(path, &fs) == 0 &&
        (fs.f_type == 0x65735546 || fs.f_type == 0x794c7630))
        return 65000;
    return ((long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf"))(path, name);
}
C

# conf REMOUNT FILE
conf() {
    cat >"$2" <<TOML
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "$work/other"
[settings]
naptime = 0.01
allow_remount = $1
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML
}
conf false "$work/conf.toml"
conf true "$work/remount.toml"
mkdir "$work/other"
mount -t tmpfs tmpfs "$work/other"

# cases_of LOG: how each case went, a line each.
cases_of() {
    awk '$NF == "ok" { print "pass", $1 }
        $NF == "FAILED" { print "fail", $1 }
        $NF == "skipped" { print "skip", $1 }' "$1"
}

# shellcheck disable=SC2046 # words
sides_up 4G $(all_sides)
export LD_PRELOAD=$work/bin/link_max.so
for side in "${sides[@]}"; do
    log=$work/log/$side
    at=$work/at/$side/cases
    "$pjdfstest" -c "$work/conf.toml" -p "$at" "$@" >"$log" 2>&1 || true
    # A runner that dies has said no summary.
    grep -q '^Summary' "$log" || note "$side" fail 'the runner itself'
    # The cases that remount in a second process: the first never closes what `open::open_trunc`
    # opened for writing, and then no filesystem can become read-only.
    mapfile -t remounts < <(awk '$NF == "skipped" { name = $1 }
        /allow_remount/ { print "pjdfstest::tests::" name }' "$log")
    cases_of "$log" >"$work/result/$side"
    ((${#remounts[@]})) || continue
    "$pjdfstest" -c "$work/remount.toml" -p "$at" --exact "${remounts[@]}" \
        >"$log.remounts" 2>&1 || true
    grep -q '^Summary' "$log.remounts" || note "$side" fail 'the runner itself'
    for case in "${remounts[@]#pjdfstest::tests::}"; do
        sed -i "/^skip $case\$/d" "$work/result/$side"
    done
    cases_of "$log.remounts" >>"$work/result/$side"
done
unset LD_PRELOAD
finish
