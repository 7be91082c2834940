#!/bin/bash
# Composes images from Debian's programs and ours, without a registry, and gives them to the node's containerd:
#     images.sh basic                 pause, busybox, a test pod's tools; sidecars and the demo's S3 server under their
#                                     real names
#     images.sh suite                 what the storage suite wants
#     images.sh import ARCHIVE NAME...   an OCI archive of one image, such as make image writes
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

scratch=$(mktemp -d "$CLUSTER/images.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
with_path='{"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}'

# Moves a file to the blobs under its digest, prints "digest size".
add_blob() { # file
    local digest size
    digest=$(sha256sum <"$1" | cut -d ' ' -f 1)
    size=$(stat -c %s "$1")
    mv "$1" "$(dirname "$1")/blobs/sha256/$digest"
    echo "sha256:$digest $size"
}

# Writes a folder as an OCI archive of one layer, the same bytes for the same files.
compose() { # folder, archive, config
    local work digest size layer_digest layer_size architecture
    work=$(mktemp -d "$scratch/compose.XXXXXX")
    architecture=$(dpkg --print-architecture)
    mkdir -p "$work/blobs/sha256"
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -C "$1" -cf "$work/layer" .
    read -r layer_digest layer_size < <(add_blob "$work/layer")
    jq -nc --argjson config "$3" --arg layer "$layer_digest" --arg arch "$architecture" \
        '{created: "1970-01-01T00:00:00Z", architecture: $arch, os: "linux", config: $config,
          rootfs: {type: "layers", diff_ids: [$layer]}, history: [{created_by: "tests/e2e/images.sh"}]}' >"$work/config"
    read -r digest size < <(add_blob "$work/config")
    jq -nc --arg config "$digest" --argjson size "$size" --arg layer "$layer_digest" --argjson layer_size "$layer_size" \
        '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
          config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $config, size: $size},
          layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $layer, size: $layer_size}]}' \
        >"$work/manifest"
    read -r digest size < <(add_blob "$work/manifest")
    jq -nc --arg manifest "$digest" --argjson size "$size" --arg arch "$architecture" \
        '{schemaVersion: 2, manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $manifest,
          size: $size, platform: {architecture: $arch, os: "linux"}}]}' >"$work/index.json"
    echo '{"imageLayoutVersion": "1.0.0"}' >"$work/oci-layout"
    tar -C "$work" -cf "$2" oci-layout index.json blobs
    rm -rf "$work"
}

# Imports the one image of an archive under these names, whatever the archive calls it.
import() { # archive, names...
    local digest name
    digest=$(tar -xOf "$1" index.json | jq -r '.manifests[0].digest')
    in_node ctr -n k8s.io images import --base-name import.local/e2e --digests "$1" >/dev/null
    for name in "${@:2}"; do
        in_node ctr -n k8s.io images tag --force "import.local/e2e@$digest" "$name" >/dev/null
    done
    in_node ctr -n k8s.io images rm "import.local/e2e@$digest" >/dev/null
}

give() { # folder, name, config
    compose "$1" "$scratch/archive.tar" "$3"
    import "$scratch/archive.tar" "$2"
    rm -f "$scratch/archive.tar"
}

# busybox, and what a script in a pod expects of a system.
make_root() { # folder
    local applet
    mkdir -p "$1"/{bin,sbin,usr/bin,usr/sbin,etc,tmp,proc,sys,dev,root,run,mnt,lib,var}
    chmod 1777 "$1/tmp"
    ln -s lib "$1/lib64"
    cp /bin/busybox "$1/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$1/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$1/etc/group"
}

# Copies a program of this machine with the libraries that it is linked with.
add_program() { # root, program
    local file library
    file=$(readlink -f "$(command -v "$2")")
    cp "$file" "$1/usr/bin/$2"
    for library in $(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+'); do
        cp -nL "$library" "$1/lib/"
    done
}

basic() {
    local sidecar version
    mkdir "$scratch/pause"
    cp "$LINKS/pause" "$scratch/pause/"
    give "$scratch/pause" "$REGISTRY/pause:$PAUSE" '{"Entrypoint": ["/pause"]}'
    make_root "$scratch/busybox"
    give "$scratch/busybox" "$REGISTRY/busybox:$BUSYBOX" "$with_path"
    in_node ctr -n k8s.io images tag --force "$REGISTRY/busybox:$BUSYBOX" \
        "$(sed -n 's/^ *image: //p' "$TREE/deploy/k3s/example.yaml")" >/dev/null
    # The volume suites run shell scripts in it, nothing else.
    give "$scratch/busybox" "$REGISTRY/nginx:$NGINX" "$with_path"
    add_program "$scratch/busybox" fio
    give "$scratch/busybox" "$REGISTRY/tools:1" "$with_path"
    for sidecar in csi-provisioner:$PROVISIONER csi-attacher:$ATTACHER csi-resizer:$RESIZER \
        csi-snapshotter:$SNAPSHOTTER snapshot-controller:$SNAPSHOTTER; do
        version=${sidecar#*:} sidecar=${sidecar%:*}
        mkdir -p "$scratch/$sidecar"
        cp "$(readlink -f "$LINKS/$sidecar")" "$scratch/$sidecar/$sidecar"
        give "$scratch/$sidecar" "registry.k8s.io/sig-storage/$sidecar:$version" "{\"Entrypoint\": [\"/$sidecar\"]}"
    done
    mkdir "$scratch/s3"
    cp "$(readlink -f "$PORTALBD_BUILD/tools/versitygw")" "$scratch/s3/versitygw"
    give "$scratch/s3" "$(chart_image /versitygw)" '{"Entrypoint": ["/versitygw"]}'
}

suite() {
    make_root "$scratch/agnhost"
    cp "$(readlink -f "$LINKS/agnhost")" "$scratch/agnhost/agnhost"
    give "$scratch/agnhost" "$REGISTRY/agnhost:$AGNHOST" \
        '{"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": ["/agnhost"], "Cmd": ["pause"]}'
    # A Debian, to the suite: its dd knows more flags than busybox's, and its shell does not prefer that one.
    make_root "$scratch/debian"
    add_program "$scratch/debian" dd
    add_program "$scratch/debian" dash
    ln -sf ../usr/bin/dash "$scratch/debian/bin/sh"
    give "$scratch/debian" "$REGISTRY/jessie-dnsutils:$DNSUTILS" "$with_path"
}

case ${1-} in
basic) basic ;;
suite) suite ;;
import) import "${2:?which archive}" "${3:?under which name}" "${@:4}" ;;
*) die "basic, suite or import?" ;;
esac
