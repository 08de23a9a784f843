#!/usr/bin/env bash
# A large value rots on the disk of one of three members: every member goes on answering with the
# right bytes, and the damaged one repairs itself. Starts its own nodes:
#
#   ATOLL_BIN=target/release/atoll tests/interop/damage.sh
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/servers.sh"

ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
serve_three node
ctl() { "$ETCDCTL" --endpoints "$1" --command-timeout 20s "${@:2}"; }
value() { ctl "$1" get "$2" --consistency s --print-value-only; }
has() { [ "$(value "$1" large | sum)" = "$WANTED" ]; }
sum() { sha256sum | cut -d ' ' -f 1; }

head -c 90000 /dev/urandom | base64 -w 0 >"$TMP/value"
WANTED=$( (cat "$TMP/value" && echo) | sum)
ctl "${ENDPOINTS%%,*}" put large <"$TMP/value" >/dev/null
for endpoint in ${ENDPOINTS//,/ }; do
  eventually 10 "$endpoint has the value" has "$endpoint"
done

# One byte in the middle of the value, on one disk.
FILE=$(find "$TMP" -path '*/pages/pages-00000000' | sort | head -n 1)
OFFSET=$(grep -abo "$(head -c 60000 "$TMP/value" | tail -c 40)" "$FILE" | head -n 1 | cut -d : -f 1)
like "the value is found in a page file" '^[0-9]+$' "$OFFSET"
printf '\001' | dd of="$FILE" bs=1 seek="$OFFSET" conv=notrunc status=none

for endpoint in ${ENDPOINTS//,/ }; do
  same "$endpoint answers with the right bytes" "$WANTED" "$(value "$endpoint" large | sum)"
done
eventually 10 "the damaged member repairs itself" grep -qs "a value is healed" "$TMP"/*.err
same "the bytes on the disk are right again" 1 "$(grep -ac "$(head -c 60000 "$TMP/value" | tail -c 40)" "$FILE")"
echo "ok $CHECKS checks"
