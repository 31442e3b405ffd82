//! The gRPC service `Trust`: tokens, certificates, and who has them.

use std::sync::Arc;

use bytes::Bytes;
use tandem_proto::{
    pb::{self, trust_server::Trust as TrustRpc},
    volume::VolumeName,
};
use tandem_runtime::{
    connect::{DEFAULT_PORT, ServerAddress},
    tls::Token,
};
use tonic::{Request, Response, Status};

use super::{
    Trust,
    caller::{Caller, Role},
    registry::{Listed, RegistryError},
};

/// How long a token is good if nobody says.
const TTL_DEFAULT_S: u32 = 15 * 60;
/// And at most.
const TTL_MAX_S: u32 = 7 * 24 * 3600;
/// Longest name that is looked at.
const NAME_MAX: usize = 512;

/// The service.
pub struct TrustService {
    trust: Arc<Trust>,
    /// Where clients reach us, if an invitation does not say.
    port: u16,
}

impl TrustService {
    /// For a storage daemon that listens on this port.
    pub fn new(trust: Arc<Trust>, port: u16) -> TrustService {
        TrustService { trust, port }
    }

    fn address(&self, asked: &str) -> Result<ServerAddress, Status> {
        if !asked.is_empty() {
            return asked.parse().map_err(Status::invalid_argument);
        }
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = if name.is_empty() { "localhost".to_owned() } else { name };
        Ok(ServerAddress::new(host, if self.port == 0 { DEFAULT_PORT } else { self.port }))
    }
}

fn volume_name(name: &str) -> Result<VolumeName, Status> {
    name.parse().map_err(|error: tandem_proto::volume::InvalidVolumeName| Status::invalid_argument(error.to_string()))
}

impl From<RegistryError> for Status {
    fn from(error: RegistryError) -> Status {
        let message = error.to_string();
        match error {
            RegistryError::BadToken => Status::permission_denied(message),
            RegistryError::NoClient(_) => Status::not_found(message),
            RegistryError::Full(..) => Status::resource_exhausted(message),
            RegistryError::Trust(super::TrustError::Certificate(_) | super::TrustError::Tls(_)) => {
                Status::invalid_argument(message)
            }
            RegistryError::Trust(_) => {
                // Paths of this host are not the client's business.
                tracing::error!(error = message, "the registry of clients cannot be changed");
                Status::internal("the storage daemon could not write it down: see its log")
            }
        }
    }
}

/// Runs what waits for the disk where waiting is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|_| Status::internal("the storage daemon failed: see its log"))??)
}

/// All who have joined.
pub fn everybody(trust: &Trust) -> Vec<pb::ClientEntry> {
    trust.registry.list().into_iter().map(|listed| entry(listed, |_| true)).collect()
}

fn entry(listed: Listed, shown: impl Fn(&str) -> bool) -> pb::ClientEntry {
    let grants = listed.grants.into_iter().filter(|(volume, _)| shown(volume));
    let (seen_s, connections, refused) =
        listed.member.map_or((0, 0, 0), |member| (member.seen_s(), member.connections(), member.refused()));
    pb::ClientEntry {
        name: listed.name,
        grants: grants.map(|(volume, role)| pb::Grant { volume, role: role.wire().into() }).collect(),
        joined_s: listed.joined_s,
        expires_s: listed.expires_s,
        seen_s,
        connections,
        refused,
    }
}

