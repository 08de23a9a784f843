#!/usr/bin/env bash
# Tenants as their users and their operator see them: apart from each other, through a kill, a
# freeze with leases and watches, a full quota, deletions taken back, and moves between nodes while
# they are used. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/tenants.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
read -r C1 C2 C3 C4 P1 P2 P3 P4 ADMIN ACME EVENTS <<<"$(free_ports 11)"
CLUSTER=n1=http://127.0.0.1:$P1,n2=http://127.0.0.1:$P2,n3=http://127.0.0.1:$P3
export ATOLL_ADMIN=http://127.0.0.1:$ADMIN
ALL=127.0.0.1:$C1,127.0.0.1:$C2,127.0.0.1:$C3

atoll() { "$ATOLL_BIN" "$@"; }
# as TENANT COMMAND...: etcdctl for a tenant, by its name.
as() {
  local tenant=$1
  shift
  "$ETCDCTL" --endpoints "$ALL" --command-timeout 20s --user "root@$tenant:none" "$@"
}
acme() { "$ETCDCTL" --endpoints "127.0.0.1:$ACME" --command-timeout 20s "$@"; }
revision() { "$@" get nothing -w json | jq .header.revision; }
value() { "$@" --print-value-only; }
nodes_of() { atoll tenant show "$1" -w json | jq -r '.tenants[0].nodes | sort | join(",")'; }
idle() { [ "$(atoll op list -w json | jq '[.operators[] | select(.state == "running")] | length')" = 0 ]; }
is_on() { [ "$(nodes_of "$1")" = "$2" ] && idle; }

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

# === known everywhere

first_put() { "$ETCDCTL" --endpoints "127.0.0.1:$2" --command-timeout 20s --user "root@$1:none" put key x; }
eventually 20 "a tenant is created" atoll tenant create soon
for port in "$C3" "$C2" "$C1"; do
  holds "it is known at each node at once" first_put soon "$port"
  atoll tenant delete soon >/dev/null
  refused "that it is deleted is known, too" 'the tenant is deleted' first_put soon "$port"
  atoll tenant undelete soon >/dev/null
done

# === apart from each other

eventually 20 "a tenant is created" atoll tenant create acme --port "$ACME"
atoll tenant create beta >/dev/null
atoll tenant create solo --replicas 1 >/dev/null
eventually 10 "its own port is open" acme put key acme
as beta put key beta >/dev/null
as beta put key beta2 >/dev/null
same "each has its value" acme "$(value acme get key)"
same "each has its value" beta2 "$(value as beta get key)"
same "each has its revisions" "2 3" "$(revision acme) $(revision as beta)"
same "the default tenant has nothing" "" "$(value "$ETCDCTL" --endpoints "$ALL" get key)"
same "the port and the name are the same etcd" acme "$(value as acme get key)"
differs "each has its cluster id" "$(acme get key -w json | jq .header.cluster_id)" "$(as beta get key -w json | jq .header.cluster_id)"
refused "a name nobody has" 'no such tenant' as gamma get key
refused "port and name must agree" 'more than one tenant' "$ETCDCTL" --endpoints "127.0.0.1:$ACME" --user root@beta:none get key
same "everything from every key on is the tenant's own" 1 "$(acme get "" --from-key --keys-only | grep -c .)"
acme del "" --from-key >/dev/null
same "deleting everything deletes one's own" beta2 "$(value as beta get key)"
as beta compact 3 >/dev/null
refused "a compaction is the tenant's own" 'has been compacted' as beta get key --rev 2
same "history of the other is there" acme "$(value acme get key --rev 2)"
LEASE=$(acme lease grant 60 | awk '{print $2}')
refused "a lease is the tenant's own" 'requested lease not found' as beta put x y --lease "$LEASE"
same "nobody else lists it" "found 0 leases" "$(as beta lease list | head -n 1)"
refused "members are not the tenant's" 'ask its operator' acme member add x --peer-urls http://127.0.0.1:1
same "it may dial all nodes on its port" 3 "$(acme member list | grep -c ":$ACME")"
refused "a name that cannot be" 'is no name' atoll tenant create Acme
refused "a name twice" 'already' atoll tenant create acme
refused "a port twice" "port $ACME belongs to" atoll tenant create delta --port "$ACME"
refused "more replicas than nodes" 'nodes can take one' atoll tenant create delta --replicas 5

