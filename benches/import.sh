#!/bin/bash
# benches/import.sh [--rounds N] [--large] [LAYOUT:TAG]: how long it takes until an image in an OCI
# layout can be used, from nothing, by
#   tarnfs      tarnfs import oci:LAYOUT
#   umoci       skopeo copy to another layout, and umoci unpack of that
#   podman      podman pull oci:LAYOUT, which unpacks, into a storage of its own
#   containerd  ctr image import, which unpacks, into a containerd of its own (where that runs)
# in turns, N rounds (default 5). Prints medians: seconds until the command ends, seconds until all
# of it is on disk too (sync -f; tarnfs has that done), seconds of processor time, the largest
# process in MiB, and the ratio to tarnfs. Then where the import's time goes, a second image on the
# same base, and the same image with zstd and with uncompressed layers.
# --large: also an import of a generated image of LARGE_MB (4096), half of it random, in 8 layers.
#
# Without LAYOUT the image is made of a root filesystem: of ROOT_TAR=file, else of what
# tests/images/make-real-image.sh makes; in LAYERS (8) layers and one with changes, gzip by umoci.
#
# Before each run what others wrote is on disk and the machine's page cache is dropped; then the
# layout is read once, since an image that is being pulled comes from memory and not from this disk
# (COLD=1 leaves that out, DROP=0 drops nothing).
# As root. The work directory (BENCH_DIR, default /var/tmp) must be on the disk that is meant, with
# room for three copies of the image, and is gone afterwards. TARNFS=path takes a program, else it
# is built.
#
# Everything is mounted in a mount namespace of the script's own: nothing stays on the machine.
set -euo pipefail
[[ $EUID == 0 ]] || { echo "${0##*/}: needs root" >&2; exit 2; }
if [[ -z ${TARNFS_BENCH_NAMESPACE:-} ]]; then
    export TARNFS_BENCH_NAMESPACE=1
    exec unshare --mount --propagation private "$(readlink -f "$0")" "$@"
fi
die() { echo "${0##*/}: $*" >&2; exit 2; }
say() { echo "${0##*/}: $*" >&2; }
rounds=5 large= image=
while (($#)); do
    case $1 in
        --rounds) rounds=${2:?}; shift ;;
        --large) large=1 ;;
        -*) sed -n '2,25s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
        *) image=$1 ;;
    esac
    shift
done
for tool in skopeo umoci jq /usr/bin/time; do
    command -v "$tool" > /dev/null || die "needs $tool"
