#!/usr/bin/env bash
# Runs the client programs against a server:
#
#   tests/interop/clients.sh ENDPOINT [go|python|node|rust]...
#
# What they need is installed and built under ${ATOLL_PEERS:-$HOME/.cache/atoll-peers}
# and kept there for the next run. ENDPOINT "" only prepares. See each program for its
# INTEROP_ONLY, INTEROP_SKIP and VERBOSE.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

[ $# -gt 0 ] || die "usage: clients.sh ENDPOINT [go|python|node|rust]..."
ENDPOINT=$1
shift
[ $# -gt 0 ] || set -- go python node rust
STORE=$(dirname "$PEERS")/clients
mkdir -p "$STORE"

# once NAME INPUT... -- COMMAND...: runs COMMAND in an emptied $STORE/NAME, unless it
# already did so with the same inputs (files or words).
once() {
  local name=$1 key inputs=() it
  shift
  while [ "$1" != -- ]; do
    inputs+=("$1")
    shift
  done
  shift
  key=$(for it in "${inputs[@]}"; do [ -f "$it" ] && cat "$it" || echo "$it"; done | sha256sum)
  exec 8>"$STORE/$name.lock"
  flock 8
  if [ "$(cat "$STORE/$name.key" 2>/dev/null)" != "$key" ]; then
    rm -rf "${STORE:?}/$name" "$STORE/$name.key"
    mkdir -p "$STORE/$name"
    (cd "$STORE/$name" && nice "$@") >"$TMP/prepare" 2>&1 || die "$name cannot be prepared: $(tail -n 20 "$TMP/prepare")"
    echo "$key" >"$STORE/$name.key"
  fi
  exec 8>&-
}

# report LANGUAGE COMMAND...: runs a client; its last line with its name and time.
report() {
  local name=$1 begun=$SECONDS out
  shift
  [ -n "$ENDPOINT" ] || return 0
  out=$(timeout 400 "$@" "$ENDPOINT") || die "$name: $* (status $?)
$out"
  [ -z "${VERBOSE:-}" ] || sed '$d' <<<"$out"
  grep '^skipped' <<<"$out" || true
  like "$name counts its checks" '^ok [1-9][0-9]* checks$' "$(tail -n 1 <<<"$out")"
  echo "$name: $(tail -n 1 <<<"$out") in $((SECONDS - begun)) s"
}

build_go() {
  cp "$HERE"/go/* .
  GOFLAGS="-mod=mod -buildvcs=false -trimpath" GOWORK=off CGO_ENABLED=0 go build -o interop .
}

install_python() {
  python3 -m venv venv
  venv/bin/pip install -q --disable-pip-version-check -r "$1"
}

install_node() {
  cp "$HERE/node/package.json" .
  npm install --no-audit --no-fund --ignore-scripts --loglevel=error
}

for language; do
  case $language in
  go)
    once go "$(go version)" "$HERE"/go/* -- bash -c "$(declare -f build_go); HERE='$HERE'; set -e; build_go"
    report "Go client/v3" "$STORE/go/interop"
    ;;
  python)
    for package in etcd3 aetcd; do
      needs=$HERE/python/requirements-$package.txt
      once "python-$package" "$(python3 --version)" "$needs" -- bash -c "$(declare -f install_python); set -e; install_python '$needs'"
      PYTHONDONTWRITEBYTECODE=1 report "Python $package" "$STORE/python-$package/venv/bin/python" "$HERE/python/${package}_client.py"
    done
    ;;
  node)
    once node "$(node --version)" "$HERE/node/package.json" -- bash -c "$(declare -f install_node); HERE='$HERE'; set -e; install_node"
    NODE_PATH=$STORE/node/node_modules report "Node etcd3" node "$HERE/node/client.js"
    ;;
  rust)
    # The target directory is kept: only what changed is compiled again.
    mkdir -p "$STORE/rust"
    exec 8>"$STORE/rust.lock"
    flock 8
    rm -rf "$STORE/rust/src"
    cp -r "$HERE/rust/Cargo.toml" "$HERE/rust/src" "$STORE/rust/"
    (cd "$STORE/rust" && CARGO_TARGET_DIR=$STORE/rust/target nice cargo build --quiet) 2>"$TMP/prepare" ||
      die "the Rust client cannot be built (it needs protobuf-compiler and libprotobuf-dev): $(tail -n 20 "$TMP/prepare")"
    exec 8>&-
    report "Rust etcd-client" "$STORE/rust/target/debug/interop"
    ;;
  *) die "unknown client: $language (go, python, node or rust)" ;;
  esac
done
