#!/usr/bin/env bash
# tests/suites/fio.sh: fio writes blocks that carry their own checksums and reads them back: at
# once, after the caches were dropped, and after a new mount; by several ways into the kernel.
#
# A case is engine.pattern.origin. A file of the image is laid out by fio as well: first all of it
# is verified as it comes from the tar, through the same engine; then its second half is written;
# then the second half must be what was written and the first what it was.
#
# SIZE=MiB of each file (24), a multiple of 3; ONLY=regex of cases. See lib.sh for the sides and
# PEERS=1, TARNFS=path. An ordinary user's mount is one of the sides.
# shellcheck source-path=SCRIPTDIR source=lib.sh
# shellcheck disable=SC2317 # called by try
. "$(dirname "$(readlink -f "$0")")/lib.sh"
needs fio
root=$work/root
half=$((${SIZE:-24} * 1024 * 1024 / 2))

# engine ENGINE: the options of it. Blocks that do not lie on pages where the engine allows it.
engine() {
    case $1 in
        psync) echo --ioengine=psync --bs=1536 ;;
        psync-direct) echo --ioengine=psync --direct=1 --bs=4k ;;
        sync) echo --ioengine=sync --bs=1536 --sync=1 ;;
        vsync) echo --ioengine=vsync --bs=1536 --iodepth=8 ;;
        mmap) echo --ioengine=mmap --bs=4k ;;
        libaio) echo --ioengine=libaio --iodepth=16 --bs=4k ;;
        libaio-direct) echo --ioengine=libaio --iodepth=16 --direct=1 --bs=8k ;;
        threads) echo --ioengine=posixaio --iodepth=8 --bs=4k --thread ;;
    esac
}
list=()
for engine in psync psync-direct sync vsync mmap libaio libaio-direct threads; do
    for pattern in write randwrite; do
        for origin in new image; do
            case=$engine.$pattern.$origin
            wanted "$case" && list+=("$case")
        done
    done
done

# io FILE ENGINE OPTION…
io() {
    local file=$1 engine=$2
    shift 2
    # shellcheck disable=SC2046 # options
    fio --output=/dev/null --name=suite --filename="$file" --verify=crc32c --verify_fatal=1 \
        --verify_dump=0 --verify_state_save=0 --randrepeat=1 --fallocate=none \
        $(engine "$engine") "$@"
}

mkdir "$work/root/cases"
for case in "${list[@]}"; do
    [[ $case != *.image ]] || io "$work/root/cases/$case" "${case%%.*}" --rw=write \
        --size="$((2 * half))" --do_verify=0
done
chmod -R a+rwX "$work/root"

run() {
    local file=$1 engine=$2 pattern=$3 origin=$4
    if [[ $origin == image ]]; then
        io "$file" "$engine" --rw=write --size="$((2 * half))" --verify_only
    fi
    io "$file" "$engine" --rw="$pattern" --size="$half"
    stays "$file" "$origin"
}
again() {
    local file=$1 engine=$2 pattern=$3 origin=$4
    io "$file" "$engine" --rw="$pattern" --size="$half" --verify_only
    stays "$file" "$origin"
}
stays() {
    [[ $2 == new ]] || cmp --ignore-initial="$half" "$1" "$root/cases/${1##*/}"
}

# there SIDE FUNCTION CASE: in a shell where the side is mounted, with -e in force.
there() {
    local side=$1 does=$2 case=$3 words
    IFS=. read -ra words <<<"$case"
    on "$side" timeout 900 bash -ec "$(declare -f engine io stays run again)
        half=$half root=$root
        \"\$@\"" bash "$does" "$work/at/$side/cases/$case" "${words[@]}"
}

# shellcheck disable=SC2046 # words
sides_up 6G $(all_sides) user
for side in "${sides[@]}"; do
    for case in "${list[@]}"; do
        try "$side" "$case" there "$side" run "$case"
    done
    sync
    echo 3 >/proc/sys/vm/drop_caches
    for case in "${list[@]}"; do
        try "$side" "$case, caches dropped" there "$side" again "$case"
    done
    side_remount "$side"
    for case in "${list[@]}"; do
        try "$side" "$case, new mount" there "$side" again "$case"
    done
done
finish
