package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
)

// checkLeasing: two clients cache keys under leases; neither may read stale data.
func checkLeasing() {
	p := prefix + "leasing/"
	one, closeOne, err := leasing.NewKV(client, prefix+"leases/")
	done(err)
	defer closeOne()
	two, closeTwo, err := leasing.NewKV(client, prefix+"leases/")
	done(err)
	defer closeTwo()
	must(client.Put(ctx, p+"a", "1"))
	same("a leased read", "1", string(must(one.Get(ctx, p+"a")).Kvs[0].Value))
	same("takes the lease", int64(1), count(prefix+"leases/"))
	same("the cached read", "1", string(must(one.Get(ctx, p+"a")).Kvs[0].Value))
	must(two.Put(ctx, p+"a", "2"))
	same("another's write is seen", "2", string(must(one.Get(ctx, p+"a")).Kvs[0].Value))
	must(one.Put(ctx, p+"a", "3"))
	same("and back", "3", string(must(two.Get(ctx, p+"a")).Kvs[0].Value))
	same("a delete", int64(1), must(two.Delete(ctx, p+"a")).Deleted)
	same("is seen", int64(0), must(one.Get(ctx, p+"a")).Count)
	txn := must(one.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(p+"a"), "=", 0)).Then(clientv3.OpPut(p+"a", "4"), clientv3.OpGet(p+"a")).Commit())
	check(txn.Succeeded, "a txn over leases")
	same("is seen", "4", string(must(two.Get(ctx, p+"a")).Kvs[0].Value))
	for i := range 20 {
		must(one.Put(ctx, fmt.Sprintf("%sr/%02d", p, i), "x"))
		must(two.Get(ctx, fmt.Sprintf("%sr/%02d", p, i)))
	}
	same("a range", 20, len(must(one.Get(ctx, p+"r/", clientv3.WithPrefix())).Kvs))
	same("a delete of a range", int64(20), must(one.Delete(ctx, p+"r/", clientv3.WithPrefix())).Deleted)
	same("is seen", int64(0), must(two.Get(ctx, p+"r/05")).Count)
	// Each writes and reads in turn: a read is never older than the last write.
	for i := range 50 {
		must(one.Put(ctx, p+"turn", fmt.Sprint(i)))
		if got := string(must(two.Get(ctx, p+"turn")).Kvs[0].Value); got != fmt.Sprint(i) {
			fail("a leased read is stale", i, got)
		}
	}
	check(true, "fifty turns")
}

func checkNamespace() {
	p := prefix + "namespace/"
	kv := namespace.NewKV(client.KV, p)
	watcher := namespace.NewWatcher(client.Watcher, p)
	lease := namespace.NewLease(client.Lease, p)
	start := must(kv.Put(ctx, "a", "1")).Header.Revision
	must(client.Put(ctx, prefix+"outside", "1"))
	same("the real key", p+"a", string(must(client.Get(ctx, p+"a")).Kvs[0].Key))
	same("its name inside", "a", string(must(kv.Get(ctx, "a")).Kvs[0].Key))
	must(kv.Put(ctx, "b", "1"))
	same("everything inside", "a b", names(must(kv.Get(ctx, "", clientv3.WithFromKey())).Kvs, ""))
	answer := must(kv.Txn(ctx).If(clientv3.Compare(clientv3.Value("a"), "=", "1")).Then(clientv3.OpPut("c", "1"), clientv3.OpGet("c")).Commit())
	same("a txn inside", "c", string(answer.Responses[1].GetResponseRange().Kvs[0].Key))
	same("events inside", "PUT a=1, PUT b=1, PUT c=1", take("namespace", 3, watcher.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(start)), ""))
	id := must(lease.Grant(ctx, 60)).ID
	must(kv.Put(ctx, "leased", "1", clientv3.WithLease(id)))
	same("attached keys inside", "leased", string(must(lease.TimeToLive(ctx, id, clientv3.WithAttachedKeys())).Keys[0]))
	must(lease.Revoke(ctx, id))
	same("delete of everything inside", int64(3), must(kv.Delete(ctx, "", clientv3.WithFromKey())).Deleted)
	same("what is outside stays", int64(1), count(prefix+"outside"))
}

