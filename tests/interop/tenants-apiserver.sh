#!/usr/bin/env bash
# Two kube-apiservers on two tenants of one cluster, one of them with its events in a separate
# namespace and the other split over groups meanwhile and brought together again, while all of these
# are moved between the nodes. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/tenants-apiserver.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

read -r C1 C2 C3 P1 P2 P3 ADMIN CORE EVENTS OTHER <<<"$(free_ports 10)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$ADMIN
atoll() { "$ATOLL_BIN" "$@"; }
running_operators() { atoll op list -w json | jq '[.operators[] | select(.state == "running")] | length'; }
idle() { [ "$(running_operators)" = 0 ]; }

ATOLL_LISTEN_ADMIN_URLS=$ATOLL_ADMIN serve_member n1 "$C1" "$P1" "$CLUSTER"
FIRST=$SPAWNED
serve_member n2 "$C2" "$P2" "$CLUSTER"
SECOND=$SPAWNED
serve_member n3 "$C3" "$P3" "$CLUSTER"
up n1 "$FIRST"
up n2 "$SECOND"
up n3 "$SPAWNED"

eventually 20 "a tenant for the first" atoll tenant create alpha --replicas 1 --port "$CORE"
holds "its events apart" atoll namespace create alpha events --port "$EVENTS"
holds "a tenant for the second" atoll tenant create beta --replicas 1 --port "$OTHER"
open_port() { curl -sSf -m 2 "http://127.0.0.1:$1/health"; }
for port in "$CORE" "$EVENTS" "$OTHER"; do eventually 10 "port $port is open" open_port "$port"; done

EVENTS=http://127.0.0.1:$EVENTS tests/interop/apiserver.sh "http://127.0.0.1:$CORE" true >"$TMP/alpha.log" 2>&1 &
ALPHA=$!
tests/interop/apiserver.sh "http://127.0.0.1:$OTHER" false >"$TMP/beta.log" 2>&1 &
BETA=$!
MOVES=0
while running "$ALPHA" || running "$BETA"; do
  for target in n1 n2 n3; do
    for tenant in alpha beta; do atoll tenant move "$tenant" --to "$target" >/dev/null; done
    eventually 60 "alpha and beta are on $target" idle
    MOVES=$((MOVES + 3))
  done
  if [ "$MOVES" = 9 ]; then
    holds "beta is split" atoll tenant split beta --at-prefix /registry/events/ --at /registry/pods/ --wait
    like "beta is on several groups" "split over 4 groups" "$(atoll tenant show beta)"
  fi
  if [ "$MOVES" = 21 ]; then
    holds "beta is merged" atoll tenant merge beta --all --wait
    same "beta is on one group" 1 "$(atoll tenant show beta -w json | jq '.tenants[0].groups')"
  fi
done
[ "$MOVES" -gt 21 ] || die "nothing was moved after the merge: $MOVES moves"
wait "$ALPHA" || die "alpha: $(tail -n 12 "$TMP/alpha.log")"
wait "$BETA" || die "beta: $(tail -n 12 "$TMP/beta.log")"
tail -n 1 "$TMP/alpha.log" "$TMP/beta.log"
echo "$MOVES moves, ok $CHECKS checks"
