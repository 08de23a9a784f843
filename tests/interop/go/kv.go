package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// names are the keys of an answer without the prefix, as one word list.
func names(kvs []*mvccpb.KeyValue, prefix string) string {
	var all []string
	for _, kv := range kvs {
		all = append(all, strings.TrimPrefix(string(kv.Key), prefix))
	}
	return strings.Join(all, " ")
}

func checkKV() {
	p := prefix + "kv/"
	put := must(client.Put(ctx, p+"a", "1"))
	first := put.Header.Revision
	check(put.Header.ClusterId != 0 && put.Header.MemberId != 0 && put.Header.RaftTerm != 0, "the header is filled", put.Header)
	same("each put is one revision", first+1, must(client.Put(ctx, p+"a", "2")).Header.Revision)
	previous := must(client.Put(ctx, p+"a", "3", clientv3.WithPrevKV())).PrevKv
	same("the previous value", "2", string(previous.Value))
	same("the previous revision", first+1, previous.ModRevision)
	got := must(client.Get(ctx, p+"a"))
	same("the header has the current revision", first+2, got.Header.Revision)
	same("count and more", "1 false", fmt.Sprint(got.Count, got.More))
	kv := got.Kvs[0]
	same("the key's metadata", []int64{first, first + 2, 3, 0}, []int64{kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease})
	old := must(client.Get(ctx, p+"a", clientv3.WithRev(first)))
	same("an old version", "1 1", fmt.Sprint(string(old.Kvs[0].Value), " ", old.Kvs[0].Version))
	same("its header has the current revision all the same", first+2, old.Header.Revision)
	same("before it was", int64(0), must(client.Get(ctx, p+"a", clientv3.WithRev(first-1))).Count)

	must(client.Put(ctx, p+"a", "", clientv3.WithIgnoreValue()))
	kv = must(client.Get(ctx, p+"a")).Kvs[0]
	same("ignore value", "3 4", fmt.Sprint(string(kv.Value), " ", kv.Version))

	before := revision()
	same("delete of nothing", int64(0), must(client.Delete(ctx, p+"nothing")).Deleted)
	same("adds no revision", before, revision())
	deleted := must(client.Delete(ctx, p+"a", clientv3.WithPrevKV()))
	same("delete", []int64{1, before + 1}, []int64{deleted.Deleted, deleted.Header.Revision})
	same("with the previous value", "3", string(deleted.PrevKvs[0].Value))
	must(client.Put(ctx, p+"a", "anew"))
	kv = must(client.Get(ctx, p+"a")).Kvs[0]
	same("a key made anew", []int64{before + 2, before + 2, 1}, []int64{kv.CreateRevision, kv.ModRevision, kv.Version})

	// Many at once: each write has a revision of its own, and one client's later
	// write has a later one.
	var mutex sync.Mutex
	seen := map[int64]bool{}
	var all sync.WaitGroup
	for writer := range 50 {
		all.Go(func() {
			last := int64(0)
			for i := range 20 {
				now := must(client.Put(ctx, fmt.Sprintf("%smany/%d", p, writer), fmt.Sprint(i))).Header.Revision
				if now <= last {
					fail("a later write has a later revision", last, now)
				}
				last = now
				mutex.Lock()
				seen[now] = true
				mutex.Unlock()
				if read := must(client.Get(ctx, fmt.Sprintf("%smany/%d", p, writer))); string(read.Kvs[0].Value) != fmt.Sprint(i) || read.Header.Revision < now {
					fail("a read sees the write before it", i, read)
				}
			}
		})
	}
	all.Wait()
	same("a thousand revisions", 1000, len(seen))
	same("and no more", before+2+1000, revision())

	large := strings.Repeat("x", 1_400_000)
	must(client.Put(ctx, p+"large", large))
	check(string(must(client.Get(ctx, p+"large")).Kvs[0].Value) == large, "1.4 MB")
	must(client.Delete(ctx, p+"large"))

	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err := client.Get(gone, p+"a")
	refused("a cancelled get", context.Canceled, err)
	late, cancel := context.WithDeadline(ctx, time.Now().Add(-time.Second))
	defer cancel()
	_, err = client.Put(late, p+"a", "late")
	refused("a put past its deadline", context.DeadlineExceeded, err)
}

