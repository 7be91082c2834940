#!/bin/bash
# Builds what a Kubernetes cluster on this machine needs, from Go modules:
#     tests/e2e/build.sh [cluster] [suite]     (both, if none is named)
# cluster: control plane, kubelet, kubectl, etcd, sidecars, helm. suite: the External Storage suite and its images.
#
# Each program is kept by version in E2E_CACHE/bin (env.sh), so that this can be stopped and started again, and
# linked by its plain name into build/e2e/bin. The first time takes half an hour of two cores.
set -euo pipefail
# shellcheck source=env.sh
source "$(dirname "$0")/env.sh"

mkdir -p "$LINKS" "$E2E_CACHE/bin"
"$TREE/tests/tools/get-tools.sh" "$PORTALBD_BUILD/tools"
go=$(readlink -f "$PORTALBD_BUILD/tools/go")
export CGO_ENABLED=0 GOTOOLCHAIN=local

# What the programs of Kubernetes say about their version; the suite refuses a cluster that says none.
minor=${KUBERNETES#v1.}
version_flags=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    version_flags+=" -X $package.gitVersion=$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    version_flags+=" -X $package.gitTreeState=clean"
done

link() { # file, name
    ln -sfn "$1" "$LINKS/$2"
}

# Builds NAME of VERSION by "go ARGUMENTS -o FILE PACKAGE" in a module of modules/, unless it is there.
make_program() { # name, version, module, package, go's subcommand...
    local name=$1 version=$2 module=$3 package=$4 file=$E2E_CACHE/bin/$1-$2 start=$SECONDS
    shift 4
    if [ ! -x "$file" ]; then
        echo "build.sh: building $name $version"
        # -vet of "go test" and the symbols of a program are of no use here.
        (cd "$E2E/modules/$module" &&
            nice "$go" "$@" -buildvcs=false -trimpath -ldflags "-s -w$version_flags" -o "$file.tmp" "$package")
        mv "$file.tmp" "$file"
        echo "build.sh: built $name in $((SECONDS - start)) s"
    fi
    link "$file" "$name"
}

make_helm() {
    local tools=${XDG_CACHE_HOME:-$HOME/.cache}/portalbd/tools
    local file=$tools/helm-$HELM tmp
    if [ ! -x "$file" ]; then
        echo "build.sh: building helm $HELM"
        tmp=$(mktemp -d "$E2E_CACHE/bin/helm.XXXXXX")
        GOBIN=$tmp nice "$go" install -trimpath -ldflags '-s -w' "helm.sh/helm/v4/cmd/helm@$HELM"
        mv "$tmp/helm" "$file"
        rmdir "$tmp"
    fi
    link "$file" helm
}

make_pause() {
    local file=$E2E_CACHE/bin/pause-$PAUSE
    if [ ! -x "$file" ] || [ "$E2E/pause.c" -nt "$file" ]; then
        gcc -Os -static -s -Wall -Wextra -o "$file.tmp" "$E2E/pause.c"
        mv "$file.tmp" "$file"
    fi
    link "$file" pause
}

cluster() {
    local name csi=github.com/kubernetes-csi
    make_pause
    make_helm
    for name in kubectl kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy; do
        make_program "$name" "$KUBERNETES" kubernetes "k8s.io/kubernetes/cmd/$name" build
    done
    make_program etcd "$ETCD" etcd go.etcd.io/etcd/server/v3 build
    make_program csi-provisioner "$PROVISIONER" provisioner "$csi/external-provisioner/v6/cmd/csi-provisioner" build
    make_program csi-attacher "$ATTACHER" sidecars "$csi/external-attacher/v4/cmd/csi-attacher" build
    make_program csi-resizer "$RESIZER" sidecars "$csi/external-resizer/v2/cmd/csi-resizer" build
    make_program csi-snapshotter "$SNAPSHOTTER" sidecars "$csi/external-snapshotter/v8/cmd/csi-snapshotter" build
    make_program snapshot-controller "$SNAPSHOTTER" sidecars "$csi/external-snapshotter/v8/cmd/snapshot-controller" build
}

suite() {
    make_program agnhost "$KUBERNETES" kubernetes k8s.io/kubernetes/test/images/agnhost build
    make_program storage-e2e.test "$KUBERNETES" kubernetes ./storage-e2e test -c -vet=off
    make_program ginkgo "$KUBERNETES" kubernetes github.com/onsi/ginkgo/v2/ginkgo build
}

# One at a time.
exec 9>"$E2E_CACHE/bin/lock"
flock 9
for part in "${@:-cluster suite}"; do
    case $part in
    cluster | suite) "$part" ;;
    "cluster suite") cluster && suite ;;
    *) die "no such part: $part" ;;
    esac
done
