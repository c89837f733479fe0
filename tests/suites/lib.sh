# tests/suites/lib.sh: what the suites have in common; sourced, never run.
#
# A suite runs the same cases on several sides and notes how each went. The sides:
#   plain           a directory of an ext4, the measure
#   mnt             tarnfs with its upper on another ext4, over an image of the same files
#   overlayfs, fuse-overlayfs   with PEERS=1, for comparison, over the unpacked image
#   user            tarnfs mounted by an ordinary user, in a user namespace of its own
#
# What passes on plain must pass on mnt and user. `finish` prints one line a side, names every
# difference, and gives the exit status.
#
# Everything is mounted in a mount namespace of the script's own: nothing stays on the machine.
# TARNFS=path takes a program; else it is built. OPTIONS=noopen (say) are mnt's mount options.
# shellcheck shell=bash

set -euo pipefail
[[ $EUID == 0 ]] || { echo "${0##*/}: needs root" >&2; exit 2; }
if [[ -z ${TARNFS_SUITE_NAMESPACE:-} ]]; then
    export TARNFS_SUITE_NAMESPACE=1
    exec unshare --mount --propagation private "$(readlink -f "$0")" "$@"
fi

suite=$(basename "$0" .sh)
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/../..")
cache=${TARNFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tarnfs-tests}
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$repo/target/release/tarnfs
fi
# Other users run it as well, and may not see where it lies.
program=$TARNFS
umask 022
export LC_ALL=C.UTF-8

work=$(mktemp -d "/var/tmp/tarnfs-$suite.XXXXXX")
chmod 755 "$work"
mkdir "$work/bin" "$work/log" "$work/result" "$work/root" "$work/at"
cp "$program" "$work/bin/tarnfs"
TARNFS=$work/bin/tarnfs
export TARNFS_STORE=$work/store
holder=

# shellcheck disable=SC2317 # called by the trap
cleanup() {
    local status=$? at
    cd /
    if [[ -n $holder ]]; then
        # Its server goes with its mount, and that with the namespace.
        kill "$holder" 2>/dev/null || true
        wait "$holder" 2>/dev/null || true
    fi
    # What is mounted below $work, the last first.
    while read -r at; do
        "$TARNFS" umount "$at" 2>/dev/null || umount "$at" 2>/dev/null || umount -l "$at" || true
    done < <(awk -v w="$work/" 'index($5, w) == 1 { print $5 }' /proc/self/mountinfo | tac)
    if ((status != 0)) || [[ ${KEEP:-} ]]; then
        local kept
        kept=$(mktemp -d "/var/tmp/tarnfs-$suite.log.XXXXXX")
        cp -r "$work/log/." "$kept/"
        echo "$suite: the output is kept in $kept" >&2
    fi
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

# crate NAME VERSION: a test program from crates, kept in the cache; prints its path.
crate() {
    local at=$cache/bin/$1
    [[ -x $at ]] || cargo install --quiet --locked --root "$cache" "$1@$2" >&2
    cp "$at" "$work/bin/$1"
    echo "$work/bin/$1"
}

needs() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "$suite: needs $program" >&2; exit 2; }
    done
}

# disk SIDE SIZE: an ext4 of the side's own in $work/disk/SIDE, so that no side holds another's.
disk() {
    mkdir -p "$work/disk/$1"
    truncate -s "$2" "$work/disk/$1.img"
    mkfs.ext4 -q "$work/disk/$1.img"
    mount -o loop "$work/disk/$1.img" "$work/disk/$1"
}

# sides_up SIZE SIDE…: packs $work/root and brings the sides up, each on a disk of SIZE.
sides_up() {
    local size=$1 side
    shift
    sides=("$@")
    tar --xattrs --sparse -C "$work/root" -cf "$work/image.tar" .
    # First: the namespace is a copy, and a mount that it has as well outlives its unmounting here.
    if [[ " $* " == *' user '* ]]; then hold_user_namespace "$size"; fi
    for side in "${sides[@]}"; do
        if [[ $side != user ]]; then
            disk "$side" "$size"
            mkdir "$work/disk/$side/"{upper,work}
        fi
        case $side in
            plain | overlayfs | fuse-overlayfs) cp -a "$work/root" "$work/disk/$side/root" ;;
        esac
        side_mount "$side"
    done
}

# all_sides: the sides that root has, with those that PEERS asks for.
all_sides() {
    echo plain mnt ${PEERS:+overlayfs fuse-overlayfs}
}

