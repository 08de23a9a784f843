// Command users is many users at once, each with a tenant of its own and etcd's own Go
// client: a writer puts one key after the other, a watch from the first revision hears
// them. It goes on until it is told to stop (SIGTERM), and then says how it went:
//
//	users -tenants 1000 -every 5s HOST:PORT,HOST:PORT,...
//
// A put that fails, a revision that is skipped, comes twice or out of order, and a value
// that is not the one that was put there are told, and make the command fail.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

var (
	tenants = flag.Int("tenants", 1000, "how many")
	every   = flag.Duration("every", 5*time.Second, "a tenant puts so often")
	prefix  = flag.String("prefix", "t", "names of tenants are this and a number")

	puts, failures, faults atomic.Int64
	slowest                atomic.Int64
	told                   sync.Mutex
)

func tell(count *atomic.Int64, format string, args ...any) {
	if count.Add(1) <= 20 {
		told.Lock()
		defer told.Unlock()
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

type user struct {
	name   string
	client *clientv3.Client
	// The newest revision that a put was answered with, and that the watch has heard.
	written, heard atomic.Int64
	done           chan struct{}
}

func value(name string, n int64) string { return fmt.Sprintf("%s at %d", name, n) }

// write puts until the writing ends. An empty etcd stands at revision 1, and nobody else
// writes here: the n-th put is revision n + 1.
func (u *user) write(writing context.Context, offset time.Duration) {
	defer close(u.done)
	timer := time.NewTimer(offset)
	defer timer.Stop()
	for n := int64(1); ; n++ {
		select {
		case <-writing.Done():
			return
		case <-timer.C:
		}
		timer.Reset(*every)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		begun := time.Now()
		answer, err := u.client.Put(ctx, "key", value(u.name, n))
		cancel()
		took := time.Since(begun).Milliseconds()
		for old := slowest.Load(); took > old && !slowest.CompareAndSwap(old, took); old = slowest.Load() {
		}
		if err != nil {
			tell(&failures, "%s: put %d: %v", u.name, n, err)
			return
		}
		puts.Add(1)
		if answer.Header.Revision != n+1 {
			tell(&faults, "%s: put %d has revision %d", u.name, n, answer.Header.Revision)
		}
		u.written.Store(answer.Header.Revision)
	}
}

func (u *user) watch(ctx context.Context) {
	for answer := range u.client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(2)) {
		if err := answer.Err(); err != nil && ctx.Err() == nil {
			tell(&faults, "%s: the watch ended: %v", u.name, err)
			return
		}
		for _, event := range answer.Events {
			next := u.heard.Load() + 1
			if event.Kv.ModRevision != next || string(event.Kv.Value) != value(u.name, next-1) {
				tell(&faults, "%s: %q at %d came where %d was due", u.name, event.Kv.Value, event.Kv.ModRevision, next)
			}
			u.heard.Store(event.Kv.ModRevision)
		}
	}
}

func main() {
	flag.Parse()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	endpoints := strings.Split(flag.Arg(0), ",")
	watching, stopWatches := context.WithCancel(context.Background())
	writing, stopWriters := context.WithCancel(context.Background())
	users := make([]*user, *tenants)
	var dialling sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range users {
		dialling.Add(1)
		go func() {
			defer dialling.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			name := fmt.Sprintf("%s%d", *prefix, i)
			client, err := clientv3.New(clientv3.Config{
				// Each begins elsewhere.
				Endpoints: append(append([]string{}, endpoints[i%len(endpoints):]...), endpoints[:i%len(endpoints)]...),
				Username:  "root@" + name, Password: "none",
				DialTimeout: 30 * time.Second, Logger: zap.NewNop(),
			})
			if err != nil {
				tell(&failures, "%s: %v", name, err)
				os.Exit(1)
			}
			users[i] = &user{name: name, client: client, done: make(chan struct{})}
			users[i].heard.Store(1)
			users[i].written.Store(1)
		}()
	}
	dialling.Wait()
	for i, u := range users {
		go u.watch(watching)
		go u.write(writing, *every*time.Duration(i)/time.Duration(*tenants))
	}
	fmt.Println("ready")
	<-stop
	stopWriters()
	for _, u := range users {
		<-u.done
	}
	until := time.Now().Add(60 * time.Second)
	behind := 0
	for _, u := range users {
		for u.heard.Load() < u.written.Load() && time.Now().Before(until) {
			time.Sleep(10 * time.Millisecond)
		}
		if u.heard.Load() != u.written.Load() {
			behind++
			tell(&faults, "%s: heard up to %d of %d", u.name, u.heard.Load(), u.written.Load())
		}
	}
	stopWatches()
	_ = json.NewEncoder(os.Stdout).Encode(map[string]int64{
		"tenants": int64(len(users)), "puts": puts.Load(), "failed": failures.Load(),
		"faults": faults.Load(), "behind": int64(behind), "slowest_ms": slowest.Load(),
	})
	if failures.Load()+faults.Load() > 0 {
		os.Exit(1)
	}
}
