// etcd's load generator lives in etcd's root module, of which 3.6.8 is the
// newest version that the Go module proxy hands out.
module atoll.test/peers/benchmark

go 1.26

require go.etcd.io/etcd/v3 v3.6.8
