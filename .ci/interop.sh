#!/usr/bin/env bash
# Real clients against Atoll: etcdctl (ours and Debian's old one), the Go, Python, Node
# and Rust clients, kube-apiserver.
#
#   ATOLL_BIN=target/release/atoll .ci/interop.sh [PART...]
#   INTEROP_PEER=etcd              .ci/interop.sh [PART...]   the same against real etcd
#
# Parts: etcdctl, old-etcdctl, go, python, node, rust, apiserver, members, playground, split,
# split-clients, tenants, thousand, repair, recover, rebalance, hot, tenants-apiserver, disk, damage, perf, cluster;
# all when none is named. Each starts its own server and is told as passed or failed; the
# rest goes on after a failure. Servers listen on free ports of 127.0.0.1.
#
# SKIP_ETCDCTL="auth snapshot"  sections that etcdctl.sh leaves out
# SKIP_CLIENTS=""               sections that the Go client leaves out
# SKIP_CLUSTER=""               sections that cluster.sh leaves out
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
[ "${INTEROP_PEER:-atoll}" = etcd ] || ATOLL_BIN=$(realpath -e "${ATOLL_BIN:?ATOLL_BIN names the atoll program}")
export ATOLL_BIN

. tests/interop/lib.sh
. tests/interop/servers.sh

