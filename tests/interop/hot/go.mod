// Clients of one hot tenant. hot.sh builds it in a copy outside the repository.
module atoll.test/hot

go 1.26

require go.etcd.io/etcd/client/v3 v3.7.3
