#!/bin/sh
# An image for a run of `tarnfs bench` that is to have everything: what is in a tar of a root
# filesystem with node, npm and git, and below /srv/bench
#   webpack/  a project with webpack installed          (node-webpack, rm-rf)
#   npm/      the same project, its lock file alone,    (npm-ci)
#   cache/    with npm's cache of what the lock names
#   repo/     a git repository of webpack's packages    (git-status, git-clone)
# Usage: benches/real-image.sh ROOT.tar OUT.tar [WITHOUT...]     (WITHOUT: as tar's --exclude)
# As root. Needs npm, git and GNU tar; npm fetches packages from its registry.
set -eu
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
in=$1 out=$2
shift 2
[ -f "$in" ] || { echo "$0: $in: not a file" >&2; exit 1; }
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
for name; do
    shift
    set -- "$@" "--exclude=$name"
done
tar --numeric-owner --same-owner --xattrs --xattrs-include='*' -xpf "$in" -C "$work" "$@"
bench=$work/srv/bench
mkdir -p "$bench/webpack" "$bench/npm"
echo '{"name":"bench","version":"1.0.0","private":true,"dependencies":{"webpack":"5.90.3"}}' \
    >"$bench/webpack/package.json"
(cd "$bench/webpack" && npm install --cache "$bench/cache" --no-audit --no-fund --ignore-scripts \
    --silent --no-update-notifier --omit-lockfile-registry-resolved=false)
cp "$bench/webpack/package.json" "$bench/webpack/package-lock.json" "$bench/npm"
find "$bench/cache" -mindepth 1 -maxdepth 1 ! -name _cacache -exec rm -rf {} +
cp -r "$bench/webpack/node_modules" "$bench/repo"
git -C "$bench/repo" init --quiet
git -C "$bench/repo" -c core.autocrlf=false add --all --force .
git -C "$bench/repo" -c user.name=bench -c user.email=bench@example.org -c gc.auto=0 \
    commit --quiet --message 'webpack and its packages'
git -C "$bench/repo" gc --quiet
chown -R 0:0 "$bench"
tar --format=pax --sort=name --numeric-owner --xattrs --xattrs-include='*' \
    -cf "$out" -C "$work" .
