package main

import (
	"regexp"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func checkCluster() {
	members := must(client.MemberList(ctx))
	check(len(members.Members) > 0 && members.Header.ClusterId != 0, "members", members)
	var ids []uint64
	for _, member := range members.Members {
		ids = append(ids, member.ID)
		check(len(member.ClientURLs) > 0 && !member.IsLearner, "a member has client URLs", member)
	}
	same("the same ids again", len(ids), len(must(client.MemberList(ctx, clientv3.WithSerializable())).Members))

	// A client that syncs dials what the member list names.
	own := connect(endpoint)
	defer own.Close()
	done(own.Sync(ctx))
	check(len(own.Endpoints()) >= len(members.Members), "sync", own.Endpoints())
	must(own.Put(ctx, prefix+"cluster", "1"))

	status := must(client.Status(ctx, endpoint))
	check(regexp.MustCompile(`^3\.\d+\.\d+$`).MatchString(status.Version), "version", status.Version)
	check(slices.Contains(ids, status.Leader) && slices.Contains(ids, status.Header.MemberId), "leader and member are members", status)
	check(status.DbSize > 0 && status.DbSizeInUse > 0 && status.RaftTerm > 0 && status.RaftIndex > 0 && status.RaftAppliedIndex > 0, "status", status)
	check(status.DbSizeQuota > 0 && status.StorageVersion != "" && len(status.Errors) == 0, "status of 3.6", status)
	same("the header's revision", revision(), status.Header.Revision)

	first := must(client.HashKV(ctx, endpoint, 0))
	same("a hash at its revision", first.Hash, must(client.HashKV(ctx, endpoint, first.HashRevision)).Hash)
	must(client.Put(ctx, prefix+"cluster", "2"))
	check(must(client.HashKV(ctx, endpoint, 0)).Hash != first.Hash, "a write changes it")
	_, err := client.HashKV(ctx, endpoint, revision()+1000)
	refused("hash of the future", rpctypes.ErrFutureRev, err)
	same("alarms", 0, len(must(client.AlarmList(ctx)).Alarms))
	same("disarm", 0, len(must(client.AlarmDisarm(ctx, &clientv3.AlarmMember{})).Alarms))
	must(client.Defragment(ctx, endpoint))
	_, err = client.MoveLeader(ctx, 1)
	refused("move the leader to nobody", rpctypes.ErrBadLeaderTransferee, err)
	same("a put after it all", int64(3), func() int64 {
		must(client.Put(ctx, prefix+"cluster", "3"))
		return must(client.Get(ctx, prefix+"cluster")).Kvs[0].Version
	}())
}
