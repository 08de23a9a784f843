//! `atoll member`: the cluster's nodes. Adding is safe by order: first a learner, which
//! counts for nothing, and a voter only once it has caught up.

use clap::Subcommand;
use proto::etcd::cluster_client::ClusterClient;
use proto::etcd::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberPromoteRequest,
    MemberRemoveRequest,
};
use tonic::transport::Channel;

type Client = ClusterClient<Channel>;

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the members.
    List,
    /// Add a node as a learner; start it with --initial-cluster-state existing, then promote it.
    Add {
        /// Where the others will reach it, e.g. http://10.0.0.4:2380.
        peer_url: String,
    },
    /// Make a learner that has caught up a voter.
    Promote {
        /// Its id, as listed.
        id: String,
    },
    /// Remove a member for good; its id is never used again.
    Remove {
        /// Its id, as listed.
        id: String,
    },
}

/// Carries a command out.
pub(crate) fn run(endpoint: &str, command: Command) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start the runtime: {error}"))?;
    runtime.block_on(async {
        let mut client = dial(endpoint).await?;
        let members = match command {
            Command::List => {
                let ask = MemberListRequest { linearizable: true };
                client.member_list(ask).await.map_err(told)?.into_inner().members
            }
            Command::Add { peer_url } => {
                let answer = add(&mut client, peer_url).await?;
                let id = answer.member.map_or(0, |member| member.id);
                println!(
                    "added {id:x} as a learner; start it with --initial-cluster-state existing,"
                );
                println!("then: atoll member promote {id:x}");
                answer.members
            }
            Command::Promote { id } => {
                let ask = MemberPromoteRequest { id: crate::directory::number(&id)? };
                client.member_promote(ask).await.map_err(told)?.into_inner().members
            }
            Command::Remove { id } => {
                let ask = MemberRemoveRequest { id: crate::directory::number(&id)? };
                client.member_remove(ask).await.map_err(told)?.into_inner().members
            }
        };
        show(&members);
        Ok(())
    })
}

/// A connection to a node's client URL.
pub(crate) async fn dial(endpoint: &str) -> Result<Client, String> {
    let dialled = ClusterClient::connect(endpoint.to_owned()).await;
    dialled.map_err(|error| format!("connect to {endpoint}: {error}"))
}

/// Adds a node as a learner.
pub(crate) async fn add(
    client: &mut Client,
    peer_url: String,
) -> Result<MemberAddResponse, String> {
    let ask = MemberAddRequest { peer_ur_ls: vec![peer_url], is_learner: true };
    Ok(client.member_add(ask).await.map_err(told)?.into_inner())
}

fn told(status: tonic::Status) -> String {
    status.message().to_owned()
}

fn show(members: &[Member]) {
    println!("{:<18} {:<12} {:<8} {:<32} CLIENT URLS", "ID", "NAME", "ROLE", "PEER URLS");
    for member in members {
        let role = if member.is_learner { "learner" } else { "voter" };
        let name = if member.name.is_empty() { "(unstarted)" } else { &member.name };
        println!(
            "{:<18} {name:<12} {role:<8} {:<32} {}",
            format!("{:x}", member.id),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(",")
        );
    }
}
