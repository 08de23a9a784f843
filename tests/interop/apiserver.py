"""Works with a running kube-apiserver and checks what the store behind it makes it do.

Started by apiserver.sh. Only the standard library; the token comes in $TOKEN.
"""

import argparse
import http.client
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse

parser = argparse.ArgumentParser()
parser.add_argument("--url", required=True)
parser.add_argument("--ca", required=True)
parser.add_argument("--store", required=True, help="endpoints of the store, for etcdctl")
parser.add_argument("--events", required=True, help="endpoints of the store of events")
parser.add_argument("--run", required=True, help="a name that no other run uses")
parser.add_argument("--watch-cache", choices=["true", "false"], required=True)
options = parser.parse_args()
CACHED = options.watch_cache == "true"
HOST = urllib.parse.urlsplit(options.url).netloc
TLS = ssl.create_default_context(cafile=options.ca)
TOKEN = os.environ["TOKEN"]
NS = f"interop-{options.run}"

checks = 0


def check(condition, what, *facts):
    global checks
    if not condition:
        print(f"FAIL: {what}", *facts, sep="\n  ", file=sys.stderr)
        sys.exit(1)
    checks += 1


def same(what, wanted, got):
    check(wanted == got, what, f"wanted: {wanted!r}", f"got:    {got!r}")