// checkRanges is a table over five keys, one of them changed twice.
func checkRanges() {
	p := prefix + "ranges/"
	revs := map[string]int64{}
	for _, key := range []string{"a", "b", "c", "c/x", "d"} {
		revs[key] = must(client.Put(ctx, p+key, key+"!")).Header.Revision
	}
	must(client.Put(ctx, p+"b", "changed"))
	must(client.Put(ctx, p+"b", "1"))
	end := clientv3.GetPrefixRangeEnd(p)
	all := clientv3.WithRange(end)
	type row struct {
		what, key string
		options   []clientv3.OpOption
		wanted    string
		count     int64
		more      bool
	}
	o := func(options ...clientv3.OpOption) []clientv3.OpOption { return options }
	for _, it := range []row{
		{"one", "a", o(), "a", 1, false},
		{"none", "x", o(), "", 0, false},
		{"all", "", o(all), "a b c c/x d", 5, false},
		{"a half", "b", o(clientv3.WithRange(p + "c/x")), "b c", 2, false},
		{"an empty range", "c", o(clientv3.WithRange(p + "c")), "", 0, false},
		{"a turned range", "d", o(clientv3.WithRange(p + "a")), "", 0, false},
		{"a prefix", "c", o(clientv3.WithPrefix()), "c c/x", 2, false},
		{"limit", "", o(all, clientv3.WithLimit(2)), "a b", 5, true},
		{"limit of all", "", o(all, clientv3.WithLimit(5)), "a b c c/x d", 5, false},
		{"limit and descending", "", o(all, clientv3.WithLimit(2), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)), "d c/x", 5, true},
		{"by version", "", o(all, clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(1)), "b", 5, true},
		{"by creation", "", o(all, clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend)), "d c/x c b a", 5, false},
		{"by change", "", o(all, clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend)), "a c c/x d b", 5, false},
		{"by value", "", o(all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)), "b a c c/x d", 5, false},
		{"first created", "", append(o(clientv3.WithPrefix()), clientv3.WithFirstCreate()...), "a", 5, true},
		{"last changed", "", append(o(clientv3.WithPrefix()), clientv3.WithLastRev()...), "b", 5, true},
		{"at an old revision", "", o(all, clientv3.WithRev(revs["c"])), "a b c", 3, false},
		{"at an old revision, limited", "", o(all, clientv3.WithRev(revs["c"]), clientv3.WithLimit(1)), "a", 3, true},
		{"min mod", "", o(all, clientv3.WithMinModRev(revs["d"])), "b d", 5, false},
		{"max mod", "", o(all, clientv3.WithMaxModRev(revs["c"])), "a c", 5, false},
		{"max mod, limited", "", o(all, clientv3.WithMaxModRev(revs["c"]), clientv3.WithLimit(1)), "a", 5, true},
		{"min create", "", o(all, clientv3.WithMinCreateRev(revs["c/x"])), "c/x d", 5, false},
		{"max create", "", o(all, clientv3.WithMaxCreateRev(revs["b"])), "a b", 5, false},
		{"count only", "", o(all, clientv3.WithCountOnly()), "", 5, false},
		{"count only with a limit", "", o(all, clientv3.WithCountOnly(), clientv3.WithLimit(2)), "", 5, false},
		{"serializable", "", o(all, clientv3.WithSerializable()), "a b c c/x d", 5, false},
		{"keys only", "", o(all, clientv3.WithKeysOnly()), "a b c c/x d", 5, false},
	} {
		got := must(client.Get(ctx, p+it.key, it.options...))
		same("range, "+it.what, fmt.Sprint(it.wanted, "|", it.count, it.more), fmt.Sprint(names(got.Kvs, p), "|", got.Count, got.More))
	}
	lease := must(client.Grant(ctx, 600)).ID
	must(client.Put(ctx, p+"d", "leased", clientv3.WithLease(lease)))
	keys := must(client.Get(ctx, p+"d", clientv3.WithKeysOnly())).Kvs[0]
	same("keys only: no value, no lease, but revisions", fmt.Sprint("", 0, revs["d"], 2), fmt.Sprint(string(keys.Value), keys.Lease, keys.CreateRevision, keys.Version))
	must(client.Revoke(ctx, lease))
	from := must(client.Get(ctx, p+"c", clientv3.WithFromKey(), clientv3.WithLimit(2)))
	same("from a key on", "c c/x", names(from.Kvs, p))
	check(must(client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())).Count >= 4, "everything")
	same("delete of a range", int64(2), must(client.Delete(ctx, p+"b", clientv3.WithRange(p+"c/x"))).Deleted)
	same("delete of a prefix", "a c/x", func() string {
		gone := must(client.Delete(ctx, p, clientv3.WithPrefix(), clientv3.WithPrevKV()))
		return names(gone.PrevKvs, p)
	}())
}

