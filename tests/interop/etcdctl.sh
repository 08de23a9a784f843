#!/usr/bin/env bash
# Drives the real etcdctl through its verbs and checks what it prints:
#
#   tests/interop/etcdctl.sh ENDPOINT[,ENDPOINT...]
#
# Runs equally against etcd and Atoll, and with old clients: ETCDCTL names another
# etcdctl (what that one lacks is left out by its version). All keys lie under a
# prefix of this run's own, but revisions are counted, leases listed and history is
# compacted: nobody else may write meanwhile.
#
# INTEROP_ONLY="lease lock" runs these sections alone, INTEROP_SKIP="auth" leaves
# some out, VERBOSE=1 prints each check. `etcdctl.sh --sections` lists them.
set -euo pipefail

SECTIONS="version put get stream del txn limits watch compaction lease expiry lock elect
  members endpoints alarm defrag move_leader mirror downgrade auth snapshot"
if [ "${1:-}" = --sections ]; then
  echo $SECTIONS
  exit
fi

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ENDPOINTS=${1:?usage: etcdctl.sh ENDPOINT[,ENDPOINT...]}
FIRST=${ENDPOINTS%%,*}
ETCDCTL=${ETCDCTL:-$PEERS/etcdctl}
P="~interop/$$-$RANDOM"
for name in "${!ETCDCTL_@}"; do unset "$name"; done
command -v "$ETCDCTL" >/dev/null || die "no etcdctl at $ETCDCTL: tests/peers/build.sh etcdctl"

# ctl ARGUMENT...: etcdctl with what it printed on standard output. On failure the
# error is printed there too, so that no failed command can look like an empty answer.
ctl() {
  local status=0 errors=$TMP/errors.$BASHPID
  timeout 60 "$ETCDCTL" --endpoints "$ENDPOINTS" --dial-timeout 10s --command-timeout 30s "$@" 2>"$errors" || status=$?
  [ $status -eq 0 ] || echo "exit $status: $(cat "$errors")"
  rm -f "$errors"
  return $status
}

# background NAME ARGUMENT...: etcdctl as a spawned process.
background() {
  local name=$1
  shift
  spawn "$name" "$ETCDCTL" --endpoints "$ENDPOINTS" "$@"
}

VERSION=$(ctl version | sed -nE 's/^etcdctl version: ([0-9]+\.[0-9]+).*/\1/p')
# newer MINOR: whether this etcdctl is 3.MINOR or newer.
newer() { [ "${VERSION#*.}" -ge "$1" ]; }

revision() { ctl get "$P/nothing" -w json | jq .header.revision; }
value() { ctl get --print-value-only "$@"; }
keys() { ctl get --keys-only "$@" | sed '/^$/d; '"s|^$P/||" | paste -sd' '; }
count() { ctl get "$@" -w json | jq '.count // 0'; }
said() { grep -q -- "$2" "$TMP/$1.out"; }
# lines NAME: the lines a spawned process printed, as one line.
lines() { paste -sd' ' "$TMP/$1.out" | sed "s|$P/||g"; }

check_version() {
  like "etcdctl version" '^etcdctl version: 3\.[0-9]+\.[0-9]+' "$(ctl version)"
  local served
  served=$(curl -sS -m 10 "$FIRST/version" | jq -r .etcdserver)
  like "GET /version" '^3\.[0-9]+\.[0-9]+$' "$served"
  same "endpoint status says the same version" "$served" "$(ctl endpoint status -w json | jq -r '.[0].Status.version')"
}

check_put() {
  local before
  before=$(revision)
  same "put" "OK" "$(ctl put "$P/put" one)"
  same "a put adds one revision" $((before + 1)) "$(revision)"
  same "put answers with its own revision" $((before + 2)) "$(ctl put "$P/put" two -w json | jq .header.revision)"
  same "put --prev-kv" "$(printf 'OK\n%s\ntwo' "$P/put")" "$(ctl put "$P/put" three --prev-kv)"
  same "put --prev-kv of a new key" "OK" "$(ctl put "$P/new" x --prev-kv)"
  same "put from standard input" "OK" "$(printf 'piped value' | ctl put "$P/put")"
  same "the piped value" "piped value" "$(value "$P/put")"
  same "put --ignore-value" "OK" "$(ctl put "$P/put" --ignore-value)"
  same "the ignored value stays, the version counts" "5 piped value" \
    "$(ctl get "$P/put" -w json | jq -r '.kvs[0] | "\(.version) \(.value | @base64d)"')"
  same "create and mod revision" "$((before + 1)) $((before + 6))" \
    "$(ctl get "$P/put" -w json | jq -r '.kvs[0] | "\(.create_revision) \(.mod_revision)"')"
  same "an empty value" "OK" "$(ctl put "$P/empty" "")"
  same "the empty value" "$(printf '%s\n' "$P/empty")" "$(ctl get "$P/empty")"
  same "bytes that are no text" "OK" "$(printf '\377\000\001' | ctl put "$P/bytes")"
  same "the same bytes again" '\xff\x00\x01' "$(value "$P/bytes" --hex)"
  same "a key with spaces and UTF-8" "OK" "$(ctl put "$P/schlüssel mit raum" "wért")"
  same "its value" "wért" "$(value "$P/schlüssel mit raum")"
  refused "put --ignore-value of no key" "etcdserver: key not found" ctl put "$P/absent" --ignore-value
  refused "put without a key" "etcdserver: key is not provided" ctl put "" x
  refused "put with an unknown lease" "etcdserver: requested lease not found" ctl put "$P/put" x --lease=7fffffffffffff11
}

