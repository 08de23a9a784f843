//! Operators' commands over the wire: the service that a node offers on its own listener, and the
//! command line's way to it. Whoever reaches the listener may do everything, so it is on this
//! machine only unless the operator says otherwise.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use placement::inventory::Inventory;
use placement::{Answer, Command, Office};
use proto::cluster::admin::admin_client::AdminClient;
use proto::cluster::admin::admin_server::{Admin, AdminServer};
use proto::cluster::admin::{Ask, Told};
use proto::group::{Groups, request_to};
use proto::{GroupId, cluster::group::GroupRequest, cluster::group::LinearizeRequest};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::rollcall::RollCall;

/// How long a new group may take to answer before the operator hears that it has not.
const PATIENCE: Duration = Duration::from_secs(20);

/// The service.
pub(crate) struct Service {
    office: Office,
    roll_call: Arc<RollCall>,
    groups: Arc<dyn Groups>,
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

// === impl Service ===

impl Service {
    /// A service that reaches groups through `groups`.
    pub(crate) fn new(
        office: Office,
        roll_call: Arc<RollCall>,
        groups: Arc<dyn Groups>,
    ) -> Service {
        Service { office, roll_call, groups }
    }

    /// Answers until `shutdown` ends.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        tonic::transport::Server::builder()
            .add_service(AdminServer::new(self))
            .serve_with_incoming_shutdown(incoming, shutdown)
            .await
    }

    /// Waits until a group that was just begun answers.
    async fn await_group(&self, group: u64) -> bool {
        let until = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < until {
            let body = proto::group::Request::Linearize(LinearizeRequest {});
            let request = GroupRequest { timeout_ms: 1000, ..request_to(GroupId(group), body) };
            if self.groups.call(request).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!(group = %GroupId(group), "a new group does not answer yet");
        false
    }

    /// Waits until all routers know what was done to a tenant: its name may be used at any of them.
    async fn await_routers(&self, answer: &Answer, inventory: &Inventory) {
        if let Answer::Tenants(_) = answer {
            let ledger = self.office.known();
            let silent = inventory.silent(&ledger, now_ms());
            self.roll_call.await_routers(ledger.revision, &silent).await;
        }
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn run(&self, request: Request<Ask>) -> Result<Response<Told>, Status> {
        let text = request.into_inner().command;
        let command: Command = serde_json::from_str(&text)
            .map_err(|error| Status::invalid_argument(format!("the command: {error}")))?;
        let mut inventory = self.roll_call.inventory().await;
        if let Some(group) = command.asks_of() {
            inventory.replicas = self.roll_call.replicas(group).await;
        }
        let mut answer = self.office.run(&command, &inventory, now_ms()).await;
        let begins =
            matches!(command, Command::TenantCreate { .. } | Command::NamespaceCreate { .. });
        if let Answer::Tenants(views) = &answer
            && begins
        {
            let group = views.iter().map(|view| view.group).max().unwrap_or(0);
            if group != 0 && !self.await_group(group).await {
                let said = "it is created, but its group does not answer yet: see atoll group list";
                answer = Answer::Refused(said.to_owned());
            }
        }
        if !matches!(
            command,
            Command::TenantList | Command::TenantShow { .. } | Command::NamespaceList { .. }
        ) {
            self.await_routers(&answer, &inventory).await;
        }
        let answer = serde_json::to_string(&answer)
            .map_err(|error| Status::internal(format!("the answer: {error}")))?;
        Ok(Response::new(Told { answer }))
    }
}

/// Asks a node.
pub(crate) async fn ask(admin: &str, command: &Command) -> Result<Answer, String> {
    let mut client = AdminClient::connect(admin.to_owned())
        .await
        .map_err(|error| format!("connect to {admin}: {error}: is a node running there?"))?;
    let command = serde_json::to_string(command).map_err(|error| error.to_string())?;
    let told = client.run(Ask { command }).await;
    let told = told.map_err(|status| status.message().to_owned())?.into_inner();
    serde_json::from_str(&told.answer).map_err(|error| format!("read the answer: {error}"))
}
