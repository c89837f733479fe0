#!/usr/bin/env bash
# tests/e2e_real.sh [IMAGE-DIR]: everything tarnfs promises, on the real image (some 150,000
# entries; tests/images/make-real-image.sh makes it if it is not there). By hand, as root; takes
# the better part of an hour. Each step prints its command, its result and its time; a table at the
# end; exit status 1 if a step failed.
#
# Of an interrupted run, what the OCI runtimes keep under /run may stay.
#
# ONLY=regex runs only the steps whose names match. TARNFS=path takes another program.
#
# shellcheck disable=SC2317 # each step is called by its name
set -uo pipefail
umask 022
here=$(dirname "$(readlink -f "$0")")
repo=$(dirname "$here")

[[ $(id -u) == 0 ]] || { echo 'needs root' >&2; exit 2; }
images=${1:-$("$here/images/make-real-image.sh")} || exit 2
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bins --example erofs-mount) || exit 2
    TARNFS=$repo/target/release/tarnfs
    erofs_mount=$repo/target/release/examples/erofs-mount
else
    erofs_mount=$(dirname "$TARNFS")/examples/erofs-mount
fi
image=$images/real.pax.tar

work=$(mktemp -d "${TMPDIR:-/var/tmp}/tarnfs-e2e.XXXXXX")
export TARNFS_STORE=$work/store
export LC_ALL=C.UTF-8
mnt=$work/mnt
mkdir "$mnt"

results=()
failed=0

