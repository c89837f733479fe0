#!/usr/bin/env bash
# make-small-image.sh [OUTDIR]: a small root filesystem, made within seconds from the packages that
# this Debian or Ubuntu system has installed, packed by three packers:
# OUTDIR/small.{pax,gnu,bsd}.tar. No network. Prints OUTDIR.
# Default of OUTDIR: $TARNFS_TEST_CACHE/small, else ~/.cache/tarnfs-tests/small.
set -euo pipefail
umask 022
# shellcheck source=tests/images/lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

# Raise when this script or lib.sh makes something else.
recipe='small 3'
out=${1:-$(cache_dir)/small}

# Programs that the tests run inside. git and python3 only where this system has them.
packages=(base-files base-passwd bash coreutils dash findutils grep sed gzip tar apt dpkg mawk
    util-linux mount hostname procps git python3-minimal)

# installed: of the package names on stdin, those that are installed (not virtual, not removed).
installed() {
    sort -u | comm -12 - <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' |
        sed -n 's/^installed //p' | sort -u)
}

# closure PACKAGE...: these and what they depend on, as far as installed.
closure() {
    apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances "$@" | grep '^[a-z0-9]' | sed 's/:.*//' | installed
}

build() {
    local new=$1 root=$1/root name
    mkdir "$root"
    # shellcheck disable=SC2046 # one word a package
    closure $(printf '%s\n' "${packages[@]}" | installed) >"$new/packages"

    # Files by the lists of dpkg, with what postinst scripts made. A name may have gone (dpkg's
    # path-exclude): only what is there is taken.
    {
        # shellcheck disable=SC2046 # one word a package
        dpkg -L $(<"$new/packages")
        find /etc/alternatives
        find /usr/bin -lname '/etc/alternatives/*'
        printf '%s\n' /etc/passwd /etc/group /etc/shadow /etc/nsswitch.conf /var/lib/dpkg/status
    } | grep -Ev '^/usr/share/(doc|man|locale|info|lintian)/' | sort -u |
        while IFS= read -r name; do
            # -L: links of alternatives that lead out of the image are left out.
            if [[ -e $name ]]; then printf '%s\0' "${name#/}"; fi
        done >"$new/names"
    # A merged /usr: what /bin leads to must be there before /bin/sh is.
    mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
    tar -C / --null --no-recursion -T "$new/names" -cf - 2>/dev/null |
        tar -C "$root" --numeric-owner -xpf -
    mkdir -p "$root"/{dev,proc,sys,run,root,srv,mnt,tmp,var/tmp,var/lib/apt/lists/partial} \
        "$root/var/cache/apt/archives/partial"
    chmod 1777 "$root/tmp" "$root/var/tmp"
    chmod 0700 "$root/root"
    ldconfig -r "$root"
    printf 'tarnfs-small\n' >"$root/etc/hostname"
    oddities "$root"
    chroot "$root" /bin/sh -c 'apt-get --version >/dev/null && true'
    pack "$root" "$new/small"
    rm -rf --one-file-system -- "$root" "$new/names"
}

[[ $(id -u) == 0 ]] || die 'needs root: it makes device nodes'
need apt-cache dpkg bsdtar setfattr setfacl setcap
publish_once "$out" "$recipe" build >&2
printf '%s\n' "$out"
