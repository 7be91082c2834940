#!/bin/bash
# Gets kernels to test on, from Debian's packages, without installing any:
#
#     tests/kernel/get-kernels.sh uml|qemu      prints the folder of it
#
#   uml    user-mode Linux: bin/linux.uml
#   qemu   an ordinary kernel (vmlinuz), an initramfs, and bin/qemu with what it needs
#
# each with modules/ (what lies in /lib/modules). Kept in ${XDG_CACHE_HOME:-~/.cache}/portalbd/kernel; a new
# version of these scripts makes them anew.
set -euo pipefail

kind=${1:?uml or qemu}
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/portalbd/kernel
here=$(cd "$(dirname "$0")" && pwd)
stamp=$(cat "$here/get-kernels.sh" "$here/initramfs-init.sh" | cksum | cut -d' ' -f1)
target=$cache/$kind-$stamp
mkdir -p "$cache"

exec 9>"$cache/lock" # another test may be at it
flock 9
if [ -e "$target" ]; then
    echo "$target"
    exit
fi
tmp=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/debs" "$tmp/root" "$tmp/new" "$tmp/new/bin"

# Into $tmp/root. Without a network: soon.
unpack() {
    local deb get=(apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20)
    echo "get-kernels: fetching $# packages for $kind" >&2
    (cd "$tmp/debs" && "${get[@]}" download "$@" >"$tmp/apt.log" 2>&1) || {
        "${get[@]}" update >>"$tmp/apt.log" 2>&1 || true
        (cd "$tmp/debs" && "${get[@]}" download "$@" >>"$tmp/apt.log" 2>&1)
    } || {
        grep '^E: ' "$tmp/apt.log" | tail -n 1 >&2
        return 1
    }
    for deb in "$tmp/debs"/*.deb; do
        dpkg -x "$deb" "$tmp/root"
    done
}

# Copies a module tree without what nobody here loads.
keep_modules() { # release, from, module...
    local release=$1 from=$2 path
    shift 2
    mkdir -p "$tmp/new/modules/$release"
    modprobe -d "$from" -S "$release" -D -a "$@" | awk '$1 == "insmod" { print $2 }' | while read -r path; do
        install -D -m 644 "$path" "$tmp/new/modules/$release/${path#*/"$release"/}"
    done
    cp "$from/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$tmp/new/modules/$release/"
    mkdir -p "$tmp/new/lib" && ln -s ../modules "$tmp/new/lib/modules"
    depmod -b "$tmp/new" "$release"
}

get_uml() {
    local release
    unpack user-mode-linux
    release=$(ls "$tmp/root/usr/lib/uml/modules")
    mkdir -p "$tmp/root/lib"
    ln -s ../usr/lib/uml/modules "$tmp/root/lib/modules"
    keep_modules "$release" "$tmp/root" nbd loop fuse overlay
    mv "$tmp/root/usr/bin/linux.uml" "$tmp/new/bin/"
}

# The packages that qemu needs beyond those that are installed.
qemu_packages() {
    if command -v qemu-system-x86_64 >/dev/null; then
        return
    fi
    apt-get install -s --no-install-recommends qemu-system-x86 2>/dev/null | awk '$1 == "Inst" { print $2 }'
}

write_qemu_wrapper() {
    if command -v qemu-system-x86_64 >/dev/null; then
        ln -s "$(command -v qemu-system-x86_64)" "$tmp/new/bin/qemu"
        return
    fi
    mv "$tmp/root/usr" "$tmp/new/usr"
    [ ! -d "$tmp/root/lib/x86_64-linux-gnu" ] || cp -a "$tmp/root/lib/x86_64-linux-gnu" "$tmp/new/usr/lib/"
    cat >"$tmp/new/bin/qemu" <<'WRAPPER'
#!/bin/sh
here=$(cd "$(dirname "$0")/.." && pwd)
export LD_LIBRARY_PATH="$here/usr/lib/x86_64-linux-gnu"
export QEMU_MODULE_DIR="$here/usr/lib/x86_64-linux-gnu/qemu"
exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
WRAPPER
    chmod +x "$tmp/new/bin/qemu"
}

get_qemu() {
    local release root=$tmp/initramfs
    # shellcheck disable=SC2046  # words
    unpack busybox-static "$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" { print $2; exit }')" \
        $(qemu_packages)
    release=$(ls "$tmp/root/lib/modules")
    depmod -b "$tmp/root" "$release"
    keep_modules "$release" "$tmp/root" 9p 9pnet_virtio virtio_pci ext4 xfs nbd overlay loop fuse
    mv "$tmp/root/boot/vmlinuz-$release" "$tmp/new/vmlinuz"
    mkdir -p "$root/bin" "$root/modules"
    mv "$tmp/root/bin/busybox" "$root/bin/"
    modprobe -d "$tmp/new" -S "$release" -D -a virtio_pci 9pnet_virtio 9p | awk '$1 == "insmod" { print $2 }' |
        while read -r path; do
            cp "$path" "$root/modules/"
            echo "${path##*/}" >>"$root/modules/order"
        done
    cp "$here/initramfs-init.sh" "$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | bin/busybox cpio -o -H newc) >"$tmp/new/initramfs" 2>/dev/null
    write_qemu_wrapper
}

"get_$kind"
rm -f "$tmp/new/lib/modules" # it was for depmod
rmdir "$tmp/new/lib"
mv -T "$tmp/new" "$target"
find "$cache" -maxdepth 1 -name "$kind-*" ! -name "${target##*/}" -exec rm -rf {} +
echo "$target"
