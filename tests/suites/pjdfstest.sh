#!/usr/bin/env bash
# tests/suites/pjdfstest.sh [PATTERN…]: the Rust pjdfstest, as root, on plain ext4 and on a tarnfs
# mount with its upper on the same ext4, over an image that holds files where the cases run. Every
# case that passes on ext4 must pass on tarnfs.
#
# With PEERS=1 overlayfs and fuse-overlayfs run as well, over the unpacked image, for comparison.
#
# The ext4 is a loop device of its own. Cases that remount are left out on both sides: they would
# need tarnfs installed as mount.fuse.tarnfs. TARNFS=path takes a program; else it is built.
set -euo pipefail
repo=$(dirname "$(readlink -f "$0")")/../..
cache=${TARNFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tarnfs-tests}
version=0.2.2

((EUID == 0)) || { echo 'pjdfstest.sh: needs root' >&2; exit 2; }
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$(readlink -f "$repo")/target/release/tarnfs
fi
pjdfstest=$cache/bin/pjdfstest
[[ -x $pjdfstest ]] || cargo install --quiet --locked --root "$cache" "pjdfstest@$version"

work=$(mktemp -d /var/tmp/tarnfs-pjdfstest.XXXXXX)
# Cases run as other users too.
chmod 755 "$work"
export TARNFS_STORE=$work/store
cleanup() {
    "$TARNFS" umount "$work/mnt" || true
    for peer in overlayfs fuse-overlayfs; do
        umount "$work/$peer" 2>/dev/null || true
    done
    umount "$work/disk" || true
    rm -rf "$work"
}
trap cleanup EXIT

truncate -s 4G "$work/disk.img"
mkfs.ext4 -q "$work/disk.img"
mkdir "$work/disk" "$work/mnt"
mount -o loop "$work/disk.img" "$work/disk"
mkdir -p "$work/disk/"{plain,upper,work} "$work/root/cases/deep"
for i in {1..50}; do echo "$i" >"$work/root/cases/file$i"; done
ln "$work/root/cases/file1" "$work/root/cases/deep/link"
chmod 1777 "$work/root/cases"
tar --xattrs -C "$work/root" -cf "$work/image.tar" .
cp -a "$work/root/cases" "$work/disk/plain/"
"$TARNFS" mount --upper "$work/disk/upper" --work "$work/disk/work" "$work/image.tar" "$work/mnt"

cat >"$work/conf.toml" <<'TOML'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
TOML
sides=(plain mnt)
if [[ -n ${PEERS:-} ]]; then
    cp -a "$work/root" "$work/disk/lower"
    for peer in overlayfs fuse-overlayfs; do
        mkdir -p "$work/disk/$peer/"{upper,work} "$work/$peer"
        at=lowerdir=$work/disk/lower,upperdir=$work/disk/$peer/upper,workdir=$work/disk/$peer/work
        if [[ $peer == overlayfs ]]; then
            mount -t overlay overlay -o "$at" "$work/$peer"
        else
            fuse-overlayfs -o "$at" "$work/$peer"
        fi
        sides+=("$peer")
    done
fi
for side in "${sides[@]}"; do
    dir=$work/$side/cases
    [[ $side != plain ]] || dir=$work/disk/plain/cases
    "$pjdfstest" -c "$work/conf.toml" -p "$dir" "$@" >"$work/$side.log" 2>&1 || true
    grep -E '^[a-z_0-9:]+ +ok$' "$work/$side.log" | awk '{print $1}' | sort >"$work/$side.ok"
    printf '%-14s %s\n' "$side" "$(grep '^Summary' "$work/$side.log")"
done
(grep -E 'FAILED' "$work/mnt.log" || true) | awk '{print $1}' | sort >"$work/mnt.failed"
if [[ ! -s $work/plain.ok ]]; then
    echo 'pjdfstest.sh: nothing passes on ext4: the suite did not run' >&2
    tail -20 "$work/plain.log" >&2
    exit 1
fi
lost=$(comm -12 "$work/plain.ok" "$work/mnt.failed")
if [[ -n $lost ]]; then
    echo 'passes on ext4, fails on tarnfs:'
    echo "$lost"
    exit 1
fi
skipped=$(comm -23 "$work/plain.ok" "$work/mnt.ok" | tr '\n' ' ')
echo "no case that passes on ext4 fails on tarnfs; passes on ext4, not run on tarnfs: ${skipped:-none}"