func checkOrdering() {
	p := prefix + "ordering/"
	kv := ordering.NewKV(client.KV, func(op clientv3.Op, resp clientv3.OpResponse, previous int64) error {
		return errors.New("a revision older than before")
	})
	var all sync.WaitGroup
	for writer := range 5 {
		all.Go(func() {
			for i := range 40 {
				must(kv.Put(ctx, p+fmt.Sprint(writer), fmt.Sprint(i)))
				must(kv.Get(ctx, p+fmt.Sprint(writer), clientv3.WithSerializable()))
			}
		})
	}
	all.Wait()
	check(true, "200 serializable reads never go back")
}

func checkMirror() {
	p := prefix + "mirror/"
	for i := range 1500 { // more than the package's page of 1,000
		must(client.Put(ctx, fmt.Sprintf("%s%04d", p, i), "x"))
	}
	here, cancel := context.WithCancel(ctx)
	defer cancel()
	syncer := mirror.NewSyncer(client, p, 0)
	pages, errs := syncer.SyncBase(here)
	var all []string
	for page := range pages {
		if len(all) == 0 {
			must(client.Put(ctx, fmt.Sprintf("%s%04d", p, 1400), "changed since"))
		}
		all = append(all, names(page.Kvs, p))
	}
	check(len(all) > 1, "the base comes in pages", len(all))
	for err := range errs {
		done(err)
	}
	same("the base", 1500, len(strings.Fields(strings.Join(all, " "))))
	updates := syncer.SyncUpdates(here)
	same("what changed since", "PUT 1400=changed since", take("updates", 1, updates, p))
	must(client.Delete(ctx, p, clientv3.WithPrefix()))
}

func checkNaming() {
	manager := must(endpoints.NewManager(client, prefix+"naming"))
	done(manager.AddEndpoint(ctx, prefix+"naming/one", endpoints.Endpoint{Addr: "127.0.0.1:1"}))
	updates := must(manager.NewWatchChannel(ctx))
	first := receive("naming", updates)
	same("an endpoint", "127.0.0.1:1", first[0].Endpoint.Addr)
	done(manager.AddEndpoint(ctx, prefix+"naming/two", endpoints.Endpoint{Addr: "127.0.0.1:2", Metadata: map[string]any{"x": "y"}}))
	same("another", "127.0.0.1:2", receive("naming", updates)[0].Endpoint.Addr)
	same("the list", 2, len(must(manager.List(ctx))))
	done(manager.DeleteEndpoint(ctx, prefix+"naming/one"))
	gone := receive("naming", updates)[0]
	same("one gone", fmt.Sprint(endpoints.Delete, prefix+"naming/one"), fmt.Sprint(gone.Op, gone.Key))
}

func checkRecipes() {
	p := prefix + "recipes/"
	queue := recipe.NewQueue(client, p+"queue")
	taken := make(chan string, 100)
	for range 4 {
		go func() {
			mine := recipe.NewQueue(client, p+"queue")
			for range 10 {
				taken <- must(mine.Dequeue())
			}
		}()
	}
	for i := range 40 {
		done(queue.Enqueue(fmt.Sprint(i)))
	}
	seen := map[string]bool{}
	for range 40 {
		seen[receive("queue", taken)] = true
	}
	same("each item is taken once", 40, len(seen))

	priority := recipe.NewPriorityQueue(client, p+"priority")
	for _, it := range []struct {
		value    string
		priority uint16
	}{{"low", 9}, {"high", 1}, {"middle", 5}} {
		done(priority.Enqueue(it.value, it.priority))
	}
	same("by priority", "high middle low", strings.Join([]string{must(priority.Dequeue()), must(priority.Dequeue()), must(priority.Dequeue())}, " "))

	barrier := recipe.NewBarrier(client, p+"barrier")
	done(barrier.Hold())
	refused("hold twice", recipe.ErrKeyExists, barrier.Hold())
	passed := make(chan error, 1)
	go func() { passed <- recipe.NewBarrier(client, p+"barrier").Wait() }()
	check(len(passed) == 0, "the barrier holds")
	done(barrier.Release())
	done(receive("barrier", passed))

	var both sync.WaitGroup
	for range 3 {
		both.Go(func() {
			s := session(30)
			defer s.Close()
			double := recipe.NewDoubleBarrier(s, p+"double", 3)
			done(double.Enter())
			done(double.Leave())
		})
	}
	over := make(chan bool)
	go func() { both.Wait(); close(over) }()
	closed("double barrier", over)

	one, two, three := session(30), session(30), session(30)
	defer one.Close()
	defer two.Close()
	defer three.Close()
	reader, other, writer := recipe.NewRWMutex(one, p+"rw"), recipe.NewRWMutex(two, p+"rw"), recipe.NewRWMutex(three, p+"rw")
	done(reader.RLock())
	done(other.RLock())
	wrote := make(chan error, 1)
	go func() { wrote <- writer.Lock() }()
	eventually(10*time.Second, "a writer queues behind readers", func() bool { return count(p+"rw") >= 3 })
	check(len(wrote) == 0, "and waits")
	done(reader.RUnlock())
	done(other.RUnlock())
	done(receive("the writer's turn", wrote))
	done(writer.Unlock())
}