def eventually(seconds, what, condition):
    end = time.monotonic() + 3 * seconds
    while not (got := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    check(got, f"{what}: not within {seconds} s")
    return got


def connect(timeout=30):
    return http.client.HTTPSConnection(HOST, context=TLS, timeout=timeout)


CONNECTION = connect()


def call(method, path, body=None, query=None, kind="application/json"):
    """One request: the status code and the decoded answer."""
    if query:
        path += "?" + urllib.parse.urlencode(query)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    if body is not None:
        headers["Content-Type"] = kind
        body = json.dumps(body)
    CONNECTION.request(method, path, body, headers)
    answer = CONNECTION.getresponse()
    data = answer.read()
    try:
        return answer.status, json.loads(data)
    except ValueError:
        return answer.status, data.decode()


def ok(what, method, path, body=None, query=None, kind="application/json", code=None):
    """A request that must succeed: the decoded answer."""
    status, answer = call(method, path, body, query, kind)
    check(status == code if code else status < 300, what, f"status {status}", json.dumps(answer)[:600])
    return answer


def refused(what, code, reason, method, path, body=None, query=None, kind="application/json"):
    status, answer = call(method, path, body, query, kind)
    got = answer.get("reason") if isinstance(answer, dict) else answer
    check((status, got) == (code, reason), what, f"wanted: {code} {reason}", f"got: {status} {json.dumps(answer)[:600]}")
    return answer


def rv(thing):
    return int(thing["metadata"]["resourceVersion"])


def names(listed):
    return [item["metadata"]["name"] for item in listed["items"]]


MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"  # JSON is YAML
MAPS = f"/api/v1/namespaces/{NS}/configmaps"
PODS = f"/api/v1/namespaces/{NS}/pods"


def config_map(name, data=None, **metadata):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": data or {}}


class Watch(threading.Thread):
    """A watch on a connection of its own; `events` grows as they come."""

    def __init__(self, path, **query):
        super().__init__(daemon=True)
        self.events, self.over, self.error = [], False, None
        query = {"watch": "true", "timeoutSeconds": "60", **query}
        self.connection = connect(70)
        self.connection.request("GET", f"{path}?{urllib.parse.urlencode(query)}", headers={"Authorization": f"Bearer {TOKEN}"})
        self.answer = self.connection.getresponse()
        self.status = self.answer.status
        self.start()

    def run(self):
        try:
            if self.status != 200:
                self.error = json.loads(self.answer.read())
                return
            for line in self.answer:
                self.events.append(json.loads(line))
        except (OSError, http.client.HTTPException, ValueError):
            pass
        finally:
            self.over = True

    def of(self, *kinds):
        return [e for e in list(self.events) if e["type"] in kinds]

    def story(self):
        """The events but bookmarks as `TYPE name`."""
        return [f'{e["type"]} {e["object"]["metadata"]["name"]}' for e in list(self.events) if e["type"] != "BOOKMARK"]

    def until(self, seconds, what, story):
        eventually_story(seconds, what, self, story)
        return self

    def close(self):
        try:
            self.connection.sock and self.connection.sock.close()
        except OSError:
            pass


def eventually_story(seconds, what, watch, story):
    end = time.monotonic() + 3 * seconds
    while len(watch.story()) < len(story) and not watch.over and time.monotonic() < end:
        time.sleep(0.02)
    same(what, story, watch.story())


def store(*arguments, endpoints=None):
    """etcdctl on the store itself: what it printed."""
    command = [os.environ["ETCDCTL"], "--endpoints", endpoints or options.store, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    check(done.returncode == 0, f"etcdctl {' '.join(arguments)}", done.stderr)
    return done.stdout


def start():
    version = ok("version", "GET", "/version")
    check(version["gitVersion"].startswith("v1."), "gitVersion", version)
    status, text = call("GET", "/readyz?verbose")
    check(status == 200 and "[+]etcd ok" in text, "readyz names etcd", text)
    eventually(20, "the system namespaces appear", lambda: {"default", "kube-system"} <= set(names(call("GET", "/api/v1/namespaces")[1])))
    ok("create a namespace", "POST", "/api/v1/namespaces", {"metadata": {"name": NS}}, code=201)
    same("the namespace is active", "Active", ok("get it", "GET", f"/api/v1/namespaces/{NS}")["status"]["phase"])


def create_and_read():
    last = 0
    for i in range(40):
        made = ok("create", "POST", MAPS, config_map(f"map-{i:02}", {"n": str(i)}, labels={"half": "lower" if i < 20 else "upper"}), code=201)
        check(rv(made) > last, "each create has a higher resourceVersion", rv(made), last)
        last = rv(made)
        if i % 4 == 0:
            # No resourceVersion: the list must show the object just created.
            listed = ok("list", "GET", MAPS)
            check(f"map-{i:02}" in names(listed), "a list sees the create before it", names(listed))
            check(rv(listed) >= last, "and is not older", rv(listed), last)
    refused("create it again", 409, "AlreadyExists", "POST", MAPS, config_map("map-00"))
    refused("get of nothing", 404, "NotFound", "GET", f"{MAPS}/nothing")
    got = ok("get", "GET", f"{MAPS}/map-39")
    same("get shows the create", (last, "39"), (rv(got), got["data"]["n"]))
    same("get from the cache", last, rv(ok("get", "GET", f"{MAPS}/map-39", query={"resourceVersion": last})))
    same("label selector", 20, len(ok("list", "GET", MAPS, query={"labelSelector": "half=upper"})["items"]))
    same("field selector", ["map-07"], names(ok("list", "GET", MAPS, query={"fieldSelector": "metadata.name=map-07"})))
    in_store = store("get", "--prefix", f"/registry/configmaps/{NS}/", "--keys-only").split()
    same("the store has just these keys", [f"/registry/configmaps/{NS}/map-{i:02}" for i in range(40)], in_store)


def page():
    first = ok("first page", "GET", MAPS, query={"limit": 7})
    same("its names", [f"map-{i:02}" for i in range(7)], names(first))
    same("its remaining items", 33, first["metadata"].get("remainingItemCount"))
    # What changes between pages must not show: they are of one resourceVersion.
    ok("delete between pages", "DELETE", f"{MAPS}/map-33")
    ok("create between pages", "POST", MAPS, config_map("map-33-late"), code=201)
    ok("change between pages", "PATCH", f"{MAPS}/map-34", {"data": {"n": "changed"}}, kind=MERGE)
    listed, pages, here = list(first["items"]), 1, first
    while token := here["metadata"].get("continue"):
        here = ok("next page", "GET", MAPS, query={"limit": 7, "continue": token})
        same("of the same resourceVersion", rv(first), rv(here))
        listed += here["items"]
        pages += 1
    same("all pages together", ([f"map-{i:02}" for i in range(40)], 6), ([item["metadata"]["name"] for item in listed], pages))
    same("as they were", "34", next(item["data"]["n"] for item in listed if item["metadata"]["name"] == "map-34"))
    exact = {"resourceVersion": rv(first), "resourceVersionMatch": "Exact"}
    old = ok("list of exactly that resourceVersion", "GET", MAPS, query=exact)
    same("has the deleted one still", ([f"map-{i:02}" for i in range(40)], rv(first)), (names(old), rv(old)))
    old = ok("a page of exactly that resourceVersion", "GET", MAPS, query={**exact, "limit": 39})
    check(names(old)[-1] == "map-38" and old["metadata"].get("continue"), "one is left", old["metadata"])
    newer = ok("list not older", "GET", MAPS, query={"resourceVersion": rv(first), "resourceVersionMatch": "NotOlderThan"})
    check(rv(newer) >= rv(first), "is not older", rv(newer), rv(first))
    check(names(ok("list from whatever there is", "GET", MAPS, query={"resourceVersion": "0"})), "resourceVersion 0 lists")
    refused("list not older than the future", 504, "Timeout", "GET", MAPS, query={"resourceVersion": rv(newer) + 100000, "resourceVersionMatch": "NotOlderThan"})
    refused("an invalid continue token", 400, "BadRequest", "GET", MAPS, query={"limit": 7, "continue": "no-token"})


def change():
    path = f"{MAPS}/changing"
    made = ok("create", "POST", MAPS, config_map("changing", {"a": "1"}), code=201)
    update = {**made, "data": {"a": "2"}}
    second = ok("update", "PUT", path, update)
    check(rv(second) > rv(made), "update has a higher resourceVersion")
    refused("update of an old version", 409, "Conflict", "PUT", path, {**made, "data": {"a": "3"}})
    same("update without a change keeps the resourceVersion", rv(second), rv(ok("update", "PUT", path, second)))
    third = ok("update of whatever is there", "PUT", path, config_map("changing", {"a": "3"}))
    same("merge patch", {"a": "3", "b": "1"}, ok("merge patch", "PATCH", path, {"data": {"b": "1"}}, kind=MERGE)["data"])
    same("merge patch removes", {"b": "1"}, ok("merge patch", "PATCH", path, {"data": {"a": None}}, kind=MERGE)["data"])
    refused("merge patch of an old version", 409, "Conflict", "PATCH", path, {"metadata": {"resourceVersion": str(rv(third))}, "data": {"x": "y"}}, kind=MERGE)
    same("JSON patch", {"b": "2"}, ok("JSON patch", "PATCH", path, [{"op": "test", "path": "/data/b", "value": "1"}, {"op": "replace", "path": "/data/b", "value": "2"}], kind=JSON_PATCH)["data"])
    refused("JSON patch whose test fails", 422, "Invalid", "PATCH", path, [{"op": "test", "path": "/data/b", "value": "1"}], kind=JSON_PATCH)
    same("strategic merge patch", {"b": "2", "c": "1"}, ok("strategic patch", "PATCH", path, {"data": {"c": "1"}}, kind=STRATEGIC)["data"])

    # Many writers of one object: every increment must survive.
    def increment():
        link = connect()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        for _ in range(10):
            while True:
                link.request("GET", path, headers=headers)
                now = json.loads(link.getresponse().read())
                now["data"]["count"] = str(int(now["data"].get("count", "0")) + 1)
                link.request("PUT", path, json.dumps(now), headers)
                answer = link.getresponse()
                answer.read()
                if answer.status == 200:
                    break
                if answer.status != 409:
                    failed.append(answer.status)
                    return

    failed = []
    writers = [threading.Thread(target=increment) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    same("no writer failed but by conflict", [], failed)
    same("no increment is lost", "40", ok("get", "GET", path)["data"]["count"])

    # Server-side apply.
    path = f"{MAPS}/applied"

    def applied(manager, data, **query):
        return path, config_map("applied", data), {"fieldManager": manager, **query}

    target, body, query = applied("one", {"a": "1", "b": "1"})
    ok("apply creates", "PATCH", target, body, query, kind=APPLY, code=201)
    target, body, query = applied("one", {"a": "2"})
    same("apply changes and removes", {"a": "2"}, ok("apply", "PATCH", target, body, query, kind=APPLY)["data"])
    target, body, query = applied("two", {"c": "1"})
    same("another manager adds", {"a": "2", "c": "1"}, ok("apply", "PATCH", target, body, query, kind=APPLY)["data"])
    target, body, query = applied("two", {"a": "x", "c": "1"})
    refused("but may not take", 409, "Conflict", "PATCH", target, body, query, kind=APPLY)
    target, body, query = applied("two", {"a": "x", "c": "1"}, force="true")
    forced = ok("unless forced", "PATCH", target, body, query, kind=APPLY)
    same("forced apply", {"a": "x", "c": "1"}, forced["data"])
    same("the managers", ["two"], [m["manager"] for m in forced["metadata"]["managedFields"]])


def watch():
    labels = {"watched": "yes"}
    begin = rv(ok("list", "GET", MAPS))
    ok("create", "POST", MAPS, config_map("w-1", labels=labels), code=201)
    live = Watch(MAPS, resourceVersion=begin, labelSelector="watched=yes")
    live.until(10, "watch replays what came before it", ["ADDED w-1"])
    ok("create", "POST", MAPS, config_map("w-2", labels=labels), code=201)
    ok("create", "POST", MAPS, config_map("unwatched"), code=201)
    ok("patch", "PATCH", f"{MAPS}/w-1", {"data": {"x": "1"}}, kind=MERGE)
    ok("unlabel", "PATCH", f"{MAPS}/w-2", {"metadata": {"labels": {"watched": "no"}}}, kind=MERGE)
    ok("label", "PATCH", f"{MAPS}/unwatched", {"metadata": {"labels": labels}}, kind=MERGE)
    gone = ok("delete", "DELETE", f"{MAPS}/w-1")
    story = ["ADDED w-1", "ADDED w-2", "MODIFIED w-1", "DELETED w-2", "ADDED unwatched", "DELETED w-1"]
    live.until(10, "watch follows, in order", story)
    versions = [rv(e["object"]) for e in live.events]
    same("resourceVersions rise", sorted(set(versions)), versions)
    same("a deleted object comes with its last data", {"x": "1"}, live.events[-1]["object"]["data"])
    check(gone["status"] == "Success", "delete answers with success", gone)
    again = Watch(MAPS, resourceVersion=begin, labelSelector="watched=yes").until(10, "watch from the same place again", story)
    same("the same events", [e["object"] for e in live.events], [e["object"] for e in again.events])
    part = Watch(MAPS, resourceVersion=versions[2], labelSelector="watched=yes").until(10, "watch from the middle", story[3:])
    one = Watch(MAPS, resourceVersion=begin, fieldSelector="metadata.name=w-2")
    one.until(10, "watch of one object", ["ADDED w-2", "MODIFIED w-2"])
    fresh = Watch(MAPS, resourceVersion="0", fieldSelector="metadata.name=w-2").until(10, "watch without history", ["ADDED w-2"])

    # A watch that lists first, and says by a bookmark when it has.
    listing = Watch(MAPS, sendInitialEvents="true", resourceVersionMatch="NotOlderThan", allowWatchBookmarks="true")

    def marked():
        return [e for e in listing.of("BOOKMARK") if e["object"]["metadata"].get("annotations", {}).get("k8s.io/initial-events-end") == "true"]

    mark = eventually(20, "watch ends its initial events with a bookmark", lambda: marked() or listing.over and marked())[0]
    check(not listing.over, "and goes on", listing.error)
    check(rv(mark["object"]) >= versions[-1], "the bookmark is not older than the last write", mark)
    same("the initial events are what a list shows", names(ok("list", "GET", MAPS)), sorted(e["object"]["metadata"]["name"] for e in listing.of("ADDED")))
    ok("create", "POST", MAPS, config_map("w-3", labels=labels), code=201)
    eventually(10, "it follows after the bookmark", lambda: "ADDED w-3" in listing.story())
    live.until(10, "the first watch goes on too", story + ["ADDED w-3"])

    # Bookmarks tell a quiet watcher how far the world has come. Without the cache
    # they come from the store's own notices, which are ten minutes apart.
    if CACHED:
        quiet = Watch(MAPS, resourceVersion=begin, fieldSelector="metadata.name=nobody", allowWatchBookmarks="true", timeoutSeconds="4")
        latest = rv(ok("create elsewhere", "POST", MAPS, config_map("w-4"), code=201))
        eventually(12, "a watch ends after timeoutSeconds", lambda: quiet.over)
        check(quiet.of("BOOKMARK"), "a quiet watch gets a bookmark before its end", quiet.events)
        check(rv(quiet.of("BOOKMARK")[-1]["object"]) >= latest, "as new as the newest write", quiet.events)
    for it in (live, again, part, one, fresh, listing):
        it.close()


def delete():
    uid = ok("create", "POST", MAPS, config_map("d-1", finalizers=["interop.test/hold"]), code=201)["metadata"]["uid"]
    refused("delete of another uid", 409, "Conflict", "DELETE", f"{MAPS}/d-1", {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}})
    refused("delete of an old version", 409, "Conflict", "DELETE", f"{MAPS}/d-1", {"preconditions": {"resourceVersion": "1"}})
    held = ok("delete with a finalizer", "DELETE", f"{MAPS}/d-1", {"preconditions": {"uid": uid}})
    check(held["metadata"].get("deletionTimestamp"), "only marks it", held)
    ok("it is there still", "GET", f"{MAPS}/d-1")
    ok("remove the finalizer", "PATCH", f"{MAPS}/d-1", {"metadata": {"finalizers": None}}, kind=MERGE)
    refused("then it is gone", 404, "NotFound", "GET", f"{MAPS}/d-1")
    refused("delete of nothing", 404, "NotFound", "DELETE", f"{MAPS}/d-1")
    ok("delete many", "DELETE", MAPS, query={"labelSelector": "half=lower"})
    left = names(ok("list", "GET", MAPS))
    check("map-19" not in left and "map-20" in left, "just those of the label", left)
    ok("delete all", "DELETE", MAPS)
    same("none is left", [], names(ok("list", "GET", MAPS)))
    same("nor in the store", "", store("get", "--prefix", f"/registry/configmaps/{NS}/", "--keys-only").strip())


def workloads():
    def pod(name):
        return {"metadata": {"name": name, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "none:1"}]}}

    begin = rv(ok("list pods", "GET", PODS))
    watching = Watch(PODS, resourceVersion=begin)
    for i in range(3):
        made = ok("create a pod", "POST", PODS, pod(f"pod-{i}"), code=201)
        same("it is pending", "Pending", made["status"]["phase"])
    node = {"target": {"kind": "Node", "name": "node-1"}, "metadata": {"name": "pod-0"}}
    ok("bind a pod", "POST", f"{PODS}/pod-0/binding", node, code=201)
    refused("bind it again", 409, "Conflict", "POST", f"{PODS}/pod-0/binding", node)
    running = ok("patch its status", "PATCH", f"{PODS}/pod-0/status", {"status": {"phase": "Running"}}, kind=MERGE)
    same("a status patch", ("Running", "node-1"), (running["status"]["phase"], running["spec"]["nodeName"]))
    same("pods of a node", ["pod-0"], names(ok("list", "GET", "/api/v1/pods", query={"fieldSelector": f"spec.nodeName=node-1,metadata.namespace={NS}"})))
    same("pods by phase", ["pod-1", "pod-2"], names(ok("list", "GET", PODS, query={"fieldSelector": "status.phase=Pending"})))
    ok("delete an unbound pod", "DELETE", f"{PODS}/pod-1")
    check(ok("delete a bound pod", "DELETE", f"{PODS}/pod-0")["metadata"].get("deletionTimestamp"), "is graceful")
    ok("delete it at once", "DELETE", f"{PODS}/pod-0", query={"gracePeriodSeconds": 0})
    # Bound, running; each delete marks first and then removes; pod-0 is deleted twice.
    story = ["ADDED pod-0", "ADDED pod-1", "ADDED pod-2", "MODIFIED pod-0", "MODIFIED pod-0"]
    story += ["MODIFIED pod-1", "DELETED pod-1", "MODIFIED pod-0", "MODIFIED pod-0", "DELETED pod-0"]
    watching.until(10, "the pods' story", story)
    watching.close()

    addresses = set()
    for i in range(3):
        service = {"metadata": {"name": f"service-{i}"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}}
        addresses.add(ok("create a service", "POST", f"/api/v1/namespaces/{NS}/services", service, code=201)["spec"]["clusterIP"])
    same("each service has an address of its own", 3, len(addresses))
    ok("delete a service", "DELETE", f"/api/v1/namespaces/{NS}/services/service-0")

    lease = {"metadata": {"name": "holder"}, "spec": {"holderIdentity": "one", "leaseDurationSeconds": 15}}
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NS}/leases"
    held = ok("create a lease", "POST", leases, lease, code=201)
    held["spec"]["holderIdentity"] = "two"
    taken = ok("take the lease", "PUT", f"{leases}/holder", held)
    refused("take it with the old version", 409, "Conflict", "PUT", f"{leases}/holder", held)
    same("its holder", "two", taken["spec"]["holderIdentity"])

    # Events carry a lease of the store, which ends them.
    event = {"metadata": {"name": "happened"}, "involvedObject": {"namespace": NS, "kind": "Pod", "name": "pod-2"}, "reason": "Interop", "type": "Normal"}
    ok("create an event", "POST", f"/api/v1/namespaces/{NS}/events", event, code=201)
    fields = dict(line.split(" : ", 1) for line in store("get", f"/registry/events/{NS}/happened", "-w", "fields", endpoints=options.events).splitlines() if " : " in line)
    check(int(fields['"Lease"']) != 0, "an event has a lease", fields.get('"Lease"'))
    left = store("lease", "timetolive", f'{int(fields[chr(34) + "Lease" + chr(34)]):x}', "--keys", endpoints=options.events)
    check(f"/registry/events/{NS}/happened" in left and "granted with TTL(" in left, "which knows the event", left)