cleanup() {
    local at
    while read -r at; do
        "$TARNFS" umount "$at" 2>/dev/null || umount -l "$at"
    done < <(awk -v w="$work/" 'index($5, w) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
    rm -rf --one-file-system -- "$work"
}
trap cleanup EXIT

# step NAME FUNCTION [ARG...]: runs it in a shell of its own, with -e; notes how it went.
step() {
    local name=$1 start end status verdict seconds
    shift
    if [[ -n ${ONLY:-} && ! $name =~ $ONLY ]]; then return; fi
    printf '\n=== %s\n' "$name"
    start=$EPOCHREALTIME
    # Not as a condition: bash would pass over -e in it.
    (
        set -eo pipefail
        trap - EXIT
        "$@"
    )
    status=$?
    end=$EPOCHREALTIME
    if ((status == 0)); then verdict=PASS; else verdict=FAIL failed=1; fi
    seconds=$(awk -v a="$start" -v b="$end" 'BEGIN { printf "%.2f", b - a }')
    # What a failed step left mounted must not fail the next.
    "$TARNFS" umount "$mnt" >/dev/null 2>&1
    results+=("$(printf '%-4s %9s s  %s' "$verdict" "$seconds" "$name")")
    printf '%s %s s\n' "$verdict" "$seconds"
}

# does CMD...: prints and runs it, under a deadline.
does() {
    printf '+ %s\n' "${*@Q}"
    timeout --kill-after=20 1200 "$@"
}

# says_nothing CMD...: must succeed and print nothing.
says_nothing() {
    local said
    printf '+ %s\n' "${*@Q}"
    said=$(timeout --kill-after=20 1200 "$@" 2>&1) || { printf '%.2000s\n' "$said"; return 1; }
    [[ -z $said ]] || { printf '%.2000s\n' "$said"; return 1; }
}

up() { does "$TARNFS" mount "$@" "$image" "$mnt"; }
down() { does "$TARNFS" umount "$mnt"; }
actor() { does "$TARNFS" run "$image" -- "$@"; }

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
seconds_of() {
    local start=$EPOCHREALTIME
    "$@" >/dev/null 2>&1 || return 1
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.4f\n", b - a }'
}

# --- what is mounted is what was packed -------------------------------------------------------

tar_d() {
    says_nothing tar --xattrs --acls --numeric-owner --warning=no-unknown-keyword \
        -df "$1" -C "$2"
}

links() {
    # Of each group that GNU tar finds, one inode and the right count, at the first stat.
    local a b c d
    read -r a b < <(stat -c '%i %h' "$1/odd/links/a")
    read -r c d < <(stat -c '%i %h' "$1/odd/links/deep/er/a")
    echo "inode $a with $b links, inode $c with $d links"
    [[ $a == "$c" && $b == 4 && $d == 4 ]]
}

compare_fuse() {
    image=$images/real.$1.tar
    up --read-only
    links "$mnt"
    tar_d "$image" "$mnt"
    down
}

compare_erofs() {
    local tar=$images/real.$1.tar index=$work/$1.erofs blobs
    does "$TARNFS" index -o "$index" "$tar"
    blobs=("$tar")
    [[ -e $index.side ]] && blobs+=("$index.side")
    does "$erofs_mount" "$index" "$mnt" "${blobs[@]}"
    local bad=0
    if ! links "$mnt" || ! tar_d "$tar" "$mnt"; then bad=1; fi
    umount "$mnt"
    return "$bad"
}

# --- programs ---------------------------------------------------------------------------------

run_webpack() { actor node -e 'require("/app/node_modules/webpack"); console.log("webpack")'; }
run_build() { actor sh -euc 'cd /app && npx webpack --mode production && node dist/main.js'; }
run_apt() { actor apt-get --version; }
run_git() {
    actor sh -euc 'export HOME=/root; mkdir /srv/g; cd /srv/g; git init -q; echo x >x; git add x
        git -c user.name=t -c user.email=t@example.invalid commit -m one; git fsck --strict'
}
run_npm_ls() { actor sh -euc 'cd /app && npm ls'; }
run_python() { actor python3 -c 'import json, sqlite3, ssl; print("python3")'; }
run_status() {
    local status=0
    does "$TARNFS" run "$image" -- sh -c 'exit 42' || status=$?
    [[ $status == 42 ]]
}

# oci NAME RUNTIME...: the program in the bundle, by that runtime.
oci() {
    local bundle=$work/bundle bad=0 said
    does "$TARNFS" bundle "$image" "$bundle" -- \
        sh -euc 'node -e "require(\"/app/node_modules/webpack\")"; apt-get --version | head -n 1
            echo written >/srv/written; cat /srv/written'
    said=$(does "$@" </dev/null 2>&1) || bad=1
    printf '%s\n' "$said" | tail -n 5
    [[ $said == *written ]] || bad=1
    does "$TARNFS" bundle --remove "$bundle" || bad=1
    return "$bad"
}
oci_runc() { oci runc run -b "$work/bundle" tarnfs-e2e-runc; }
oci_crun() {
    local hybrid=/sys/fs/cgroup/unified
    if mountpoint -q "$hybrid"; then
        # crun refuses a machine with both kinds of cgroups: show it one with the old kind only.
        # shellcheck disable=SC2016 # expanded by the inner shell
        oci unshare --mount --propagation private \
            sh -ec 'umount "$1"; exec crun run -b "$2" tarnfs-e2e-crun' sh "$hybrid" "$work/bundle"
    else
        oci crun run -b "$work/bundle" tarnfs-e2e-crun
    fi
}
runsc_flags=(--root="$work/runsc" --platform=ptrace --network=none --ignore-cgroups)
oci_runsc() { oci runsc "${runsc_flags[@]}" run -bundle "$work/bundle" tarnfs-e2e; }
oci_runsc_none() {
    oci runsc "${runsc_flags[@]}" --overlay2=none run -bundle "$work/bundle" tarnfs-e2e
}

# shellcheck disable=SC2016 # expanded by the program's own shell
counter='n=0; while :; do n=$((n + 1)); echo "$n $(cat /etc/hostname)"; sleep 0.2; done'

checkpoint() {
    local bundle=$work/bundle id=tarnfs-e2e-c saved=$work/checkpoint log=$work/counter n bad=1
    local upper=$work/c.upper
    does "$TARNFS" bundle --upper "$upper" "$image" "$bundle" -- \
        sh -c "$counter"
    runsc "${runsc_flags[@]}" run -detach -bundle "$bundle" "$id" >"$log" 2>&1 </dev/null || return 1
    for _ in {1..100}; do [[ $(wc -l <"$log") -ge 5 ]] && break; sleep 0.2; done
    mkdir "$saved"
    does runsc "${runsc_flags[@]}" checkpoint -image-path "$saved" "$id" || return 1
    runsc "${runsc_flags[@]}" delete -force "$id" || true
    n=$(tail -n 1 "$log" | cut -d' ' -f1)
    echo "stopped at $n"
    does "$TARNFS" bundle --remove "$bundle"
    does "$TARNFS" bundle --upper "$upper" "$image" "$bundle" -- \
        sh -c "$counter"
    runsc "${runsc_flags[@]}" restore -detach -image-path "$saved" -bundle "$bundle" "$id" \
        >"$log.2" 2>&1 </dev/null || true
    for _ in {1..100}; do [[ $(wc -l <"$log.2") -ge 3 ]] && break; sleep 0.2; done
    head -n 3 "$log.2"
    # It counts on; a new start would begin with 1.
    (($(head -n 1 "$log.2" | cut -d' ' -f1) > n - 2)) && grep -q tarnfs-real "$log.2" && bad=0
    runsc "${runsc_flags[@]}" kill "$id" KILL || true
    runsc "${runsc_flags[@]}" delete -force "$id" || true
    does "$TARNFS" bundle --remove "$bundle" || bad=1
    return "$bad"
}

# --- ordinary work ----------------------------------------------------------------------------

# with_network: what apt and npm inside need of this system, copied in.
with_network() {
    local file ca=/etc/ssl/certs/ca-certificates.crt
    rm -rf "$mnt/etc/apt"
    cp -a /etc/apt "$mnt/etc/apt"
    cp -a /usr/share/keyrings/. "$mnt/usr/share/keyrings/"
    for file in /etc/resolv.conf /etc/hosts /etc/npmrc /root/.npmrc; do
        [[ ! -e $file ]] || cp "$file" "$mnt$file"
    done
    [[ ! -e $ca ]] || cp "$ca" "$mnt/srv/ca.crt"
    printf 'Acquire::https::CAInfo "/srv/ca.crt";\n' >"$mnt/etc/apt/apt.conf.d/zz-ca"
}

# inside SCRIPT: in a chroot of the mount, with /proc and /dev, in namespaces of its own.
inside() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    does unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"
        exec chroot "$1" env HOME=/root DEBIAN_FRONTEND=noninteractive \
            NODE_EXTRA_CA_CERTS=/srv/ca.crt npm_config_cafile=/srv/ca.crt \
            sh -euc "$2"' inside "$mnt" "$1"
}

