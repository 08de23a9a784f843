#!/usr/bin/env bash
# Groups that lost most of their replicas for good: what is left is told beforehand, one of them goes
# on when its operator accepts the loss, no revision is given twice, and who comes back late is left
# behind. First two of three nodes of a tenant die, then two of its three replicas are damaged, then
# two of three nodes of a tenant that is split, then placement's own group loses most of its nodes.
# Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/recover.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
NODES=5
read -ra CLIENTS <<<"$(free_ports 5)"
read -ra PEER_PORTS <<<"$(free_ports 5)"
read -ra ADMINS <<<"$(free_ports 5)"
CLUSTER=
for i in $(seq $NODES); do
  CLUSTER+=${CLUSTER:+,}n$i=http://127.0.0.1:${PEER_PORTS[i - 1]}
done
declare -a PIDS=()

use_admin() { export ATOLL_ADMIN=http://127.0.0.1:${ADMINS[$1 - 1]}; }
use_admin 1
atoll() { "$ATOLL_BIN" "$@"; }
at() { # NODE ARGUMENTS: etcdctl as the tenant at a node
  "$ETCDCTL" --endpoints "127.0.0.1:${CLIENTS[$1 - 1]}" --user root@acme:none --command-timeout 20s "${@:2}"
}
quick() { # the same for what is to fail
  "$ETCDCTL" --endpoints "127.0.0.1:${CLIENTS[$1 - 1]}" --user root@acme:none --command-timeout 2s "${@:2}"
}
revision() { at 1 get nothing -w json | jq .header.revision; }
verdict() {
  local told
  told=$(trap - ERR; atoll status "$@") || true
  echo "${told%%$'\n'*}"
}
says() { [[ $(verdict) =~ $1 ]]; }
nodes_of() { atoll tenant show acme -w json | jq -r '.tenants[0].nodes | sort | join(",")'; }
are_on() { [ "$(nodes_of)" = "$1" ]; }
voters() { atoll group show "$GROUP" -w json | jq '[.group.replicas[] | select(.learner | not)] | length'; }
has_voters() { [ "$(voters)" = "$1" ]; }
shown() { atoll group show "$GROUP" -w json | jq -r "$1"; }

start() { # NUMBER
  ATOLL_LISTEN_ADMIN_URLS=http://127.0.0.1:${ADMINS[$1 - 1]} \
    serve_member "n$1" "${CLIENTS[$1 - 1]}" "${PEER_PORTS[$1 - 1]}" "$CLUSTER"
  PIDS[$1]=$SPAWNED
}
stop() { # NUMBER: as by a power cut
  kill -9 "${PIDS[$1]}"
  wait "${PIDS[$1]}" 2>/dev/null || true
}
for i in $(seq $NODES); do start "$i"; done
for i in $(seq $NODES); do up "n$i" "${PIDS[i]}"; done

eventually 20 "a tenant is created" atoll tenant create acme
atoll tenant move acme --to n1,n2,n3 >/dev/null
eventually 30 "it is on three of five nodes" are_on n1,n2,n3
GROUP=$(atoll tenant show acme -w json | jq '.tenants[0].group')
eventually 20 "all is well" says '^All well'

for i in $(seq 20); do at 1 put "before$i" "$i" >/dev/null; done
applied() { at "$1" get before20 --consistency s --print-value-only | grep -q 20; }
for i in 1 2 3; do eventually 10 "n$i has them" applied "$i"; done
BEFORE=$(revision)

# === while it is well

refused "a group that is well is left as it is" 'nothing to recover' atoll group recover "$GROUP" --accept-loss
same "group show knows all replicas" 3 "$(shown '[.group.replicas[] | select(.trouble == "")] | length')"
same "and who leads" 1 "$(shown '[.group.replicas[] | select(.leads)] | length')"
same "and how far it is" "$BEFORE" "$(shown .group.revision)"
like "group show is told to people as well" 'NODE +REPLICA' "$(atoll group show "$GROUP")"
like "group top names the group" "(^|
)$GROUP +acme" "$(atoll group top --limit 0)"
same "and tells scripts" "$GROUP" "$(atoll group top --limit 0 -w json | jq ".loads[] | select(.group == $GROUP) | .group")"
refused "there is no such group" 'there is no group' atoll group show 4711

# === two of three die for good

