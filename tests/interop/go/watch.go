package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// take collects n events; what they say, without the prefix, as one line.
func take(what string, n int, from clientv3.WatchChan, prefix string) string {
	var all []string
	for len(all) < n {
		answer := receive(what, from)
		if err := answer.Err(); err != nil {
			fail(what, err)
		}
		for _, event := range answer.Events {
			word := fmt.Sprintf("%s %s=%s", event.Type, strings.TrimPrefix(string(event.Kv.Key), prefix), event.Kv.Value)
			if event.PrevKv != nil {
				word += fmt.Sprintf("<%s", event.PrevKv.Value)
			}
			all = append(all, word)
		}
	}
	return strings.Join(all, ", ")
}

func checkWatch() {
	p := prefix + "watch/"
	start := must(client.Put(ctx, p+"a", "1")).Header.Revision
	must(client.Put(ctx, p+"b", "1"))
	must(client.Put(ctx, p+"a", "2"))
	must(client.Delete(ctx, p+"a"))
	all := clientv3.WithPrefix()
	history := func(what, wanted string, n int, key string, options ...clientv3.OpOption) {
		here, cancel := context.WithCancel(ctx)
		defer cancel()
		channel := client.Watch(here, p+key, options...)
		same("watch "+what, wanted, take(what, n, channel, p))
		cancel()
		closed(what+", cancelled", channel)
	}
	history("of a key", "PUT a=1, PUT a=2, DELETE a=", 3, "a", clientv3.WithRev(start))
	history("of a prefix", "PUT a=1, PUT b=1, PUT a=2, DELETE a=", 4, "", all, clientv3.WithRev(start))
	history("with previous values", "PUT b=1, PUT a=2<1, DELETE a=<2", 3, "", all, clientv3.WithRev(start+1), clientv3.WithPrevKV())
	history("of puts", "PUT a=1, PUT b=1, PUT a=2", 3, "", all, clientv3.WithRev(start), clientv3.WithFilterDelete())
	history("of deletes", "DELETE a=<2", 1, "", all, clientv3.WithRev(start), clientv3.WithFilterPut(), clientv3.WithPrevKV())
	history("of a range", "PUT b=1", 1, "b", clientv3.WithRange(p+"c"), clientv3.WithRev(start))
	history("from a key on", "PUT b=1", 1, "b", clientv3.WithFromKey(), clientv3.WithRev(start))

	// Live, from the moment at which the server says so.
	here, cancel := context.WithCancel(ctx)
	live := client.Watch(here, p, all, clientv3.WithCreatedNotify())
	created := receive("created", live)
	check(created.Created && len(created.Events) == 0, "the watch is created", created)
	same("at the current revision", start+3, created.Header.Revision)
	must(client.Put(ctx, p+"live", "1"))
	same("a live event", "PUT live=1", take("live", 1, live, p))
	must(client.Txn(ctx).Then(clientv3.OpPut(p+"z", "1"), clientv3.OpPut(p+"y", "2"), clientv3.OpDelete(p+"live")).Commit())
	answer := receive("a txn", live)
	same("a txn's events in one answer", 3, len(answer.Events))
	same("in the order of its operations", "z y live", strings.TrimSpace(strings.ReplaceAll(string(answer.Events[0].Kv.Key)+" "+string(answer.Events[1].Kv.Key)+" "+string(answer.Events[2].Kv.Key), p, "")))
	same("of one revision", answer.Header.Revision, answer.Events[2].Kv.ModRevision)
	gone := answer.Events[2].Kv
	same("a delete has key and revision alone", "0 0 0 0", fmt.Sprint(gone.CreateRevision, gone.Version, len(gone.Value), gone.Lease))
	cancel()
	closed("cancelled", live)

	// The future.
	begin := revision()
	future := client.Watch(ctx, p, all, clientv3.WithRev(begin+3))
	for i := range 4 {
		must(client.Put(ctx, fmt.Sprint(p, "future", i+1), "x"))
	}
	same("watch from a future revision", "PUT future3=x, PUT future4=x", take("future", 2, future, p))

	// Two hundred watches over one stream, half of them going.
	var channels []clientv3.WatchChan
	var cancels []context.CancelFunc
	for i := range 200 {
		here, cancel := context.WithCancel(ctx)
		channels, cancels = append(channels, client.Watch(here, fmt.Sprintf("%smany/%d", p, i), clientv3.WithCreatedNotify())), append(cancels, cancel)
	}
	for _, channel := range channels {
		receive("created", channel)
	}
	for i := 0; i < 200; i += 2 {
		cancels[i]()
		closed("one of many, cancelled", channels[i])
	}
	for i := range 200 {
		must(client.Put(ctx, fmt.Sprintf("%smany/%d", p, i), fmt.Sprint(i)))
	}
	for i := 1; i < 200; i += 2 {
		same("one of many", fmt.Sprintf("PUT many/%d=%d", i, i), take("one of many", 1, channels[i], p))
		cancels[i]()
	}

	// A slow reader loses nothing: 5,000 events wait for it.
	begin = revision()
	slow := client.Watch(ctx, p+"slow", clientv3.WithRev(begin+1))
	for i := range 50 {
		var ops []clientv3.Op
		for j := range 100 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sslow/%d", p, j), strings.Repeat("x", 100)))
		}
		_ = i
		must(client.Txn(ctx).Then(ops...).Commit())
		must(client.Put(ctx, p+"slow", fmt.Sprint(i)))
	}
	var wanted []string
	for i := range 50 {
		wanted = append(wanted, fmt.Sprint("PUT slow=", i))
	}
	same("a slow reader", strings.Join(wanted, ", "), take("a slow reader", 50, slow, p))
	history("a long history", strings.Join(wanted, ", "), 50, "slow", clientv3.WithRev(begin+1))

	// Below a compaction.
	here2 := revision()
	must(client.Compact(ctx, here2))
	below := client.Watch(ctx, p+"a", clientv3.WithRev(start))
	answer = receive("below the compaction", below)
	refused("watch below a compaction", rpctypes.ErrCompacted, answer.Err())
	check(answer.Canceled && answer.CompactRevision == here2, "it says where", answer.CompactRevision, here2)
	closed("and ends", below)
	must(client.Put(ctx, p+"a", "after"))
	at := client.Watch(ctx, p+"slow", clientv3.WithRev(here2))
	same("watch at the compaction", "PUT slow=49", take("at the compaction", 1, at, p))

	// A stream of its own that demands a leader.
	strict := client.Watch(clientv3.WithRequireLeader(ctx), p+"strict", clientv3.WithCreatedNotify())
	check(receive("created", strict).Created, "watch that requires a leader")
	must(client.Put(ctx, p+"strict", "1"))
	same("its event", "PUT strict=1", take("strict", 1, strict, p))
}

