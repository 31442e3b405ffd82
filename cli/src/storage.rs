//! Talking to a storage daemon: with the certificate from `tandem join`, or with the local secret on its own host.

use std::{path::PathBuf, time::Duration};

use tandem_proto::pb::trust_client::TrustClient;
use tandem_runtime::{
    connect::{Credentials, KEEPALIVE, ServerAddress},
    failure::said,
    tls::OwnFiles,
};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};

use crate::{
    exit::{Exit, Failure},
    mounts::with_causes,
};

/// Environment variables for certificates of one's own: the authorities that vouch for the storage daemon, our certificate, its key.
const OWN_ENV: [&str; 3] = ["TANDEM_CA", "TANDEM_CERT", "TANDEM_KEY"];

/// How long a storage daemon may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that carries the local secret, where that is what counts.
pub type Connection = InterceptedService<Channel, Credentials>;

/// Which storage daemon is asked.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The storage daemon.
    #[arg(long, value_name = "HOST[:PORT]", default_value = "localhost")]
    server: ServerAddress,
}

impl Which {
    /// Its address.
    pub fn server(&self) -> &ServerAddress {
        &self.server
    }

    /// Calls of `Trust`.
    pub async fn trust(&self) -> Result<TrustClient<Connection>, Failure> {
        Ok(TrustClient::new(connect(&self.server).await?))
    }

    /// Makes one call of it.
    pub async fn call<T>(&self, work: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
        let answer = tokio::time::timeout(ANSWER_TIMEOUT * 3, work).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(refused(&self.server, &status)),
        }
    }
}

/// The address, with the certificates of one's own that the environment names, if it names any.
pub fn with_own(server: &ServerAddress) -> ServerAddress {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let [ca, cert, key] = OWN_ENV.map(named);
    let own = server.own.clone().or(OwnFiles { ca, cert, key }.given());
    ServerAddress { own, ..server.clone() }
}

/// Connects, if that is allowed.
pub async fn connect(server: &ServerAddress) -> Result<Connection, Failure> {
    let server = &with_own(server).as_local();
    server.may_connect().map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let channel = server.connect(ANSWER_TIMEOUT, Some(KEEPALIVE)).await;
    let channel = channel.map_err(|error| silent(server, &with_causes(&error)))?;
    Ok(InterceptedService::new(channel, server.credentials()))
}

/// It does not answer.
pub fn silent(server: &ServerAddress, why: &str) -> Failure {
    let message = format!("storage daemon {server} does not answer: {why}; is tandem-storaged running there?");
    Failure::new(Exit::NoAnswer, message)
}

/// It answered with an error.
pub fn refused(server: &ServerAddress, status: &Status) -> Failure {
    let message = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => return silent(server, &said(status)),
        Code::Unimplemented => format!("storage daemon {server} is older than this command: {}", said(status)),
        _ => format!("storage daemon {server} refuses: {}", said(status)),
    };
    Failure::new(Exit::NoAnswer, message)
}