work_git() {
    up
    does git clone -q --no-hardlinks "$repo" "$mnt/srv/clone"
    does git -C "$mnt/srv/clone" fsck --strict
    says_nothing git -C "$mnt/srv/clone" status --porcelain
    down
}

work_npm_ci() {
    up
    with_network
    inside 'cd /app && npm ci --ignore-scripts --no-audit --no-fund && npm ls >/dev/null &&
        node -e "require(\"/app/node_modules/webpack\")"'
    down
}

work_apt() {
    up
    with_network
    printf '#!/bin/sh\nexit 101\n' >"$mnt/usr/sbin/policy-rc.d" && chmod 755 "$mnt/usr/sbin/policy-rc.d"
    inside 'apt-get update -q && apt-get install -qy --no-install-recommends hello tree jq &&
        hello && jq --version && tree --version && dpkg --audit'
    down
}

work_rsync() {
    up
    mkdir "$work/out"
    does rsync -aHAX --sparse "$mnt/usr/" "$work/out/"
    does rsync -aHAX --sparse "$work/out/" "$mnt/srv/usr/"
    says_nothing rsync -aHAX --checksum --dry-run --itemize-changes --delete "$mnt/usr/" "$work/out/"
    says_nothing rsync -aHAX --checksum --dry-run --itemize-changes --delete "$work/out/" "$mnt/srv/usr/"
    rm -rf "$work/out"
    down
}

work_postgres() {
    up
    # shellcheck disable=SC2016 # expanded inside
    inside 'bin=$(echo /usr/lib/postgresql/*/bin); mkdir /srv/pg /run/pg; chown postgres /srv/pg /run/pg
        su postgres -s /bin/sh -c "set -eu
            $bin/initdb -D /srv/pg >/dev/null
            $bin/pg_ctl -D /srv/pg -o \"-k /run/pg -c listen_addresses=\" -w -l /srv/pg/log start
            $bin/createdb -h /run/pg bench
            $bin/pgbench -h /run/pg -q -i -s 5 bench
            $bin/pgbench -h /run/pg -c 4 -T 20 bench
            $bin/psql -h /run/pg -Atc \"select sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts\" bench
            $bin/pg_ctl -D /srv/pg -w stop"' | tee "$work/pg"
    grep -qx t "$work/pg"
    down
}

