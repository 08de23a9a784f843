// Command hot is many clients of one etcd at once: writers, each with etcd's own Go client, put keys
// of their own below a prefix, one after the other, and a watch over everything hears them. It goes
// on until it is told to stop (SIGTERM), and then says how it went:
//
//	hot -user root@acme:none -keys /registry/events/ns%d/e%d -writers 8 HOST:PORT,HOST:PORT,...
//
// The keys have the number of the writer and that of the put, modulo -each. A put that fails and a
// revision that is skipped, comes twice or out of order are told, and make the command fail. Nobody
// else may write meanwhile.
package main

import (
	"context"
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
	user    = flag.String("user", "", "name and password")
	keys    = flag.String("keys", "/registry/events/ns%d/e%d", "keys, from the writer's number and the put's")
	writers = flag.Int("writers", 8, "how many")
	each    = flag.Int64("each", 50, "keys of a writer")
	pause   = flag.Duration("pause", 2*time.Millisecond, "between two puts of a writer")

	puts, faults, heard, newest atomic.Int64
	told                        sync.Mutex
)

func tell(format string, args ...any) {
	if faults.Add(1) <= 20 {
		told.Lock()
		defer told.Unlock()
		fmt.Fprintf(os.Stderr, format+"\n", args...)
	}
}

func dial(endpoints []string) *clientv3.Client {
	name, password, _ := strings.Cut(*user, ":")
	client, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, Username: name, Password: password,
		DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return client
}

// write puts until the writing ends; a put that was begun is ended.
func write(writing context.Context, client *clientv3.Client, number int) {
	for n := int64(0); writing.Err() == nil; n++ {
		key := fmt.Sprintf(*keys, number, n%*each)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		answer, err := client.Put(ctx, key, fmt.Sprint(n))
		cancel()
		if err != nil {
			tell("put %s: %v", key, err)
			continue
		}
		puts.Add(1)
		for seen := newest.Load(); seen < answer.Header.Revision; seen = newest.Load() {
			newest.CompareAndSwap(seen, answer.Header.Revision)
		}
		time.Sleep(*pause)
	}
}

// hear follows a watch over everything behind the revision `after`: each revision once, in order.
func hear(watching context.Context, client *clientv3.Client, after int64) {
	last := after
	for answer := range client.Watch(watching, "", clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if err := answer.Err(); err != nil {
			tell("the watch ended: %v", err)
		}
		for _, event := range answer.Events {
			if event.Kv.ModRevision != last+1 {
				tell("revision %d was heard behind %d", event.Kv.ModRevision, last)
			}
			last = event.Kv.ModRevision
			heard.Store(last)
		}
	}
}

func main() {
	flag.Parse()
	endpoints := strings.Split(flag.Arg(0), ",")
	writing, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client := dial(endpoints)
	begin, err := client.Get(writing, "/", clientv3.WithCountOnly())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	watching, end := context.WithCancel(context.Background())
	var ears, hands sync.WaitGroup
	ears.Go(func() { hear(watching, client, begin.Header.Revision) })
	for number := range *writers {
		// Each with a connection of its own, which begins at another node.
		first := number % len(endpoints)
		own := dial(append(append([]string{}, endpoints[first:]...), endpoints[:first]...))
		hands.Go(func() { write(writing, own, number) })
	}
	fmt.Println("ready")
	hands.Wait()
	for until := time.Now().Add(60 * time.Second); heard.Load() < newest.Load(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			tell("the watch has heard up to %d of %d", heard.Load(), newest.Load())
			break
		}
	}
	end()
	ears.Wait()
	fmt.Printf("%d puts, revisions %d to %d, %d faults\n",
		puts.Load(), begin.Header.Revision+1, heard.Load(), faults.Load())
	if faults.Load() > 0 || heard.Load()-begin.Header.Revision < puts.Load() {
		os.Exit(1)
	}
}