atoll namespace create acme events --port "$EVENTS" >/dev/null
events() { "$ETCDCTL" --endpoints "127.0.0.1:$EVENTS" --command-timeout 20s "$@"; }
eventually 10 "a separate namespace is an etcd of its own" events put key event
same "with its own revisions" "2 3" "$(revision events) $(revision acme)"
eval "$(atoll env acme/events)"
same "atoll env sets etcdctl up" event "$("$ETCDCTL" get key --print-value-only)"
unset ETCDCTL_ENDPOINTS

# === freeze, delete, rename

LEASE=$(as beta lease grant 3 | awk '{print $2}')
as beta put leased value --lease "$LEASE" >/dev/null
spawn quiet "$ETCDCTL" --endpoints "$ALL" --user root@beta:none watch a z --rev "$(revision as beta)" -w json
eventually 10 "a watch goes on" grep -q '"mod_revision"' "$TMP/quiet.out"
same "a freeze is in force when it is told" true "$(atoll tenant freeze beta -w json | jq '.tenants[0].heard')"
THAW_AT=$((SECONDS + 5))
eventually 5 "a frozen tenant is refused" refused "" 'the tenant is frozen' as beta put key no

# A quota, while the lease's time goes by: beta's clocks stand still.
atoll tenant quota solo 1MiB >/dev/null
head -c 200000 /dev/zero | tr '\0' x >"$TMP/large"
fill() { for i in 1 2 3 4 5 6; do as solo put "large$i" <"$TMP/large" || return 1; done; }
refused "a tenant has its quota" 'database space exceeded' fill
holds "its neighbours have their own" acme put small value
holds "and room" acme put large <"$TMP/large"
same "it is shown" 1048576 "$(atoll tenant show solo -w json | jq '.tenants[0].quota')"
holds "with the size" test "$(atoll tenant show solo -w json | jq '.tenants[0].size')" -gt 600000
quota_of() { curl -sf -H "atoll-tenant: $1" "http://127.0.0.1:$C1/metrics" | awk '$1 == "etcd_server_quota_backend_bytes" {printf "%d", $2}'; }
same "its own page has it" 1048576 "$(quota_of solo)"
differs "others have the usual one" 1048576 "$(quota_of acme)"
refused "what is no size" 'is no size' atoll tenant quota solo 4GB
atoll tenant quota solo default >/dev/null
as solo alarm disarm >/dev/null
holds "with another quota it goes on" as solo put large6 <"$TMP/large"

while [ $SECONDS -lt $THAW_AT ]; do sleep 0.1; done
atoll tenant thaw beta >/dev/null
eventually 5 "a thawed one is not" as beta put key beta3
same "a lease lives through the freeze" value "$(value as beta get leased)"
gone() { [ -z "$(value as beta get leased)" ]; }
eventually 5 "and ends afterwards" gone
told() { jq -r '.Events[].kv.key | @base64d' "$TMP/quiet.out" | tail -n 2 | paste -sd' ' | grep -qx 'key leased'; }
eventually 5 "the watch was quiet meanwhile, and has seen both" told

atoll namespace delete acme events >/dev/null
eventually 5 "a deleted namespace is refused" refused "" 'the tenant is deleted' events get key
holds "its tenant is not" acme get key
atoll namespace undelete acme events >/dev/null
eventually 5 "it comes back" events get key
same "with its data" event "$(value events get key)"
refused "the tenant itself is none" 'has no namespace' atoll namespace delete acme default

atoll tenant delete beta >/dev/null
eventually 5 "a deleted tenant is refused" refused "" 'the tenant is deleted' as beta get key
atoll tenant undelete beta >/dev/null
eventually 5 "what is undeleted has its data" as beta get key
same "all of it" beta3 "$(value as beta get key)"
atoll tenant rename beta better >/dev/null
eventually 5 "a new name" as better get key
refused "the old name is nobody's" 'no such tenant' as beta get key

