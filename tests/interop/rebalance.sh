#!/usr/bin/env bash
# A lopsided cluster as its operator sees it: three nodes that have everything, a fourth that comes
# empty, a plan that says what would move and why, and what came of it. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/rebalance.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
TENANTS=${TENANTS:-24}
read -r C1 C2 C3 C4 P1 P2 P3 P4 ADMIN <<<"$(free_ports 9)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$ADMIN

atoll() { "$ATOLL_BIN" "$@"; }
as() {
  local tenant=$1
  shift
  "$ETCDCTL" --endpoints "127.0.0.1:$C1,127.0.0.1:$C2" --command-timeout 20s --user "root@$tenant:none" "$@"
}
nodes_of() { atoll tenant show "$1" -w json | jq -r '.tenants[0].nodes | sort | join(",")'; }
idle() { [ "$(atoll op list -w json | jq '[.operators[] | select(.state == "running")] | length')" = 0 ]; }
replicas() { atoll node list -w json | jq -r ".nodes[] | select(.name == \"$1\") | .replicas"; }

start() { # NAME CLIENT PEER [ADMIN]
  ATOLL_LISTEN_ADMIN_URLS=${4:+http://127.0.0.1:$4} serve_member "$1" "$2" "$3" "$CLUSTER"
}
start n1 "$C1" "$P1" "$ADMIN"
FIRST=$SPAWNED
start n2 "$C2" "$P2"
SECOND=$SPAWNED
start n3 "$C3" "$P3"
up n1 "$FIRST"
up n2 "$SECOND"
up n3 "$SPAWNED"

eventually 20 "balancing by itself is off" atoll rebalance pause
for i in $(seq "$TENANTS"); do atoll tenant create "t$i" >/dev/null; done
same "what commands have led to is sound" "Placement's records are sound." "$(atoll rebalance check)"

# === labels, pins

atoll node label n1 rack=r7 >/dev/null
same "a label is kept" r7 "$(atoll node list -w json | jq -r '.nodes[] | select(.name == "n1") | .labels.rack')"
refused "a label has a value" 'a label has a name' atoll node label n1 rack
atoll tenant pin t1 --to n1,n2,n3 >/dev/null
refused "a pin has room" 'has 3 replicas' atoll tenant pin t1 --to n1,n2
refused "a pin is to what is there" 'no node' atoll tenant pin t1 --to n1,n2,n9

# === a fourth node

"$ATOLL_BIN" member --endpoint "http://127.0.0.1:$C1" add "http://127.0.0.1:$P4" >/dev/null
SPARE=http://127.0.0.1:$P4
spawn n4 "$ATOLL_BIN" start --name n4 --data-dir "$TMP/n4.data" \
  --listen-client-urls "http://127.0.0.1:$C4" --advertise-client-urls "http://127.0.0.1:$C4" \
  --listen-peer-urls "$SPARE" --initial-advertise-peer-urls "$SPARE" \
  --initial-cluster "$CLUSTER,n4=$SPARE" --initial-cluster-state existing
up n4 "$SPAWNED"
refused "a pin binds moves" 'pinned to other nodes' atoll tenant move t1 --to n2,n3,n4

# === a plan

# A client that goes on while everything moves.
writer() {
  local n=0
  until [ -e "$TMP/enough" ]; do
    n=$((n + 1))
    as t2 put count "$n" >/dev/null || { echo "put $n failed" && return 1; }
  done
  echo "$n" >"$TMP/written"
}
writer >"$TMP/writer.log" 2>&1 &
WRITER=$!

planned() { atoll rebalance plan -w json | jq -e '.plan.nodes | length == 4'; }
eventually 30 "a plan is made when all nodes have said what they do" planned
PLAN=$(atoll rebalance plan -w json)
VERSION=$(jq .plan.version <<<"$PLAN")
MOVES=$(jq '.plan.moves | length' <<<"$PLAN")
holds "it has moves" test "$MOVES" -gt 0
holds "it makes the worst node better" jq -e '.plan.spread_predicted < .plan.spread_before' <<<"$PLAN"
same "it has moved nothing yet" 1 "$(replicas n4 | sed 's/^[01]$/1/')"
like "it is explained in words" "over the mean" "$(atoll rebalance explain "$VERSION")"
refused "another one is not applied" 'not the newest' atoll rebalance apply --version $((VERSION - 1))
refused "nor one that is not there" 'there is no plan' atoll rebalance apply --version $((VERSION + 1))
atoll rebalance apply --version "$VERSION" --wait >"$TMP/applied"
like "its progress is told" "of $MOVES moves over" "$(cat "$TMP/applied")"
refused "it is applied once" 'applied before' atoll rebalance apply --version "$VERSION"
SHOWN=$(atoll rebalance explain "$VERSION" -w json | jq .explained)
same "all moves were done" "$MOVES" "$(jq .done <<<"$SHOWN")"
holds "the new node has its share" test "$(replicas n4)" -gt $((TENANTS / 3))
same "a pinned tenant has stayed" n1,n2,n3 "$(nodes_of t1)"
same "everything is still sound" "Placement's records are sound." "$(atoll rebalance check)"
touch "$TMP/enough"
wait "$WRITER" || die "a writer failed during moves: $(tail -n 3 "$TMP/writer.log")"
same "what was written is there" "$(cat "$TMP/written")" "$(as t2 get count --print-value-only)"

measured() { atoll rebalance history -w json | jq -e '.plans[0].spread_measured'; }
eventually 30 "what came of it is measured" measured
HISTORY=$(atoll rebalance history -w json | jq '.plans[0]')
holds "the worst node is better than before" jq -e '.spread_measured < .spread_before' <<<"$HISTORY"

# === taken back

atoll rebalance revert "$VERSION" >/dev/null
atoll rebalance apply --version $((VERSION + 1)) --wait >/dev/null
eventually 10 "nothing is under way" idle
holds "the new node is nearly empty again" test "$(replicas n4)" -le 2
echo "$MOVES moves, $(cat "$TMP/written") writes meanwhile, worst node $(jq -r '"\(.spread_before / 10) % -> \(.spread_measured / 10) % (predicted \(.spread_predicted / 10) %)"' <<<"$HISTORY"), ok $CHECKS checks"
