"""aetcd, the asyncio client: grpc.aio.

    aetcd_client.py http://HOST:PORT
"""

import asyncio
import os
import sys
import time
import urllib.parse

import aetcd
from checks import check, done, same

where = urllib.parse.urlsplit(sys.argv[1])
P = f"~aetcd/{os.getpid()}-{time.time_ns()}".encode()


async def refused(what, kind, act, text=""):
    try:
        got = await act
    except kind as error:
        check(text in str(error), what, f"wanted: {text!r}", f"got:    {error!r}")
        return error
    check(False, what, f"wanted {kind}, got {got!r}")


async def take(events, n, what):
    got = []
    try:
        async with asyncio.timeout(30):
            async for event in events:
                got.append(event)
                if len(got) == n:
                    return got
    except TimeoutError:
        pass
    check(False, f"{what}: {n} events within 30 s", got)


async def kv(client):
    first = (await client.put(P + b"/a", b"1")).header.revision
    second = await client.put(P + b"/a", b"2", prev_kv=True)
    same("put", (first + 1, b"1"), (second.header.revision, second.prev_kv.value))
    got = await client.get(P + b"/a")
    same("get", (b"2", first, first + 1, 2), (got.value, got.create_revision, got.mod_revision, got.version))
    same("get of nothing", None, await client.get(P + b"/nothing"))
    # Two hundred puts at once over one connection.
    puts = await asyncio.gather(*(client.put(P + b"/r/%03d" % i, b"%d" % i) for i in range(200)))
    same("each has a revision of its own", 200, len({put.header.revision for put in puts}))
    ranged = await client.get_prefix(P + b"/r/")
    same("get_prefix", [b"%d" % i for i in range(200)], [kv.value for kv in ranged])
    same("its count", (200, False), (ranged.count, ranged.more))
    part = await client.get_range(P + b"/r/010", P + b"/r/013", sort_order="descend")
    same("get_range, descending", [b"12", b"11", b"10"], [kv.value for kv in part])
    keys = await client.get_prefix(P + b"/r/", keys_only=True)
    same("keys only", (200, b""), (len(keys), b"".join(kv.value for kv in keys)))
    same("replace", True, await client.replace(P + b"/a", b"2", b"3"))
    same("replace of what is not", False, await client.replace(P + b"/a", b"2", b"4"))
    gone = await client.delete(P + b"/a", prev_kv=True)
    same("delete", (1, b"3"), (gone.deleted, gone.prev_kv.value))
    same("delete again", None, await client.delete(P + b"/a"))
    same("delete_range", 3, (await client.delete_range(P + b"/r/010", P + b"/r/013")).deleted)
    same("delete_prefix", 197, (await client.delete_prefix(P + b"/r/")).deleted)
    tx = client.transactions
    succeeded, answers = await client.transaction(
        compare=[tx.create(P + b"/t") == 0], success=[tx.put(P + b"/t", b"1"), tx.get(P + b"/t")], failure=[]
    )
    same("transaction", (True, b"1"), (succeeded, answers[1][0][0]))
    error = await refused("a key twice", aetcd.InvalidArgumentError, client.transaction([], [tx.put(P + b"/t", b"1"), tx.delete(P + b"/t")], []))
    check("duplicate key given in txn request" in str(error), "with its text", error)

    async def increment():
        for _ in range(10):
            while True:
                now = await client.get(P + b"/count")
                if await client.replace(P + b"/count", now.value, b"%d" % (int(now.value) + 1)):
                    break

    await client.put(P + b"/count", b"0")
    await asyncio.gather(*(increment() for _ in range(10)))
    same("a hundred increments by ten tasks", b"100", (await client.get(P + b"/count")).value)


async def watches(client):
    start = (await client.put(P + b"/w/a", b"1")).header.revision
    await client.put(P + b"/w/a", b"2")
    await client.delete(P + b"/w/a")
    watch = await client.watch_prefix(P + b"/w/", start_revision=start, prev_kv=True)
    events = aiter(watch)
    got = await take(events, 3, "history")
    same("watch replays history", [("PUT", b"1"), ("PUT", b"2"), ("DELETE", b"")], [(e.kind, e.kv.value) for e in got])
    same("with previous values", [b"", b"1", b"2"], [e.prev_kv.value if e.prev_kv else b"" for e in got])
    await client.put(P + b"/w/b", b"live")
    same("watch follows", b"live", (await take(events, 1, "live"))[0].kv.value)
    await watch.cancel()
    deletes = await client.watch(P + b"/w/a", start_revision=start, kind=aetcd.EventKind.DELETE)
    same("a filter", ["DELETE"], [e.kind for e in await take(aiter(deletes), 1, "filtered")])
    await deletes.cancel()
    await refused("watch_once times out", aetcd.WatchTimeoutError, client.watch_once(P + b"/w/quiet", timeout=0.2))
    now = (await client.put(P + b"/w/c", b"1")).header.revision
    await client.compact(now, physical=True)
    below = await client.watch(P + b"/w/a", start_revision=start)
    error = await refused("watch below a compaction", aetcd.RevisionCompactedError, anext(aiter(below)))
    same("tells where it is", now, error.compacted_revision)


async def leases(client):
    lease = await client.lease(600)
    await client.put(P + b"/l", b"1", lease=lease)
    same("attached keys", [P + b"/l"], list(await lease.keys()))
    same("refresh", 600, (await lease.refresh()).TTL)
    chosen = 0x7654321 + os.getpid()
    own = await client.lease(600, lease_id=chosen)
    same("a chosen id", chosen, own.id)
    await refused("the same id again", aetcd.DuplicateLeaseError, client.lease(600, lease_id=chosen))
    await own.revoke()
    await lease.revoke()
    same("revoke deletes the key", None, await client.get(P + b"/l"))
    same("remaining TTL of no lease", -1, await lease.remaining_ttl())


async def locks(client):
    first, second = client.lock(P + b"-lock", 60), client.lock(P + b"-lock", 60)
    same("acquire", True, await first.acquire())
    waiting = asyncio.create_task(second.acquire(timeout=60))
    # The second one has looked and waits when its lease is there, too.
    await asyncio.wait({waiting}, timeout=0.3)
    same("a second one waits", False, waiting.done())
    same("release", True, await first.release())
    same("then it gets the lock", True, await asyncio.wait_for(waiting, 60))
    same("whose it is", (False, True), (await first.is_acquired(), await second.is_acquired()))
    same("release it too", True, await second.release())


async def main():
    async with aetcd.Client(host=where.hostname, port=where.port, timeout=30) as client:
        for part in (kv, watches, leases, locks):
            await part(client)
        status = await client.status()
        check(status.version.startswith("3.") and status.leader is not None, "status", vars(status))
        check([m async for m in client.members()], "members")
        await client.delete_prefix(P)
    done()


asyncio.run(asyncio.wait_for(main(), 240))
