//! Compiles the .proto files without a system protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=etcd");
    println!("cargo:rerun-if-changed=cluster");
    let files = [
        "etcd/kv.proto",
        "etcd/auth.proto",
        "etcd/rpc.proto",
        "etcd/lock.proto",
        "etcd/election.proto",
        "cluster/range.proto",
        "cluster/split.proto",
        "cluster/raft.proto",
        "cluster/group.proto",
        "cluster/admin.proto",
        "cluster/node.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        // Rare in what is passed around all the time.
        .boxed(".cluster.group.Description.split")
        .build_client(true)
        .build_server(true)
        .compile_fds(descriptors)?;
    Ok(())
}
