#!/usr/bin/env bash
# tests/suites/stress-ng.sh: every stressor of stress-ng's class "filesystem" that works in a
# directory, as root and as an ordinary user, in a directory of the image. What passes on ext4 must
# pass on tarnfs.
#
# SECONDS_EACH=n (5), ONLY=regex of cases; a case is the stressor's name, and "NAME as nobody". All
# sides run a case at the same time. See lib.sh for the sides and PEERS=1, TARNFS=path. The ordinary
# user's own mount has the cases as nobody.
# shellcheck source-path=SCRIPTDIR source=lib.sh
# shellcheck disable=SC2317 # called by try
. "$(dirname "$(readlink -f "$0")")/lib.sh"
needs stress-ng setpriv

# Stressors that do not touch the directory they are given.
declare -A elsewhere
elsewhere[bind-mount]='binds / of the machine, again and again'
elsewhere[binderfs]='mounts binderfs'
elsewhere[eventfd]='has no files'
elsewhere[procfs]='reads /proc'

seconds=${SECONDS_EACH:-5}
read -ra stressors < <(stress-ng --class 'filesystem?' 2>&1 | sed -n 's/^class .* stressors: //p')
((${#stressors[@]} > 20)) || { echo 'stress-ng.sh: stress-ng names no stressors' >&2; exit 2; }

mkdir -p "$work/root/cases/"{root,nobody}
for dir in root nobody; do
    for i in {1..50}; do echo "$i" >"$work/root/cases/$dir/file$i"; done
done
chmod 1777 "$work/root/cases/nobody"

# run SIDE root|nobody STRESSOR
run() {
    local side=$1 user=$2 stressor=$3 as=()
    case $side:$user in
        # Root of its namespace, but without a capability there.
        user:*) as=(setpriv --bounding-set=-all --inh-caps=-all) ;;
        *:nobody) as=(setpriv --reuid=nobody --regid=nogroup --clear-groups) ;;
    esac
    on "$side" timeout $((seconds * 10 + 60)) "${as[@]}" stress-ng "--$stressor" 2 --verify \
        --timeout "${seconds}s" --temp-path "$work/at/$side/cases/$user" --no-rand-seed
}

# outcome SIDE CASE USER STRESSOR: stress-ng(1), "EXIT STATUS": 3 no resources, 4 not implemented,
# and skipped stressors say so.
outcome() {
    local side=$1 case=$2 log status=0
    log=$work/log/$side.${case// /_}
    run "$side" "$3" "$4" >"$log" 2>&1 || status=$?
    if ((status == 3 || status == 4)) || { ((status == 0)) && grep -qE 'skipped|skipping' "$log"; }; then
        note "$side" skip "$case"
    elif ((status == 0)); then
        note "$side" pass "$case"
    else
        note "$side" fail "$case"
        echo "$suite $side: $case failed ($status):"
        grep -vE 'dispatching|setting to' "$log" | tail -n 6 | cut -c -200 | sed 's/^/    /'
    fi
}

# shellcheck disable=SC2046 # words
sides_up 6G $(all_sides) user
for user in root nobody; do
    for stressor in "${stressors[@]}"; do
        [[ -z ${elsewhere[$stressor]:-} ]] || continue
        case=$stressor
        [[ $user == root ]] || case+=' as nobody'
        wanted "$case" || continue
        pids=()
        for side in "${sides[@]}"; do
            [[ $side:$user != user:root ]] || continue
            outcome "$side" "$case" "$user" "$stressor" &
            pids+=($!)
        done
        wait "${pids[@]}"
    done
done
for stressor in "${!elsewhere[@]}"; do
    echo "stress-ng: $stressor is left out: ${elsewhere[$stressor]}"
done
finish
