// The peer itself: etcd, built from its published module.
module atoll.test/peers/etcd

go 1.26

require go.etcd.io/etcd/server/v3 v3.7.3
