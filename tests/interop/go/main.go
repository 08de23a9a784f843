// Command interop works with a server through etcd's own Go client and checks
// every answer:
//
//	interop http://HOST:PORT
//
// INTEROP_ONLY="watch stm" runs these sections alone, INTEROP_SKIP="leasing" leaves
// some out, VERBOSE=1 prints each section.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	endpoint string
	client   *clientv3.Client
	prefix   = fmt.Sprintf("~go/%d-%d/", os.Getpid(), time.Now().UnixNano())
	ctx      context.Context
	checks   atomic.Int64
)

var sections = []struct {
	name string
	run  func()
}{
	{"kv", checkKV},
	{"ranges", checkRanges},
	{"txn", checkTxn},
	{"errors", checkErrors},
	{"stream", checkStream},
	{"watch", checkWatch},
	{"resume", checkResume},
	{"progress", checkProgress},
	{"fragment", checkFragment},
	{"lease", checkLease},
	{"keepalive", checkKeepAlive},
	{"mutex", checkMutex},
	{"election", checkElection},
	{"stm", checkSTM},
	{"services", checkServices},
	{"leasing", checkLeasing},
	{"namespace", checkNamespace},
	{"ordering", checkOrdering},
	{"mirror", checkMirror},
	{"naming", checkNaming},
	{"recipes", checkRecipes},
	{"kubernetes", checkKubernetes},
	{"cluster", checkCluster},
}

func fail(what string, facts ...any) {
	fmt.Fprintf(os.Stderr, "FAIL: %s\n", what)
	for _, fact := range facts {
		fmt.Fprintf(os.Stderr, "  %+v\n", fact)
	}
	os.Exit(1)
}

func check(condition bool, what string, facts ...any) {
	if !condition {
		fail(what, facts...)
	}
	checks.Add(1)
}

func same[T any](what string, wanted, got T) {
	if !reflect.DeepEqual(wanted, got) {
		fail(what, fmt.Sprintf("wanted: %+v", wanted), fmt.Sprintf("got:    %+v", got))
	}
	checks.Add(1)
}

// must is for a step that has to succeed: its value.
func must[T any](value T, err error) T {
	if err != nil {
		fail("an unforeseen error", err, caller())
	}
	return value
}

func done(err error) {
	if err != nil {
		fail("an unforeseen error", err, caller())
	}
}

func refused(what string, wanted error, got error) {
	if !errors.Is(got, wanted) {
		fail(what, fmt.Sprintf("wanted: %v", wanted), fmt.Sprintf("got:    %v", got))
	}
	checks.Add(1)
}

// eventually waits for a state.
func eventually(limit time.Duration, what string, condition func() bool) {
	for end := time.Now().Add(3 * limit); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			fail(fmt.Sprintf("%s: not within %s", what, 3*limit))
		}
	}
	checks.Add(1)
}

// receive takes one value from a channel, or fails after 45 s.
func receive[T any](what string, from <-chan T) T {
	select {
	case value, ok := <-from:
		if !ok {
			fail(what + ": the channel is closed")
		}
		return value
	case <-time.After(45 * time.Second):
		fail(what + ": nothing within 45 s")
	}
	panic("unreachable")
}

func closed[T any](what string, channel <-chan T) {
	end := time.After(45 * time.Second)
	for {
		select {
		case _, ok := <-channel:
			if !ok {
				checks.Add(1)
				return
			}
		case <-end:
			fail(what + ": not closed within 45 s")
		}
	}
}

func connect(endpoints ...string) *clientv3.Client {
	return must(clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 30 * time.Second, Logger: zap.NewNop()}))
}

func revision() int64 {
	return must(client.Get(ctx, prefix)).Header.Revision
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: interop http://HOST:PORT")
		os.Exit(2)
	}
	endpoint = os.Args[1]
	var cancel context.CancelFunc
	ctx, cancel = context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	client = connect(endpoint)
	only, skip := strings.Fields(os.Getenv("INTEROP_ONLY")), strings.Fields(os.Getenv("INTEROP_SKIP"))
	for _, section := range sections {
		if len(only) > 0 && !slices.Contains(only, section.name) {
			continue
		}
		if slices.Contains(skip, section.name) {
			fmt.Println("skipped:", section.name)
			continue
		}
		before, begun := checks.Load(), time.Now()
		section.run()
		if os.Getenv("VERBOSE") != "" {
			fmt.Printf("  %s: %d checks in %.1f s\n", section.name, checks.Load()-before, time.Since(begun).Seconds())
		}
	}
	must(client.Delete(ctx, prefix, clientv3.WithPrefix()))
	fmt.Printf("ok %d checks\n", checks.Load())
}
