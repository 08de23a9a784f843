package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func checkLease() {
	p := prefix + "lease/"
	before := revision()
	lease := must(client.Grant(ctx, 600))
	check(lease.ID > 0, "an id", lease.ID)
	same("the TTL", int64(600), lease.TTL)
	same("no revision is added", before, revision())
	same("the least TTL", int64(2), must(client.Grant(ctx, 0)).TTL)
	_, err := client.Grant(ctx, 9_000_000_001)
	refused("too large a TTL", rpctypes.ErrLeaseTTLTooLarge, err)
	raw := clientv3.NewLease(client)
	defer raw.Close()

	must(client.Put(ctx, p+"b", "1", clientv3.WithLease(lease.ID)))
	must(client.Put(ctx, p+"a", "1", clientv3.WithLease(lease.ID)))
	must(client.Put(ctx, p+"c", "1", clientv3.WithLease(lease.ID)))
	same("the key's lease", int64(lease.ID), must(client.Get(ctx, p+"a")).Kvs[0].Lease)
	info := must(client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()))
	check(info.TTL > 100 && info.TTL <= 600 && info.GrantedTTL == 600, "time to live", info)
	attached := func() string {
		var all []string
		for _, key := range must(client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys())).Keys {
			all = append(all, string(key)[len(p):])
		}
		slices.Sort(all)
		return fmt.Sprint(all)
	}
	same("attached keys", "[a b c]", attached())
	same("not asked for, not given", 0, len(must(client.TimeToLive(ctx, lease.ID)).Keys))
	must(client.Put(ctx, p+"c", "2", clientv3.WithIgnoreLease()))
	same("ignore lease keeps it", "[a b c]", attached())
	must(client.Put(ctx, p+"c", "3"))
	same("a plain put detaches", "[a b]", attached())
	must(client.Txn(ctx).Then(clientv3.OpPut(p+"d", "1", clientv3.WithLease(lease.ID)), clientv3.OpDelete(p+"b")).Commit())
	same("a txn attaches and detaches", "[a d]", attached())
	listed := false
	for _, it := range must(client.Leases(ctx)).Leases {
		listed = listed || it.ID == lease.ID
	}
	check(listed, "leases lists it")
	same("keep alive once", int64(600), must(client.KeepAliveOnce(ctx, lease.ID)).TTL)

	before = revision()
	must(client.Revoke(ctx, lease.ID))
	same("revoke is one revision", before+1, revision())
	events := client.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithRev(before+1))
	same("its deletes, by key", "DELETE a=, DELETE d=", take("revoked", 2, events, p))
	same("a detached key stays", "c", names(must(client.Get(ctx, p, clientv3.WithPrefix())).Kvs, p))
	same("time to live of none", int64(-1), must(client.TimeToLive(ctx, lease.ID)).TTL)
	_, err = client.Revoke(ctx, lease.ID)
	refused("revoke again", rpctypes.ErrLeaseNotFound, err)
	_, err = client.KeepAliveOnce(ctx, lease.ID)
	refused("keep alive of none", rpctypes.ErrLeaseNotFound, err)

	// Expiry: not early, all keys in one revision, seen by watchers.
	watch := client.Watch(ctx, p+"x", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	receive("created", watch)
	begun := time.Now()
	short := must(client.Grant(ctx, 4)).ID
	must(client.Put(ctx, p+"x2", "1", clientv3.WithLease(short)))
	must(client.Put(ctx, p+"x1", "1", clientv3.WithLease(short)))
	same("puts", "PUT x2=1, PUT x1=1", take("puts", 2, watch, p))
	answer := receive("expiry", watch)
	lived := time.Since(begun)
	check(lived >= 4*time.Second, "not before its TTL", lived)
	check(lived < 30*time.Second, "but soon", lived)
	same("all keys at once", "x1 x2", fmt.Sprint(string(answer.Events[0].Kv.Key)[len(p):], " ", string(answer.Events[1].Kv.Key)[len(p):]))
	same("in one revision", answer.Events[0].Kv.ModRevision, answer.Events[1].Kv.ModRevision)
	_, err = client.KeepAliveOnce(ctx, short)
	refused("it does not come back", rpctypes.ErrLeaseNotFound, err)
}

func checkKeepAlive() {
	p := prefix + "keepalive/"
	way := newProxy()
	defer way.close()
	far := connect(way.endpoint())
	defer far.Close()
	lease := must(client.Grant(ctx, 6)).ID
	must(client.Put(ctx, p+"kept", "1", clientv3.WithLease(lease)))
	here, cancel := context.WithCancel(ctx)
	answers := must(far.KeepAlive(here, lease))
	begun := time.Now()
	beats := 0
	for time.Since(begun) < 7*time.Second {
		same("a beat", int64(6), receive("keep alive", answers).TTL)
		if beats++; beats == 1 {
			way.cut(false) // the stream must come back in time
		}
	}
	check(beats >= 3, "beats over a cut connection", beats)
	same("the key lives beyond the TTL", int64(1), must(client.Get(ctx, p+"kept")).Count)

	// Many leases over one stream.
	var many []<-chan *clientv3.LeaseKeepAliveResponse
	for range 50 {
		many = append(many, must(far.KeepAlive(here, must(client.Grant(ctx, 60)).ID)))
	}
	for _, channel := range many {
		same("one of many", int64(60), receive("one of many", channel).TTL)
	}
	must(client.Revoke(ctx, lease))
	closed("keep alive of a revoked lease ends", answers)
	same("its key is gone", int64(0), must(client.Get(ctx, p+"kept")).Count)
	cancel()
	for _, channel := range many {
		closed("keep alive, cancelled", channel)
	}
}
