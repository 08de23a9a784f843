#!/usr/bin/env bash
# Adds a node to a running cluster of three, learner first, and removes another, with the
# operator's commands. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/members.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
serve_three node
read -r CLIENT PEER <<<"$(free_ports 2)"
FIRST=${ENDPOINTS%%,*}
FOURTH=http://127.0.0.1:$CLIENT
ctl() { "$ETCDCTL" --endpoints "$ENDPOINTS" --command-timeout 20s "$@"; }
fourth() { "$ETCDCTL" --endpoints "$FOURTH" --command-timeout 5s "$@"; }
member() { "$ATOLL_BIN" member --endpoint "$FIRST" "$@"; }
id_of() { ctl member list | awk -F', ' -v url="$1" '$4 == url {print $1}'; }
# In the order in which servers.sh names them, which makes the token.
peers_of() { ctl member list | awk -F', ' '{print $3 "=" $4}' | sort | paste -sd,; }
hashes() { "$ETCDCTL" --endpoints "$1" endpoint hashkv -w json | jq -r '.[].HashKV | "\(.hash) \(.compact_revision)"' | sort -u; }
hashes_agree() { [ "$(hashes "$1" | wc -l)" = 1 ]; }

for i in $(seq 200); do ctl put "key$i" "value$i" >/dev/null; done

CLUSTER=$(peers_of)
member add "http://127.0.0.1:$PEER" >/dev/null
NEW=$(id_of "http://127.0.0.1:$PEER")
like "the new member has an id" '^[0-9a-f]+$' "$NEW"
like "it is a learner" "$NEW.*true" "$(ctl member list)"

spawn fourth "$ATOLL_BIN" start --name fourth --data-dir "$TMP/fourth.data" \
  --listen-client-urls "$FOURTH" --advertise-client-urls "$FOURTH" \
  --listen-peer-urls "http://127.0.0.1:$PEER" --initial-advertise-peer-urls "http://127.0.0.1:$PEER" \
  --initial-cluster "$CLUSTER,fourth=http://127.0.0.1:$PEER" --initial-cluster-state existing
up fourth "$SPAWNED"
eventually 20 "the learner has everything" test 200 = "$(fourth get key --prefix --keys-only --consistency s | grep -c key)"
refused "a learner serves no writes" 'rpc not supported for learner' fourth put a b
refused "a learner serves no linearizable reads" 'rpc not supported for learner' fourth get key1
like "a learner tells its status" "$NEW" "$(fourth endpoint status)"

eventually 20 "the learner is promoted" member promote "$NEW"
eventually 20 "it serves writes as a voter" fourth put after promote
same "its writes are everyone's" promote "$(ctl get after --print-value-only)"

# The leader itself goes, so that the others must elect.
read -r LEADER GONE < <("$ETCDCTL" --endpoints "$ENDPOINTS,$FOURTH" endpoint status | awk -F', ' '$9 == "true" {print $1, $2}')
REST=$(tr ',' '\n' <<<"$ENDPOINTS,$FOURTH" | grep -vx "$LEADER" | paste -sd,)
ENDPOINTS=$REST
holds "the leader is removed" "$ATOLL_BIN" member --endpoint "${REST%%,*}" remove "$GONE"
eventually 20 "the rest goes on" ctl put still here
same "three members are left" 3 "$(ctl member list | wc -l)"
eventually 20 "all replicas are equal" hashes_agree "$REST"
eventually 20 "the removed node stops" grep -qs "was removed from the cluster" "$TMP"/*.err
same "nothing is lost" 200 "$(ctl get key --prefix --keys-only | grep -c key)"
# A member whose directory is lost must not come back as itself: it forgot its votes.
read -r LOST ITS_PEER ITS_CLIENT < <(ctl member list | awk -F', ' '$3 ~ /^node/ {print $3, $4, $5; exit}')
kill -9 "$(pgrep -f -- "--data-dir $TMP/$LOST.data")"
rm -rf "${TMP:?}/$LOST.data"
refused "a member without its directory is refused" "has been running before.*atoll member remove" \
  timeout 30 "$ATOLL_BIN" start --name "$LOST" --data-dir "$TMP/$LOST.data" \
  --listen-client-urls "$ITS_CLIENT" --advertise-client-urls "$ITS_CLIENT" \
  --listen-peer-urls "$ITS_PEER" --initial-advertise-peer-urls "$ITS_PEER" \
  --initial-cluster "$CLUSTER" --initial-cluster-token "$CLUSTER"
echo "ok $CHECKS checks"
