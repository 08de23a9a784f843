// The Go client at work. clients.sh builds it in a copy outside the repository.
module atoll.test/interop

go 1.26

require (
	go.etcd.io/etcd/api/v3 v3.7.3
	go.etcd.io/etcd/client/v3 v3.7.3
	go.etcd.io/etcd/server/v3 v3.7.3
)
