#!/bin/bash
# benches/actors.sh [--actors N] [--live N] [--large MB] [--depth N] [--image TAR]: how long the
# life of an actor takes, each call as its own process, as a controller makes it:
#   create+start   of N actors (default 1,000), one after the other, each destroyed at once
#   live           so many (200) at once: their start, the memory of their servers, their end
#   restore        of checkpoints that hold 20 MiB and --large MB (2048), create and start in one,
#                  and a read of a file of the layer; fork of ten
#   chain          checkpoints on checkpoints, so many (50): of each tenth, checkpoint and restore
# Prints milliseconds: median, 99th of 100, most. What is left of all of it afterwards is counted:
# mounts, processes, files, loop devices.
#
# As root. The image is TAR, else one of 20,000 small files. The work directory (BENCH_DIR, default
# /var/tmp) needs room for three times --large. TARNFS=path takes a program, else it is built.
set -euo pipefail
[[ $EUID == 0 ]] || { echo "${0##*/}: needs root" >&2; exit 2; }
actors=1000 live=200 large=2048 depth=50 image=
while (($#)); do
    case $1 in
        --actors) actors=${2:?}; shift ;;
        --live) live=${2:?}; shift ;;
        --large) large=${2:?}; shift ;;
        --depth) depth=${2:?}; shift ;;
        --image) image=${2:?}; shift ;;
        *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
    shift
done
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
if [[ -z ${TARNFS:-} ]]; then
    (cd "$repo" && cargo build --release --bin tarnfs)
    TARNFS=$repo/target/release/tarnfs
fi
TARNFS=$(readlink -f "$TARNFS")
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/tarnfs-actors.XXXXXX")
export TARNFS TARNFS_STORE=$work/store
cleanup() {
    [[ ! -d $work/store/actors ]] || "$TARNFS" actor list -q | xargs -r "$TARNFS" actor destroy --force
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
if [[ -z $image ]]; then
    mkdir "$work/tree"
    python3 - "$work/tree" << 'PYTHON'
import os, sys
for n in range(20000):
    d = f"{sys.argv[1]}/d{n // 100}"
    os.makedirs(d, exist_ok=True)
    with open(f"{d}/f{n}", "wb") as f:
        f.write(os.urandom(n % 4000))
PYTHON
    image=$work/image.tar
    tar -C "$work/tree" -cf "$image" .
fi
"$TARNFS" import --name img "$image" > /dev/null
python3 - "$actors" "$live" "$large" "$depth" << 'PYTHON'
import glob, json, os, statistics, subprocess, sys, time
actors, live, large, depth = map(int, sys.argv[1:5])
tarnfs, store = os.environ["TARNFS"], os.environ["TARNFS_STORE"]

def call(*args):
    """Runs `tarnfs actor …`; milliseconds, and what it printed."""
    begin = time.perf_counter()
    done = subprocess.run([tarnfs, "actor", *args], capture_output=True, text=True)
    took = (time.perf_counter() - begin) * 1000
    if done.returncode:
        sys.exit(f"tarnfs actor {args}: {done.stderr}")
    return took, done.stdout.strip()

def show(what, times):
    times = sorted(times)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
    print(f"{what:44} {statistics.median(times):8.2f} {p99:8.2f} {times[-1]:8.2f}", flush=True)

def servers():
    found = 0
    for comm in glob.glob("/proc/[0-9]*/comm"):
        try:
            found += open(comm).read() == "tarnfs\n"
        except OSError:
            pass
    return found

def left():
    """Mounts, servers, files, loop devices."""
    mounts = sum(store in line for line in open("/proc/self/mountinfo"))
    files = sum(len(f) for _, _, f in os.walk(store + "/actors"))
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout.count("\n")
    return mounts, servers(), files, loops

print(f"{'':44} {'median':>8} {'p99':>8} {'most':>8}")
before = left()
starts, ends = [], []
for n in range(actors):
    starts.append(call("create", "--start", f"a{n}", "img")[0])
    ends.append(call("destroy", f"a{n}")[0])
show(f"create+start, {actors} one by one", starts)
show("destroy", ends)
two = []
for n in range(min(actors, 200)):
    first = call("create", f"a{n}", "img")[0]
    two.append(first + call("start", f"a{n}")[0])
    call("destroy", f"a{n}")
show("create and start by two calls", two)

starts = [call("create", "--start", f"l{n}", "img")[0] for n in range(live)]
show(f"create+start, {live} that stay", starts)
pids = [a["server"]["pid"] for a in json.loads(call("list", "--json")[1])]
own = []
for pid in pids:
    lines = open(f"/proc/{pid}/smaps_rollup").read().split("\n")
    own.append(sum(int(l.split()[1]) for l in lines if l.startswith("Private_")) / 1024)
print(f"{live} live: private memory of a server, MiB {statistics.median(own):17.2f} {max(own):17.2f}")
show("list of all of them", [call("list")[0] for _ in range(5)])
show("stats of one", [call("stats", f"l{n}")[0] for n in range(min(live, 20))])
show(f"destroy of each of {live}", [call("destroy", f"l{n}")[0] for n in range(live)])

for mib in (20, large):
    point = call("create", "--start", "w", "img")[1]
    with open(f"{point}/data", "wb") as f:
        for _ in range(mib):
            f.write(os.urandom(1 << 20))
    took, said = call("checkpoint", "--json", "w")
    made = json.loads(said)
    print(f"checkpoint of {mib:5} MiB, ms; held back, ms {took:17.0f} {made['frozen_seconds'] * 1000:17.0f}")
    call("destroy", "w")
    restores, reads = [], []
    for n in range(20):
        took, point = call("restore", "--start", f"r{n}", made["digest"])
        restores.append(took)
        begin = time.perf_counter()
        with open(f"{point}/data", "rb") as f:
            f.read(4096)
        reads.append((time.perf_counter() - begin) * 1000)
        call("destroy", f"r{n}")
    show(f"restore --start of {mib} MiB", restores)
    show("  first 4 KiB of it", reads)

point = call("create", "--start", "f", "img")[1]
with open(f"{point}/data", "wb") as f:
    f.write(os.urandom(1 << 20))
forks = []
for n in range(5):
    ids = [f"f{n}-{k}" for k in range(10)]
    forks.append(call("fork", "f", *ids)[0])
    call("destroy", *ids)
show("fork of ten, of 1 MiB", forks)
call("destroy", "f")

image = "img"
for n in range(1, depth + 1):
    took, point = call("restore", "--start", "c", image)
    with open(f"{point}/round{n}", "wb") as f:
        f.write(os.urandom(100_000))
    made, image = call("checkpoint", "c")
    call("destroy", "c")
    if n in (1, 10) or n % 10 == 0:
        again = [call("restore", "--start", "c2", image)[0] for _ in range(1)]
        call("destroy", "c2")
        print(f"chain, depth {n:3}: checkpoint, restore, ms {made:19.1f} {again[0]:17.1f}", flush=True)

# A server ends a moment after its mount.
until = time.time() + 10
while left() != before and time.time() < until:
    time.sleep(0.1)
print(f"left (mounts, servers, files, loop devices): {left()}, before {before}")
PYTHON