# side_mount SIDE: at $work/at/SIDE.
side_mount() {
    local at=$work/at/$1 disk=$work/disk/$1 options
    options=lowerdir=$disk/root,upperdir=$disk/upper,workdir=$disk/work
    mkdir -p "$at"
    case $1 in
        plain) mount --bind "$disk/root" "$at" ;;
        mnt)
            "$TARNFS" mount ${OPTIONS:+-o "$OPTIONS"} --upper "$disk/upper" --work "$disk/work" \
                "$work/image.tar" "$at"
            ;;
        overlayfs) mount -t overlay overlay -o "$options" "$at" ;;
        fuse-overlayfs) fuse-overlayfs -o "$options" "$at" ;;
        user)
            on user "$TARNFS" mount --store "$disk/store" --upper "$disk/upper" \
                --work "$disk/work" "$work/image.tar" "$at"
            ;;
    esac
}

side_umount() {
    case $1 in
        mnt | user) on "$1" "$TARNFS" umount "$work/at/$1" ;;
        *) umount "$work/at/$1" ;;
    esac
}

side_remount() {
    side_umount "$1"
    side_mount "$1"
}

# hold_user_namespace SIZE: a process of nobody's in a user and a mount namespace of its own, in
# which /dev/fuse may be opened (the machine's may belong to root alone), and there a disk of his.
hold_user_namespace() {
    local dev=$work/dev own=$work/disk/user
    mkdir "$dev"
    mount -t tmpfs -o mode=755 tmpfs "$dev"
    mknod -m 666 "$dev/fuse" c 10 229
    mount --bind "$dev/fuse" /dev/fuse
    disk user "$1"
    mkdir "$own/"{upper,work,store} "$work/at/user"
    chown nobody "$own/"{upper,work,store} "$work/at/user"
    mkfifo "$work/ready"
    setpriv --reuid=nobody --regid=nogroup --clear-groups \
        unshare --user --map-root-user --mount --propagation private \
        sh -ec 'echo >&3; exec sleep infinity 3>&-' 3>"$work/ready" &
    holder=$!
    read -r <"$work/ready"
}

# on SIDE CMD…: as the side's user, where the side is mounted.
on() {
    local side=$1
    shift
    if [[ $side == user ]]; then
        nsenter --target "$holder" --user --mount --wdns="$work" -- "$@"
    else
        "$@"
    fi
}

# note SIDE pass|fail|skip CASE
note() {
    echo "$2 $3" >>"$work/result/$1"
}

# try SIDE CASE CMD…: notes how CMD went. What it says goes to the log.
try() {
    local side=$1 case=$2 log
    shift 2
    log=$work/log/$side.${case//[^a-zA-Z0-9_.,-]/_}
    if "$@" >"$log" 2>&1; then
        note "$side" pass "$case"
    else
        note "$side" fail "$case"
        echo "$suite $side: $case failed:"
        tail -n 15 "$log" | cut -c -200 | sed 's/^/    /'
    fi
}

# wanted CASE: whether ONLY, a regular expression, leaves it.
wanted() {
    [[ ! ${ONLY:-} || $1 =~ $ONLY ]]
}

# cases SIDE pass|fail|skip
cases() {
    sed -n "s/^$2 //p" "$work/result/$1" | sort
}

# finish: the summary; fails if tarnfs fails what passes on ext4, or if nothing ran there.
finish() {
    local side bad=0 lost kind
    for side in "${sides[@]}"; do
        touch "$work/result/$side"
        printf '%s %s: %d passed, %d failed, %d not run\n' "$suite" "$side" \
            "$(cases "$side" pass | wc -l)" "$(cases "$side" fail | wc -l)" \
            "$(cases "$side" skip | wc -l)"
    done
    for side in "${sides[@]}"; do
        for kind in fail skip; do
            if [[ $side == plain ]]; then
                lost=$(cases plain "$kind")
            else
                lost=$(comm -13 <(cases plain "$kind") <(cases "$side" "$kind"))
            fi
            [[ -n $lost ]] || continue
            case $side:$kind in
                plain:*) echo "$suite: $kind on ext4:" ;;
                *) echo "$suite: $kind on $side, not on ext4:" ;;
            esac
            head -n 60 <<<"$lost" | sed 's/^/    /'
            case $side:$kind in mnt:fail | user:fail) bad=1 ;; esac
        done
    done
    if [[ -z $(cases plain pass) ]]; then
        echo "$suite: nothing passes on ext4: the suite did not run" >&2
        bad=1
    fi
    exit "$bad"
}
