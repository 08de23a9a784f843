# shellcheck shell=bash
# Starts the server under test on free ports of 127.0.0.1. Source it after lib.sh.
#
#   INTEROP_PEER=atoll (default): $ATOLL_BIN, `dev` alone and `start` as three nodes
#   INTEROP_PEER=etcd:            the real etcd of tests/peers/build.sh

INTEROP_PEER=${INTEROP_PEER:-atoll}
case $INTEROP_PEER in
etcd) SERVER=("$PEERS/etcd") ;;
atoll) SERVER=("${ATOLL_BIN:?ATOLL_BIN names the atoll program}" start) ;;
*) die "INTEROP_PEER is etcd or atoll, not $INTEROP_PEER" ;;
esac

# serve_member NAME CLIENT-PORT PEER-PORT CLUSTER: one node; the flags are etcd's.
serve_member() {
  spawn "$1" "${SERVER[@]}" --name "$1" --data-dir "$TMP/$1.data" \
    --listen-client-urls "http://127.0.0.1:$2" --advertise-client-urls "http://127.0.0.1:$2" \
    --listen-peer-urls "http://127.0.0.1:$3" --initial-advertise-peer-urls "http://127.0.0.1:$3" \
    --initial-cluster "$4" --initial-cluster-token "$4"
}

# up NAME PID: waits until the server says that it serves, or fails with what it said.
up() {
  local end=$((SECONDS + 60))
  until grep -qs "ready to serve client requests" "$TMP/$1.out" "$TMP/$1.err"; do
    running "$2" || die "$1 ended before it served: $(tail -n 20 "$TMP/$1.out" "$TMP/$1.err")"
    [ $SECONDS -lt $end ] || die "$1 does not say within 60 s that it serves: $(tail -n 20 "$TMP/$1.out" "$TMP/$1.err")"
    sleep 0.1
  done
}

# serve_one NAME: one node; sets ENDPOINT.
serve_one() {
  local client peer
  read -r client peer <<<"$(free_ports 2)"
  ENDPOINT=http://127.0.0.1:$client
  if [ "$INTEROP_PEER" = atoll ]; then
    spawn "$1" "$ATOLL_BIN" dev --data-dir "$TMP/$1.data" --listen-client-urls "$ENDPOINT"
  else
    serve_member "$1" "$client" "$peer" "$1=http://127.0.0.1:$peer"
  fi
  up "$1" "$SPAWNED"
}

# serve_three NAME: three nodes on three ports; sets ENDPOINTS.
serve_three() {
  local ports cluster="" i pids=()
  read -ra ports <<<"$(free_ports 6)"
  ENDPOINTS=
  for i in 0 1 2; do
    cluster+=${cluster:+,}$1$i=http://127.0.0.1:${ports[3 + i]}
    ENDPOINTS+=${ENDPOINTS:+,}http://127.0.0.1:${ports[i]}
  done
  for i in 0 1 2; do
    serve_member "$1$i" "${ports[i]}" "${ports[3 + i]}" "$cluster"
    pids+=("$SPAWNED")
  done
  for i in 0 1 2; do up "$1$i" "${pids[i]}"; done
}