check_get() {
  local key base all
  for key in a b c d e; do ctl put "$P/get/$key" "$key" >/dev/null; done
  base=$(revision) # of e; a is base-4
  ctl put "$P/get/c" 0-changed >/dev/null
  ctl put "$P/get/a" z-changed >/dev/null
  same "get" "$(printf '%s\nb' "$P/get/b")" "$(ctl get "$P/get/b")"
  same "get of nothing" "" "$(ctl get "$P/get/nothing")"
  same "get --hex" '\x62' "$(ctl get "$P/get/b" --hex | sed -n 2p)"
  like "get -w fields" '"Key" : "'"$P/get/b"'".*"Version" : 1.*"Value" : "b".*"Count" : 1' "$(ctl get "$P/get/b" -w fields | paste -sd' ')"
  like "get -w json" '"header":\{"cluster_id":[0-9]+,"member_id":[0-9]+,"revision":[0-9]+,"raft_term":[0-9]+\}' "$(ctl get "$P/get/b" -w json)"
  all=$(ctl get "$P/get/b" -w protobuf | wc -c)
  holds "get -w protobuf" test "$all" -gt 20
  same "get of a range" "get/b get/c" "$(keys "$P/get/b" "$P/get/d")"
  same "get of an empty range" "" "$(ctl get "$P/get/d" "$P/get/b")"
  same "get --prefix" "get/a get/b get/c get/d get/e" "$(keys --prefix "$P/get/")"
  same "get --prefix with values" "z-changed b 0-changed d e" "$(value --prefix "$P/get/" | paste -sd' ')"
  same "get --from-key --limit" "get/d get/e" "$(keys --from-key "$P/get/d" --limit 2)"
  same "get --limit: keys, more, count" "2 true 5" "$(ctl get --prefix "$P/get/" --limit 2 -w json | jq -r '"\(.kvs | length) \(.more) \(.count)"')"
  same "get --limit of just all has no more" "5 null 5" "$(ctl get --prefix "$P/get/" --limit 5 -w json | jq -r '"\(.kvs | length) \(.more) \(.count)"')"
  same "get --order DESCEND" "get/e get/d get/c get/b get/a" "$(keys --prefix "$P/get/" --order DESCEND)"
  same "get --order DESCEND --limit" "get/e get/d" "$(keys --prefix "$P/get/" --order DESCEND --limit 2)"
  same "get --sort-by KEY" "get/a get/b get/c get/d get/e" "$(keys --prefix "$P/get/" --sort-by KEY --order ASCEND)"
  same "get --sort-by CREATE" "get/a get/b get/c get/d get/e" "$(keys --prefix "$P/get/" --sort-by CREATE)"
  same "get --sort-by MODIFY" "get/b get/d get/e get/c get/a" "$(keys --prefix "$P/get/" --sort-by MODIFY --order ASCEND)"
  same "get --sort-by VALUE" "0-changed b d e z-changed" "$(value --prefix "$P/get/" --sort-by VALUE --order ASCEND | paste -sd' ')"
  same "get --sort-by VALUE DESCEND, limited" "z-changed e" "$(value --prefix "$P/get/" --sort-by VALUE --order DESCEND --limit 2 | paste -sd' ')"
  ctl put "$P/get/c" again >/dev/null
  same "get --sort-by VERSION, highest first" "get/c get/a" "$(keys --prefix "$P/get/" --sort-by VERSION --order DESCEND --limit 2)"
  same "get --keys-only has no values" "null null" "$(ctl get "$P/get/b" --keys-only -w json | jq -r '"\(.kvs[0].value) \(.kvs[1])"')"
  same "get --rev before a change" "c" "$(value "$P/get/c" --rev "$base")"
  same "get --rev at the change" "0-changed" "$(value "$P/get/c" --rev $((base + 1)))"
  same "get --rev before later keys" "get/a get/b" "$(keys --prefix "$P/get/" --rev $((base - 3)))"
  same "get --rev answers with the current revision" "$((base + 3))" "$(ctl get "$P/get/c" --rev "$base" -w json | jq .header.revision)"
  refused "get --rev of the future" "etcdserver: mvcc: required revision is a future revision" ctl get "$P/get/a" --rev $((base + 1000))
  same "get --consistency=l" "b" "$(value "$P/get/b" --consistency=l)"
  local_copy() { [ "$(value "$P/get/b" --consistency=s)" = b ]; }
  eventually 5 "get --consistency=s" local_copy
  refused "get without a key" "etcdserver: key is not provided" ctl get ""
  if newer 5; then
    like "get --count-only" '"More" : false "Count" : 5$' "$(ctl get --prefix "$P/get/" --count-only -w fields | paste -sd' ')"
    like "get --count-only ignores the limit" '"More" : false "Count" : 5$' "$(ctl get --prefix "$P/get/" --count-only --limit 2 -w fields | paste -sd' ')"
  fi
  if newer 6; then
    same "get --min-mod-rev" "get/a get/c" "$(keys --prefix "$P/get/" --min-mod-rev $((base + 1)))"
    same "get --max-mod-rev" "get/b get/d" "$(keys --prefix "$P/get/" --max-mod-rev $((base - 1)))"
    same "get --min-create-rev" "get/d get/e" "$(keys --prefix "$P/get/" --min-create-rev $((base - 1)))"
    same "get --max-create-rev" "get/a get/b" "$(keys --prefix "$P/get/" --max-create-rev $((base - 3)))"
    same "filters leave the count alone" "5" "$(count --prefix "$P/get/" --max-create-rev $((base - 3)))"
  fi
}

