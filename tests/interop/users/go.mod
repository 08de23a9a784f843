// Users of many tenants. thousand.sh builds it in a copy outside the repository.
module atoll.test/users

go 1.26

require go.etcd.io/etcd/client/v3 v3.7.3
