# shellcheck shell=bash
# What the interop scripts share: assertions, waiting for a state, processes
# that are ended again, free ports. Source it after `set -euo pipefail`.
#
# Every wait here is for a state, with a deadline; no script sleeps and hopes. Servers
# keep their data under TMPDIR: on a machine whose disk is busy, TMPDIR=/dev/shm helps.

set -E
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PEERS=${ATOLL_PEERS:-$HOME/.cache/atoll-peers}/bin
TMP=$(mktemp -d "${TMPDIR:-/tmp}/interop.XXXXXX")
CHECKS=0

die() {
  echo "FAIL: $*" >&2
  exit 1
}

# A command that failed without an assertion around it is a failure with a place.
trap 'echo "FAIL: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND" >&2' ERR
trap 'finish $?' EXIT
trap 'exit 130' INT TERM

# running PID: whether this shell's background process still runs. The shell knows:
# a number alone may long belong to somebody else.
running() { [[ " $(jobs -rp | tr '\n' ' ') " == *" $1 "* ]]; }

# Ends the processes that were started here (with their groups, where they lead one),
# and only those. ON_EXIT names a function to call first.
finish() {
  local status=$1 pid
  trap - ERR EXIT
  set +e
  [ -z "${ON_EXIT:-}" ] || "$ON_EXIT" "$status"
  for pid in $(jobs -rp); do kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null; done
  for _ in $(seq 50); do
    [ -n "$(jobs -rp)" ] || break
    sleep 0.1
  done
  for pid in $(jobs -rp); do kill -9 -- "-$pid" 2>/dev/null || kill -9 "$pid" 2>/dev/null; done
  wait 2>/dev/null
  rm -rf "$TMP"
  exit "$status"
}

# spawn NAME COMMAND...: starts COMMAND with its output in $TMP/NAME.out and .err;
# its process is $SPAWNED.
spawn() {
  local name=$1
  shift
  "$@" >"$TMP/$name.out" 2>"$TMP/$name.err" &
  SPAWNED=$!
}

# ended PID WHAT: waits up to 45 s for a spawned process to end and sets STATUS.
ended() {
  local pid=$1 end=$((SECONDS + 45))
  while running "$pid"; do
    [ $SECONDS -lt $end ] || die "process $pid ($2) did not end within 45 s"
    sleep 0.05
  done
  STATUS=0
  wait "$pid" || STATUS=$?
}

passed() {
  CHECKS=$((CHECKS + 1))
  [ -z "${VERBOSE:-}" ] || echo "  ok: $1"
}

# same WHAT WANTED GOT
same() {
  [ "$2" = "$3" ] || die "$(printf '%s\n  wanted: %q\n  got:    %q' "$1" "$2" "$3")"
  passed "$1"
}

# differs WHAT UNWANTED GOT
differs() {
  [ "$2" != "$3" ] || die "$(printf '%s\n  got twice: %q' "$1" "$3")"
  passed "$1"
}

# like WHAT EXTENDED-REGEX GOT
like() {
  [[ $3 =~ $2 ]] || die "$(printf '%s\n  wanted to match: %s\n  got: %q' "$1" "$2" "$3")"
  passed "$1"
}

# holds WHAT COMMAND...: the command (often `test`) succeeds.
holds() {
  local what=$1
  shift
  "$@" || die "$(printf '%s\n  failed: %s' "$what" "$*")"
  passed "$what"
}

# refused WHAT EXTENDED-REGEX COMMAND...: the command fails and says so.
refused() {
  local what=$1 regex=$2 out status=0
  shift 2
  out=$(trap - ERR; "$@" 2>&1) || status=$?
  [ $status -ne 0 ] || die "$(printf '%s\n  wanted a refusal, got success: %q' "$what" "$out")"
  [[ $out =~ $regex ]] || die "$(printf '%s\n  wanted a refusal with: %s\n  got: %q' "$what" "$regex" "$out")"
  passed "$what"
}

# eventually SECONDS WHAT COMMAND...: the command succeeds before the deadline, which
# is three times as far off, for machines that have other things to do as well.
eventually() {
  local seconds=$((3 * $1)) what=$2 end
  shift 2
  end=$((SECONDS + seconds + 1))
  until (trap - ERR; "$@") >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$(printf '%s: not within %s s\n  tried: %s\n%s' "$what" "$seconds" "$*" "$(tail -n 5 "$TMP"/*.out "$TMP"/*.err 2>/dev/null)")"
    sleep 0.05
  done
  passed "$what"
}

# free_ports N [SPAN]: N ports that nobody listens on, each with SPAN (1) ports from it on free, at
# 127.0.0.1 to 127.0.0.3. They are below the local ports of connections (32768 and up by default):
# one of those may be taken by anybody's next connection. Scripts that run beside each other get
# different ones, also those that they use later: all go on where the last call has stopped.
free_ports() {
  python3 - "$1" "${2:-1}" <<'PY'
import fcntl, os, random, socket, sys, tempfile
count, span = map(int, sys.argv[1:])
FIRST, END = 15000, 31000
def is_free(port):
    for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind((host, port))
            except OSError:
                return False
    return True
with open(os.path.join(tempfile.gettempdir(), "atoll-interop-ports"), "a+") as shared:
    fcntl.flock(shared, fcntl.LOCK_EX)
    shared.seek(0)
    text = shared.read()
    port = int(text) if text.isdigit() else random.randrange(FIRST, END)
    found = []
    while len(found) < count:
        if port + span > END:
            port = FIRST
        if all(map(is_free, range(port, port + span))):
            found.append(port)
        port += span
    shared.truncate(0)
    shared.write(str(port))
print(*found)
PY
}

# only NAME: whether section NAME is to be run; says so when it is not.
# INTEROP_ONLY="a b" runs these alone, INTEROP_SKIP="c" leaves these out.
only() {
  if [ -n "${INTEROP_ONLY:-}" ]; then
    [[ " $INTEROP_ONLY " == *" $1 "* ]]
    return
  fi
  [[ " ${INTEROP_SKIP:-} " != *" $1 "* ]] || {
    echo "skipped: $1"
    return 1
  }
}
