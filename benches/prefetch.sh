#!/bin/bash
# benches/prefetch.sh [ROUNDS]: a start-up from a cold disk, without and with --prefetch, in turns.
#
# Makes an image of this machine's node and python3 with their libraries, records the start of
# each, and then mounts and starts it with the tar and its index dropped from the page cache.
# Prints the median of each side in milliseconds, from `tarnfs mount` to the program's end, and
# the ratio. As root; the work directory (BENCH_DIR, default /var/tmp) must be on a disk.
# LATENCY=MICROSECONDS puts the tar on a disk that takes so long for each read, as one across a
# network does (examples/slow-disk.rs). CGROUP=dir is joined before the first start: one with
# blkio.throttle.read_iops_device (or io.max) is a disk of so many reads a second.
# TARNFS=path and SLOW_DISK=path take programs, else they are built. READ_AHEAD=KIB is passed on.
#
# Everything is mounted in a mount namespace of the script's own: nothing stays on the machine.
set -euo pipefail
[[ $EUID == 0 ]] || { echo "${0##*/}: needs root" >&2; exit 2; }
if [[ -z ${TARNFS_BENCH_NAMESPACE:-} ]]; then
    export TARNFS_BENCH_NAMESPACE=1
    exec unshare --mount --propagation private "$(readlink -f "$0")" "$@"
fi
rounds=${1:-9}
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$repo/target/release/tarnfs
fi
if [[ -n ${LATENCY:-} && -z ${SLOW_DISK:-} ]]; then
    (cd "$repo" && cargo build --release --example slow-disk)
    SLOW_DISK=$repo/target/release/examples/slow-disk
fi
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/tarnfs-prefetch.XXXXXX")
mnt=$work/mnt
mkdir "$mnt" "$work/disk" "$work/store"
export TARNFS_STORE=$work/store
tidy() {
    if mountpoint -q "$mnt"; then "$TARNFS" umount --lazy "$mnt"; fi
    if mountpoint -q "$work/disk"; then umount "$work/disk"; fi
    rm -rf "$work"
}
trap tidy EXIT

image=$work/image.tar
files=()
for path in /bin /lib /lib64 /usr/lib64 /etc/ssl /etc/ld.so.cache /usr/bin/env; do
    [[ -e $path ]] && files+=("$path")
done
names=()
if command -v node > /dev/null; then
    node=$(readlink -f "$(command -v node)")
    files+=("$node")
    names+=(node)
fi
for python in /usr/bin/python3 "$(command -v python3 || :)"; do
    [[ -x $python ]] || continue
    python=$(readlink -f "$python")
    files+=("$python" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')")
    names+=(python)
    break
done
[[ ${#names[@]} -gt 0 ]] || { echo "${0##*/}: neither node nor python3" >&2; exit 2; }
mapfile -t libraries < <(find /usr/lib/*-linux-gnu -maxdepth 1 -name '*.so*')
tar -cf "$image" "${files[@]}" "${libraries[@]}" 2> /dev/null
sync "$image"

if [[ -n ${LATENCY:-} ]]; then
    "$SLOW_DISK" "$image" "$work/disk" "$LATENCY" &
    until mountpoint -q "$work/disk"; do sleep 0.1; done
    image=$work/disk/image.tar
fi
[[ -z ${CGROUP:-} ]] || echo $$ > "$CGROUP/cgroup.procs"

# Nothing of the image in memory.
cold() {
    local file
    for file in "$image" $(find "$work/store" -type f); do
        dd if="$file" iflag=nocache count=0 status=none
    done
}
up() { "$TARNFS" mount --tmpfs ${READ_AHEAD:+--read-ahead "$READ_AHEAD"} "$@" "$image" "$mnt"; }
begin() {
    case $1 in
        node) chroot "$mnt" "$node" -e 'for (m of ["https", "zlib", "child_process"]) require(m)' ;;
        python) chroot "$mnt" "$python" -I -c "import asyncio, ssl, sqlite3, email.mime.text, \
http.server, unittest, xml.dom.minidom, decimal, ctypes, logging.config, multiprocessing" ;;
    esac
}
# Milliseconds of a mount and a start; the mount's options follow the program's name.
once() {
    local name=$1 began
    shift
    cold
    began=$(date +%s%N)
    up "$@"
    begin "$name"
    echo $((($(date +%s%N) - began) / 1000))
    "$TARNFS" umount "$mnt"
}
median() { sort -n | awk '{ v[NR] = $1 } END { printf "%.1f", v[int((NR + 1) / 2)] / 1000 }'; }

printf '%-8s %10s %10s %7s   %s rounds, %s MiB of tar\n' program plain prefetch ratio "$rounds" \
    $(($(stat -c %s "$image") >> 20))
for name in "${names[@]}"; do
    cold
    up --record "$work/$name.record"
    begin "$name"
    "$TARNFS" umount "$mnt"
    : > "$work/plain" > "$work/ahead"
    for ((round = 0; round < rounds; round++)); do
        if ((round % 2)); then
            once "$name" >> "$work/plain"
            once "$name" --prefetch "$work/$name.record" >> "$work/ahead"
        else
            once "$name" --prefetch "$work/$name.record" >> "$work/ahead"
            once "$name" >> "$work/plain"
        fi
    done
    plain=$(median < "$work/plain")
    ahead=$(median < "$work/ahead")
    printf '%-8s %10s %10s %7s   %s lines, %s MiB recorded\n' "$name" "$plain" "$ahead" \
        "$(awk "BEGIN { printf \"%.2f\", $ahead / $plain }")" \
        "$(grep -c ' /' "$work/$name.record")" \
        "$(awk '/ \// { s += $2 } END { printf "%.1f", s / 1048576 }' "$work/$name.record")"
done