func checkTxn() {
	p := prefix + "txn/"
	must(client.Put(ctx, p+"a", "1"))
	before := revision()
	answer := must(client.Txn(ctx).If(
		clientv3.Compare(clientv3.Value(p+"a"), "=", "1"),
		clientv3.Compare(clientv3.Version(p+"a"), "=", 1),
		clientv3.Compare(clientv3.CreateRevision(p+"b"), "=", 0),
		clientv3.Compare(clientv3.ModRevision(p+"a"), "<", before+1),
		clientv3.Compare(clientv3.LeaseValue(p+"a"), "=", clientv3.LeaseID(0)),
	).Then(
		clientv3.OpGet(p+"b"),
		clientv3.OpPut(p+"b", "2"),
		clientv3.OpGet(p+"b"),
		clientv3.OpDelete(p+"a", clientv3.WithPrevKV()),
		clientv3.OpGet(p, clientv3.WithPrefix()),
	).Else(clientv3.OpPut(p+"a", "wrong")).Commit())
	check(answer.Succeeded, "all comparisons hold")
	same("one revision", before+1, answer.Header.Revision)
	r := answer.Responses
	same("a read before the write", int64(0), r[0].GetResponseRange().Count)
	same("a read after the write", fmt.Sprint("2 ", before+1), fmt.Sprint(string(r[2].GetResponseRange().Kvs[0].Value), " ", r[2].GetResponseRange().Kvs[0].ModRevision))
	same("a delete with the previous value", "1", string(r[3].GetResponseDeleteRange().PrevKvs[0].Value))
	same("a read after the delete", "b", names(r[4].GetResponseRange().Kvs, p))
	inner := r[1].GetResponsePut().Header
	same("the header of an operation has the revision alone", fmt.Sprint(before+1, 0, 0, 0), fmt.Sprint(inner.GetRevision(), inner.GetClusterId(), inner.GetMemberId(), inner.GetRaftTerm()))

	not := must(client.Txn(ctx).If(clientv3.Compare(clientv3.Value(p+"nothing"), "=", "")).Then(clientv3.OpPut(p+"x", "wrong")).Else(clientv3.OpGet(p + "b")).Commit())
	check(!not.Succeeded && len(not.Responses) == 1, "the value of no key equals nothing", not)
	same("a branch that only reads adds no revision", before+1, not.Header.Revision)
	empty := must(client.Txn(ctx).Commit())
	check(empty.Succeeded, "an empty txn succeeds")

	holds := func(what string, wanted bool, comparison clientv3.Cmp) {
		same("comparison: "+what, wanted, must(client.Txn(ctx).If(comparison).Commit()).Succeeded)
	}
	lease := must(client.Grant(ctx, 600)).ID
	must(client.Put(ctx, p+"r/1", "x", clientv3.WithLease(lease)))
	must(client.Put(ctx, p+"r/2", "x"))
	holds("lease", true, clientv3.Compare(clientv3.LeaseValue(p+"r/1"), "=", lease))
	holds("another lease", false, clientv3.Compare(clientv3.LeaseValue(p+"r/2"), "=", lease))
	holds("not equal", true, clientv3.Compare(clientv3.Value(p+"r/1"), "!=", "y"))
	holds("greater", true, clientv3.Compare(clientv3.Value(p+"r/1"), ">", "w"))
	holds("less", false, clientv3.Compare(clientv3.Value(p+"r/1"), "<", "w"))
	holds("version of no key", true, clientv3.Compare(clientv3.Version(p+"no"), "=", 0))
	holds("all of a range", true, clientv3.Compare(clientv3.Value(p+"r/"), "=", "x").WithPrefix())
	holds("not all of a range", false, clientv3.Compare(clientv3.LeaseValue(p+"r/"), "=", lease).WithPrefix())
	holds("an explicit range", true, clientv3.Compare(clientv3.LeaseValue(p+"r/1"), "=", lease).WithRange(p+"r/2"))
	holds("an empty range, created after 0", false, clientv3.Compare(clientv3.CreateRevision(p+"none/"), ">", 0).WithPrefix())
	holds("an empty range, created at 0", true, clientv3.Compare(clientv3.CreateRevision(p+"none/"), "=", 0).WithPrefix())
	must(client.Revoke(ctx, lease))

	// Nested: comparisons see the state before the whole txn.
	before = revision()
	nested := must(client.Txn(ctx).Then(
		clientv3.OpPut(p+"n/1", "1"),
		clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Version(p+"n/1"), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(p+"n/2", "then"), clientv3.OpGet(p + "n/1")},
			[]clientv3.Op{clientv3.OpPut(p+"n/2", "else")}),
	).Commit())
	inside := nested.Responses[1].GetResponseTxn()
	check(inside.Succeeded, "a nested comparison sees the state before")
	same("a nested read sees the write before it", "1", string(inside.Responses[1].GetResponseRange().Kvs[0].Value))
	got := must(client.Get(ctx, p+"n/", clientv3.WithPrefix()))
	same("all in one revision", fmt.Sprint(before+1, before+1, before+1), fmt.Sprint(got.Header.Revision, got.Kvs[0].ModRevision, got.Kvs[1].ModRevision))

	ops := make([]clientv3.Op, 128)
	for i := range ops {
		ops[i] = clientv3.OpPut(fmt.Sprintf("%smany/%03d", p, i), "x")
	}
	before = revision()
	same("128 writes are one revision", before+1, must(client.Txn(ctx).Then(ops...).Commit()).Header.Revision)

	// Compare-and-put from many sides: no increment may be lost.
	must(client.Put(ctx, p+"count", ""))
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			for range 20 {
				for {
					now := must(client.Get(ctx, p+"count")).Kvs[0]
					if must(client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(p+"count"), "=", now.ModRevision)).Then(clientv3.OpPut(p+"count", string(now.Value)+".")).Commit()).Succeeded {
						break
					}
				}
			}
		})
	}
	all.Wait()
	kv := must(client.Get(ctx, p+"count")).Kvs[0]
	same("200 increments", "200 201", fmt.Sprint(len(kv.Value), kv.Version))
}

