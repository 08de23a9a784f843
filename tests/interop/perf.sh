#!/usr/bin/env bash
# etcdctl's own loads: check perf (150 writes a second for a minute) and check
# datascale (10,000 keys, with the server's memory read from /metrics):
#
#   tests/interop/perf.sh ENDPOINT
#
# Its own verdicts are for machines with nothing else to do: here every write must
# succeed at a third of the rate asked for; rate and latencies are shown.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ENDPOINT=${1:?usage: perf.sh ENDPOINT}
ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}

left() { "$ETCDCTL" --endpoints "$ENDPOINT" get --prefix "$1" --count-only -w fields | sed -nE 's/^"Count" : //p'; }

# load KIND: runs it and prints what it found without its bar. It ends with status 1 when
# it does not like a latency; a run that said nothing fails below.
load() {
  timeout 240 "$ETCDCTL" --endpoints "$ENDPOINT" check "$1" --load s 2>&1 | tr '\r' '\n' |
    grep -oE '(PASS|FAIL|ERROR|Slowest|Stddev|Error|panic).*' | cut -c1-200 || true
}

out=$(load perf)
rate=$(sed -nE 's|.*Throughput (is\|too low:) ([0-9]+) writes/s.*|\2|p' <<<"$out")
like "check perf tells a rate" '^[0-9]+$' "$rate"
holds "check perf keeps a rate" test "$rate" -ge 50
same "check perf has no errors" "" "$(grep -iE 'error|panic' <<<"$out" || true)"
same "check perf leaves nothing behind" 0 "$(left /etcdctl-check-perf/)"
grep -oE '(Throughput|Slowest|Stddev).*' <<<"$out" | sed 's/^/  /'

out=$(load datascale)
like "check datascale" 'PASS: Approximate system memory used : [0-9.]+ [MG]B' "$out"
same "check datascale has no errors" "" "$(grep -iE 'fail|error|panic' <<<"$out" || true)"
same "check datascale leaves nothing behind" 0 "$(left /etcdctl-check-datascale/)"
grep -oE 'Approximate.*' <<<"$out" | sed 's/^/  /'
echo "ok $CHECKS checks"