// checkResume cuts the client's connections: its watches must go on without a gap
// and without a repetition, or say that they cannot.
func checkResume() {
	p := prefix + "resume/"
	way := newProxy()
	defer way.close()
	far := connect(way.endpoint())
	defer far.Close()

	watch := far.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	check(receive("created", watch).Created, "a watch through the proxy")
	const writes = 400
	go func() {
		for i := range writes {
			if i%80 == 40 {
				way.cut(false)
			}
			must(client.Put(ctx, p+fmt.Sprint(i%7), fmt.Sprint(i)))
		}
	}()
	last := int64(0)
	for seen := 0; seen < writes; {
		answer := receive("resumed", watch)
		done(answer.Err())
		for _, event := range answer.Events {
			if string(event.Kv.Value) != fmt.Sprint(seen) || event.Kv.ModRevision <= last {
				fail("a resumed watch has a gap or a repetition", fmt.Sprint("wanted: ", seen), fmt.Sprint("got:    ", string(event.Kv.Value)))
			}
			last = event.Kv.ModRevision
			seen++
		}
	}
	check(true, "400 events over five connections")

	// Away while history goes on, compacted up to just what it has seen.
	way.cut(true)
	must(client.Put(ctx, p+"away", "1"))
	here := must(client.Put(ctx, p+"away", "2")).Header.Revision
	must(client.Compact(ctx, last+1))
	way.up()
	same("what it missed", "PUT away=1, PUT away=2", take("what it missed", 2, watch, p))

	// Away while what it missed is compacted.
	way.cut(true)
	must(client.Put(ctx, p+"away", "3"))
	here = must(client.Put(ctx, p+"away", "4")).Header.Revision
	must(client.Compact(ctx, here))
	way.up()
	answer := receive("compacted while away", watch)
	for answer.Created {
		answer = receive("compacted while away", watch)
	}
	refused("a watch whose history is gone says so", rpctypes.ErrCompacted, answer.Err())
	same("and where it could go on", here, answer.CompactRevision)
	closed("and ends", watch)

	// Requests through the cut connection come through again.
	way.cut(false)
	eventually(15*time.Second, "a get after the cut", func() bool {
		got, err := far.Get(ctx, p+"away")
		return err == nil && string(got.Kvs[0].Value) == "4"
	})
}

// checkProgress: a progress answer is a promise about all events up to it.
func checkProgress() {
	p := prefix + "progress/"
	own := connect(endpoint)
	defer own.Close()
	watch := own.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	receive("created", watch)
	// until asks for progress until an answer is at least at the revision; the events before it.
	until := func(revision int64) (events int) {
		for end := time.Now().Add(45 * time.Second); ; {
			done(own.RequestProgress(ctx))
			select {
			case answer := <-watch:
				done(answer.Err())
				events += len(answer.Events)
				if answer.IsProgressNotify() && answer.Header.Revision >= revision {
					return events
				}
			case <-time.After(50 * time.Millisecond):
			}
			if time.Now().After(end) {
				fail("progress does not reach the revision", revision)
			}
		}
	}
	same("progress without events", 0, until(revision()))
	elsewhere := must(client.Put(ctx, prefix+"elsewhere", "1")).Header.Revision
	same("progress follows other keys", 0, until(elsewhere))
	for round := range 10 {
		var last int64
		for i := range 10 {
			last = must(client.Put(ctx, fmt.Sprint(p, i), fmt.Sprint(round))).Header.Revision
		}
		same("progress comes after all events before it", 10, until(last))
	}
}

// checkFragment: an answer of more than 2 MiB, whole and in fragments.
func checkFragment() {
	p := prefix + "fragment/"
	var start int64
	for _, letter := range []string{"a", "b"} {
		var ops []clientv3.Op
		for i := range 13 {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%02d", p, i), strings.Repeat(letter, 100_000)))
		}
		start = must(client.Txn(ctx).Then(ops...).Commit()).Header.Revision
	}
	for what, options := range map[string][]clientv3.OpOption{"whole": {}, "in fragments": {clientv3.WithFragment()}} {
		watch := client.Watch(ctx, p, append(options, clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithPrevKV())...)
		answer := receive(what, watch)
		same("events "+what, 13, len(answer.Events))
		for i, event := range answer.Events {
			if string(event.Kv.Key) != fmt.Sprintf("%s%02d", p, i) || len(event.Kv.Value) != 100_000 || event.Kv.Value[0] != 'b' || len(event.PrevKv.Value) != 100_000 || event.PrevKv.Value[0] != 'a' {
				fail("an event "+what, i, string(event.Kv.Key))
			}
		}
	}
	must(client.Delete(ctx, p, clientv3.WithPrefix()))
}
