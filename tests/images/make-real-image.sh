#!/usr/bin/env bash
# make-real-image.sh [OUTDIR]: a Debian root with Node.js, npm, git, python3, PostgreSQL and an
# /app with a large node_modules (>= 80,000 entries and >= 1 GB in all), packed by three packers:
# OUTDIR/real.{pax,gnu,bsd}.tar. Takes some minutes and 8 GB. Prints OUTDIR.
# Default of OUTDIR: $TARNFS_TEST_CACHE/real, else ~/.cache/tarnfs-tests/real.
#
# Packages come from where this system's own apt and npm are configured to fetch them.
set -euo pipefail
umask 022
# shellcheck source=tests/images/lib.sh
source "$(dirname "$(readlink -f "$0")")/lib.sh"

# Raise when this script or lib.sh makes something else.
recipe='real 2'
out=${1:-$(cache_dir)/real}

packages=(nodejs npm git python3 postgresql ca-certificates iputils-ping rsync procps less sudo
    openssh-client strace vim-tiny)

# inside ROOT CMD...: runs CMD in ROOT with what this system needs to reach its package sources:
# apt's and npm's configuration, resolver, certificates. All of it copies in memory that are gone
# with CMD: nothing that CMD does there (a postinst script rewrites /etc/ssl/certs) reaches this
# system, and nothing of this system ends up in the image.
inside() {
    local root=$1
    shift
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --pid --fork --kill-child --propagation private bash -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=0755 tmpfs "$root/run"
        mkdir "$root/run/host"
        for file in /etc/ssl/certs/ca-certificates.crt /etc/npmrc /root/.npmrc; do
            if [[ -e $file ]]; then cp "$file" "$root/run/host/${file##*/}"; fi
        done
        for dir in /etc/apt /usr/share/keyrings; do
            mkdir -p "$root$dir"
            mount -t tmpfs -o mode=0755 tmpfs "$root$dir"
            cp -a "$dir/." "$root$dir/"
        done
        for file in /etc/resolv.conf /etc/hosts; do
            touch "$root$file"
            cp "$file" "$root/run/host/"
            mount --bind "$root/run/host/${file##*/}" "$root$file"
        done
        ca=/run/host/ca-certificates.crt
        if [[ -e $root$ca ]]; then
            printf "Acquire::https::CAInfo \"%s\";\n" "$ca" >"$root/etc/apt/apt.conf.d/zz-ca"
            export NODE_EXTRA_CA_CERTS=$ca SSL_CERT_FILE=$ca npm_config_cafile=$ca
        fi
        export npm_config_globalconfig=/run/host/npmrc npm_config_userconfig=/run/host/.npmrc
        exec chroot "$root" "$@"' inside "$root" "$@"
}

build() {
    local new=$1 root=$1/root codename mirror entries bytes
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # the fields are apt's, not the shell's
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v r="$codename" '$2 == r { print $1; exit }')
    [[ $mirror ]] || die "apt knows no source for $codename"

    say "debootstrap $codename"
    debootstrap --variant=minbase "$codename" "$root" "$mirror" >"$new/debootstrap.log" 2>&1 ||
        die "debootstrap failed: $(tail -n 3 "$new/debootstrap.log")"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 0755 "$root/usr/sbin/policy-rc.d"

    say "apt-get install ${packages[*]}"
    inside "$root" sh -euc 'export DEBIAN_FRONTEND=noninteractive
        apt-get update
        apt-get install -y --no-install-recommends "$@"
        apt-get clean' sh "${packages[@]}" >"$new/apt.log" 2>&1 ||
        die "apt-get failed: $(tail -n 3 "$new/apt.log")"
    rm -f "$root/usr/sbin/policy-rc.d"

    say 'npm install'
    mkdir -p "$root/app/src"
    cat >"$root/app/package.json" <<'JSON'
{
  "name": "app",
  "version": "1.0.0",
  "private": true,
  "scripts": { "build": "webpack --mode production" },
  "dependencies": {
    "@babel/core": "^7.24.0",
    "@babel/preset-env": "^7.24.0",
    "@babel/preset-react": "^7.24.0",
    "@babel/preset-typescript": "^7.24.0",
    "@emotion/react": "^11.11.0",
    "@emotion/styled": "^11.11.0",
    "@fortawesome/fontawesome-free": "^6.5.0",
    "@mui/icons-material": "^5.15.0",
    "@mui/material": "^5.15.0",
    "@tabler/icons": "^2.47.0",
    "aws-sdk": "^2.1500.0",
    "core-js": "^3.36.0",
    "date-fns": "^3.3.0",
    "express": "^4.18.0",
    "googleapis": "^130.0.0",
    "highlight.js": "^11.9.0",
    "lodash": "^4.17.21",
    "lodash-es": "^4.17.21",
    "mathjs": "^12.4.0",
    "monaco-editor": "^0.47.0",
    "react": "^18.2.0",
    "react-dom": "^18.2.0",
    "react-icons": "^5.0.0",
    "rxjs": "^7.8.0",
    "three": "^0.162.0"
  },
  "devDependencies": {
    "babel-loader": "^9.1.0",
    "eslint": "^8.57.0",
    "jest": "^29.7.0",
    "prettier": "^3.2.0",
    "rollup": "^4.12.0",
    "terser": "^5.29.0",
    "typescript": "^5.4.0",
    "webpack": "^5.90.0",
    "webpack-cli": "^5.1.0",
    "webpack-dev-server": "^4.15.0"
  }
}
JSON
    printf 'import { chunk } from "lodash";\nconsole.log(JSON.stringify(chunk([1, 2, 3, 4], 2)));\n' \
        >"$root/app/src/index.js"
    # --ignore-scripts: an image's content must not depend on what a package's scripts do here.
    inside "$root" env -u NODE_OPTIONS HOME=/root sh -euc 'cd /app
        npm install --ignore-scripts --no-audit --no-fund
        npm ls >/dev/null
        node -e "require(\"/app/node_modules/webpack\")"
        git init -q -b main
        printf "node_modules\n" >.gitignore
        git -c user.name=t -c user.email=t@example.invalid add -A
        git -c user.name=t -c user.email=t@example.invalid commit -qm start
        rm -rf /root/.npm' >"$new/npm.log" 2>&1 ||
        die "npm failed: $(tail -n 3 "$new/npm.log")"

    setcap cap_net_raw+ep "$root/usr/bin/ping"
    printf 'tarnfs-real\n' >"$root/etc/hostname"
    oddities "$root"

    entries=$(find "$root" -xdev -printf . | wc -c)
    bytes=$(du -sxB1 "$root" | cut -f1)
    say "$entries entries, $bytes bytes on disk"
    ((entries >= 80000)) || die "only $entries entries, 80000 wanted"
    ((bytes >= 1000000000)) || die "only $bytes bytes, 1000000000 wanted"

    say 'packing'
    pack "$root" "$new/real"
    rm -rf --one-file-system -- "$root"
}

[[ $(id -u) == 0 ]] || die 'needs root: debootstrap and device nodes'
need debootstrap bsdtar setfattr setfacl setcap unshare
publish_once "$out" "$recipe" build >&2
printf '%s\n' "$out"
