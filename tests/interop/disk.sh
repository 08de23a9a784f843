#!/usr/bin/env bash
# A disk that runs full: data is refused with etcd's error, everything else goes on, and
# nothing is lost when there is room again. Starts its own server:
#
#   ATOLL_BIN=target/release/atoll tests/interop/disk.sh
#
# The reserve is set so close to what is free that a file of this script touches it; the
# disk itself is never filled.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
MIB=$((1 << 20))
read -r PORT <<<"$(free_ports 1)"
ENDPOINT=http://127.0.0.1:$PORT

# start NAME: the server on the same data, with a reserve 512 MiB below what is free.
start() {
  local free
  free=$(($(stat -f -c '%a * %S' "$TMP")))
  spawn "$1" "$ATOLL_BIN" dev --data-dir "$TMP/data" --listen-client-urls "$ENDPOINT" \
    --disk-reserve-bytes "$((free + ${FILLED:-0} - 512 * MIB))"
  up "$1" "$SPAWNED"
}

ctl() { "$ETCDCTL" --endpoints "$ENDPOINT" --command-timeout 10s "$@"; }
taken() { ctl put probe x; }
turned_away() { ! ctl put probe x; }
full='mvcc: database space exceeded'

start first
for i in 1 2 3 4 5; do ctl put "key$i" "value$i" >/dev/null; done
lease=$(ctl lease grant 600 | awk '{print $2}')
holds "data is taken while there is room" taken

FILLED=$((1024 * MIB))
fallocate -l "$FILLED" "$TMP/filler"
eventually 10 "the server notices that the disk is full" turned_away
refused "a put is refused" "$full" ctl put more data
refused "a transaction that puts is refused" "$full" ctl txn <<<$'\n\nput more data\n\n\n'
refused "a lease is refused" "$full" ctl lease grant 10
same "reads go on" value3 "$(ctl get key3 --print-value-only)"
same "serializable reads go on" value3 "$(ctl get key3 --print-value-only --consistency s)"
same "deletes go on" 1 "$(ctl del key5)"
like "keepalives go on" 'keepalived' "$(ctl lease keep-alive --once "$lease")"
like "compaction goes on" 'compacted revision 3' "$(ctl compaction 3)"

kill -9 "$SPAWNED"
ended "$SPAWNED" "the server" || true
start second
eventually 10 "a server started on a full disk refuses data" turned_away
same "what was written is there after kill -9" "value1 value2 value3 value4" \
  "$(ctl get key --prefix --print-value-only | xargs)"

rm "$TMP/filler"
eventually 10 "data is taken again when there is room" taken
same "nothing is lost" 5 "$(ctl get "" --prefix --count-only -w fields | sed -nE 's/^"Count" : //p')"
echo "ok $CHECKS checks"
