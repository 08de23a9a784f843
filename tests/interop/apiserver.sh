#!/usr/bin/env bash
# Runs the real kube-apiserver on the given store and works with its API:
#
#   tests/interop/apiserver.sh ENDPOINT[,ENDPOINT...] [WATCH_CACHE...]
#
# (with events in another store if EVENTS names its endpoints)
# once for each WATCH_CACHE (true and false when none is given) on a free port of
# 127.0.0.1 (or APISERVER_PORT), with certificates and a token of its own making.
# apiserver.py is the client; everything started here is ended here.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ENDPOINTS=${1:?usage: apiserver.sh ENDPOINT[,ENDPOINT...] [WATCH_CACHE...]}
shift
[ $# -gt 0 ] || set -- true false
APISERVER=${APISERVER:-$PEERS/kube-apiserver}
ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
RUN="$$-$RANDOM"
for need in "$APISERVER" "$ETCDCTL"; do
  command -v "$need" >/dev/null || die "no $need: tests/peers/build.sh apiserver etcdctl"
done

openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
  -keyout "$TMP/server.key" -out "$TMP/server.crt" 2>/dev/null
openssl genrsa -out "$TMP/accounts.key" 2048 2>/dev/null
TOKEN=$(openssl rand -hex 16)
echo "$TOKEN,admin,admin,system:masters" >"$TMP/tokens"

# A failed run shows what the server had to say.
ON_EXIT=show_log
show_log() {
  [ "$1" -eq 0 ] || ! [ -f "$TMP/apiserver.err" ] || {
    echo "--- the last lines of kube-apiserver:"
    grep -E '^[EF]|etcd' "$TMP/apiserver.err" | tail -n 25
  } >&2
}

OVERRIDES=()
[ -z "${EVENTS:-}" ] || OVERRIDES=("--etcd-servers-overrides=/events#${EVENTS//,/;}")

for watch_cache; do
  port=${APISERVER_PORT:-$(free_ports 1)}
  begun=$SECONDS
  spawn apiserver "$APISERVER" --etcd-servers="$ENDPOINTS" --watch-cache="$watch_cache" "${OVERRIDES[@]}" \
    --bind-address=127.0.0.1 --secure-port="$port" --advertise-address=127.0.0.1 \
    --tls-cert-file="$TMP/server.crt" --tls-private-key-file="$TMP/server.key" \
    --authorization-mode=AlwaysAllow --token-auth-file="$TMP/tokens" \
    --service-account-issuer=https://interop.test --service-account-key-file="$TMP/accounts.key" \
    --service-account-signing-key-file="$TMP/accounts.key" --service-cluster-ip-range=10.96.0.0/16 \
    --disable-admission-plugins=ServiceAccount --endpoint-reconciler-type=none --profiling=false
  server=$SPAWNED
  until curl -sSf -m 5 --cacert "$TMP/server.crt" -H "Authorization: Bearer $TOKEN" "https://127.0.0.1:$port/readyz" >/dev/null 2>&1; do
    running "$server" || die "kube-apiserver ended: $(tail -n 5 "$TMP/apiserver.err")"
    [ $((SECONDS - begun)) -lt 90 ] || die "kube-apiserver is not ready within 90 s"
    sleep 0.1
  done
  echo "kube-apiserver --watch-cache=$watch_cache: ready after $((SECONDS - begun)) s"
  TOKEN=$TOKEN ETCDCTL="$ETCDCTL" python3 "$HERE/apiserver.py" --url "https://127.0.0.1:$port" --ca "$TMP/server.crt" \
    --store "$ENDPOINTS" --events "${EVENTS:-$ENDPOINTS}" --run "$RUN-${watch_cache:0:1}" --watch-cache "$watch_cache"
  kill -TERM "$server"
  ended "$server" "kube-apiserver"
  same "kube-apiserver ends when told to" 0 "$STATUS"
done
