#!/usr/bin/env bash
# tests/suites/fsx.sh: fsx (File System eXerciser) on files of the image and on new ones. It does
# random operations on one file and compares what it reads with what it knows.
#
# fsx begins with an empty file (O_TRUNC), or in its block mode with one that is as long as it is,
# whose first part it fills with zeros. So files of the image are brought to the upper by a cut, or
# by a first write of which the rest must stay. Of each file the bytes after the run are the same
# on all sides, since operations follow from the seed alone; and again after a new mount.
#
# OPS=n operations of each run (10,000), SEEDS="1 2 …" (1 2), ONLY=regex of cases. See lib.sh for
# the sides and PEERS=1, TARNFS=path. An ordinary user's mount is one of the sides.
# shellcheck source-path=SCRIPTDIR source=lib.sh
# shellcheck disable=SC2317 # called by try
. "$(dirname "$(readlink -f "$0")")/lib.sh"
fsx=$(crate fsx 0.3.2)
ops=${OPS:-10000}
read -ra seeds <<<"${SEEDS:-1 2}"

# The configurations: everything; small operations that seldom lie on pages; whole pages of a large
# file; few writes and much of the rest; block mode.
conf() {
    local name=$1 head=$2 max=$3 align=$4
    shift 4
    {
        printf '%s\n[opsize]\nmax = %s\nalign = %s\n[weights]\n' "$head" "$max" "$align"
        printf '%s\n' "$@"
    } >"$work/$name.toml"
}
all=('read = 10' 'write = 10' 'mapread = 10' 'mapwrite = 10' 'fsync = 1' 'fdatasync = 1'
    'invalidate = 2' 'sendfile = 5' 'posix_fadvise = 2' 'copy_file_range = 5' 'punch_hole = 3')
sizes=('truncate = 5' 'posix_fallocate = 3' 'close_open = 2')
conf all '' 65536 1 "${all[@]}" "${sizes[@]}"
conf small 'flen = 40000' 3000 1 "${all[@]}" "${sizes[@]}"
# Aligned, fsx comes to lengths of 0, which posix_fallocate(3) refuses everywhere.
conf pages 'flen = 4194304' 262144 4096 "${all[@]}" "${sizes[@]/posix_fallocate = 3/posix_fallocate = 0}"
conf reopen '' 65536 1 "${all[@]}" "${sizes[@]/close_open = 2/close_open = 30}"
conf nomsync 'nomsyncafterwrite = true' 65536 1 "${all[@]}" "${sizes[@]}"
conf block $'flen = 262144\nblockmode = true' 65536 1 "${all[@]}" \
    'truncate = 0' 'posix_fallocate = 0' 'close_open = 0'

# The files, one for each run, as a run must not begin with what another left behind.
origins=(new image hole linked)
list=()
for conf in all small pages reopen nomsync block; do
    for origin in "${origins[@]}"; do
        # Block mode needs the file to be there.
        [[ $conf-$origin != block-new ]] || continue
        for seed in "${seeds[@]}"; do
            case=$conf.$origin.$seed
            wanted "$case" && list+=("$case")
        done
    done
done
mkdir "$work/root/cases"
for case in "${list[@]}"; do
    file=$work/root/cases/$case
    case $case in
        *.image.*) head -c 1000000 /dev/urandom >"$file" ;;
        *.hole.*)
            truncate -s 1500000 "$file"
            for at in 0 100 200; do
                head -c 5000 /dev/urandom | dd of="$file" bs=4096 seek="$at" conv=notrunc status=none
            done
            ;;
        *.linked.*)
            head -c 1000000 /dev/urandom >"$file"
            ln "$file" "$file.other"
            ;;
    esac
done
chmod -R a+rwX "$work/root"

run() {
    local side=$1 case=$2 seed=${2##*.}
    on "$side" timeout 1800 "$fsx" -f "$work/${case%%.*}.toml" -S "$seed" -N "$ops" \
        -P "$work/log" "$work/at/$side/cases/$case"
}
sums() { (cd "$work/at/$1/cases" && find . -type f -exec sha256sum {} + | sort -k 2); }

# After a run: the same bytes as on ext4, under each name.
same() {
    local side=$1 case=$2 when=$3
    grep -qF "./$case" "$work/sums.plain"
    diff <(grep -F "./$case" "$work/sums.plain") <(grep -F "./$case" "$work/sums.$side.$when")
}

# shellcheck disable=SC2046 # words
sides_up 6G $(all_sides) user
chmod 1777 "$work/log"
for side in "${sides[@]}"; do
    for case in "${list[@]}"; do
        try "$side" "$case" run "$side" "$case"
    done
    # Several at once, of different files, with reads and writes of each other's server between.
    if wanted together; then
        together() {
            local n pids=() bad=0
            for n in 1 2 3 4; do
                on "$side" timeout 1800 "$fsx" -f "$work/all.toml" -S "10$n" -N "$ops" \
                    -P "$work/log" "$work/at/$side/cases/together$n" &
                pids+=($!)
            done
            for n in "${pids[@]}"; do wait "$n" || bad=1; done
            return "$bad"
        }
        try "$side" together together
    fi
    on "$side" bash -c "$(declare -f sums); work=$work; sums $side" >"$work/sums.$side.before"
    if [[ $side == plain ]]; then
        cp "$work/sums.plain.before" "$work/sums.plain"
    fi
    side_remount "$side"
    on "$side" bash -c "$(declare -f sums); work=$work; sums $side" >"$work/sums.$side.after"
    for when in before after; do
        for case in "${list[@]}"; do
            try "$side" "$case: bytes $when a new mount" same "$side" "$case" "$when"
        done
    done
done
finish
