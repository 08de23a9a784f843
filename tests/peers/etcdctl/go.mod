// The command-line clients: main packages of their own modules, which
// `go install path@version` refuses because they carry replace directives.
module atoll.test/peers/etcdctl

go 1.26

require (
	go.etcd.io/etcd/etcdctl/v3 v3.7.3
	go.etcd.io/etcd/etcdutl/v3 v3.7.3
)