stop 2
stop 3
mv "$TMP/n2.data" "$TMP/n2.aside"
mv "$TMP/n3.data" "$TMP/n3.aside"
refused "it takes no writes" '.' quick 1 put lost write
eventually 30 "status says so" says '1 group has no quorum.*2 nodes are silent|2 nodes are silent'
told() { atoll group recover "$GROUP" >"$TMP/told" 2>&1; [ $? = 1 ] && grep -q 'n1 would go on' "$TMP/told"; }
eventually 30 "the command says what it would do" told
like "it names who is left, and how far" 'n1 has the newest log' "$(cat "$TMP/told")"
like "and who is not" 'its node is silent' "$(cat "$TMP/told")"
like "and what is lost" 'Lost is what was acknowledged and stands only with the others' "$(cat "$TMP/told")"
like "and that nothing was changed" 'nothing was changed' "$(cat "$TMP/told")"
same "nothing was" null "$(shown .group.recovery)"
refused "a node that is gone cannot be chosen" 'cannot go on' atoll group recover "$GROUP" --choose n2 --accept-loss

refused "a node that was heard of a moment ago may only be slow" 'may only be slow' \
  atoll group recover "$GROUP" --accept-loss
eventually 90 "it is recovered" atoll group recover "$GROUP" --accept-loss
written() { at 1 put after "$1"; }
eventually 20 "it can be written to" written 1
AFTER=$(revision)
holds "revisions are far above all before" test "$AFTER" -gt $((BEFORE + 999999999))
same "every key is there" 20 "$(at 1 get before --prefix --count-only -w fields | sed -n 's/"Count" : //p')"
same "with its value" 7 "$(at 1 get before7 --print-value-only)"
spawn watch "$ETCDCTL" --endpoints "127.0.0.1:${CLIENTS[0]}" --user root@acme:none watch before1 --rev "$((BEFORE + 1))"
ended "$SPAWNED" "a watch that goes on from before"
like "who watched from before is told to begin anew" 'compacted' "$(cat "$TMP/watch.out" "$TMP/watch.err")"
refused "history is gone" 'compacted' at 1 get before1 --rev "$BEFORE"
is_done() { [ "$(atoll op list -w json | jq -r '[.operators[] | select(.why | startswith("recovery: n1"))][0].state')" = done ]; }
eventually 20 "the operator is in the history" is_done
refused "and there is nothing to recover any more" 'nothing to recover' atoll group recover "$GROUP" --accept-loss
eventually 60 "repairs bring it up to three" has_voters 3
eventually 20 "on the nodes that are left" are_on n1,n4,n5

# === they come back with all they had, and with no word of what happened

mv "$TMP/n2.aside" "$TMP/n2.data"
mv "$TMP/n3.aside" "$TMP/n3.data"
start 2
start 3
up n2 "${PIDS[2]}"
up n3 "${PIDS[3]}"
for i in 2 3; do
  eventually 20 "n$i answers as the others do" quick "$i" get after
  same "n$i has not gone back" 1 "$(at "$i" get after --print-value-only)"
done
eventually 30 "all is well" says '^All well'
holds "the tenant stays where it is" are_on n1,n4,n5
written 2 >/dev/null
holds "no revision is given twice" test "$(revision)" -gt "$AFTER"

# === the logs of two of three are damaged