#[tonic::async_trait]
impl TrustRpc for TrustService {
    async fn join(&self, request: Request<pb::JoinRequest>) -> Result<Response<pb::JoinReply>, Status> {
        let known = match Caller::of(&request) {
            Caller::Client(member) => Some(member),
            Caller::Stranger | Caller::Local => None,
        };
        let pb::JoinRequest { secret, csr, name } = request.into_inner();
        if name.len() > NAME_MAX {
            return Err(Status::invalid_argument(format!("join.name: longer than {NAME_MAX} bytes")));
        }
        let trust = self.trust.clone();
        let redeemed = blocking(move || {
            let issue = || trust.authority.issue(&csr);
            trust.registry.redeem(&secret, known.as_ref(), &name, issue)
        });
        let redeemed = redeemed.await?;
        let (volume, role) = (&redeemed.volume, redeemed.role);
        tracing::info!(client = redeemed.client, volume, %role, "joined");
        let (expires_s, renew_after_s) =
            redeemed.issued.as_ref().map_or((0, 0), |issued| (issued.expires_s, issued.renew_after_s));
        Ok(Response::new(pb::JoinReply {
            certificate: redeemed.issued.map_or_else(Bytes::new, |issued| issued.certificate.into()),
            ca: Bytes::copy_from_slice(self.trust.authority.certificate()),
            client: redeemed.client,
            volume: redeemed.volume,
            role: role.wire().into(),
            expires_s,
            renew_after_s,
        }))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewReply>, Status> {
        let Caller::Client(member) = Caller::of(&request) else {
            return Err(Status::failed_precondition("only a client with a certificate renews one"));
        };
        if member.named {
            return Err(Status::failed_precondition(
                "another authority vouches for this client: it renews the certificate",
            ));
        }
        let (trust, csr) = (self.trust.clone(), request.into_inner().csr);
        let issued = blocking(move || {
            let issued = trust.authority.issue(&csr)?;
            trust.registry.renewed(&member, &issued)?;
            tracing::info!(client = member.name, "certificate renewed");
            Ok(issued)
        });
        let issued = issued.await?;
        let (expires_s, renew_after_s) = (issued.expires_s, issued.renew_after_s);
        Ok(Response::new(pb::RenewReply { certificate: issued.certificate.into(), expires_s, renew_after_s }))
    }

    async fn invite(&self, request: Request<pb::InviteRequest>) -> Result<Response<pb::InviteReply>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let volume = volume_name(&request.volume)?;
        caller.may(&volume, Role::Admin)?;
        let role = Role::of(request.role)
            .ok_or_else(|| Status::invalid_argument("invite.role: reader, writer or admin is meant"))?;
        let ttl_s = match request.ttl_s {
            0 => TTL_DEFAULT_S,
            ttl if ttl <= TTL_MAX_S => ttl,
            _ => return Err(Status::invalid_argument("invite.ttl: a token is good for a week at most")),
        };
        let address = self.address(&request.address)?;
        let trust = self.trust.clone();
        let (secret, expires_s) = blocking({
            let volume = volume.clone();
            move || trust.registry.invite(&volume, role, ttl_s.into())
        })
        .await?;
        tracing::info!(%volume, %role, "invitation made");
        let token = Token { ca: self.trust.authority.fingerprint(), secret, address };
        let address = token.address.to_string();
        Ok(Response::new(pb::InviteReply { token: token.to_string(), address, expires_s }))
    }

    async fn grant(&self, request: Request<pb::GrantRequest>) -> Result<Response<pb::GrantReply>, Status> {
        let caller = Caller::of(&request);
        let pb::GrantRequest { client, volume, role } = request.into_inner();
        let volume = volume_name(&volume)?;
        caller.may(&volume, Role::Admin)?;
        let role =
            Role::of(role).ok_or_else(|| Status::invalid_argument("grant.role: reader, writer or admin is meant"))?;
        if client.len() > NAME_MAX {
            return Err(Status::invalid_argument(format!("grant.client: longer than {NAME_MAX} bytes")));
        }
        let (trust, name, of) = (self.trust.clone(), client.clone(), volume.clone());
        blocking(move || trust.registry.grant(&name, &of, role)).await?;
        tracing::info!(client, %volume, %role, "role given");
        Ok(Response::new(pb::GrantReply {}))
    }

    async fn clients(&self, request: Request<pb::ClientsRequest>) -> Result<Response<pb::ClientsReply>, Status> {
        let all = self.trust.registry.list();
        let clients = match Caller::of(&request) {
            Caller::Local => all.into_iter().map(|listed| entry(listed, |_| true)).collect(),
            Caller::Client(member) => {
                let mine: Vec<_> = member.administers().iter().map(ToString::to_string).collect();
                let shown = |volume: &str| mine.iter().any(|name| name == volume);
                let seen = all.into_iter().map(|listed| {
                    let own = listed.name == member.name;
                    entry(listed, |volume| own || shown(volume))
                });
                seen.filter(|entry| !entry.grants.is_empty() || entry.name == member.name).collect()
            }
            Caller::Stranger => Vec::new(),
        };
        Ok(Response::new(pb::ClientsReply { clients }))
    }

    async fn revoke(&self, request: Request<pb::RevokeRequest>) -> Result<Response<pb::RevokeReply>, Status> {
        let caller = Caller::of(&request);
        let pb::RevokeRequest { client, volume } = request.into_inner();
        let volume = if volume.is_empty() { None } else { Some(volume_name(&volume)?) };
        match (&caller, &volume) {
            (Caller::Local, _) => {}
            (_, Some(volume)) => caller.may(volume, Role::Admin)?,
            (_, None) => {
                return Err(Status::permission_denied(
                    "a whole client is revoked on the storage host; name the volume whose role is meant, with --volume",
                ));
            }
        }
        let trust = self.trust.clone();
        let name = client.clone();
        let connections = blocking(move || trust.registry.revoke(&name, volume.as_ref())).await?;
        tracing::info!(client, connections, "revoked");
        Ok(Response::new(pb::RevokeReply { connections }))
    }
}
