#!/usr/bin/env bash
# Many tenants, each with a stock Go client that writes and watches, while a third of them is moved
# to another node: no put may fail, no revision be missing, at any of them. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll THOUSAND=1000 tests/interop/thousand.sh
#
# THOUSAND: how many tenants (60); EVERY: how often each puts (1s).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

TENANTS=${THOUSAND:-60}
EVERY=${EVERY:-1s}
HERE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
read -r C1 C2 C3 C4 P1 P2 P3 P4 ADMIN <<<"$(free_ports 9)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$ADMIN
ALL=127.0.0.1:$C1,127.0.0.1:$C2,127.0.0.1:$C3

atoll() { "$ATOLL_BIN" "$@"; }
running_moves() { atoll op list -w json | jq '[.operators[] | select(.state == "running")] | length'; }
idle() { [ "$(running_moves)" = 0 ]; }

USERS=$(dirname "$PEERS")/clients/users
mkdir -p "$USERS"
cp "$HERE"/users/* "$USERS/"
build_users() { cd "$USERS" && GOFLAGS="-mod=mod -buildvcs=false -trimpath" GOWORK=off CGO_ENABLED=0 nice go build -o users .; }
(build_users) >"$TMP/prepare" 2>&1 || die "the users cannot be built: $(tail -n 20 "$TMP/prepare")"

ATOLL_LISTEN_ADMIN_URLS=http://127.0.0.1:$ADMIN serve_member n1 "$C1" "$P1" "$CLUSTER"
FIRST=$SPAWNED
serve_member n2 "$C2" "$P2" "$CLUSTER"
SECOND=$SPAWNED
serve_member n3 "$C3" "$P3" "$CLUSTER"
up n1 "$FIRST"
up n2 "$SECOND"
up n3 "$SPAWNED"
eventually 20 "balancing by itself is off" atoll rebalance pause

T0=$SECONDS
seq 0 $((TENANTS - 1)) | xargs -P 8 -I{} "$ATOLL_BIN" tenant create t{} >/dev/null
echo "$TENANTS tenants created in $((SECONDS - T0)) s"
same "all are there" "$TENANTS" "$(atoll tenant list -w json | jq '[.tenants[] | select(.name | test("^t[0-9]+$"))] | length')"

"$USERS/users" -tenants "$TENANTS" -every "$EVERY" "$ALL" >"$TMP/users.out" 2>"$TMP/users.err" &
WRITERS=$!
eventually 60 "every tenant is written to and watched" grep -q ready "$TMP/users.out"

URL=http://127.0.0.1:$P4
"$ATOLL_BIN" member --endpoint "http://127.0.0.1:$C1" add "$URL" >/dev/null
spawn n4 "$ATOLL_BIN" start --name n4 --data-dir "$TMP/n4.data" \
  --listen-client-urls "http://127.0.0.1:$C4" --advertise-client-urls "http://127.0.0.1:$C4" \
  --listen-peer-urls "$URL" --initial-advertise-peer-urls "$URL" \
  --initial-cluster "$CLUSTER,n4=$URL" --initial-cluster-state existing
up n4 "$SPAWNED"
well() { atoll status | grep -q "^All well: .* on 4 nodes"; }
eventually 30 "the others know the new node" well

# A third of them leaves a node each for the new one.
T0=$SECONDS
TO=(n2,n3,n4 n1,n3,n4 n1,n2,n4)
MOVED=$((TENANTS / 3))
for i in $(seq 0 $((MOVED - 1))); do echo "$((i * 3)) ${TO[i % 3]}"; done |
  xargs -P 4 -L 1 bash -c '"$ATOLL_BIN" tenant move "t$0" --to "$1" >/dev/null || exit 255'
eventually 300 "all moves are over" idle
echo "$MOVED of them moved in $((SECONDS - T0)) s"
there() { atoll tenant list -w json | jq '[.tenants[] | select(.name | test("^t[0-9]+$")) | select(.nodes | index("n4"))] | length'; }
same "as many are on the new node" "$MOVED" "$(there)"

kill -TERM "$WRITERS"
wait "$WRITERS" || die "a user was not served: $(tail -n 5 "$TMP/users.err") $(tail -n 1 "$TMP/users.out")"
passed "no put failed, no revision is missing"
tail -n 1 "$TMP/users.out"
same "placement's records are sound" "Placement's records are sound." "$(atoll rebalance check)"
echo "ok $CHECKS checks"
