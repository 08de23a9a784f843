package main

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// checkStream: RangeStream gives in pieces what Range gives at once.
func checkStream() {
	p := prefix + "stream/"
	for begin := 0; begin < 2000; begin += 100 {
		var ops []clientv3.Op
		for i := begin; i < begin+100; i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s%04d", p, i), strings.Repeat(fmt.Sprintf("%04d", i), 250)))
		}
		must(client.Txn(ctx).Then(ops...).Commit())
	}
	old := revision()
	must(client.Delete(ctx, p+"1000"))

	collect := func(what string, stream clientv3.GetStreamChan) (*clientv3.GetResponse, int) {
		whole := &pb.RangeResponse{}
		pieces, last := 0, ""
		for piece := range stream {
			done(piece.Err())
			if whole.Header != nil {
				fail(what + ": something after the piece with the header")
			}
			for _, kv := range piece.Kvs {
				if string(kv.Key) <= last {
					fail(what+": keys out of order", last, string(kv.Key))
				}
				last = string(kv.Key)
			}
			if piece.Header == nil && (piece.More || piece.Count != 0) {
				fail(what + ": more or count before the last piece")
			}
			proto.Merge(whole, piece.RangeResponse)
			pieces++
		}
		if whole.Header == nil {
			fail(what + ": no header")
		}
		return (*clientv3.GetResponse)(whole), pieces
	}
	alike := func(what, key string, options ...clientv3.OpOption) int {
		plain := (*pb.RangeResponse)(must(client.Get(ctx, key, options...)))
		streamed, pieces := collect(what, must(client.GetStream(ctx, key, options...)))
		if !proto.Equal(plain, (*pb.RangeResponse)(streamed)) {
			fail("stream of "+what, fmt.Sprint("plain:    ", len(plain.Kvs), plain.Count, plain.More, plain.Header),
				fmt.Sprint("streamed: ", len(streamed.Kvs), streamed.Count, streamed.More, streamed.Header))
		}
		check(true, what)
		return pieces
	}
	all := clientv3.WithPrefix()
	check(alike("2 MB", p, all) > 1, "2 MB come in several pieces")
	alike("a key", p+"0001")
	alike("no key", p+"none")
	alike("a range", p+"0100", clientv3.WithRange(p+"0200"))
	alike("an empty range", p+"0200", clientv3.WithRange(p+"0100"))
	alike("a limit", p, all, clientv3.WithLimit(777))
	alike("a limit of one", p, all, clientv3.WithLimit(1))
	alike("a limit of just all", p, all, clientv3.WithLimit(1999))
	alike("a limit beyond all", p, all, clientv3.WithLimit(5000))
	alike("keys only", p, all, clientv3.WithKeysOnly())
	alike("an old revision", p, all, clientv3.WithRev(old))
	alike("an old revision, limited", p, all, clientv3.WithRev(old-3), clientv3.WithLimit(50))
	alike("serializable", p, all, clientv3.WithSerializable())
	same("a count comes in one piece", 1, alike("count only", p, all, clientv3.WithCountOnly()))
	alike("from a key on", p+"1900", clientv3.WithFromKey(), clientv3.WithLimit(120))

	// A stream is of one revision, whatever is written while it runs.
	stream := must(client.GetStream(ctx, p, all))
	first := <-stream
	done(first.Err())
	before := len(first.Kvs)
	must(client.Txn(ctx).Then(clientv3.OpDelete(p+"1999"), clientv3.OpPut(p+"1500", "late"), clientv3.OpPut(p+"1500x", "late")).Commit())
	rest, _ := collect("a stream under writes", stream)
	same("a stream under writes has all keys", 1999, before+len(rest.Kvs))
	same("the last one deleted since", p+"1999", string(rest.Kvs[len(rest.Kvs)-1].Key))
	for _, kv := range rest.Kvs {
		if string(kv.Value) == "late" {
			fail("a stream shows what was written after its begin", string(kv.Key))
		}
	}

	fails := func(what string, wanted error, key string, options ...clientv3.OpOption) {
		stream, err := client.GetStream(ctx, key, options...)
		if err == nil {
			_, err = clientv3.GetStreamToGetResponse(stream)
		}
		refused("stream "+what, wanted, err)
	}
	fails("of the future", rpctypes.ErrFutureRev, p, all, clientv3.WithRev(revision()+1000))
	fails("without a key", rpctypes.ErrEmptyKey, "")
	here := revision()
	must(client.Compact(ctx, here))
	fails("below the compaction", rpctypes.ErrCompacted, p, all, clientv3.WithRev(here-1))
	for what, option := range map[string]clientv3.OpOption{
		"RangeStream does not support custom sort orders": clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend),
		"RangeStream does not support revision filters":   clientv3.WithMinModRev(1),
	} {
		_, err := clientv3.GetStreamToGetResponse(must(client.GetStream(ctx, p, all, option)))
		same("unimplemented", fmt.Sprint(codes.Unimplemented, " ", what), fmt.Sprint(status.Code(err), " ", status.Convert(err).Message()))
	}
	must(client.Delete(ctx, p, all))
}