BESIDE="perf recover"
PARTS="etcdctl old-etcdctl go python node rust apiserver members playground split split-clients tenants thousand repair recover rebalance hot tenants-apiserver disk damage perf cluster"
# How a full disk is met, and the commands for members, are our own.
[ "$INTEROP_PEER" = atoll ] || PARTS=${PARTS/ members playground split split-clients tenants thousand repair recover rebalance hot tenants-apiserver disk damage/}
[ $# -eq 0 ] || PARTS=$*
# What Atoll does not have yet. Real etcd is asked for everything.
if [ "$INTEROP_PEER" = atoll ]; then
  SKIP_ETCDCTL=${SKIP_ETCDCTL-auth snapshot}
  SKIP_OLD_ETCDCTL=${SKIP_OLD_ETCDCTL-endpoints defrag}
fi
wants() { [[ " $PARTS " == *" $1 "* ]]; }

# install PACKAGE...: those of Debian's packages that are missing.
install() {
  local package missing=()
  for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
    >"$TMP/install" 2>&1 || die "cannot install ${missing[*]}: $(tail -n 5 "$TMP/install")"
}

prepare() {
  local begun=$SECONDS peers=(etcdctl) clients=() it
  install curl jq openssl
  if wants old-etcdctl; then install etcd-client; fi
  if wants rust || wants split-clients; then install protobuf-compiler libprotobuf-dev; fi
  if [ "$INTEROP_PEER" = etcd ]; then peers=(etcd etcdctl); fi
  if wants apiserver || wants tenants-apiserver; then peers+=(apiserver); fi
  tests/peers/build.sh "${peers[@]}" >/dev/null
  for it in go python node rust; do if wants "$it" || wants split-clients; then clients+=("$it"); fi; done
  [ ${#clients[@]} -eq 0 ] || tests/interop/clients.sh "" "${clients[@]}"
  echo "prepared in $((SECONDS - begun)) s"
}

# Every part runs in a shell of its own, which starts and ends its server.
part_etcdctl() { serve_one server && INTEROP_SKIP=${SKIP_ETCDCTL:-} tests/interop/etcdctl.sh "$ENDPOINT"; }
# 3.4 sends a whole URL as the server's name, which HTTP/2 forbids and our library refuses: it
# is given host:port, and leaves out what dials the members' URLs (docs/operating.md).
part_old_etcdctl() {
  serve_one server
  INTEROP_SKIP="${SKIP_ETCDCTL:-} ${SKIP_OLD_ETCDCTL:-}" ETCDCTL=/usr/bin/etcdctl tests/interop/etcdctl.sh "${ENDPOINT#http://}"
}
part_go() { serve_one server && INTEROP_SKIP=${SKIP_CLIENTS:-} tests/interop/clients.sh "$ENDPOINT" go; }
part_python() { serve_one server && tests/interop/clients.sh "$ENDPOINT" python; }
part_node() { serve_one server && tests/interop/clients.sh "$ENDPOINT" node; }
part_rust() { serve_one server && tests/interop/clients.sh "$ENDPOINT" rust; }
part_apiserver() { serve_one server && tests/interop/apiserver.sh "$ENDPOINT"; }
part_members() { tests/interop/members.sh; }
part_playground() { tests/interop/playground.sh; }
part_split() { tests/interop/split.sh; }
# The clients' own checks, on a tenant whose keys are cut into twelve groups.
part_split_clients() {
  export ATOLL_ADMIN
  ATOLL_ADMIN=http://127.0.0.1:$(free_ports 1)
  ATOLL_LISTEN_ADMIN_URLS=$ATOLL_ADMIN serve_one server
  for key in b e go h k lock m p s t w; do
    eventually 60 "it is cut at $key" "$ATOLL_BIN" tenant split default --at "$key" --wait
  done
  like "it is on twelve groups" "split over 12 groups" "$("$ATOLL_BIN" tenant show default)"
  INTEROP_SKIP=${SKIP_ETCDCTL:-} tests/interop/etcdctl.sh "$ENDPOINT"
  for it in go python rust node; do tests/interop/clients.sh "$ENDPOINT" "$it"; done
}
part_tenants() { tests/interop/tenants.sh; }
part_thousand() { tests/interop/thousand.sh; }
part_repair() { tests/interop/repair.sh; }
part_recover() { tests/interop/recover.sh; }
part_rebalance() { tests/interop/rebalance.sh; }
part_hot() { tests/interop/hot.sh; }
part_tenants_apiserver() { tests/interop/tenants-apiserver.sh; }
part_disk() { tests/interop/disk.sh; }
part_damage() { tests/interop/damage.sh; }
part_perf() { serve_one server && tests/interop/perf.sh "$ENDPOINT"; }
part_cluster() {
  serve_three node
  INTEROP_SKIP=${SKIP_CLUSTER:-} tests/interop/cluster.sh "$ENDPOINTS"
  INTEROP_SKIP=${SKIP_ETCDCTL:-} tests/interop/etcdctl.sh "$ENDPOINTS"
}

# begin PART: runs it in a group of processes of its own, its output in a file.
begin() {
  setsid env -u INTEROP_ONLY -u INTEROP_SKIP "$BASH" "$ROOT/.ci/interop.sh" --part "$1" >"$TMP/$1.log" 2>&1 &
  RUNNING[$1]=$!
}

# tell PART: waits for its end and tells what became of it.
tell() {
  local status=0
  wait "${RUNNING[$1]}" || status=$?
  if [ "$status" = 0 ]; then good=$((good + 1)); else bad=$((bad + 1)); fi
  echo "=== $1: $([ "$status" = 0 ] && echo passed || echo FAILED)"
  cat "$TMP/$1.log"
}

if [ "${1:-}" = --part ]; then
  "part_${2//-/_}"
  echo "$2 took $SECONDS s"
  exit
fi

declare -A RUNNING=()
good=0 bad=0
for part in $PARTS; do
  declare -F "part_${part//-/_}" >/dev/null || die "unknown part: $part"
done
prepare
# These take minutes and wait most of it: beside the others.
for part in $BESIDE; do if wants "$part"; then begin "$part"; fi; done
for part in $PARTS; do
  [[ " $BESIDE " != *" $part "* ]] || continue
  begin "$part"
  tell "$part"
done
for part in $BESIDE; do if wants "$part"; then tell "$part"; fi; done
echo "real clients against $INTEROP_PEER: done in $SECONDS s"
echo "interop: $good passed, $bad failed"
if [ "$bad" -gt 0 ]; then exit 1; fi
