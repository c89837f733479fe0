#!/usr/bin/env bash
# tests/suites/dbench.sh: dbench plays a file server's load, which removes and makes trees, over an
# image that holds the trees of a run before it. It compares sizes and counts and stops at the
# first operation that does not go as recorded.
#
# SECONDS_EACH=n (30), at least 2, the fewest that dbench measures; CLIENTS=n (4); ONLY=regex of
# cases. See lib.sh for the sides and PEERS=1, TARNFS=path.
# shellcheck source-path=SCRIPTDIR source=lib.sh
# shellcheck disable=SC2317 # called by try
. "$(dirname "$(readlink -f "$0")")/lib.sh"
needs dbench
load=/usr/share/dbench/client.txt
clients=${CLIENTS:-4}

declare -A options=(
    [plain]='' [sync]=-s [sync-dir]=-S [fsync]=-F [xattr]=-x [stat-check]=--stat-check
    [all]='-S -F -x'
)
list=()
for case in plain sync sync-dir fsync xattr stat-check all; do
    wanted "$case" && list+=("$case")
done

run() {
    local dir=$1 case=$2 seconds=$3 said
    shift 3
    # shellcheck disable=SC2086 # options
    said=$(timeout $((seconds * 10 + 120)) dbench --directory="$dir" --loadfile="$load" \
        --timelimit="$seconds" ${options[$case]} "$@" "$clients" 2>&1) || {
        echo "$said"
        return 1
    }
    echo "$said"
    # Its status does not tell of every client's error. The semaphore is for its clients' common
    # start, and its key may be taken.
    grep -q '^Throughput [1-9]' <<<"$said" &&
        ! grep -v 'failed to create barrier semaphore' <<<"$said" |
        grep -iE 'error|failed|can.?t' >/dev/null
}

for case in "${list[@]}"; do
    mkdir -p "$work/root/cases/$case"
    run "$work/root/cases/$case" "$case" 2 --skip-cleanup >"$work/log/layout.$case"
done

# shellcheck disable=SC2046 # words
sides_up 6G $(all_sides)
for side in "${sides[@]}"; do
    for case in "${list[@]}"; do
        try "$side" "$case" run "$work/at/$side/cases/$case" "$case" "${SECONDS_EACH:-30}"
        # What it made is still to be removed, after a new mount as well.
        [[ $case != all ]] || side_remount "$side"
        try "$side" "$case, removed" rm -r "$work/at/$side/cases/$case"
    done
done
finish