# === a node is killed

for i in $(seq 50); do acme put "many$i" "value$i" >/dev/null; done
kill -9 "$SECOND"
wait "$SECOND" 2>/dev/null || true
eventually 20 "the others go on" acme put during kill
start n2 "$C2" "$P2"
up n2 "$SPAWNED"
eventually 20 "it comes back with its tenants" \
  "$ETCDCTL" --endpoints "127.0.0.1:$C2" --user root@acme:none --command-timeout 5s put after kill
same "nothing is lost" 50 "$(as acme get many --prefix --keys-only | grep -c many)"

# === moves while they are used

"$ATOLL_BIN" member --endpoint "http://127.0.0.1:$C1" add "http://127.0.0.1:$P4" >/dev/null
SPARE=http://127.0.0.1:$P4
spawn n4 "$ATOLL_BIN" start --name n4 --data-dir "$TMP/n4.data" \
  --listen-client-urls "http://127.0.0.1:$C4" --advertise-client-urls "http://127.0.0.1:$C4" \
  --listen-peer-urls "$SPARE" --initial-advertise-peer-urls "$SPARE" \
  --initial-cluster "$CLUSTER,n4=$SPARE" --initial-cluster-state existing
up n4 "$SPAWNED"
knows_four() { [ "$(atoll node list -w json | jq '.nodes | length')" = 4 ]; }
eventually 20 "the fourth node is known" knows_four

FROM=$(($(revision acme) + 1))
spawn watch "$ETCDCTL" --endpoints "127.0.0.1:$ACME" watch count --rev "$FROM" -w json
spawn lock "$ETCDCTL" --endpoints "127.0.0.1:$ACME" lock mutex --ttl 5
eventually 10 "a lock is held" grep -q mutex "$TMP/lock.out"
HOLDER=$(cat "$TMP/lock.out")
FROM=$(($(revision acme) + 1))
writer() {
  local n=0
  until [ -e "$TMP/enough" ]; do
    n=$((n + 1))
    acme put count "$n" || { echo "put $n failed" && return 1; }
  done
  echo "$n" >"$TMP/written"
}
writer >"$TMP/writer.log" 2>&1 &
WRITER=$!
for target in n1,n2,n4 n2,n3,n4 n1,n3,n4 n1,n2,n3; do
  holds "a move to $target begins" atoll tenant move acme --to "$target"
  eventually 60 "acme is on $target" is_on acme "$target"
done
touch "$TMP/enough"
wait "$WRITER" || die "a writer failed during moves: $(tail -n 3 "$TMP/writer.log")"
WRITTEN=$(cat "$TMP/written")
all_seen() { [ "$(jq -r '.Events[].kv.value' "$TMP/watch.out" | wc -l)" = "$WRITTEN" ]; }
eventually 20 "the watch saw every write" all_seen
same "once each, in order, without a gap" "$(seq "$FROM" $((FROM + WRITTEN - 1)) | sha256sum)" \
  "$(jq -r '.Events[].kv.mod_revision' "$TMP/watch.out" | sha256sum)"
same "the lock is still held by who held it" "$HOLDER" "$(acme get mutex --prefix --keys-only | grep mutex)"
same "history is there" acme "$(value acme get key --rev 2)"

for target in n2 n4 n1 n3; do
  atoll tenant move solo --to "$target" >/dev/null
  eventually 30 "solo is on $target" is_on solo "$target"
  as solo put at "$target" >/dev/null
done
same "one replica moves as well" "4 n3" "$(as solo get at -w json | jq -r '.kvs[0] | "\(.version) \(.value | @base64d)"')"

atoll node drain n2 >/dev/null
drained() { idle && [ "$(atoll node list -w json | jq -r '.nodes[] | select(.name == "n2") | .replicas')" = 0 ]; }
eventually 90 "a drained node is empty" drained
same "nothing is lost" "50 beta3" "$(as acme get many --prefix --keys-only | grep -c many) $(value as better get key)"
refused "a node in use is not forgotten" 'atoll node drain' atoll node remove n3
holds "an empty one is" atoll node remove n2
echo "$WRITTEN writes during moves, ok $CHECKS checks"
