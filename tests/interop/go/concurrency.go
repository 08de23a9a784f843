package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

func session(ttl int) *concurrency.Session {
	return must(concurrency.NewSession(client, concurrency.WithTTL(ttl)))
}

func count(prefix string) int64 {
	return must(client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())).Count
}

func checkMutex() {
	p := prefix + "mutex"
	var inside, total int
	var all sync.WaitGroup
	var guard sync.Mutex
	for range 8 {
		all.Go(func() {
			s := session(30)
			defer s.Close()
			for range 5 {
				m := concurrency.NewMutex(s, p)
				done(m.Lock(ctx))
				guard.Lock()
				inside++
				if inside != 1 {
					fail("two hold the lock", inside)
				}
				guard.Unlock()
				// Fenced: the write goes through because the lock is held.
				if !must(client.Txn(ctx).If(m.IsOwner()).Then(clientv3.OpPut(p+"-written", m.Key())).Commit()).Succeeded {
					fail("a holder is not the owner")
				}
				guard.Lock()
				inside--
				total++
				guard.Unlock()
				done(m.Unlock(ctx))
			}
		})
	}
	all.Wait()
	same("forty turns", 40, total)
	same("the lock is free", int64(0), count(p+"/"))

	one, two := session(6), session(30) // a session notices its end by its next beat, after a third of the TTL
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewMutex(one, p), concurrency.NewMutex(two, p)
	done(first.TryLock(ctx))
	refused("try lock of a held one", concurrency.ErrLocked, second.TryLock(ctx))
	same("leaves nothing behind", int64(1), count(p+"/"))
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	refused("lock with a deadline", context.DeadlineExceeded, second.Lock(short))
	cancel()
	eventually(5*time.Second, "which withdraws", func() bool { return count(p+"/") == 1 })
	got := make(chan error, 1)
	go func() { got <- second.Lock(ctx) }()
	eventually(10*time.Second, "a second one queues", func() bool { return count(p+"/") == 2 })
	// The holder's session ends: the next one gets the lock, the old fence is gone.
	owner := first.IsOwner()
	must(client.Revoke(ctx, one.Lease()))
	closed("the session ends", one.Done())
	done(receive("the lock goes to the next", got))
	check(!must(client.Txn(ctx).If(owner).Then(clientv3.OpPut(p+"-written", "late")).Commit()).Succeeded, "the old holder's write is refused")
	done(second.Unlock(ctx))
}

func checkElection() {
	p := prefix + "election"
	one, two := session(30), session(30)
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewElection(one, p), concurrency.NewElection(two, p)
	_, err := first.Leader(ctx)
	refused("no leader yet", concurrency.ErrElectionNoLeader, err)
	done(first.Campaign(ctx, "one"))
	same("leader", "one", string(must(second.Leader(ctx)).Kvs[0].Value))
	here, cancel := context.WithCancel(ctx)
	observed := second.Observe(here)
	same("observed", "one", string(receive("observed", observed).Kvs[0].Value))
	done(first.Proclaim(ctx, "one again"))
	same("proclaimed", "one again", string(receive("proclaimed", observed).Kvs[0].Value))
	elected := make(chan error, 1)
	go func() { elected <- second.Campaign(ctx, "two") }()
	eventually(10*time.Second, "a second candidate queues", func() bool { return count(p+"/") == 2 })
	select {
	case <-elected:
		fail("two leaders")
	default:
	}
	done(first.Resign(ctx))
	done(receive("elected", elected))
	for string(receive("observed", observed).Kvs[0].Value) != "two" {
	}
	same("the next leader", "two", string(must(first.Leader(ctx)).Kvs[0].Value))
	resumed := concurrency.ResumeElection(two, p, second.Key(), second.Rev())
	done(resumed.Proclaim(ctx, "resumed"))
	same("a resumed leader", "resumed", string(must(first.Leader(ctx)).Kvs[0].Value))
	done(resumed.Resign(ctx))
	refused("proclaim after the end", concurrency.ErrElectionNotLeader, second.Proclaim(ctx, "late"))
	cancel()
	closed("observe, cancelled", observed)
}

