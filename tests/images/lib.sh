# shellcheck shell=bash
# What the image recipes share. Sourced, never run.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# cache_dir: where images are kept, outside git.
cache_dir() {
    printf '%s\n' "${TARNFS_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tarnfs-tests}"
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null || die "needs the program \"$tool\""
    done
}

# publish_once OUTDIR RECIPE BUILD: runs `BUILD DIR` on a new directory beside OUTDIR and renames
# that to OUTDIR, unless OUTDIR already holds the same recipe. Two callers at once: one builds,
# the other waits. Nobody sees a half-built OUTDIR.
publish_once() {
    local out=$1 recipe=$2 build=$3 new
    mkdir -p "$(dirname "$out")"
    exec {lock}>"$out.lock"
    flock "$lock"
    if [[ -f $out/recipe && $(<"$out/recipe") == "$recipe" ]]; then
        say "$out is up to date"
        return
    fi
    new=$(mktemp -d "$out.new.XXXXXX")
    # The directory must outlive a rename only when it is whole.
    # shellcheck disable=SC2064 # its name is to be taken now
    trap "rm -rf --one-file-system -- '$new'" EXIT
    "$build" "$new"
    chmod 0755 "$new"
    printf '%s\n' "$recipe" >"$new/recipe"
    sync -f "$new"
    rm -rf --one-file-system -- "$out"
    mv -T "$new" "$out"
    trap - EXIT
    say "made $out"
}

