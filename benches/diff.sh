#!/bin/bash
# benches/diff.sh [--rounds N] [--small N] [--large MB]: how long it takes to take out what an actor
# wrote, 3 files of 2 GiB together (--large) and 50,000 small ones (--small), as a file on the same
# disk, by
#   tarnfs      tarnfs diff -o FILE
#   tarnfs-lazy the same with --no-sync, as all of the peers do it
#   tarnfs-4096 the same with --align 4096
#   tarnfs-hash the same with --digest, as a layer needs
#   cp          cp -a of the upper
#   tar         GNU tar of the upper to a file
#   two-pass    GNU tar of the upper, and GNU tar of that tar into another
# in turns, N rounds (default 5). Prints medians: seconds until the command ends, seconds until all
# of it is on disk too (sync -f; tarnfs has that done), the largest process in MiB, and how many
# times as long as tarnfs each took, ended and on disk.
#
# Before each run what others wrote is on disk. CACHE=cold drops the machine's page cache as well,
# CACHE=warm (default) reads the upper once before.
# As root. The work directory (BENCH_DIR, default /var/tmp) must be on the disk that is meant, with
# room for four copies of the upper, and is gone afterwards. TARNFS=path takes a program, else it is
# built.
set -euo pipefail
[[ $EUID == 0 ]] || { echo "${0##*/}: needs root" >&2; exit 2; }
die() { echo "${0##*/}: $*" >&2; exit 2; }
rounds=5 small=50000 large=2048
while (($#)); do
    case $1 in
        --rounds) rounds=${2:?}; shift ;;
        --small) small=${2:?}; shift ;;
        --large) large=${2:?}; shift ;;
        *) sed -n '2,22s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
for tool in tar /usr/bin/time python3; do
    command -v "$tool" > /dev/null || die "needs $tool"
done
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$repo/target/release/tarnfs
fi
TARNFS=$(readlink -f "$TARNFS")
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/tarnfs-diff.XXXXXX")
export TARNFS_STORE=$work/store
cleanup() {
    ! mountpoint -q "$work/mount" || "$TARNFS" umount "$work/mount" || :
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

mkdir "$work/tree" "$work/mount"
echo image > "$work/tree/file"
tar -C "$work/tree" -cf "$work/image.tar" .

# What an actor writes, through a mount: $1 is what.
write_upper() {
    "$TARNFS" mount --upper "$work/upper-$1" "$work/image.tar" "$work/mount"
    python3 - "$work/mount" "$1" "$small" "$large" << 'PYTHON'
import os, random, sys
root, what, small, large = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
numbers = random.Random(1)
if what == 'small':
    for n in range(small):
        at = f'{root}/d{n // 1000}/s{n // 100 % 10}'
        if n % 100 == 0:
            os.makedirs(at, exist_ok=True)
        with open(f'{at}/file{n}', 'wb') as file:
            file.write(numbers.randbytes(numbers.randrange(200, 12000)))
else:
    for n in range(3):
        with open(f'{root}/large{n}', 'wb') as file:
            for _ in range(large // 3):
                file.write(numbers.randbytes(1 << 20))
PYTHON
    "$TARNFS" umount "$work/mount"
}

contender() {
    local upper=$1
    case $2 in
        tarnfs) "$TARNFS" diff --upper "$upper" "$work/image.tar" -o "$work/out" ;;
        tarnfs-lazy) "$TARNFS" diff --no-sync --upper "$upper" "$work/image.tar" -o "$work/out" ;;
        tarnfs-4096) "$TARNFS" diff --align 4096 --upper "$upper" "$work/image.tar" -o "$work/out" ;;
        tarnfs-hash) "$TARNFS" diff --digest --upper "$upper" "$work/image.tar" -o "$work/out" > /dev/null ;;
        cp) cp -a "$upper" "$work/out" ;;
        tar) tar --xattrs --xattrs-include='*' --numeric-owner -C "$upper" -cf "$work/out" . ;;
        two-pass)
            tar --xattrs --xattrs-include='*' --numeric-owner -C "$upper" -cf "$work/pass.tar" .
            tar -C "$work" -cf "$work/out" pass.tar
            ;;
    esac
}
export -f contender
export work TARNFS

contenders=(tarnfs tarnfs-lazy tarnfs-4096 tarnfs-hash cp tar two-pass)
for what in large small; do
    write_upper "$what"
    upper=$work/upper-$what
    for ((round = 0; round < rounds; round++)); do
        for who in "${contenders[@]}"; do
            rm -rf "$work/out" "$work/pass.tar"
            sync
            if [[ ${CACHE:-warm} == cold ]]; then
                echo 3 > /proc/sys/vm/drop_caches
            else
                tar -C "$upper" -cf - . | cat > /dev/null
            fi
            start=$EPOCHREALTIME
            /usr/bin/time -o "$work/time" -f %M bash -c 'contender "$@"' - "$upper" "$who"
            end=$EPOCHREALTIME
            sync -f "$work"
            synced=$EPOCHREALTIME
            echo "$who $start $end $synced $(tail -n 1 "$work/time")" >> "$work/times-$what"
        done
    done
    echo "$what: $(du -sh "$upper" | cut -f 1), ${CACHE:-warm}, $rounds rounds"
    python3 - "$work/times-$what" << 'PYTHON'
import statistics, sys
runs = {}
with open(sys.argv[1]) as file:
    for line in file:
        who, start, end, synced, memory = line.split()
        start, end, synced = float(start), float(end), float(synced)
        runs.setdefault(who, []).append((end - start, synced - start, int(memory) / 1024))
medians = {who: [statistics.median(column) for column in zip(*all)] for who, all in runs.items()}
ours = medians['tarnfs']
print(f'{"":12} {"ended s":>8} {"on disk s":>10} {"MiB":>7} {"ended x":>8} {"on disk x":>10}')
for who, (ended, synced, memory) in medians.items():
    print(f'{who:12} {ended:8.2f} {synced:10.2f} {memory:7.1f} {ended / ours[0]:8.2f} {synced / ours[1]:10.2f}')
PYTHON
    rm -rf "$upper" "$upper.work" "$work/out" "$work/pass.tar"
done