# get --stream asks by RangeStream: each answer must equal the plain one.
check_stream() {
  local old
  if ! newer 7; then
    echo "skipped: stream (etcdctl $VERSION has no get --stream)"
    return
  fi
  old=$(revision)
  python3 -c 'for i in range(300): print("put \"%s/stream/%04d\" \"%s\"" % ("'"$P"'", i, "v%04d" % i * 200))' >"$TMP/puts"
  for first in 1 101 201; do
    { echo; sed -n "$first,$((first + 99))p" "$TMP/puts"; echo; echo; } | ctl txn >/dev/null
  done
  same "keys to stream" 300 "$(count --prefix "$P/stream/")"
  # Any member may answer, so the header's member id does not count.
  streams_alike() {
    ctl get "$@" -w json | jq 'del(.header.member_id)' >"$TMP/plain"
    ctl get "$@" --stream -w json | jq 'del(.header.member_id)' >"$TMP/streamed"
    same "get --stream ${*//$P\//}" "" "$(diff "$TMP/plain" "$TMP/streamed" | sed -n 1,20p)"
    holds "the plain answer is one" grep -q revision "$TMP/plain"
  }
  streams_alike "$P/stream/0007"
  streams_alike "$P/stream/nothing"
  streams_alike --prefix "$P/stream/"
  streams_alike --prefix "$P/stream/" --limit 77
  streams_alike --prefix "$P/stream/" --limit 300
  streams_alike --prefix "$P/stream/" --keys-only
  streams_alike --prefix "$P/stream/" --consistency=s
  streams_alike --prefix "$P/stream/" --rev $((old + 2))
  streams_alike --prefix "$P/stream/" --rev "$old"
  streams_alike "$P/stream/0100" "$P/stream/0200"
  like "get --stream --count-only" '"More" : false "Count" : 300$' "$(ctl get --prefix "$P/stream/" --count-only --stream -w fields | paste -sd' ')"
  refused "get --stream of the future" "required revision is a future revision" ctl get "$P/a" --stream --rev $((old + 100000))
  refused "get --stream without a key" "key is not provided" ctl get "" --stream
  refused "get --stream in another order" "RangeStream does not support custom sort orders" \
    ctl get --prefix "$P/stream/" --stream --order DESCEND
  refused "get --stream by another target" "RangeStream does not support custom sort orders" \
    ctl get --prefix "$P/stream/" --stream --sort-by VALUE --order ASCEND
  refused "get --stream with a filter" "RangeStream does not support revision filters" \
    ctl get --prefix "$P/stream/" --stream --min-mod-rev 2
}

check_del() {
  local key before
  for key in a b c d e f; do ctl put "$P/del/$key" "$key" >/dev/null; done
  before=$(revision)
  same "del of nothing" 0 "$(ctl del "$P/del/nothing")"
  same "del of nothing adds no revision" "$before" "$(revision)"
  same "del" 1 "$(ctl del "$P/del/a")"
  same "del again" 0 "$(ctl del "$P/del/a")"
  same "del --prev-kv" "$(printf '1\n%s\nb' "$P/del/b")" "$(ctl del "$P/del/b" --prev-kv)"
  same "del of a range" 2 "$(ctl del "$P/del/c" "$P/del/e")"
  same "three deletes add three revisions" $((before + 3)) "$(revision)"
  same "what is left" "del/e del/f" "$(keys --prefix "$P/del/")"
  same "del --prefix --prev-kv" "$(printf '2\n%s\ne\n%s\nf' "$P/del/e" "$P/del/f")" "$(ctl del --prefix "$P/del/" --prev-kv)"
  same "nothing is left" "" "$(keys --prefix "$P/del/")"
  ctl put "$P/del/a" anew >/dev/null
  same "a key made anew starts at version 1" "1 true" \
    "$(ctl get "$P/del/a" -w json | jq -r '.kvs[0] | "\(.version) \(.create_revision == .mod_revision)"')"
  same "the old state stays readable" "a b c d e f" "$(value --prefix "$P/del/" --rev "$before" | paste -sd' ')"
  # Nobody else has keys so near to the end of all keys.
  key=$(printf '\377\377\377%s' "$P")
  ctl put "$key/1" 1 >/dev/null
  ctl put "$key/2" 2 >/dev/null
  same "get --from-key" 2 "$(count --from-key "$key")"
  same "del --from-key" 2 "$(ctl del --from-key "$key")"
  refused "del without a key" "etcdserver: key is not provided" ctl del ""
}

# transaction COMPARES SUCCESS FAILURE [OPTION...]: each a text of lines; an empty
# line ends each of the three parts.
transaction() {
  printf '%s' "${1:+$1
}
${2:+$2
}
${3:+$3
}
" >"$TMP/txn.$BASHPID"
  with_input "$TMP/txn.$BASHPID" txn "${@:4}"
}