// checkSTM moves money between accounts at each level of isolation that promises to
// keep the sum.
func checkSTM() {
	for name, level := range map[string]concurrency.Isolation{
		"serializable snapshot": concurrency.SerializableSnapshot,
		"serializable":          concurrency.Serializable,
		"repeatable reads":      concurrency.RepeatableReads,
	} {
		p := fmt.Sprintf("%sstm/%d/", prefix, level)
		const accounts = 6
		for i := range accounts {
			must(client.Put(ctx, p+strconv.Itoa(i), "100"))
		}
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				for range 15 {
					from, to := rand.IntN(accounts), rand.IntN(accounts)
					if from == to {
						continue
					}
					must(concurrency.NewSTM(client, func(stm concurrency.STM) error {
						a, b := must(strconv.Atoi(stm.Get(p+strconv.Itoa(from)))), must(strconv.Atoi(stm.Get(p+strconv.Itoa(to))))
						stm.Put(p+strconv.Itoa(from), strconv.Itoa(a-7))
						stm.Put(p+strconv.Itoa(to), strconv.Itoa(b+7))
						return nil
					}, concurrency.WithIsolation(level)))
				}
			})
		}
		all.Wait()
		sum := 0
		for _, kv := range must(client.Get(ctx, p, clientv3.WithPrefix())).Kvs {
			sum += must(strconv.Atoi(string(kv.Value)))
		}
		same("the sum, "+name, 100*accounts, sum)
	}
	p := prefix + "stm/"
	oops := errors.New("no")
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put(p+"aborted", "1")
		return oops
	})
	refused("an abort", oops, err)
	same("writes nothing", int64(0), count(p+"aborted"))
	must(concurrency.NewSTM(client, func(stm concurrency.STM) error {
		stm.Put(p+"x", "1")
		if stm.Get(p+"x") != "1" {
			return errors.New("does not see its own write")
		}
		stm.Del(p + "x")
		stm.Put(p+"y", strconv.FormatInt(stm.Rev(p+"none"), 10))
		return nil
	}, concurrency.WithIsolation(concurrency.ReadCommitted), concurrency.WithPrefetch(p+"y")))
	same("its last word", "y", names(must(client.Get(ctx, p+"x", clientv3.WithRange(p+"z"))).Kvs, p))
}

// checkServices uses the server's own lock, election and health services.
func checkServices() {
	conn := client.ActiveConnection()
	health := must(grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{}))
	same("health", grpc_health_v1.HealthCheckResponse_SERVING, health.Status)

	locks := v3lockpb.NewLockClient(conn)
	name := []byte(prefix + "lock-service")
	lease := must(client.Grant(ctx, 60)).ID
	held := must(locks.Lock(ctx, &v3lockpb.LockRequest{Name: name, Lease: int64(lease)}))
	same("the lock's key", fmt.Sprintf("%s/%x", name, int64(lease)), string(held.Key))
	next := make(chan *v3lockpb.LockResponse, 1)
	go func() { next <- must(locks.Lock(ctx, &v3lockpb.LockRequest{Name: name})) }()
	eventually(10*time.Second, "a second one queues", func() bool { return count(string(name)+"/") == 2 })
	check(len(next) == 0, "and waits")
	must(locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: held.Key}))
	second := receive("the second gets the lock", next)
	check(second.Header.Revision > held.Header.Revision, "at a later revision")
	must(locks.Unlock(ctx, &v3lockpb.UnlockRequest{Key: second.Key}))
	same("the lock is free", int64(0), count(string(name)+"/"))

	elections := v3electionpb.NewElectionClient(conn)
	name = []byte(prefix + "election-service")
	observer := must(elections.Observe(ctx, &v3electionpb.LeaderRequest{Name: name}))
	leader := must(elections.Campaign(ctx, &v3electionpb.CampaignRequest{Name: name, Lease: int64(lease), Value: []byte("one")})).Leader
	same("observed", "one", string(must(observer.Recv()).Kv.Value))
	must(elections.Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: leader, Value: []byte("again")}))
	same("observed again", "again", string(must(observer.Recv()).Kv.Value))
	same("leader", "again", string(must(elections.Leader(ctx, &v3electionpb.LeaderRequest{Name: name})).Kv.Value))
	must(elections.Resign(ctx, &v3electionpb.ResignRequest{Leader: leader}))
	_, err := elections.Leader(ctx, &v3electionpb.LeaderRequest{Name: name})
	check(err != nil, "no leader any more", err)
	must(client.Revoke(ctx, lease))
}