// checkKubernetes is the API server's own way to speak to its store.
func checkKubernetes() {
	p := prefix + "registry/pods/"
	k := must(kubernetes.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: client.GetLogger()}))
	defer k.Close()
	api := k.Kubernetes
	made := must(api.OptimisticPut(ctx, p+"a", []byte("1"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	check(made.Succeeded && made.Revision > 0, "create", made)
	again := must(api.OptimisticPut(ctx, p+"a", []byte("2"), 0, kubernetes.PutOptions{GetOnFailure: true}))
	check(!again.Succeeded && string(again.KV.Value) == "1" && again.KV.ModRevision == made.Revision, "create again", again)
	next := must(api.OptimisticPut(ctx, p+"a", []byte("2"), made.Revision, kubernetes.PutOptions{}))
	check(next.Succeeded && next.Revision == made.Revision+1, "update", next)
	late := must(api.OptimisticPut(ctx, p+"a", []byte("3"), made.Revision, kubernetes.PutOptions{}))
	check(!late.Succeeded && late.KV == nil, "update of an old version", late)
	got := must(api.Get(ctx, p+"a", kubernetes.GetOptions{}))
	same("get", fmt.Sprint("2 ", next.Revision), fmt.Sprint(string(got.KV.Value), " ", got.Revision))
	got = must(api.Get(ctx, p+"a", kubernetes.GetOptions{Revision: made.Revision}))
	same("get of an old version", "1", string(got.KV.Value))
	check(must(api.Get(ctx, p+"none", kubernetes.GetOptions{})).KV == nil, "get of nothing")
	var last int64
	for i := range 25 {
		last = must(api.OptimisticPut(ctx, fmt.Sprintf("%sl/%02d", p, i), []byte("x"), 0, kubernetes.PutOptions{})).Revision
	}
	same("count", int64(25), must(api.Count(ctx, p+"l/", kubernetes.CountOptions{})))
	page := must(api.List(ctx, p+"l/", kubernetes.ListOptions{Limit: 10}))
	pinned, found, left := page.Revision, len(page.Kvs), page.Count
	same("the first page", fmt.Sprint(last, 10, 25), fmt.Sprint(pinned, found, left))
	must(client.Delete(ctx, p+"l/20"))
	for int64(len(page.Kvs)) < page.Count {
		page = must(api.List(ctx, p+"l/", kubernetes.ListOptions{Limit: 10, Revision: pinned, Continue: string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"}))
		left -= 10
		same("what is left, at the pinned revision", left, page.Count)
		found += len(page.Kvs)
	}
	same("all pages", 25, found)
	not := must(api.OptimisticDelete(ctx, p+"a", made.Revision, kubernetes.DeleteOptions{GetOnFailure: true}))
	check(!not.Succeeded && string(not.KV.Value) == "2", "delete of an old version", not)
	gone := must(api.OptimisticDelete(ctx, p+"a", next.Revision, kubernetes.DeleteOptions{GetOnFailure: true}))
	check(gone.Succeeded && gone.Revision > next.Revision, "delete", gone)
	must(client.Compact(ctx, revision()))
	_, err := api.List(ctx, p+"l/", kubernetes.ListOptions{Limit: 10, Revision: pinned})
	refused("a page that is compacted", rpctypes.ErrCompacted, err)
}