work_rm() {
    local upper=$work/rm.upper
    up --upper "$upper"
    does find "$mnt" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
    [[ -z $(ls -A "$mnt") ]]
    down
    # One whiteout per name of the root, and nothing else.
    [[ -z $(find "$upper" -mindepth 1 ! -type c) ]]
    find "$upper" -mindepth 1 | wc -l
}

upper_content() {
    local upper=$work/u.upper before after
    before=$(sha256sum <"$image")
    up --upper "$upper"
    find "$mnt/usr" -xdev -type f -exec cat {} + >/dev/null
    echo new >"$mnt/srv/new"
    echo more >>"$mnt/etc/hostname"
    rm "$mnt/app/package.json"
    down
    (cd "$upper" && find . -mindepth 1 -printf '%y %P\n' | sort) | tee "$work/upper"
    diff "$work/upper" - <<'LIST' || return 1
c app/package.json
d app
d etc
d srv
f etc/hostname
f srv/new
LIST
    after=$(sha256sum <"$image")
    echo "sha256 $after"
    [[ $before == "$after" ]]
}

# --- time -------------------------------------------------------------------------------------

index_time() {
    local n index unpack dir=$work/unpacked
    cat "$image" >/dev/null
    for n in 1 2 3 4 5; do
        rm -f "$work/t.erofs"*
        seconds_of "$TARNFS" index -o "$work/t.erofs" "$image" >>"$work/t.index"
        mkdir "$dir"
        seconds_of tar --xattrs --xattrs-include='*' --acls --numeric-owner -xpf "$image" -C "$dir" \
            >>"$work/t.tar"
        rm -rf "$dir"
        echo "round $n: index $(tail -n 1 "$work/t.index") s, tar -x $(tail -n 1 "$work/t.tar") s"
    done
    index=$(median <"$work/t.index")
    unpack=$(median <"$work/t.tar")
    awk -v i="$index" -v u="$unpack" 'BEGIN {
        printf "medians: index %.3f s, tar -x %.3f s, ratio %.3f (0.1 is allowed)\n", i, u, i / u
        exit i / u > 0.1 }'
}

mount_time() {
    up && down
    does hyperfine --shell=none --warmup 2 --runs 20 --export-json "$work/mount.json" \
        --prepare "$TARNFS umount $mnt" "$TARNFS mount $image $mnt" && down
    python3 - "$work/mount.json" <<'PYTHON'
import json, sys
median = json.load(open(sys.argv[1]))["results"][0]["median"] * 1000
print(f"median {median:.1f} ms (20 are allowed)")
sys.exit(median > 20)
PYTHON
}

truncated() {
    local upper=$work/tr.upper
    cp "$image" "$work/copy.tar"
    chmod 600 "$work/copy.tar"
    image=$work/copy.tar
    up --upper "$upper"
    truncate -s 100M "$work/copy.tar"
    if cat "$mnt/usr/bin/node" 2>"$work/err" >/dev/null; then return 1; fi
    cat "$work/err"
    grep -q 'Input/output error' "$work/err"
    echo lives >"$mnt/srv/x"
    does ls "$mnt/usr" >/dev/null
    down
    rm "$work/copy.tar"
}

for packer in pax gnu bsd; do
    step "tar -d of $packer through FUSE" compare_fuse "$packer"
    step "tar -d of $packer through EROFS" compare_erofs "$packer"
done
step 'run: node, webpack loads' run_webpack
step 'run: webpack builds' run_build
step 'run: apt-get --version' run_apt
step 'run: git init and commit' run_git
step 'run: npm ls' run_npm_ls
step 'run: python3' run_python
step 'run: exit status' run_status
step 'bundle: runc' oci_runc
step 'bundle: crun' oci_crun
step 'bundle: runsc, its own overlay' oci_runsc
step 'bundle: runsc --overlay2=none' oci_runsc_none
step 'runsc checkpoint, unmount, mount, restore' checkpoint
step 'git clone and fsck' work_git
step 'npm ci' work_npm_ci
step 'apt-get install' work_apt
step 'rsync round trip' work_rsync
step 'PostgreSQL initdb and pgbench' work_postgres
step 'rm -rf of everything' work_rm
step 'the upper holds what was written, the tar is unchanged' upper_content
step 'a tar cut short under a live mount' truncated
step 'index time <= 0.1 x tar -x' index_time
step 'mount of an indexed image <= 20 ms' mount_time

printf '\n%s\n' '=== summary'
printf '%s\n' "${results[@]}"
exit "$failed"
