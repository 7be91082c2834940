#!/bin/bash
# Gets the Go programs that the tests need, and a Go that can build them, and links them into a
# folder:    tests/tools/get-tools.sh build/tools
#
# What was built is kept outside of the tree, by version, in ${XDG_CACHE_HOME:-~/.cache}/portalbd/tools.
# Everything comes through the Go module proxy: the tools are compiled from their modules, and a Go
# older than GO_MIN (Debian 12 has 1.19) fetches a newer toolchain as a module.
set -euo pipefail

GO_MIN=1.26
GO_TOOLCHAIN=v0.0.1-go1.26.0.linux-$(dpkg --print-architecture 2>/dev/null || echo amd64)
TOOLS=(
    "versitygw github.com/versity/versitygw/cmd/versitygw v1.8.0"
    "csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity v5.5.0"
    "helm helm.sh/helm/v4/cmd/helm v4.3.1"
)
# Without these, the tests that want them are skipped.
OPTIONAL=" helm "

links=$1
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/portalbd/tools
mkdir -p "$links" "$cache"
links=$(cd "$links" && pwd)
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false

version_at_least() { # have, want
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# Prints the path of a go that is new enough.
find_go() {
    local go version module
    if ! go=$(command -v go); then
        echo "get-tools: no go command; install one: sudo apt-get install golang-go" >&2
        return 1
    fi
    version=$(GOTOOLCHAIN=local "$go" env GOVERSION)
    if version_at_least "${version#go}" "$GO_MIN"; then
        echo "$go"
        return
    fi
    module=$(cd / && GOTOOLCHAIN=local "$go" env GOMODCACHE)/golang.org/toolchain@$GO_TOOLCHAIN
    if [ ! -x "$module/bin/go" ]; then
        echo "get-tools: ${version} is too old, fetching $GO_TOOLCHAIN" >&2
        (cd / && GOTOOLCHAIN=local "$go" mod download "golang.org/toolchain@$GO_TOOLCHAIN") >&2
        # Files of a module have no x bit.
        chmod -R u+w "$module"
        find "$module/bin" "$module/pkg/tool" -type f -exec chmod +x {} +
    fi
    echo "$module/bin/go"
}

build_tool() { # name, package, version
    local tmp
    echo "get-tools: building $1 $3 (once, a minute or two)" >&2
    tmp=$(mktemp -d "$cache/tmp.XXXXXX")
    GOBIN=$tmp nice "$go" install -trimpath -ldflags='-s -w' "$2@$3" >&2 || {
        rm -rf "$tmp"
        return 1
    }
    mv "$tmp/$1" "$cache/$1-$3"
    rm -rf "$tmp"
}

# One at a time, also when several builds run at once.
exec 9>"$cache/lock"
flock 9
go=$(find_go)
ln -sfn "$go" "$links/go"
for tool in "${TOOLS[@]}"; do
    read -r name package version <<<"$tool"
    if [ ! -x "$cache/$name-$version" ] && ! build_tool "$name" "$package" "$version"; then
        [[ $OPTIONAL == *" $name "* ]] || exit 1
        echo "get-tools: going on without $name" >&2
        continue
    fi
    ln -sfn "$cache/$name-$version" "$links/$name"
done
