#!/usr/bin/env bash
# What a cluster of several nodes must show to the real etcdctl:
#
#   tests/interop/cluster.sh ENDPOINT,ENDPOINT,ENDPOINT
#
# Name one endpoint of each node. Every verb is sent to one node alone, so that a
# write through one is read, watched, kept alive or waited for through another.
# INTEROP_ONLY, INTEROP_SKIP and VERBOSE work as in etcdctl.sh.
set -euo pipefail

SECTIONS="members health writes watch lease lock hash defrag move_leader"
if [ "${1:-}" = --sections ]; then
  echo $SECTIONS
  exit
fi

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ENDPOINTS=${1:?usage: cluster.sh ENDPOINT,ENDPOINT,ENDPOINT}
IFS=, read -ra NODE <<<"$ENDPOINTS"
NODES=${#NODE[@]}
ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
P="~cluster/$$-$RANDOM"
for name in "${!ETCDCTL_@}"; do unset "$name"; done
[ "$NODES" -ge 3 ] || die "cluster.sh wants three endpoints or more, got: $ENDPOINTS"
command -v "$ETCDCTL" >/dev/null || die "no etcdctl at $ETCDCTL: tests/peers/build.sh etcdctl"

# at ENDPOINTS ARGUMENT...: etcdctl with these endpoints; a failure is printed too.
at() {
  local status=0 errors=$TMP/errors.$BASHPID
  timeout 60 "$ETCDCTL" --endpoints "$1" --dial-timeout 10s --command-timeout 30s "${@:2}" 2>"$errors" || status=$?
  [ $status -eq 0 ] || echo "exit $status: $(cat "$errors")"
  rm -f "$errors"
  return $status
}

value() { at "$1" get --print-value-only "${@:2}"; }
said() { grep -q -- "$2" "$TMP/$1.out"; }
lines() { paste -sd' ' "$TMP/$1.out" | sed "s|$P/||g"; }
# The ids stay text: as numbers they would lose their last digits.
ids() { at "$1" member list | cut -d, -f1 | sort | paste -sd' '; }
# leader ENDPOINT: the id of the leader as that node sees it.
leader() { printf '%x' "$(at "$1" endpoint status -w fields | sed -nE 's/^"Leader" : ([0-9]+)$/\1/p')"; }
member() { printf '%x' "$(at "$1" endpoint status -w fields | sed -nE 's/^"MemberID" : ([0-9]+)$/\1/p')"; }
# leader_node: which of NODE is the leader.
leader_node() {
  local want node
  want=$(leader "${NODE[0]}")
  for node in "${NODE[@]}"; do
    if [ "$(member "$node")" = "$want" ]; then
      echo "$node"
      return
    fi
  done
  return 1
}
agreed() {
  local node want
  want=$(leader "${NODE[0]}")
  [ "$want" != 0 ] || return 1
  for node in "${NODE[@]}"; do [ "$(leader "$node")" = "$want" ] || return 1; done
}

check_members() {
  local node all
  eventually 30 "all nodes agree on a leader" agreed
  all=$(ids "${NODE[0]}")
  same "member list has all nodes" "$NODES" "$(wc -w <<<"$all")"
  same "with different ids" "$NODES" "$(tr ' ' '\n' <<<"$all" | sort -u | wc -l)"
  for node in "${NODE[@]}"; do
    same "each node lists the same members" "$all" "$(ids "$node")"
    holds "a node is a member" grep -qw "$(member "$node")" <<<"$all"
  done
  same "all are started voters" "$NODES" "$(at "${NODE[1]}" member list | grep -cE '^[0-9a-f]+, started, .*, https?://[^ ]+, false$')"
  same "the client URLs are the nodes'" "$(tr ',' '\n' <<<"$ENDPOINTS" | sed 's|^https\?://||' | sort | paste -sd' ')" \
    "$(at "${NODE[0]}" member list -w json | jq -r '.members[].clientURLs[0]' | sed 's|^https\?://||' | sort | paste -sd' ')"
  holds "one of them leads" test -n "$(leader_node)"
}

check_health() {
  local status
  same "endpoint health --cluster" "$NODES true" "$(at "${NODE[2]}" endpoint health --cluster -w json | jq -r '"\(length) \(all(.health))"')"
  status=$(at "${NODE[1]}" endpoint status --cluster -w json)
  same "endpoint status --cluster" "$NODES" "$(jq length <<<"$status")"
  same "one cluster" 1 "$(jq '[.[].Status.header.cluster_id] | unique | length' <<<"$status")"
  same "one leader" 1 "$(jq '[.[].Status.leader] | unique | length' <<<"$status")"
  same "one term" 1 "$(jq '[.[].Status.raftTerm] | unique | length' <<<"$status")"
  same "one version" 1 "$(jq '[.[].Status.version] | unique | length' <<<"$status")"
  like "endpoint status --cluster -w table" 'IS LEADER' "$(at "$ENDPOINTS" endpoint status --cluster -w table)"
  same "alarm list" "" "$(at "${NODE[1]}" alarm list)"
}

check_writes() {
  local i node other
  for i in "${!NODE[@]}"; do
    same "put through node $i" "OK" "$(at "${NODE[i]}" put "$P/w/$i" "from $i")"
    for node in "${NODE[@]}"; do
      same "is read at once through every node" "from $i" "$(value "$node" "$P/w/$i")"
    done
  done
  stale() { [ "$(value "$1" "$P/w/2" --consistency=s)" = "from 2" ]; }
  for node in "${NODE[@]}"; do eventually 10 "and soon in each node's own copy" stale "$node"; done
  other=$(at "${NODE[0]}" get "$P/w/1" -w json | jq -c '.kvs[0]')
  for node in "${NODE[@]}"; do
    same "each node gives the same revisions" "$other" "$(at "$node" get "$P/w/1" -w json | jq -c '.kvs[0]')"
  done
  same "a txn through one node" SUCCESS "$(printf 'value("%s") = "from 0"\n\nput %s changed\n\n\n' "$P/w/0" "$P/w/0" | at "${NODE[2]}" txn | sed -n 1p)"
  same "is seen by the next one" FAILURE "$(printf 'value("%s") = "from 0"\n\nput %s wrong\n\n\n' "$P/w/0" "$P/w/0" | at "${NODE[1]}" txn | sed -n 1p)"
  same "del through one node" 3 "$(at "${NODE[1]}" del --prefix "$P/w/")"
  same "is seen by the next one" "" "$(at "${NODE[0]}" get --prefix "$P/w/")"
}

check_watch() {
  local i start
  at "${NODE[0]}" put "$P/watch/first" 0 >/dev/null
  start=$(at "${NODE[0]}" get "$P/watch/first" -w json | jq '.kvs[0].mod_revision')
  for i in "${!NODE[@]}"; do spawn "watch$i" "$ETCDCTL" --endpoints "${NODE[i]}" watch --prefix "$P/watch/" --rev "$start"; done
  for i in "${!NODE[@]}"; do eventually 10 "watch through node $i" said "watch$i" first; done
  for i in "${!NODE[@]}"; do at "${NODE[i]}" put "$P/watch/$i" "$i" >/dev/null; done
  at "${NODE[1]}" del "$P/watch/0" >/dev/null
  for i in "${!NODE[@]}"; do
    eventually 10 "the last event through node $i" said "watch$i" DELETE
    same "all events through node $i, in order" "$(lines watch0)" "$(lines "watch$i")"
  done
  like "which are these" "^PUT watch/first 0 PUT watch/0 0 PUT watch/1 1 PUT watch/2 2 .*DELETE watch/0" "$(lines watch0)"
}

check_lease() {
  local id i
  id=$(at "${NODE[0]}" lease grant 600 | cut -d' ' -f2)
  like "lease grant" '^[0-9a-f]{16}$' "$id"
  same "put with the lease through another node" "OK" "$(at "${NODE[1]}" put "$P/lease" 1 --lease="$id")"
  for i in "${!NODE[@]}"; do
    like "lease timetolive through node $i" "attached keys\(\[$P/lease\]\)" "$(at "${NODE[i]}" lease timetolive "$id" --keys)"
    same "lease keep-alive through node $i" "lease $id keepalived with TTL(600)" "$(at "${NODE[i]}" lease keep-alive --once "$id")"
    holds "lease list through node $i" grep -q "$id" <(at "${NODE[i]}" lease list)
  done
  same "lease revoke through another node" "lease $id revoked" "$(at "${NODE[2]}" lease revoke "$id")"
  for i in "${!NODE[@]}"; do
    same "the key is gone for node $i" "" "$(at "${NODE[i]}" get "$P/lease")"
    refused "the lease is gone for node $i" "requested lease not found" at "${NODE[i]}" lease keep-alive --once "$id"
  done
  id=$(at "${NODE[1]}" lease grant 4 | cut -d' ' -f2)
  at "${NODE[2]}" put "$P/expiry" 1 --lease="$id" >/dev/null
  gone() { [ -z "$(at "${NODE[0]}" get "$P/expiry")" ]; }
  eventually 10 "a lease expires for all" gone
}

check_lock() {
  local holder waiter
  spawn holder "$ETCDCTL" --endpoints "${NODE[0]}" lock "$P/lock"
  holder=$SPAWNED
  eventually 10 "lock through one node" said holder "$P/lock/"
  spawn waiter "$ETCDCTL" --endpoints "${NODE[1]}" lock "$P/lock" -- echo mine
  waiter=$SPAWNED
  queued() { [ "$(at "${NODE[2]}" get --prefix "$P/lock/" -w json | jq .count)" = 2 ]; }
  eventually 10 "another queues through another node" queued
  same "and waits" "" "$(cat "$TMP/waiter.out")"
  kill -INT "$holder"
  ended "$holder" "lock holder"
  ended "$waiter" "lock waiter"
  same "and gets it" "0 mine" "$STATUS $(cat "$TMP/waiter.out")"
}

check_hash() {
  local rev node
  at "${NODE[0]}" put "$P/hash" 1 >/dev/null
  rev=$(at "${NODE[0]}" get "$P/hash" -w json | jq .header.revision)
  hashes() { at "$ENDPOINTS" endpoint hashkv --rev "$rev" -w json; }
  # A node that lags answers that the revision is still in the future.
  eventually 15 "endpoint hashkv through every node" hashes
  same "all copies have the same hash" "$NODES 1" "$(hashes | jq -r '"\(length) \([.[].HashKV.hash] | unique | length)"')"
  eventually 15 "endpoint hashkv --cluster" at "${NODE[0]}" endpoint hashkv --cluster --rev "$rev"
  same "at one compaction" 1 "$(hashes | jq '[.[].HashKV.compact_revision] | unique | length')"
  same "compaction through one node" "compacted revision $rev" "$(at "${NODE[2]}" compaction "$rev")"
  for node in "${NODE[@]}"; do
    refused_below() { [[ $(at "$1" get "$P/hash" --rev $((rev - 1))) == *"required revision has been compacted"* ]]; }
    eventually 10 "holds for every node" refused_below "$node"
  done
}

check_defrag() {
  same "defrag --cluster" "$NODES" "$(at "${NODE[0]}" defrag --cluster | grep -c "Finished defragmenting etcd member")"
  same "data after it" "OK" "$(at "${NODE[1]}" put "$P/defrag" 1)"
}

# MOVE_LEADER=refused is for a server whose leaders are not its users' to move: then
# the refusal must be clean and change nothing.
check_move_leader() {
  local old follower target
  old=$(leader_node)
  for follower in "${NODE[@]}"; do [ "$follower" = "$old" ] || break; done
  target=$(member "$follower")
  refused "move-leader without the leader's endpoint" "no leader endpoint given" at "$follower" move-leader "$target"
  refused "move-leader to no member" "etcdserver: bad leader transferee" at "$ENDPOINTS" move-leader 1
  if [ "${MOVE_LEADER:-moves}" = refused ]; then
    refused "move-leader" "etcdserver: (not leader|permission denied|bad leader transferee)" at "$ENDPOINTS" move-leader "$target"
  else
    same "move-leader" "Leadership transferred from $(member "$old") to $target" "$(at "$ENDPOINTS" move-leader "$target")"
    moved() { agreed && [ "$(leader "$old")" = "$target" ]; }
    eventually 10 "all nodes see the new leader" moved
  fi
  same "put after it" "OK" "$(at "$old" put "$P/moved" 1)"
  same "get after it" 1 "$(value "$follower" "$P/moved")"
}

echo "cluster of $NODES: $ENDPOINTS"
for section in $SECTIONS; do
  only "$section" || continue
  begun=$CHECKS
  "check_$section"
  echo "  $section: $((CHECKS - begun)) checks"
done
at "${NODE[0]}" del --prefix "$P" >/dev/null
echo "ok $CHECKS checks"
