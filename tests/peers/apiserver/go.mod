// kube-apiserver. build.sh adds a replace line for each staging module that
// Kubernetes keeps inside its own repository (v1.36.3 pairs with v0.36.3).
module atoll.test/peers/apiserver

go 1.26

require k8s.io/kubernetes v1.36.3