func checkErrors() {
	p := prefix + "errors/"
	must(client.Put(ctx, p+"a", "1"))
	before := revision()
	put := func(what string, wanted error, key, value string, options ...clientv3.OpOption) {
		_, err := client.Put(ctx, key, value, options...)
		refused(what, wanted, err)
	}
	txn := func(what string, wanted error, ops ...clientv3.Op) {
		_, err := client.Txn(ctx).Then(ops...).Commit()
		refused(what, wanted, err)
	}
	get := func(what string, wanted error, key string, options ...clientv3.OpOption) {
		_, err := client.Get(ctx, key, options...)
		refused(what, wanted, err)
	}
	put("put without a key", rpctypes.ErrEmptyKey, "", "x")
	put("put of too much", rpctypes.ErrRequestTooLarge, p+"a", strings.Repeat("x", 1_700_000))
	put("put with an unknown lease", rpctypes.ErrLeaseNotFound, p+"a", "x", clientv3.WithLease(0x7fffffffffff1234))
	put("ignore value of no key", rpctypes.ErrKeyNotFound, p+"none", "", clientv3.WithIgnoreValue())
	put("ignore lease of no key", rpctypes.ErrKeyNotFound, p+"none", "x", clientv3.WithIgnoreLease())
	put("ignore value with a value", rpctypes.ErrValueProvided, p+"a", "x", clientv3.WithIgnoreValue())
	put("ignore lease with a lease", rpctypes.ErrLeaseProvided, p+"a", "x", clientv3.WithIgnoreLease(), clientv3.WithLease(5))
	get("get without a key", rpctypes.ErrEmptyKey, "")
	get("get of the future", rpctypes.ErrFutureRev, p+"a", clientv3.WithRev(before+1000))
	_, err := client.Delete(ctx, "")
	refused("delete without a key", rpctypes.ErrEmptyKey, err)
	_, err = client.Compact(ctx, before+1000)
	refused("compact of the future", rpctypes.ErrFutureRev, err)
	txn("a key twice", rpctypes.ErrDuplicateKey, clientv3.OpPut(p+"x", "1"), clientv3.OpPut(p+"x", "2"))
	txn("put and delete", rpctypes.ErrDuplicateKey, clientv3.OpPut(p+"x", "1"), clientv3.OpDelete(p, clientv3.WithPrefix()))
	txn("a key twice, nested", rpctypes.ErrDuplicateKey, clientv3.OpPut(p+"x", "1"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(p+"x", "2")}, nil))
	txn("an empty key", rpctypes.ErrEmptyKey, clientv3.OpPut("", "1"))
	txn("an unknown lease", rpctypes.ErrLeaseNotFound, clientv3.OpPut(p+"y", "1"), clientv3.OpPut(p+"x", "1", clientv3.WithLease(0x7fffffffffff1234)))
	txn("a read of the future", rpctypes.ErrFutureRev, clientv3.OpPut(p+"x", "1"), clientv3.OpGet(p+"a", clientv3.WithRev(before+1000)))
	ops := make([]clientv3.Op, 129)
	for i := range ops {
		ops[i] = clientv3.OpPut(fmt.Sprint(p, i), "x")
	}
	txn("129 operations", rpctypes.ErrTooManyOps, ops...)
	same("what was refused changed nothing", before, revision())

	// Delete twice is no duplicate; the untaken branch is not executed.
	twice := must(client.Txn(ctx).Then(clientv3.OpDelete(p+"none"), clientv3.OpDelete(p, clientv3.WithPrefix())).Else(clientv3.OpGet(p+"a", clientv3.WithRev(before+1000))).Commit())
	check(twice.Succeeded, "delete twice, and a bad read in the other branch")

	// Codes and texts as they are on the wire.
	_, err = pb.NewKVClient(client.ActiveConnection()).Range(ctx, &pb.RangeRequest{Key: []byte("a"), SortOrder: 99})
	same("an unknown sort order", "InvalidArgument etcdserver: invalid sort option", fmt.Sprint(status.Code(err), " ", status.Convert(err).Message()))
	_, err = pb.NewKVClient(client.ActiveConnection()).Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{}}})
	same("an operation that is none", "InvalidArgument etcdserver: key not found", fmt.Sprint(status.Code(err), " ", status.Convert(err).Message()))
	_, err = client.Put(ctx, p+"a", strings.Repeat("x", 3_000_000))
	check(status.Code(err) == codes.ResourceExhausted || errors.Is(err, rpctypes.ErrRequestTooLarge), "more than the client sends", err)

	must(client.Put(ctx, p+"c", "1"))
	here := must(client.Put(ctx, p+"c", "2")).Header.Revision
	must(client.Compact(ctx, here, clientv3.WithCompactPhysical()))
	get("get below the compaction", rpctypes.ErrCompacted, p+"c", clientv3.WithRev(here-1))
	same("get at the compaction", "2", string(must(client.Get(ctx, p+"c", clientv3.WithRev(here))).Kvs[0].Value))
	_, err = client.Compact(ctx, here)
	refused("compact again", rpctypes.ErrCompacted, err)
	txn("a read below the compaction", rpctypes.ErrCompacted, clientv3.OpPut(p+"c", "3"), clientv3.OpGet(p+"c", clientv3.WithRev(here-1)))
	same("and no write", "2", string(must(client.Get(ctx, p+"c")).Kvs[0].Value))
}