# oddities ROOT: adds what breaks readers of tars: everything that a root filesystem may hold and
# an average one does not.
oddities() {
    local odd=$1/odd name i
    mkdir -p "$odd"/{types,modes,xattrs,acls,names,sizes,times,owners,links/deep/er,sparse,many}

    # Types.
    mknod "$odd/types/null" c 1 3
    mknod "$odd/types/zero-zero" c 0 0
    mknod "$odd/types/loop" b 7 200
    mknod "$odd/types/big-minor" b 259 1048575
    mkfifo "$odd/types/fifo"
    ln -s ../modes/setuid "$odd/types/symlink"
    ln -s /nowhere/at/all "$odd/types/dangling"
    ln -s "$(printf 'x%.0s' {1..1000})" "$odd/types/long-target"
    # No socket: neither packer puts one into a tar.

    # Modes. After chown, which clears them.
    for name in setuid setgid sticky none all; do printf '%s\n' "$name" >"$odd/modes/$name"; done
    chown 65534:65534 "$odd/modes/setuid" "$odd/modes/setgid"
    chmod 4755 "$odd/modes/setuid"
    chmod 2755 "$odd/modes/setgid"
    chmod 1644 "$odd/modes/sticky"
    chmod 0000 "$odd/modes/none"
    chmod 7777 "$odd/modes/all"
    mkdir "$odd/modes/setgid-dir" "$odd/modes/sticky-dir"
    chmod 2775 "$odd/modes/setgid-dir"
    chmod 1777 "$odd/modes/sticky-dir"

    # Extended attributes, with values that lines and C strings do not survive.
    printf 'x\n' >"$odd/xattrs/file"
    setfattr -n user.note -v 'a note' "$odd/xattrs/file"
    setfattr -n user.binary -v 0x000a0d3d0aff00 "$odd/xattrs/file"
    setfattr -n user.empty "$odd/xattrs/file"
    setfattr -n user.long -v "$(printf 'v%.0s' {1..2000})" "$odd/xattrs/file"
    setfattr -n trusted.note -v 'for root' "$odd/xattrs/file"
    setfattr -n user.on-a-directory -v yes "$odd/xattrs"
    cp /bin/true "$odd/xattrs/capable"
    setcap cap_net_raw,cap_net_admin+ep "$odd/xattrs/capable"

    # ACLs whose mask is what the owning group may do; see pack for the other kind.
    mkdir "$odd/acls/inherits" "$odd/acls/masked"
    printf 'x\n' >"$odd/acls/file"
    # Numbers that no machine has a name for: bsdtar packs the name too, and GNU tar, where the
    # image is compared, would look that up.
    setfacl -m g::rwx,u:71000:rw,u:71001:r,g:71002:rwx,m::rwx "$odd/acls/file"
    setfacl -m g::rwx,u:71000:rwx,m::rwx -d -m u::rwx,u:71000:rwx,g::r-x,g:71002:---,o::--- "$odd/acls/inherits"

    # Names: at the limit, not UTF-8, with the characters that quoting forgets.
    : >"$odd/names/$(printf 'n%.0s' {1..255})"
    : >"$odd/names/"$'not-utf8-\xff\xfe'
    : >"$odd/names/"$'new\nline'
    : >"$odd/names/ space "
    : >"$odd/names/-dash"
    : >"$odd/names/back\\slash"
    : >"$odd/names/été"
    : >"$odd/names/.wh.not-a-whiteout-here"
    name=$odd/names
    for i in {1..12}; do name+=/$(printf "d$i%.0s" {1..30}); done
    mkdir -p "$name"
    printf 'far down\n' >"$name/file"

    # Sizes around every block size that matters.
    for i in 0 1 511 512 513 4095 4096 4097 65535 65536 1048577; do
        head -c "$i" /dev/urandom >"$odd/sizes/$i"
    done

    # Times: before the epoch, after 2038, with nanoseconds.
    : >"$odd/times/1960" && touch -d '1960-02-03 04:05:06 UTC' "$odd/times/1960"
    : >"$odd/times/epoch" && touch -d @0 "$odd/times/epoch"
    : >"$odd/times/2100" && touch -d '2100-01-01 00:00:00 UTC' "$odd/times/2100"
    : >"$odd/times/nanoseconds" && touch -d @1700000000.123456789 "$odd/times/nanoseconds"

    # Owners that do not fit 16 bits, nor the octal digits of a tar header.
    : >"$odd/owners/70000" && chown 70000:70001 "$odd/owners/70000"
    : >"$odd/owners/4000000000" && chown 4000000000:4000000001 "$odd/owners/4000000000"

    # Hard links: a group across directories, a second one, one of a symbolic link, one of a FIFO.
    printf 'one file, four names\n' >"$odd/links/a"
    ln "$odd/links/a" "$odd/links/b"
    ln "$odd/links/a" "$odd/links/deep/a"
    ln "$odd/links/a" "$odd/links/deep/er/a"
    head -c 100000 /dev/urandom >"$odd/links/big"
    ln "$odd/links/big" "$odd/links/deep/big"
    ln -s target "$odd/links/symlink"
    ln -P "$odd/links/symlink" "$odd/links/deep/symlink"
    mkfifo "$odd/links/fifo"
    ln "$odd/links/fifo" "$odd/links/deep/fifo"

    # Sparse: data in the middle, a hole at the end, nothing but a hole, many small pieces.
    truncate -s 64M "$odd/sparse/middle"
    printf 'in the middle' | dd of="$odd/sparse/middle" bs=1 seek=33554432 conv=notrunc status=none
    printf 'at the start' >"$odd/sparse/tail"
    truncate -s 10M "$odd/sparse/tail"
    truncate -s 128M "$odd/sparse/empty"
    truncate -s 8M "$odd/sparse/pieces"
    for i in {0..63}; do
        head -c 4096 /dev/urandom |
            dd of="$odd/sparse/pieces" bs=4096 seek=$((i * 32)) conv=notrunc status=none
    done

    # A directory of many names.
    (cd "$odd/many" && seq -f 'name-%05g' 1 3000 | xargs touch)
    touch -d @1600000000 "$odd/many"
}

# pack ROOT OUT: OUT.pax.tar, OUT.gnu.tar and OUT.bsd.tar of the tree at ROOT. One of them without
# "./" before each name, as tools differ in that.
pack() {
    local root=$1 out=$2
    # bsdtar says that a name which is not UTF-8 cannot be translated, and writes its bytes.
    bsdtar --format pax --numeric-owner --xattrs --acls -cf "$out.bsd.tar" -C "$root" . \
        2> >(grep -v "Can't translate pathname" >&2)
    # For a file with an ACL, bsdtar writes the owning group's permissions where stat(2) shows the
    # mask: where the two differ, GNU tar's comparison of what it has itself unpacked prints a
    # difference. So these come after it.
    setfacl -m u:71000:rwx,g::r-x,m::rwx "$root/odd/acls/masked"
    tar --format=pax --xattrs --xattrs-include='*' --acls --numeric-owner --sparse --sort=name \
        -cf "$out.pax.tar" -C "$root" .
    (cd "$root" && find . -mindepth 1 -maxdepth 1 -printf '%P\0' | sort -z) |
        tar --format=gnu --numeric-owner --sparse --sort=name -cf "$out.gnu.tar" -C "$root" \
            --null -T -
    chmod 0444 "$out".*.tar
}
