#!/usr/bin/env bash
# Builds the programs Atoll is checked against, through the Go module proxy:
#
#   tests/peers/build.sh [etcd|etcdctl|benchmark|apiserver|all]...
#
# The results lie in ${ATOLL_PEERS:-$HOME/.cache/atoll-peers}/bin: etcd, etcdctl,
# etcdutl, benchmark, kube-apiserver. A program is built again only when its
# recipe here (version, main.go) changes. Prints the bin directory on its last line.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${ATOLL_PEERS:-$HOME/.cache/atoll-peers}
BIN=$CACHE/bin
mkdir -p "$BIN" "$CACHE/stamp" "$CACHE/tmp"

export GOFLAGS="-mod=mod -buildvcs=false -trimpath"
export GOWORK=off GOTOOLCHAIN=local CGO_ENABLED=0

# To be raised when this script builds the same sources differently.
RECIPE=1

say() { printf 'peers: %s\n' "$*" >&2; }

# The version of module $2 that the template $1 requires.
required() { sed -nE "s|^(require)?[[:space:]]*$2[[:space:]]+(v[^[:space:]]+).*|\2|p" "$HERE/$1/go.mod"; }

# Whether the program of each PACKAGE=PROGRAM lies in the bin directory.
present() {
  local pair
  for pair in "$@"; do [ -x "$BIN/${pair#*=}" ] || return 1; done
}

# build NAME PACKAGE=PROGRAM...: builds template NAME, unless all of it is there.
build() {
  local name=$1 work key pair begun=$SECONDS
  shift
  key=$({ echo "$RECIPE"; go version; cat "$HERE/$name/"*; } | sha256sum | cut -c1-16)
  exec 9>"$CACHE/stamp/$name.lock"
  flock 9
  if [ "$(cat "$CACHE/stamp/$name" 2>/dev/null)" = "$key" ] && present "$@"; then
    say "$name: there already"
    exec 9>&-
    return
  fi
  say "$name: building"
  rm -rf "$CACHE/tmp/$name".*
  work=$(mktemp -d "$CACHE/tmp/$name.XXXXXX")
  cp "$HERE/$name/"* "$work/"
  (
    cd "$work"
    LDFLAGS="-s -w"
    if [ "$name" = apiserver ]; then prepare_apiserver; fi
    for pair in "$@"; do
      nice go build -ldflags "$LDFLAGS" -o "$work/out/${pair#*=}" "${pair%%=*}"
      mv -f "$work/out/${pair#*=}" "$BIN/${pair#*=}"
    done
  )
  rm -rf "$work"
  echo "$key" >"$CACHE/stamp/$name"
  say "$name: built in $((SECONDS - begun)) s"
  exec 9>&-
}

# Points the staging modules at their published twins and sets the version that
# the server reports (without one some of its APIs misbehave).
prepare_apiserver() {
  local version staging module
  version=$(required apiserver k8s.io/kubernetes)
  staging=v0.${version#v1.}
  for module in $(go mod download -json "k8s.io/kubernetes@$version" |
    sed -nE 's/^[[:space:]]*"GoMod": "(.*)",?$/\1/p' | xargs cat |
    sed -nE "s|^[[:space:]]*(replace )?(k8s\\.io/[a-z0-9-]+) => \\./staging/.*|\\2|p" | sort -u); do
    go mod edit -replace "$module=$module@$staging"
  done
  local in=k8s.io/component-base/version
  LDFLAGS+=" -X $in.gitVersion=$version -X $in.gitMajor=1 -X $in.gitMinor=$(echo "$version" | cut -d. -f2)"
  LDFLAGS+=" -X $in.gitTreeState=clean -X $in.gitCommit=unknown -X $in.buildDate=1970-01-01T00:00:00Z"
}

[ $# -gt 0 ] || set -- all
for what in "$@"; do
  case $what in
  etcd) build etcd .=etcd ;;
  etcdctl) build etcdctl go.etcd.io/etcd/etcdctl/v3=etcdctl go.etcd.io/etcd/etcdutl/v3=etcdutl ;;
  benchmark) build benchmark go.etcd.io/etcd/v3/tools/benchmark=benchmark ;;
  apiserver) build apiserver .=kube-apiserver ;;
  all) "$0" etcd etcdctl benchmark apiserver >/dev/null ;;
  *)
    say "unknown peer: $what (etcd, etcdctl, benchmark, apiserver or all)"
    exit 2
    ;;
  esac
done
echo "$BIN"