def custom():
    group, plural = "interop.test", f"widgets{options.run.replace('-', '')}"
    crd = {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": plural[:-1] + "x", "kind": plural.capitalize()},
            "versions": [{
                "name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }],
        },
    }
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    ok("define a resource", "POST", crds, crd, code=201)

    def established():
        conditions = call("GET", f"{crds}/{plural}.{group}")[1].get("status", {}).get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    eventually(20, "it is established", established)
    path = f"/apis/{group}/v1/namespaces/{NS}/{plural}"
    eventually(20, "it is served", lambda: call("GET", path)[0] == 200)
    kind = {"apiVersion": f"{group}/v1", "kind": plural.capitalize()}
    begin = rv(ok("list", "GET", path))
    watching = Watch(path, resourceVersion=begin)
    for i in range(5):
        ok("create one", "POST", path, {**kind, "metadata": {"name": f"w-{i}"}, "spec": {"n": i}}, code=201)
    one = ok("patch its status", "PATCH", f"{path}/w-1/status", {"status": {"ok": True}}, kind=MERGE)
    same("status and spec", ({"ok": True}, {"n": 1}), (one["status"], one["spec"]))
    first = ok("a page", "GET", path, query={"limit": 3})
    rest = ok("the next page", "GET", path, query={"limit": 3, "continue": first["metadata"]["continue"]})
    same("both pages", [f"w-{i}" for i in range(5)], names(first) + names(rest))
    ok("delete one", "DELETE", f"{path}/w-0")
    watching.until(10, "their story", [f"ADDED w-{i}" for i in range(5)] + ["MODIFIED w-1", "DELETED w-0"])
    watching.close()
    ok("delete the definition", "DELETE", f"{crds}/{plural}.{group}")
    eventually(30, "its resources go with it", lambda: call("GET", f"{crds}/{plural}.{group}")[0] == 404)
    same("in the store too", "", store("get", "--prefix", f"/registry/{group}/{plural}/", "--keys-only").strip())


def compacted():
    """What lies below a compaction is answered with 410 and not with wrong data."""
    for i in range(6):
        ok("create", "POST", MAPS, config_map(f"c-{i}"), code=201)
    first = ok("first page", "GET", MAPS, query={"limit": 2})
    token = first["metadata"]["continue"]
    for i in range(3):
        ok("change", "PATCH", f"{MAPS}/c-{i}", {"data": {"x": "1"}}, kind=MERGE)
    newest = rv(ok("list", "GET", MAPS))
    store("compaction", str(newest))
    refused("list of a compacted resourceVersion", 410, "Expired", "GET", MAPS, query={"resourceVersion": rv(first), "resourceVersionMatch": "Exact"})
    expired = refused("next page of a compacted list", 410, "Expired", "GET", MAPS, query={"limit": 2, "continue": token})
    rest = ok("going on without consistency", "GET", MAPS, query={"limit": 10, "continue": expired["metadata"]["continue"]})
    same("lists the rest", [f"c-{i}" for i in range(2, 6)], names(rest))
    old = Watch(MAPS, resourceVersion=rv(first))
    eventually(10, "a watch from a compacted resourceVersion ends", lambda: old.over)
    codes = [old.error["code"]] if old.error else [e["object"].get("code") for e in old.of("ERROR")]
    same("with 410", [410], codes)
    here = Watch(MAPS, resourceVersion=newest)
    ok("change", "PATCH", f"{MAPS}/c-5", {"data": {"x": "2"}}, kind=MERGE)
    here.until(10, "a watch from the compaction on", ["MODIFIED c-5"])
    here.close()


def cache_was_used():
    """The cache answered consistent reads: so the store reports its progress when asked."""
    status, text = call("GET", "/metrics")
    same("metrics", 200, status)
    rows = [line for line in text.splitlines() if line.startswith("apiserver_watch_cache_consistent_read_total{")]

    def total(*labels):
        return sum(float(row.rsplit(" ", 1)[1]) for row in rows if all(label in row for label in labels))

    check(total('resource="configmaps"', 'success="true"') >= 10, "consistent reads came from the cache", *rows)
    check(total('resource="configmaps"', 'success="false"') == 0, "and none had to fall back to the store", *rows)


def finish():
    ok("delete the namespace", "DELETE", f"/api/v1/namespaces/{NS}")
    ending = ok("it is there still", "GET", f"/api/v1/namespaces/{NS}")
    same("and ends", "Terminating", ending["status"]["phase"])
    refused("it takes no more", 403, "Forbidden", "POST", MAPS, config_map("late"))
    for path in (MAPS, PODS, f"/apis/coordination.k8s.io/v1/namespaces/{NS}/leases", f"/api/v1/namespaces/{NS}/events"):
        ok("empty it", "DELETE", path, query={"gracePeriodSeconds": 0})
    for i in (1, 2):
        ok("empty it", "DELETE", f"/api/v1/namespaces/{NS}/services/service-{i}")
    ending["spec"]["finalizers"] = []
    ok("finalize it", "PUT", f"/api/v1/namespaces/{NS}/finalize", ending)
    refused("it is gone", 404, "NotFound", "GET", f"/api/v1/namespaces/{NS}")


STEPS = [start, create_and_read, page, change, watch, delete, workloads, custom]
STEPS += [cache_was_used] if CACHED else [compacted]
for step in [*STEPS, finish]:
    before, begun = checks, time.monotonic()
    step()
    print(f"  {step.__name__}: {checks - before} checks in {time.monotonic() - begun:.1f} s", flush=True)
print(f"ok {checks} checks")