MARK=damaged-$RANDOM$RANDOM
for i in $(seq 20); do at 1 put "$MARK$i" "$MARK" >/dev/null; done
marked() { at "$1" get "${MARK}20" --consistency s --print-value-only | grep -q "$MARK"; }
for i in 1 4 5; do eventually 10 "n$i has what will be damaged" marked "$i"; done
SECOND=$(revision)
for i in 4 5; do stop "$i"; done
for i in 4 5; do
  FILE=$(grep -l "${MARK}10" "$TMP/n$i".data/log/* | head -n 1)
  OFFSET=$(grep -abo "${MARK}10" "$FILE" | head -n 1 | cut -d : -f 1)
  printf '\001\002\003' | dd of="$FILE" bs=1 seek="$OFFSET" conv=notrunc status=none
  start "$i"
done
for i in 4 5; do
  up "n$i" "${PIDS[i]}"
  holds "n$i finds the damage" grep -q "a replica is quarantined" "$TMP/n$i.err"
done
damaged() { told || true; grep -q 'quarantined' "$TMP/told" && grep -q 'n1 would go on' "$TMP/told"; }
eventually 30 "the command names the damaged ones" damaged
refused "a damaged one cannot be chosen" 'quarantined' atoll group recover "$GROUP" --choose n4 --accept-loss
eventually 90 "the whole one is chosen by name" atoll group recover "$GROUP" --choose n1 --accept-loss
eventually 20 "it can be written to" written 3
holds "revisions have jumped again" test "$(revision)" -gt $((SECOND + 999999999))
same "nothing is lost" "$MARK" "$(at 1 get "${MARK}20" --print-value-only)"
eventually 60 "repairs bring it up to three" has_voters 3
eventually 40 "all is well" says '^All well'

# === two of three nodes of a tenant die that is split

eventually 20 "it can be split" atoll tenant split acme --at before3
groups_are() { [ "$(atoll tenant show acme -w json | jq '.tenants[0].groups')" = "$1" ]; }
eventually 30 "it is on two groups" groups_are 2
eventually 20 "all is well" says '^All well'
OTHER=$(atoll tenant show acme -w json | jq '.tenants[0].places[1].group')
at 1 put before1 two >/dev/null
at 1 put before5 two >/dev/null
SPLIT=$(revision)
# All but n1, which is asked.
read -ra AWAY <<<"$(nodes_of | tr ',n' '  ' | tr -s ' ' | sed 's/\b1\b//')"
same "two others have it" 2 "${#AWAY[@]}"
for i in "${AWAY[@]}"; do
  stop "$i"
  mv "$TMP/n$i.data" "$TMP/n$i.aside"
done
refused "it takes no writes" '.' quick 1 put before5 lost
eventually 120 "home is recovered" atoll group recover "$GROUP" --accept-loss
eventually 60 "and the other group" atoll group recover "$OTHER" --accept-loss
both() { at 1 put before1 "$1" && at 1 put before5 "$1"; }
eventually 30 "keys of both can be written" both three
holds "revisions have jumped" test "$(revision)" -gt $((SPLIT + 999999999))
same "all keys are there" 20 "$(at 1 get before --prefix --count-only -w fields | sed -n 's/"Count" : //p')"
same "of the other group as well" 7 "$(at 1 get before7 --print-value-only)"
for key in before1 before5; do
  spawn watch "$ETCDCTL" --endpoints "127.0.0.1:${CLIENTS[0]}" --user root@acme:none watch "$key" --rev "$((SPLIT + 1))"
  ended "$SPAWNED" "a watch of $key that goes on from before"
  like "who watched $key is told to begin anew" 'compacted' "$(cat "$TMP/watch.out" "$TMP/watch.err")"
done
refused "history of both is gone" 'compacted' at 1 get before --prefix --rev "$SPLIT"
eventually 60 "repairs bring home up to three" has_voters 3
for i in "${AWAY[@]}"; do
  mv "$TMP/n$i.aside" "$TMP/n$i.data"
  start "$i"
done
for i in "${AWAY[@]}"; do up "n$i" "${PIDS[i]}"; done
eventually 60 "all is well" says '^All well'
eventually 20 "it can be merged" atoll tenant merge acme --all
eventually 60 "it is on one group" groups_are 1
same "with all keys" 20 "$(at 1 get before --prefix --count-only -w fields | sed -n 's/"Count" : //p')"
same "and the newest" three "$(at 1 get before5 --print-value-only)"

# === placement's own group loses most of its nodes

refused "not while its node runs" 'used by another process' \
  atoll recover-ledger --data-dir "$TMP/n1.data"
LAST=$(revision)
for i in $(seq $NODES); do stop "$i"; done
for i in 3 4 5; do rm -rf "$TMP/n$i.data"; done
refused "it says how far the replica is" 'accept-loss' atoll recover-ledger --data-dir "$TMP/n1.data"
refused "a folder of nothing is refused" 'no data directory' atoll recover-ledger --data-dir "$TMP/nothing"
holds "the ledger goes on with one node" atoll recover-ledger --data-dir "$TMP/n1.data" --accept-loss
refused "not twice" 'only voter already' atoll recover-ledger --data-dir "$TMP/n1.data" --accept-loss
# They do not say that they serve: the default tenant's group lost its majority as well.
start 1
eventually 40 "the node that went on answers" atoll tenant list
refused "not on another node as well" 'n1 runs and answers' \
  atoll recover-ledger --data-dir "$TMP/n2.data" --accept-loss
start 2
eventually 40 "placement answers" atoll tenant list
same "it knows the tenant" acme "$(atoll tenant show acme -w json | jq -r '.tenants[0].name')"
# The other one may have brought back enough of its replicas: then nothing needs to be lost.
recovered() {
  atoll group recover "$GROUP" --accept-loss >"$TMP/told" 2>&1 || grep -q 'nothing to recover' "$TMP/told"
}
eventually 120 "its group is recovered, or has its majority again" recovered
eventually 30 "the tenant can be written to" written 4
holds "above all before" test "$(revision)" -gt "$LAST"
same "with all it had" "$MARK" "$(at 1 get "${MARK}20" --print-value-only)"
heard() { atoll node list -w json | jq -e '[.nodes[] | select(.name == "n2") | .silent_ms] == [0]'; }
eventually 20 "the other one that was left takes part again" heard
echo "ok $CHECKS checks"