check_txn() {
  local before mod k="$P/txn"
  ctl put "$k/a" one >/dev/null
  before=$(revision)
  mod=$before
  same "txn taking the first branch" "$(printf 'SUCCESS\n\nOK\n\n%s\ntwo' "$k/a")" \
    "$(transaction "value(\"$k/a\") = \"one\"" "put $k/a two
get $k/a" "put $k/a wrong")"
  same "txn taking the second branch" "$(printf 'FAILURE\n\n%s\ntwo' "$k/a")" \
    "$(transaction "value(\"$k/a\") = \"one\"" "put $k/a wrong" "get $k/a")"
  same "a read-only branch adds no revision" $((before + 1)) "$(revision)"
  same "txn -i prompts" "compares: success requests (get, put, del): failure requests (get, put, del): SUCCESS OK" \
    "$(transaction "version(\"$k/a\") = \"2\"" "put $k/b two" "" -i | sed '/^$/d' | paste -sd' ')"
  compares() {
    same "txn if $2" "$1" "$(transaction "$(printf "$2" "$k/$3")" "" "" | sed -n 1p)"
  }
  compares SUCCESS 'version("%s") > "1"' a
  compares FAILURE 'version("%s") > "2"' a
  compares SUCCESS 'version("%s") < "3"' a
  compares FAILURE 'version("%s") < "2"' a
  compares SUCCESS 'version("%s") = "0"' nothing
  compares SUCCESS 'create("%s") = "'$mod'"' a
  compares SUCCESS 'create("%s") = "0"' nothing
  compares SUCCESS 'mod("%s") = "'$((mod + 1))'"' a
  compares FAILURE 'mod("%s") = "'"$mod"'"' a
  compares SUCCESS 'mod("%s") > "'"$mod"'"' a
  compares SUCCESS 'value("%s") > "tw"' a
  compares FAILURE 'value("%s") < "tw"' a
  compares SUCCESS 'value("%s") != "one"' a
  compares FAILURE 'value("%s") != "two"' a
  compares FAILURE 'value("%s") = ""' nothing
  same "all comparisons must hold" FAILURE "$(transaction "version(\"$k/a\") = \"2\"
version(\"$k/b\") = \"2\"" "" "" | sed -n 1p)"
  same "an empty txn succeeds" SUCCESS "$(transaction "" "" "")"
  before=$(revision)
  same "txn with several writes" "$(printf 'SUCCESS\n\nOK\n\nOK\n\n1\n\n%s\n1' "$k/c")" \
    "$(transaction "" "put $k/c 1
put $k/d 2
del $k/b
get $k/c" "")"
  mod_of() { ctl get "$1" -w json | jq '.kvs[0].mod_revision'; }
  same "they share one revision" "$((before + 1)) $((before + 1)) $((before + 1))" "$(revision) $(mod_of "$k/c") $(mod_of "$k/d")"
  refused "txn writing a key twice" "etcdserver: duplicate key given in txn request" transaction "" "put $k/x 1
put $k/x 2" ""
  refused "txn writing what it deletes" "etcdserver: duplicate key given in txn request" transaction "" "put $k/x 1
del $k/ --prefix" ""
  same "a refused txn wrote nothing" "$((before + 1))" "$(revision)"
  same "txn with quoted words" "SUCCESS" "$(transaction "" "put \"$k/sp ace\" \"two words\"" "" | sed -n 1p)"
  same "their value" "two words" "$(value "$k/sp ace")"
  same "txn get --prefix --limit" "$(printf 'SUCCESS\n\n%s\ntwo\n%s\n1' "$k/a" "$k/c")" "$(transaction "" "get $k/ --prefix --limit 2" "")"
  refused "txn put with an unknown lease" "etcdserver: requested lease not found" transaction "" "put $k/x 1 --lease=7fffffffffffff11" ""
}

check_limits() {
  same "128 operations in a txn" SUCCESS "$(transaction "" "$(for i in $(seq 128); do echo "put $P/limits/$i x"; done)" "" | sed -n 1p)"
  refused "129 operations in a txn" "etcdserver: too many operations in txn request" \
    transaction "" "$(for i in $(seq 129); do echo "put $P/limits/$i x"; done)" ""
  head -c 1500000 /dev/zero | tr '\0' x >"$TMP/large"
  same "put of 1.5 MB" "OK" "$(ctl put "$P/limits/large" <"$TMP/large")"
  same "get of 1.5 MB" "$(md5sum <"$TMP/large")" "$(value "$P/limits/large" | head -c 1500000 | md5sum)"
  head -c 1800000 /dev/zero | tr '\0' x >"$TMP/large"
  refused "put of 1.8 MB" "etcdserver: request is too large" with_input "$TMP/large" put "$P/limits/large"
  rm -f "$TMP/large"
  same "the refused put left the key alone" 1500001 "$(value "$P/limits/large" | wc -c)"
  ctl del --prefix "$P/limits/" >/dev/null
}

with_input() {
  local file=$1
  shift
  ctl "$@" <"$file"
}

check_watch() {
  local start k="$P/watch"
  start=$(($(revision) + 1))
  ctl put "$k/a" 1 >/dev/null
  ctl put "$k/b" 1 >/dev/null
  ctl put "$k/a" 2 >/dev/null
  ctl del "$k/a" >/dev/null
  ctl put "$k/z" end >/dev/null

  background w1 watch "$k/a" --rev "$start"
  background w2 watch --prefix "$k/" --rev "$start"
  background w3 watch "$k/b" "$k/c" --rev "$start"
  background w4 watch --prefix "$k/" --rev $((start + 1)) --prev-kv
  background w5 watch --prefix "$k/" --rev "$start" -w json
  background w6 watch "$k/a" --rev "$start" -- sh -c 'echo "$ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"'
  eventually 10 "watch --rev replays history" said w1 DELETE
  eventually 10 "watch --prefix --rev replays history" said w2 end
  eventually 10 "watch --prev-kv replays history" said w4 end
  eventually 10 "watch -w json" said w5 "$(printf end | base64)"
  eventually 10 "watch running a command" said w6 DELETE
  same "events of one key" "PUT watch/a 1 PUT watch/a 2 DELETE watch/a " "$(lines w1)"
  same "events of a prefix, in order" "PUT watch/a 1 PUT watch/b 1 PUT watch/a 2 DELETE watch/a  PUT watch/z end" "$(lines w2)"
  same "events with previous values" "PUT watch/b 1 PUT watch/a 1 watch/a 2 DELETE watch/a 2 watch/a  PUT watch/z end" "$(lines w4)"
  same "revisions of the events" "$start $((start + 1)) $((start + 2)) $((start + 3)) $((start + 4))" \
    "$(jq -r '.Events[].kv.mod_revision' "$TMP/w5.out" | paste -sd' ')"
  same "a delete event bears key and revision alone" "true true" \
    "$(jq -r '.Events[] | select(.type == 1 or .type == "DELETE") | .kv | "\((.version // 0) == 0) \((.create_revision // 0) == 0)"' "$TMP/w5.out")"
  like "the command's variables" '"PUT" "'"$k/a"'" "1".*"PUT" "'"$k/a"'" "2".*"DELETE"' "$(paste -sd' ' "$TMP/w6.out")"

  # Live: each new put must come through every watcher that is still open.
  ctl put "$k/a" live >/dev/null
  ctl put "$k/b" live >/dev/null
  eventually 10 "a live event of one key" said w1 live
  eventually 10 "a live event of a range" said w3 live
  both_live() { [ "$(grep -c '^live$' "$TMP/w2.out")" = 2 ]; }
  eventually 10 "both live events of a prefix" both_live
  same "a range leaves other keys out" "PUT watch/b 1 PUT watch/b live" "$(lines w3)"
  same "a key leaves other keys out" "PUT watch/a 1 PUT watch/a 2 DELETE watch/a  PUT watch/a live" "$(lines w1)"

  # A watch of the future says nothing until then.
  start=$(($(revision) + 3))
  background w7 watch --prefix "$k/future/" --rev "$start"
  for i in 1 2 3 4; do ctl put "$k/future/$i" "$i" >/dev/null; done
  eventually 10 "watch of a future revision" said w7 /4
  same "watch of a future revision leaves earlier ones out" "PUT watch/future/3 3 PUT watch/future/4 4" "$(lines w7)"

  # A txn's events come together, in the order of its operations.
  start=$(($(revision) + 1))
  background w8 watch --prefix "$k/txn/" --rev "$start" -w json
  transaction "" "put $k/txn/2 x
put $k/txn/1 y
put $k/txn/3 z" "" >/dev/null
  eventually 10 "events of a txn" said w8 Events
  same "the events of a txn in one answer" "$(printf '%s/txn/2 %s/txn/1 %s/txn/3' "$k" "$k" "$k")" \
    "$(head -1 "$TMP/w8.out" | jq -r '[.Events[].kv.key | @base64d] | join(" ")')"

  # Without --rev, from now on: a marker is put until one is seen.
  background w9 watch --prefix "$k/now/"
  marked() { ctl put "$k/now/mark" x && sleep 0.05 && said w9 mark; }
  eventually 10 "watch without a revision starts" marked
  ctl put "$k/now/real" 1 >/dev/null
  ctl del "$k/now/real" >/dev/null
  eventually 10 "watch without a revision" said w9 DELETE
  same "its events" "PUT watch/now/real 1 DELETE watch/now/real " "$(paste -d' ' - - - <"$TMP/w9.out" | sed "s|$P/||" | grep -v /mark | paste -sd' ')"

  # Interactive: two watches on one stream, and progress when asked for.
  if newer 5; then
    mkfifo "$TMP/typed"
    "$ETCDCTL" --endpoints "$ENDPOINTS" watch -i <"$TMP/typed" >"$TMP/wi.out" 2>"$TMP/wi.err" &
    exec 7>"$TMP/typed"
    echo "watch $k/typed/a" >&7
    echo "watch --prefix $k/typed/b" >&7
    progressed() { echo progress >&7 && sleep 0.1 && said wi "progress notify: $1"; }
    eventually 15 "watch -i: progress tells the current revision" progressed "$(revision)"
    ctl put "$k/elsewhere" x >/dev/null
    eventually 15 "watch -i: progress follows other keys" progressed "$(revision)"
    ctl put "$k/typed/a" 1 >/dev/null
    ctl put "$k/typed/b2" 2 >/dev/null
    eventually 10 "watch -i: first watch" said wi typed/a
    eventually 10 "watch -i: second watch" said wi typed/b2
    exec 7>&-
    rm "$TMP/typed"
  fi
}

check_compaction() {
  local base k="$P/compact"
  for i in 1 2 3 4 5; do ctl put "$k" "$i" >/dev/null; done
  base=$(revision)
  ctl put "$k/gone" x >/dev/null
  ctl del "$k/gone" >/dev/null
  same "compaction" "compacted revision $((base - 2))" "$(ctl compaction $((base - 2)))"
  same "compaction adds no revision" "$((base + 2))" "$(revision)"
  refused "get below the compaction" "etcdserver: mvcc: required revision has been compacted" ctl get "$k" --rev $((base - 3))
  same "get at the compaction" 3 "$(value "$k" --rev $((base - 2)))"
  same "get above the compaction" 4 "$(value "$k" --rev $((base - 1)))"
  refused "compaction again" "etcdserver: mvcc: required revision has been compacted" ctl compaction $((base - 2))
  refused "compaction of the past" "etcdserver: mvcc: required revision has been compacted" ctl compaction $((base - 3))
  refused "compaction of the future" "etcdserver: mvcc: required revision is a future revision" ctl compaction $((base + 100000))
  background c1 watch "$k" --rev $((base - 3))
  ended "$SPAWNED" "watch below the compaction"
  differs "watch below the compaction fails" 0 "$STATUS"
  like "watch below the compaction says why" "watch was canceled \(etcdserver: mvcc: required revision has been compacted\)" "$(cat "$TMP/c1.err")"
  background c2 watch "$k" --rev $((base - 2))
  eventually 10 "watch from the compaction on" said c2 5
  same "its events" "PUT compact 3 PUT compact 4 PUT compact 5" "$(lines c2)"
  same "compaction --physical" "compacted revision $((base + 2))" "$(ctl compaction --physical $((base + 2)))"
  same "the newest version stays" 5 "$(value "$k")"
  same "a deleted key stays deleted" "" "$(value "$k/gone")"
  refused "nothing older is readable" "required revision has been compacted" ctl get "$k" --rev $((base + 1))
}

grant() { ctl lease grant "$1" | sed -nE 's/^lease ([0-9a-f]+) granted with TTL\(([0-9]+)s\)$/\1/p'; }

check_lease() {
  local id other before k="$P/lease"
  like "lease grant" '^lease [0-9a-f]{16} granted with TTL\(600s\)$' "$(ctl lease grant 600)"
  before=$(revision)
  id=$(grant 600)
  other=$(grant 300)
  differs "two leases" "$id" "$other"
  same "lease grant adds no revision" "$before" "$(revision)"
  like "lease grant below the least TTL" 'granted with TTL\(2s\)$' "$(ctl lease grant 1)"
  refused "lease grant of too much" "etcdserver: too large lease TTL" ctl lease grant 9000000001
  holds "lease list has the first" grep -q "^$id$" <(ctl lease list)
  holds "lease list has the second" grep -q "^$other$" <(ctl lease list)
  like "lease list counts" '^found [0-9]+ leases$' "$(ctl lease list | sed -n 1p)"
  ctl put "$k/a" 1 --lease="$id" >/dev/null
  ctl put "$k/b" 2 --lease="$id" >/dev/null
  ctl put "$k/c" 3 --lease="$id" >/dev/null
  same "a key tells its lease" "$((16#$id))" "$(ctl get "$k/a" -w fields | sed -nE 's/^"Lease" : (.*)/\1/p')"
  like "lease timetolive" "^lease $id granted with TTL\(600s\), remaining\((600|[1-5][0-9][0-9])s\)$" "$(ctl lease timetolive "$id")"
  attached() { ctl lease timetolive "$id" --keys | sed -nE "s|.*attached keys\(\[(.*)\]\)$|\1|p" | tr ' ' '\n' | sort | sed "s|^$P/||" | paste -sd' '; }
  same "lease timetolive --keys" "lease/a lease/b lease/c" "$(attached)"
  ctl put "$k/b" 2 >/dev/null
  same "a put without the lease detaches" "lease/a lease/c" "$(attached)"
  ctl put "$k/c" 4 --lease="$other" >/dev/null
  same "a put with another lease moves the key" "lease/a" "$(attached)"
  same "put --ignore-lease" "OK" "$(ctl put "$k/a" 5 --ignore-lease)"
  same "put --ignore-lease keeps the lease" "lease/a" "$(attached)"
  refused "put --ignore-lease of no key" "etcdserver: key not found" ctl put "$k/nothing" 5 --ignore-lease
  ctl put "$k/d" 6 --lease="$id" >/dev/null
  ctl del "$k/d" >/dev/null
  same "a delete detaches" "lease/a" "$(attached)"
  ctl put "$k/e" 7 --lease="$id" >/dev/null
  same "lease keep-alive --once" "lease $id keepalived with TTL(600)" "$(ctl lease keep-alive --once "$id")"
  before=$(revision)
  same "lease revoke" "lease $id revoked" "$(ctl lease revoke "$id")"
  same "lease revoke deletes the attached keys" "lease/b lease/c" "$(keys --prefix "$k/")"
  same "all in one revision" "$((before + 1))" "$(revision)"
  background l1 watch --prefix "$k/" --rev $((before + 1))
  eventually 10 "lease revoke is seen by watchers" said l1 /e
  same "as deletes in the order of keys" "DELETE lease/a  DELETE lease/e " "$(lines l1)"
  holds "lease list has the other still" grep -q "^$other$" <(ctl lease list)
  same "lease list has the revoked no more" "0" "$(ctl lease list | grep -c "^$id$" || true)"
  same "lease timetolive of no lease" "lease $id already expired" "$(ctl lease timetolive "$id")"
  refused "lease revoke of no lease" "etcdserver: requested lease not found" ctl lease revoke "$id"
  refused "lease keep-alive of no lease" "etcdserver: requested lease not found" ctl lease keep-alive --once "$id"
  ctl put "$k/c" 8 >/dev/null
  before=$(revision)
  same "lease revoke without keys" "lease $other revoked" "$(ctl lease revoke "$other")"
  same "adds no revision" "$before" "$(revision)"
}

now_ms() { date +%s%3N; }

check_expiry() {
  local id begun lived kept k="$P/expiry"
  begun=$(now_ms)
  id=$(grant 4)
  ctl put "$k/a" 1 --lease="$id" >/dev/null
  ctl put "$k/b" 1 --lease="$id" >/dev/null
  kept=$(grant 5)
  ctl put "$k/kept" 1 --lease="$kept" >/dev/null
  background e1 lease keep-alive "$kept"
  eventually 5 "lease keep-alive" said e1 "lease $kept keepalived with TTL(5)"
  gone() { [ -z "$(ctl get "$k/a")" ]; }
  eventually 10 "a lease expires" gone
  lived=$(($(now_ms) - begun))
  holds "no earlier than its TTL (lived $lived ms)" test "$lived" -ge 4000
  same "all its keys went" "" "$(value "$k/b")"
  same "it is no more" "lease $id already expired" "$(ctl lease timetolive "$id")"
  refused "it does not come back" "etcdserver: requested lease not found" ctl lease keep-alive --once "$id"
  beating() { [ "$(grep -c keepalived "$TMP/e1.out")" -ge 5 ]; }
  eventually 15 "lease keep-alive goes on" beating
  holds "beyond the TTL" test $(($(now_ms) - begun)) -gt 5000
  same "and its key stays" 1 "$(value "$k/kept")"
  kill "$SPAWNED"
  ended "$SPAWNED" "lease keep-alive"
  gone() { [ -z "$(ctl get "$k/kept")" ]; }
  eventually 10 "without keep-alive it goes" gone
}

contenders() { [ "$(count --prefix "$1/")" = "$2" ]; }

check_lock() {
  local k="$P/lock" holder waiter status=0
  out=$(trap - ERR; ctl lock "$k/cmd" -- sh -c 'echo "$ETCD_LOCK_KEY $ETCD_LOCK_REV"; exit 7') || status=$?
  if newer 5; then same "lock passes the command's status on" 7 "$status"; fi
  like "lock tells the command its key and revision" "^$k/cmd/[0-9a-f]+ [0-9]+" "$out"
  same "the lock is free afterwards" 0 "$(count --prefix "$k/cmd/")"

  background k1 lock "$k/held"
  holder=$SPAWNED
  eventually 10 "lock prints its key" said k1 "$k/held/"
  background k2 lock "$k/held" -- sh -c 'echo second'
  waiter=$SPAWNED
  eventually 10 "a second one queues" contenders "$k/held" 2
  holds "and waits" running "$waiter"
  same "without running its command" "" "$(cat "$TMP/k2.out")"
  kill -INT "$holder"
  ended "$holder" "lock holder"
  same "the first gives the lock up" 0 "$STATUS"
  ended "$waiter" "lock waiter"
  same "the second gets it" "0 second" "$STATUS $(cat "$TMP/k2.out")"
  same "and frees it" 0 "$(count --prefix "$k/held/")"

  background k3 lock --ttl 2 "$k/dead"
  holder=$SPAWNED
  eventually 10 "lock --ttl prints its key" said k3 "$k/dead/"
  kill -9 "$holder"
  ended "$holder" "killed lock holder" 2>/dev/null
  same "a dead holder's lock goes with its lease" "mine" "$(ctl lock "$k/dead" -- echo mine)"
}

check_elect() {
  local k="$P/elect" first second listener
  background v1 elect "$k" alpha
  first=$SPAWNED
  eventually 10 "elect" said v1 alpha
  background v2 elect -l "$k"
  listener=$SPAWNED
  eventually 10 "elect -l sees the leader" said v2 alpha
  background v3 elect "$k" beta
  second=$SPAWNED
  eventually 10 "a second candidate queues" contenders "$k" 2
  holds "and waits" running "$second"
  same "without being elected" "" "$(cat "$TMP/v3.out")"
  kill -INT "$first"
  ended "$first" "first leader"
  eventually 10 "the second is elected" said v3 beta
  eventually 10 "elect -l sees the change" said v2 beta
  like "in order" "^$k/[0-9a-f]+ alpha .*$k/[0-9a-f]+ beta" "$(paste -sd' ' "$TMP/v2.out")"
  kill -INT "$second"
  ended "$second" "second leader"
  eventually 10 "the election is over" contenders "$k" 0
  kill -INT "$listener"
  ended "$listener" "listener"
  same "elect -l ends when told to" 0 "$STATUS"
}

MEMBER='^[0-9a-f]+, started, [^,]*, [^ ]*, https?://[^ ]+, false$'

check_members() {
  local line n
  n=$(ctl member list | grep -c .)
  holds "member list has members" test "$n" -ge 1
  ctl member list >"$TMP/members"
  while read -r line; do like "member list" "$MEMBER" "$line"; done <"$TMP/members"
  same "member list again: stable ids" "$(sort "$TMP/members")" "$(ctl member list | sort)"
  like "member list -w table" 'ID +[|│] +STATUS +[|│] +NAME +[|│] +PEER ADDRS +[|│] +CLIENT ADDRS +[|│] +IS LEARNER' "$(ctl member list -w table)"
  same "member list -w json" "$n true" "$(ctl member list -w json | jq -r '"\(.members | length) \([.members[].clientURLs[0] | startswith("http")] | all)"')"
  like "member list -w fields" '"ClusterID" : [0-9]+.*"MemberID" : [0-9]+.*"ClientURL" : "http' "$(ctl member list -w fields | paste -sd' ')"
  if newer 7; then
    same "member list --consistency=s" "$(sort "$TMP/members")" "$(ctl member list --consistency=s | sort)"
  fi
  echo "skipped: member add, remove, update, promote (membership is the operator's)"
}

check_endpoints() {
  local n rev hash
  n=$(echo "$ENDPOINTS" | tr ',' '\n' | grep -c .)
  if newer 5; then # older ones print it to standard error
    same "endpoint health" "$n" "$(ctl endpoint health | grep -c ' is healthy: successfully committed proposal: took = ')"
  fi
  same "endpoint health -w json" "$n true" "$(ctl endpoint health -w json | jq -r '"\(length) \(all(.health))"')"
  same "endpoint health --cluster" "$(ctl member list | grep -c .)" "$(ctl endpoint health --cluster -w json | jq 'map(select(.health)) | length')"
  same "endpoint status" "$n" "$(ctl endpoint status | grep -cE '^(https?://)?[^,]+, [0-9a-f]+, 3\.[0-9]+\.[0-9]+')"
  like "endpoint status -w table" 'ENDPOINT +[|│] +ID +[|│] +VERSION' "$(ctl endpoint status -w table)"
  same "endpoint status -w json: a version, a leader, a term, a size, no errors" "true true true true true true" \
    "$(ctl endpoint status -w json | jq -r '"\(length == '"$n"') \(all(.Status.version | test("^3\\.[0-9]+\\.[0-9]+$"))) \(all(.Status.leader > 0)) \(all(.Status.raftTerm > 0 and .Status.raftIndex > 0)) \(all(.Status.dbSize > 0)) \(all((.Status.errors // []) == []))"')"
  same "endpoint status --cluster agrees on one leader" 1 "$(ctl endpoint status --cluster -w json | jq '[.[].Status.leader] | unique | length')"
  same "a member is the leader" 1 "$(ctl endpoint status --cluster -w json | jq '[.[] | select(.Status.leader == .Status.header.member_id)] | length')"
  if newer 6; then
    same "endpoint status: storage version, quota" "true true" \
      "$(ctl endpoint status -w json | jq -r '"\(all(.Status.storageVersion | test("^3\\.[0-9]+\\.0$"))) \(all(.Status.dbSizeQuota > 0))"')"
  fi
  ctl put "$P/hash" 1 >/dev/null
  rev=$(revision)
  hash() { timeout 30 "$ETCDCTL" --endpoints "$FIRST" endpoint hashkv "$@" -w json | jq -r '.[0].HashKV | "\(.hash)"'; }
  like "endpoint hashkv" "^$FIRST, [0-9]+" "$(ctl endpoint hashkv)"
  like "a hash" '^[0-9]+$' "$(hash)"
  hash=$(hash --rev "$rev")
  same "endpoint hashkv --rev of the newest" "$(hash)" "$hash"
  ctl put "$P/hash" 2 >/dev/null
  differs "a write changes the hash" "$hash" "$(hash)"
  same "the old revision's hash stays" "$hash" "$(hash --rev "$rev")"
  refused "endpoint hashkv of the future" "required revision is a future revision" ctl endpoint hashkv --rev $((rev + 1000))
  if newer 6; then
    same "endpoint hashkv tells its revision" "$rev" "$(ctl endpoint hashkv --rev "$rev" -w json | jq '.[0].HashKV.hash_revision')"
  fi
  refused "a port with no server" "unhealthy" "$ETCDCTL" --endpoints "http://127.0.0.1:1" --dial-timeout 1s --command-timeout 2s endpoint health
}

check_alarm() {
  same "alarm list" "" "$(ctl alarm list)"
  same "alarm disarm" "" "$(ctl alarm disarm)"
  same "alarm list -w json" "true" "$(ctl alarm list -w json | jq '(.alarms // []) == [] and .header.cluster_id > 0')"
}

check_defrag() {
  local n
  n=$(echo "$ENDPOINTS" | tr ',' '\n' | grep -c .)
  same "defrag" "$n" "$(ctl defrag | grep -c "Finished defragmenting etcd member")"
  same "defrag --cluster" "$(ctl member list | grep -c .)" "$(ctl defrag --cluster | grep -c "Finished defragmenting etcd member")"
  same "data after defrag" "OK 1" "$(ctl put "$P/defrag" 1) $(value "$P/defrag")"
}

check_move_leader() {
  refused "move-leader to no member" "etcdserver: bad leader transferee" ctl move-leader 1
  same "the cluster works after it" "OK" "$(ctl put "$P/move" 1)"
}

# Mirrors one prefix to another of the same server: first what is there, then live.
check_mirror() {
  local k="$P/mirror"
  for i in 1 2 3; do ctl put "$k/from/$i" "$i" >/dev/null; done
  background m1 make-mirror --prefix "$k/from/" --dest-prefix "$k/to/" "$FIRST"
  mirrored() { [ "$(value --prefix "$k/to/" | paste -sd' ')" = "$1" ]; }
  eventually 15 "make-mirror copies what is there" mirrored "1 2 3"
  ctl put "$k/from/4" 4 >/dev/null
  ctl del "$k/from/1" >/dev/null
  transaction "" "put $k/from/2 two
put $k/from/3 three" "" >/dev/null
  eventually 15 "make-mirror follows" mirrored "two three 4"
  same "with the names changed" "mirror/to/2 mirror/to/3 mirror/to/4" "$(keys --prefix "$k/to/")"
  kill "$SPAWNED"
}

check_downgrade() {
  local minor
  if ! newer 5; then
    echo "skipped: downgrade (etcdctl $VERSION has none)"
    return
  fi
  minor=$(curl -sS -m 10 "$FIRST/version" | sed -nE 's/.*"etcdcluster" ?: ?"3\.([0-9]+)\..*/\1/p')
  like "downgrade validate" "^Downgrade validate success, cluster version 3\.$minor" "$(ctl downgrade validate "3.$((minor - 1)).0")"
  refused "downgrade validate of too old" "etcdserver: invalid downgrade target version" ctl downgrade validate "3.$((minor - 2)).0"
  refused "downgrade validate of no version" "etcdserver: wrong downgrade target version format" ctl downgrade validate "three"
}

# Users, roles and permissions; leaves authentication off and nobody behind.
check_auth() {
  local k="$P/auth" root=root:geheim guest=guest:gast
  as() {
    local who=$1
    shift
    ctl --user "$who" "$@"
  }
  ctl put "$k/mine/1" 1 >/dev/null
  ctl put "$k/other" 1 >/dev/null
  refused "auth enable without root" "etcdserver: root user does not exist" ctl auth enable
  same "user add root" "User root created" "$(ctl user add "$root")"
  same "role add root" "Role root created" "$(ctl role add root)"
  same "user grant-role" "Role root is granted to user root" "$(ctl user grant-role root root)"
  same "user add" "User guest created" "$(ctl user add "$guest")"
  same "role add" "Role reader created" "$(ctl role add reader)"
  same "role grant-permission" "Role reader updated" "$(ctl role grant-permission reader --prefix=true read "$k/mine/")"
  same "user grant-role to the guest" "Role reader is granted to user guest" "$(ctl user grant-role guest reader)"
  refused "user add twice" "etcdserver: user name already exists" ctl user add "$guest"
  refused "role add twice" "etcdserver: role name already exists" ctl role add reader
  same "auth enable" "Authentication Enabled" "$(ctl auth enable)"
  refused "no user" "etcdserver: user name is empty" ctl get "$k/mine/1"
  refused "a wrong password" "etcdserver: authentication failed, invalid user ID or password" as guest:falsch get "$k/mine/1"
  same "a permitted get" 1 "$(as "$guest" get --print-value-only "$k/mine/1")"
  same "a permitted range" 1 "$(as "$guest" get --prefix --print-value-only "$k/mine/")"
  refused "a forbidden get" "etcdserver: permission denied" as "$guest" get "$k/other"
  refused "a forbidden range" "etcdserver: permission denied" as "$guest" get --prefix "$k/"
  refused "a forbidden put" "etcdserver: permission denied" as "$guest" put "$k/mine/1" 2
  refused "a forbidden user add" "etcdserver: permission denied" as "$guest" user add x:y
  same "root may" "OK" "$(as "$root" put "$k/other" 2)"
  same "user list" "guest root" "$(as "$root" user list | sort | paste -sd' ')"
  same "role list" "reader root" "$(as "$root" role list | sort | paste -sd' ')"
  like "role get" "KV Read: .*$k/mine/" "$(as "$root" role get reader | paste -sd' ')"
  same "user get" "User: guest Roles: reader" "$(as "$root" user get guest | paste -sd' ')"
  same "role revoke-permission" 0 "$(as "$root" role revoke-permission reader --prefix=true "$k/mine/" >/dev/null; echo $?)"
  refused "a get no longer permitted" "etcdserver: permission denied" as "$guest" get "$k/mine/1"
  same "auth disable" "Authentication Disabled" "$(as "$root" auth disable)"
  same "no user again" 1 "$(value "$k/mine/1")"
  same "user delete" "User guest deleted" "$(ctl user delete guest)"
  same "role delete" "Role reader deleted" "$(ctl role delete reader)"
  ctl user delete root >/dev/null
  ctl role delete root >/dev/null
  same "nobody is left" "" "$(ctl user list)$(ctl role list)"
}

check_snapshot() {
  ctl put "$P/snapshot" kept >/dev/null
  same "snapshot save" 0 "$(timeout 60 "$ETCDCTL" --endpoints "$FIRST" snapshot save "$TMP/snapshot.db" >/dev/null 2>&1; echo $?)"
  like "etcdutl snapshot status" '"totalKey":[1-9]' "$("$PEERS/etcdutl" snapshot status "$TMP/snapshot.db" -w json)"
  same "etcdutl snapshot restore" 0 "$("$PEERS/etcdutl" snapshot restore "$TMP/snapshot.db" --data-dir "$TMP/restored" >/dev/null 2>&1; echo $?)"
}

echo "etcdctl $VERSION against $ENDPOINTS"
for section in $SECTIONS; do
  only "$section" || continue
  begun=$CHECKS
  "check_$section"
  echo "  $section: $((CHECKS - begun)) checks"
done
ctl del --prefix "$P" >/dev/null
echo "ok $CHECKS checks"