done
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$repo/target/release/tarnfs
fi
TARNFS=$(readlink -f "$TARNFS")
[[ -z $image ]] || image=$(readlink -f "${image%:*}"):${image##*:}
[[ -z ${ROOT_TAR:-} ]] || ROOT_TAR=$(readlink -f "$ROOT_TAR")
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/tarnfs-import.XXXXXX")
export TMPDIR=$work/tmp
mkdir "$TMPDIR"
daemon=
unmount_below() {
    local at
    while read -r at; do umount -l "$at"; done \
        < <(awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
}
stop_daemon() {
    [[ -n $daemon ]] || return 0
    kill "$daemon"
    wait "$daemon" || :
    daemon=
}
tidy() {
    stop_daemon
    cd /
    unmount_below "$work"
    rm -rf --one-file-system "$work"
}
trap tidy EXIT
# Relative: podman takes the path for a name, and allows no capital letters.
cd "$work"

# ---- the images ------------------------------------------------------------------------------

# add TAR TAG: one more layer, as gzip.
add() { umoci raw add-layer --image "layout:$2" "$1" && rm "$1"; }

make_image() {
    local tar=${ROOT_TAR:-} n=0 part
    if [[ -z $tar ]]; then tar=$("$repo/tests/images/make-real-image.sh")/real.pax.tar; fi
    say "an image of $tar"
    mkdir root changes
    tar --numeric-owner --xattrs --xattrs-include='*' -xpf "$tar" -C root
    # Of equally many files each; all directories with the first. Names of one file that come to
    # different layers are two files.
    (cd root && find . -type d -print0) > dirs
    (cd root && find . ! -type d -print0 | LC_ALL=C sort -z) > names
    split -t '\0' -n "l/${LAYERS:-8}" -d names part.
    umoci init --layout layout
    umoci new --image layout:first
    for part in part.*; do
        if ((n++ == 0)); then cat dirs "$part" > both; else cp "$part" both; fi
        tar --format=pax --numeric-owner --xattrs --xattrs-include='*' --no-recursion -C root \
            --null -T "$work/both" -cf layer.tar
        add layer.tar first
    done
    # As an upgrade: some files come again, some go.
    (cd root && find . -xdev -type f -path '*/lib/*' | LC_ALL=C sort | awk 'NR % 50 == 1') > again
    tar -C root -cf - --no-recursion -T "$work/again" | tar -C changes -xpf -
    while read -r gone; do
        : > "changes/${gone%/*}/.wh.${gone##*/}"
        rm "changes/$gone"
    done < <(awk 'NR % 5 == 1' again)
    tar --format=pax --numeric-owner -C changes -cf layer.tar .
    add layer.tar first
    rm -rf root changes dirs names both again part.*
}

if [[ -n $image ]]; then
    skopeo copy --quiet "oci:$image" oci:layout:first
else
    make_image
fi
# One layer more.
umoci tag --image layout:first second
mkdir -p app/srv
head -c 5000000 /dev/urandom > app/srv/random
tar -C app -cf layer.tar srv
add layer.tar second
rm -r app
say 'the same as zstd and uncompressed'
skopeo copy --quiet --dest-compress --dest-compress-format zstd oci:layout:first oci:zstd:first
skopeo copy --quiet oci:layout:first docker-archive:plain.tar:first:latest
skopeo copy --quiet --dest-oci-accept-uncompressed-layers docker-archive:plain.tar oci:plain:first
rm plain.tar

# manifest LAYOUT TAG
manifest() {
    local digest
    digest=$(jq -r --arg tag "$2" '.manifests[]
        | select(.annotations["org.opencontainers.image.ref.name"] == $tag).digest' "$1/index.json")
    cat "$1/blobs/sha256/${digest#sha256:}"
}
# sizes LAYOUT: layers and bytes of them.
sizes() { manifest "$1" first | jq -r '[(.layers | length), (.layers | map(.size) | add)] | @tsv'; }

# ---- the contenders --------------------------------------------------------------------------

# begin LAYOUT: nothing is left of the run before.
begin() {
    stop_daemon
    unmount_below "$work/run"
    rm -rf --one-file-system run
    mkdir run
    sync
    [[ ${DROP:-1} == 0 ]] || echo 3 > /proc/sys/vm/drop_caches
    [[ -n ${COLD:-} ]] || cat "$1"/blobs/sha256/* > /dev/null
}
podman_() {
    podman --root run/root --runroot run/run --tmpdir run/tmp --storage-driver overlay "$@"
}
# What is not timed: an archive, which ctr takes and no layout, and a daemon.
prepare_containerd() {
    skopeo copy --quiet "oci:$1:first" oci-archive:run/image.tar:first
    sync
    containerd --root "$work/run/root" --state "$work/run/state" --address "$work/run/socket" \
        > run/log 2>&1 &
    daemon=$!
    until ctr --address run/socket version > /dev/null 2>&1; do
        kill -0 "$daemon" 2> /dev/null || return 1
        sleep 0.1
    done
}
# pull WHO LAYOUT TAG
pull() {
    case $1 in
        tarnfs) "$TARNFS" --store run/store import --json "oci:$2:$3" > run/json ;;
        umoci)
            skopeo copy --quiet "oci:$2:$3" "oci:run/copy:$3"
            umoci unpack --image "run/copy:$3" "run/bundle-$3" > /dev/null
            ;;
        podman) podman_ pull --quiet "oci:$2:$3" > /dev/null ;;
        containerd) ctr --address run/socket image import --base-name bench run/image.tar > /dev/null ;;
    esac
}
export -f pull podman_
export TARNFS
# timed WHO LAYOUT TAG FILE: appends "seconds seconds-on-disk processor-seconds MiB" to FILE.
timed() {
    local began ended synced
    began=$(date +%s%N)
    /usr/bin/time -o run/time -f '%U %S %M' bash -euc 'pull "$@"' pull "$1" "$2" "$3" 2> run/said ||
        { cat run/said >&2; return 1; }
    ended=$(date +%s%N)
    sync -f run
    synced=$(date +%s%N)
    awk -v wall=$((ended - began)) -v disk=$((synced - began)) \
        '{ printf "%.4f %.4f %.2f %.1f\n", wall / 1e9, disk / 1e9, $1 + $2, $3 / 1024 }' \
        run/time >> "$4"
}
# median FILE COLUMN
median() { awk -v c="$2" '{ print $c }' "$1" | sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
ratio() { awk "BEGIN { printf \"%.2f\", $1 / $2 }"; }

who=(tarnfs umoci)
! command -v podman > /dev/null || who+=(podman)
if command -v containerd > /dev/null && command -v ctr > /dev/null; then
    begin layout
    if prepare_containerd layout; then who+=(containerd); else say 'containerd does not run here'; fi
fi

# ---- from nothing ----------------------------------------------------------------------------

# table LAYOUT WHO...
table() {
    local layout=$1 round n one count bytes
    shift
    rm -f times.*
    for ((round = 0; round < rounds; round++)); do
        # In turns, each time another one first.
        for ((n = 0; n < $#; n++)); do
            one=${@:(round + n) % $# + 1:1}
            begin "$layout"
            [[ $one != containerd ]] || prepare_containerd "$layout"
            timed "$one" "$layout" first "times.$one"
            case $layout-$one in
                layout-tarnfs)
                    cat run/json >> "times.json"
                    timed "$one" "$layout" second times.second.tarnfs
                    cat run/json >> "times.second.json"
                    ;;
                layout-podman | layout-umoci) timed "$one" "$layout" second "times.second.$one" ;;
            esac
        done
    done
    read -r count bytes < <(sizes "$layout")
    printf '\n%s: %s layers, %.1f MiB; medians of %s rounds\n' "$layout" "$count" \
        "$(awk "BEGIN { print $bytes / 1048576 }")" "$rounds"
    rows times "$@"
}
# rows PREFIX WHO...
rows() {
    local prefix=$1 one base
    shift
    base=$(median "$prefix.tarnfs" 1)
    printf '%-12s %9s %9s %9s %9s %9s\n' '' seconds 'on disk' CPU MiB 'x tarnfs'
    for one; do
        [[ -e $prefix.$one ]] || continue
        if [[ $one == containerd ]]; then
            # The daemon's are not the command's.
            printf '%-12s %9.3f %9.3f %9s %9s %9s\n' "$one" "$(median "$prefix.$one" 1)" \
                "$(median "$prefix.$one" 2)" - - "$(ratio "$(median "$prefix.$one" 1)" "$base")"
        else
            printf '%-12s %9.3f %9.3f %9.2f %9.1f %9s\n' "$one" "$(median "$prefix.$one" 1)" \
                "$(median "$prefix.$one" 2)" "$(median "$prefix.$one" 3)" \
                "$(median "$prefix.$one" 4)" "$(ratio "$(median "$prefix.$one" 1)" "$base")"
        fi
    done
}
# parts FILE: where the import's time goes: sums over threads, which may be more than the total.
# Of decompressing and hashing it is processor time, of the others that of the clock.
parts() {
    jq -rs --argjson cpu "$(median times.tarnfs 3)" '
        (length / 2 | floor) as $middle | sort_by(.seconds.total)[$middle] | .seconds
        | . as $s | to_entries[] | select(.key != "total")
        | "  \(.key)\t\(.value * 1000 | round) ms\t\(.value / $s.total * 100 | round)% of the time"
          + if (.key == "decompressing" or .key == "hashing") and $cpu > 0
            then "\t\(.value / $cpu * 100 | round)% of the processor time" else "" end' "$1" |
        column -t -s $'\t'
}

table layout "${who[@]}"
echo "where tarnfs spends it:"
parts times.json
printf '\na second image on the same base, of one layer more: %s layers, %s bytes read\n' \
    "$(jq -rs '.[0].layers.fetched' times.second.json)" "$(jq -rs '.[0].bytes.read' times.second.json)"
rows times.second "${who[@]}"
compressed=(tarnfs)
[[ ${who[*]} != *podman* ]] || compressed+=(podman)
table zstd "${compressed[@]}"
table plain tarnfs umoci "${compressed[@]:1}"

# ---- a large one -----------------------------------------------------------------------------

if [[ -n $large ]]; then
    stop_daemon
    rm -rf --one-file-system layout zstd plain run
    umoci init --layout layout
    umoci new --image layout:first
    piece=$((${LARGE_MB:-4096} * 1048576 / 32))
    for n in {1..8}; do
        mkdir "large$n"
        head -c "$piece" /dev/urandom > "large$n/random"
        head -c "$piece" /dev/urandom > "large$n/more"
        yes "line of layer $n, the same again and again" | head -c $((piece * 2)) > "large$n/text" || :
        tar --remove-files -cf layer.tar "large$n"
        add layer.tar first
    done
    rm -f times.*
    begin layout
    timed tarnfs layout first times.tarnfs
    read -r count bytes < <(sizes layout)
    printf '\nlarge: %s layers, %.1f MiB stored, %.1f MiB of files; one run\n' "$count" \
        "$(awk "BEGIN { print $bytes / 1048576 }")" "${LARGE_MB:-4096}"
    rows times tarnfs
    parts run/json
fi
