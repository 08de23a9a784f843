"""python-etcd3, the most used Python client: blocking, gRPC's C core.

    etcd3_client.py http://HOST:PORT
"""

import os
import queue
import sys
import threading
import time
import urllib.parse

import etcd3
import grpc
from checks import check, done, eventually, refused, same

where = urllib.parse.urlsplit(sys.argv[1])
P = f"~python/{os.getpid()}-{time.time_ns()}"
client = etcd3.client(host=where.hostname, port=where.port, timeout=30)
tx = client.transactions


def kv():
    first = client.put(f"{P}/a", "1").header.revision
    same("put answers with its revision", first + 1, client.put(f"{P}/a", "2").header.revision)
    same("put with previous", b"2", client.put(f"{P}/a", "3", prev_kv=True).prev_kv.value)
    value, meta = client.get(f"{P}/a")
    same("get", (b"3", first, first + 2, 3, 0), (value, meta.create_revision, meta.mod_revision, meta.version, meta.lease_id))
    same("its header", first + 2, meta.response_header.revision)
    same("get of nothing", (None, None), client.get(f"{P}/nothing"))
    same("a serializable get", b"3", client.get(f"{P}/a", serializable=True)[0])
    binary = bytes(range(256))
    client.put(f"{P}/binary", binary)
    same("all byte values", binary, client.get(f"{P}/binary")[0])
    for i in range(20):
        client.put(f"{P}/r/{i:02}", str(100 - i))
    same("get_prefix", [str(100 - i).encode() for i in range(20)], [v for v, _ in client.get_prefix(f"{P}/r/")])
    same("its keys", [f"{P}/r/{i:02}".encode() for i in range(20)], [m.key for _, m in client.get_prefix(f"{P}/r/")])
    same("get_range", [b"95", b"94", b"93"], [v for v, _ in client.get_range(f"{P}/r/05", f"{P}/r/08")])
    descending = client.get_prefix(f"{P}/r/", sort_order="descend", sort_target="key")
    same("sorted by key, descending", [str(100 - i).encode() for i in reversed(range(20))], [v for v, _ in descending])
    ascending = client.get_prefix(f"{P}/r/", sort_order="ascend", sort_target="value")
    same("sorted by value", sorted(str(100 - i).encode() for i in range(20)), [v for v, _ in ascending])
    newest = client.get_prefix(f"{P}/r/", sort_order="descend", sort_target="mod")
    same("sorted by mod revision", b"81", next(iter(newest))[0])
    only = client.get_prefix_response(f"{P}/r/", keys_only=True)
    same("keys only", (20, b""), (only.count, b"".join(k.value for k in only.kvs)))
    check(len(list(client.get_all(keys_only=True))) >= 22, "get_all")
    same("delete", True, client.delete(f"{P}/a"))
    same("delete again", False, client.delete(f"{P}/a"))
    gone = client.delete(f"{P}/binary", prev_kv=True, return_response=True)
    same("delete with previous", (1, binary), (gone.deleted, gone.prev_kvs[0].value))
    same("delete_prefix", 20, client.delete_prefix(f"{P}/r/").deleted)
    large = os.urandom(1_000_000)
    client.put(f"{P}/large", large)
    same("a megabyte", large, client.get(f"{P}/large")[0])
    too_large = refused("more than a request may be", grpc.RpcError, lambda: client.put(f"{P}/large", b"x" * 1_700_000))
    same("with code and text", (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large"), (too_large.code(), too_large.details()))
    client.delete(f"{P}/large")


def transactions():
    same("put_if_not_exists", True, client.put_if_not_exists(f"{P}/t/a", "1"))
    same("put_if_not_exists of what is", False, client.put_if_not_exists(f"{P}/t/a", "2"))
    same("replace", True, client.replace(f"{P}/t/a", "1", "2"))
    same("replace of what is not", False, client.replace(f"{P}/t/a", "1", "3"))
    succeeded, answers = client.transaction(
        compare=[tx.value(f"{P}/t/a") == "2", tx.version(f"{P}/t/a") > 1, tx.create(f"{P}/t/b") == 0, tx.mod(f"{P}/t/a") != 0],
        success=[tx.put(f"{P}/t/b", "1"), tx.get(f"{P}/t/b"), tx.delete(f"{P}/t/a"), tx.get(f"{P}/t/a")],
        failure=[tx.get(f"{P}/t/a")],
    )
    same("transaction", (True, 4), (succeeded, len(answers)))
    same("reads its own write", b"1", answers[1][0][0])
    same("deletes", 1, answers[2].response_delete_range.deleted)
    same("reads its own delete", [], answers[3])
    revision = answers[0].response_put.header.revision
    same("in one revision", revision, client.get(f"{P}/t/b")[1].mod_revision)
    succeeded, answers = client.transaction(
        compare=[tx.version(f"{P}/t/b") > 1],
        success=[],
        failure=[tx.txn(compare=[tx.value(f"{P}/t/b") == "1"], success=[tx.put(f"{P}/t/nested", "yes")], failure=[])],
    )
    same("nested transaction", (False, True), (succeeded, answers[0].response_txn.succeeded))
    same("its write", b"yes", client.get(f"{P}/t/nested")[0])
    twice = refused("a key twice", grpc.RpcError, lambda: client.transaction([], [tx.put(f"{P}/t/x", "1"), tx.put(f"{P}/t/x", "2")], []))
    same("with code and text", (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"), (twice.code(), twice.details()))

    # Eight threads on one key: compare-and-put must lose no increment.
    client.put(f"{P}/t/count", "0")

    def increment():
        for _ in range(20):
            while True:
                value, _ = client.get(f"{P}/t/count")
                if client.replace(f"{P}/t/count", value, str(int(value) + 1)):
                    break

    threads = [threading.Thread(target=increment) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    same("160 increments by eight threads", b"160", client.get(f"{P}/t/count")[0])


def take(events, n, what):
    """The next n events of an iterator, or a failure after 30 s."""
    got = queue.Queue()

    def pull():
        for _ in range(n):
            got.put(next(events))

    threading.Thread(target=pull, daemon=True).start()
    try:
        return [got.get(timeout=30) for _ in range(n)]
    except queue.Empty:
        check(False, f"{what}: {n} events within 30 s")


def watches():
    start = client.put(f"{P}/w/a", "1").header.revision
    client.put(f"{P}/w/b", "1")
    client.delete(f"{P}/w/a")
    events, cancel = client.watch_prefix(f"{P}/w/", start_revision=start, prev_kv=True)
    got = take(events, 3, "history")
    same("watch replays history", ["PutEvent a 1", "PutEvent b 1", "DeleteEvent a "], [f"{type(e).__name__} {e.key.decode()[-1]} {e.value.decode()}" for e in got])
    same("with revisions", [start, start + 1, start + 2], [e.mod_revision for e in got])
    same("with the previous value", b"1", got[2]._event.prev_kv.value)
    client.put(f"{P}/w/c", "live")
    same("watch follows", b"live", take(events, 1, "live")[0].value)
    cancel()

    # add_watch_callback returns when the server has created the watch.
    seen = []
    watch = client.add_watch_callback(f"{P}/w/d", lambda answer: seen.extend(answer.events))
    client.put(f"{P}/w/d", "1")
    client.put(f"{P}/w/e", "other key")
    client.put(f"{P}/w/d", "2")
    eventually(10, "a callback sees two events", lambda: len(seen) >= 2)
    same("of its key alone", [b"1", b"2"], [e.value for e in seen])
    client.cancel_watch(watch)
    fence = []
    other = client.add_watch_callback(f"{P}/w/d", lambda answer: fence.extend(answer.events))
    client.put(f"{P}/w/d", "3")
    eventually(10, "another watch sees the next event", lambda: fence)
    same("a cancelled watch does not", 2, len(seen))
    client.cancel_watch(other)

    client.put(f"{P}/w/a", "again")
    refused("watch_once times out", etcd3.exceptions.WatchTimedOut, lambda: client.watch_once(f"{P}/w/quiet", timeout=0.2))

    many = [client.watch(f"{P}/w/many/{i}") for i in range(50)]
    for i in range(50):
        client.put(f"{P}/w/many/{i}", str(i))
    for i, (events, cancel) in enumerate(many):
        same("one of 50 watches on a stream", str(i).encode(), take(events, 1, "many")[0].value)
        cancel()

    now = client.get(f"{P}/w/a")[1].response_header.revision
    client.compact(now)
    below, stop = client.watch(f"{P}/w/a", start_revision=start)
    error = refused("watch below a compaction", etcd3.exceptions.RevisionCompactedError, lambda: next(below))
    same("tells where it is", now, error.compacted_revision)
    again = refused("compact again", grpc.RpcError, lambda: client.compact(now))
    same("with code and text", (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"), (again.code(), again.details()))


def leases():
    lease = client.lease(600)
    same("lease", 600, lease.ttl)
    client.put(f"{P}/l/a", "1", lease=lease)
    client.put(f"{P}/l/b", "1", lease=lease.id)
    same("the key's lease", lease.id, client.get(f"{P}/l/a")[1].lease_id)
    same("granted TTL", 600, lease.granted_ttl)
    check(100 <= lease.remaining_ttl <= 600, "remaining TTL", lease.remaining_ttl)
    same("attached keys", {f"{P}/l/a".encode(), f"{P}/l/b".encode()}, set(lease.keys))
    same("refresh", [600], [answer.TTL for answer in lease.refresh()])
    own = client.lease(600, lease_id=0x1234567 + os.getpid())
    same("a chosen id", 0x1234567 + os.getpid(), own.id)
    refused("the same id again", etcd3.exceptions.PreconditionFailedError, lambda: client.lease(600, lease_id=own.id))
    lease.revoke()
    same("revoke deletes the keys", [None, None], [client.get(f"{P}/l/{k}")[0] for k in "ab"])
    same("of no lease: refresh", [0], [answer.TTL for answer in lease.refresh()])
    same("of no lease: remaining TTL", -1, lease.remaining_ttl)
    gone = refused("revoke again", grpc.RpcError, lease.revoke)
    same("with code and text", (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"), (gone.code(), gone.details()))
    own.revoke()
    begun = time.monotonic()
    short = client.lease(4)
    client.put(f"{P}/l/short", "1", lease=short)
    eventually(10, "expiry deletes the key", lambda: client.get(f"{P}/l/short")[0] is None)
    check(time.monotonic() - begun >= 4, "not before the TTL", time.monotonic() - begun)


def locks():
    first, second = client.lock(f"{P}-lock", ttl=60), client.lock(f"{P}-lock", ttl=60)
    same("acquire", True, first.acquire())
    same("is acquired", (True, False), (first.is_acquired(), second.is_acquired()))
    same("acquire of a held one", False, second.acquire(timeout=0))
    same("release by another", False, second.release())
    check(first.refresh(), "refresh")
    same("release", True, first.release())
    same("acquire of a free one", True, second.acquire(timeout=0))
    same("release it too", True, second.release())
    with client.lock(f"{P}-lock") as held:
        same("as a context", True, held.is_acquired())
    same("which frees it", False, held.is_acquired())


def cluster():
    members = list(client.members)
    check(members and all(m.client_urls for m in members), "members", members)
    status = client.status()
    check(status.leader is not None and status.leader.id in [m.id for m in members], "status names a leader among the members")
    check(status.version.startswith("3.") and status.db_size > 0 and status.raft_term > 0, "status", vars(status))
    same("alarms", [], list(client.list_alarms()))
    client.defragment()
    check(isinstance(client.hash(), int), "hash")


for part in (kv, transactions, watches, leases, locks, cluster):
    part()
client.delete_prefix(P)
done()
os._exit(0)  # close() makes its watch thread die with a trace
