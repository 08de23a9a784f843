#!/usr/bin/env bash
# Tenants that are hot: one with a hot prefix is split by itself while clients write to it and watch
# it, and they notice nothing; one with a single hot key is not, and says why. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/hot.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
HERE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
read -r C1 C2 C3 P1 P2 P3 ADMIN <<<"$(free_ports 7)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$ADMIN
ALL=127.0.0.1:$C1,127.0.0.1:$C2,127.0.0.1:$C3

atoll() { "$ATOLL_BIN" "$@"; }
as() { "$ETCDCTL" --endpoints "$ALL" --command-timeout 20s --user "root@$1:none" "${@:2}"; }
explained() { atoll tenant explain "$1" -w json | jq -r ".explanation$2"; }
groups_of() { atoll tenant show "$1" -w json | jq -r '.tenants[0].places | length'; }

CLIENTS=$(dirname "$PEERS")/clients/hot
mkdir -p "$CLIENTS"
cp "$HERE"/hot/* "$CLIENTS/"
build_clients() { cd "$CLIENTS" && GOFLAGS="-mod=mod -buildvcs=false -trimpath" GOWORK=off CGO_ENABLED=0 nice go build -o hot .; }
(build_clients) >"$TMP/prepare" 2>&1 || die "the clients cannot be built: $(tail -n 20 "$TMP/prepare")"

ATOLL_LISTEN_ADMIN_URLS=http://127.0.0.1:$ADMIN serve_member n1 "$C1" "$P1" "$CLUSTER"
FIRST=$SPAWNED
serve_member n2 "$C2" "$P2" "$CLUSTER"
SECOND=$SPAWNED
serve_member n3 "$C3" "$P3" "$CLUSTER"
up n1 "$FIRST"
up n2 "$SECOND"
up n3 "$SPAWNED"
eventually 20 "a tenant is created" atoll tenant create hot
atoll tenant create solo >/dev/null

# === the policy

like "splitting by itself is on at first" "mode +on +on" "$(atoll policy show)"
atoll policy split --mode off >/dev/null
like "it can be off" "mode +off +on" "$(atoll policy show)"
refused "an etcd is on a group at least" "1 to 64 groups" atoll policy split --groups-max 0
refused "a tenant has no bars of its own" "bars are those of all" atoll policy split --tenant hot --mode on --rest 1s
atoll policy split --first-requests 40 --first-for 4s --later-requests 1000000 --rest 5s >/dev/null
like "what was set is shown" "first-requests +40 +15000" "$(atoll policy show)"
is() { [ "$(explained "$1" "$2")" = "$3" ]; }
eventually 20 "an etcd at rest is cool" is hot '.groups[0].verdict' cool
refused "of nobody nothing is explained" 'no tenant "nobody"' atoll tenant explain nobody

# === a hot prefix

for n in $(seq 1 5); do
  as hot put "/registry/pods/default/p$n" one >/dev/null
  as hot put "/registry/secrets/default/s$n" one >/dev/null
done
"$CLIENTS/hot" -user root@hot:none -keys '/registry/events/ns%d/e%d' "$ALL" >"$TMP/hot.out" 2>"$TMP/hot.err" &
WRITERS=$!
eventually 30 "clients write and watch" grep -q ready "$TMP/hot.out"
eventually 60 "it would be split, if that were on" is hot '.groups[0].verdict' off
like "and it is said what to do" "nothing is split by itself here: atoll policy split --mode on" "$(atoll tenant explain hot)"
same "it is on one group" 1 "$(groups_of hot)"
atoll policy split --mode on >/dev/null
has() { [ "$(groups_of "$1")" = "$2" ]; }
eventually 120 "it is split by itself" has hot 2
# What balance does then is not what this is about.
atoll rebalance pause >/dev/null
SHOWN=$(atoll tenant show hot -w json)
same "for its load" load "$(jq -r '.tenants[0].places[1].cause' <<<"$SHOWN")"
like "with what was seen" "load: by operator [0-9]+: [0-9]+ requests/s, the bar is 40, for [0-9]+ s" \
  "$(jq -r '.tenants[0].places[1].why' <<<"$SHOWN")"
like "in front of a namespace of the hot resource" '^/registry/events/ns[0-9]/$' \
  "$(jq -r '.tenants[0].places[1].start' <<<"$SHOWN")"
like "the operator says so as well" "split hot at /registry/events/.* for its load: " "$(atoll op list)"
like "it is explained in words" "hot is split over 2 groups" "$(atoll tenant explain hot)"
like "and so is each cut" "load: by operator" "$(atoll tenant explain hot)"
revision() { as hot get / -w json | jq .header.revision; }
BEFORE=$(revision)
goes_on() { [ "$(revision)" -gt $((BEFORE + 50)) ]; }
eventually 30 "clients go on" goes_on
kill -TERM "$WRITERS"
wait "$WRITERS" || die "a client noticed: $(cat "$TMP/hot.err") $(tail -n 1 "$TMP/hot.out")"
passed "no client noticed, and the watch had every revision once"
like "they did something" "^[1-9][0-9]{2,} puts, .* 0 faults" "$(tail -n 1 "$TMP/hot.out")"
PUTS=$(tail -n 1 "$TMP/hot.out")
same "what was there before still is" 5 "$(as hot get --prefix /registry/pods/ -w json | jq .count)"

# Each of the two groups is led by another node.
atoll tenant spread hot --wait >"$TMP/spread"
leaders() { atoll tenant show hot -w json | jq -r '[.tenants[0].places[].leader] | unique | length'; }
is_spread() { [ "$(leaders)" = 2 ]; }
eventually 30 "its groups are led by different nodes" is_spread
is_even() { atoll tenant spread hot | grep -q "as well as they can be"; }
eventually 30 "and that is all that can be done" is_even
refused "what is not split is not spread" "is not split" atoll tenant spread solo

# === a single hot key

"$CLIENTS/hot" -user root@solo:none -keys '/leases/%d-%d' -each 1 -writers 1 -pause 1ms "$ALL" >"$TMP/solo.out" 2>"$TMP/solo.err" &
WRITERS=$!
eventually 120 "a single hot key is not split" is solo '.groups[0].verdict' unsplittable
like "and it is said why" "unsplittable: single key: /leases/0-0 has [0-9]+ % of the load" "$(atoll tenant explain solo)"
same "it is on one group" 1 "$(groups_of solo)"
kill -TERM "$WRITERS"
wait "$WRITERS" || die "a client noticed: $(cat "$TMP/solo.err")"
same "what commands have led to is sound" "Placement's records are sound." "$(atoll rebalance check)"
atoll policy split --tenant hot --mode off >/dev/null
like "a tenant has its own way" "mode of tenant hot: off" "$(atoll policy show)"
echo "$PUTS; ok $CHECKS checks"
