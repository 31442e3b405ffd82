//! The gRPC service `Volumes`: making, renaming and deleting them. For holders of the local secret; the guard sees to that.

use std::{sync::Arc, time::Duration};

use tandem_proto::{
    pb::{self, volumes_server::Volumes as VolumesRpc},
    volume::VolumeName,
};
use tandem_runtime::tls::now_s;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    scrub,
    trust::Trust,
    volume::{
        settings::Special,
        volumes::{ManageError, Volumes},
    },
};

/// The service.
pub struct VolumesService {
    volumes: Arc<Volumes>,
    trust: Arc<Trust>,
    deleted_keep: Option<Duration>,
}

impl VolumesService {
    /// `deleted_keep`: how long the data of deleted volumes is kept.
    pub fn new(volumes: Arc<Volumes>, trust: Arc<Trust>, deleted_keep: Option<Duration>) -> VolumesService {
        VolumesService { volumes, trust, deleted_keep }
    }
}

impl From<ManageError> for Status {
    fn from(error: ManageError) -> Status {
        let message = error.to_string();
        match error {
            ManageError::Missing(_) => Status::not_found(message),
            ManageError::Exists(_) => Status::already_exists(message),
            ManageError::Mounted(..) => Status::failed_precondition(message),
            ManageError::Refused(refusal) => crate::ingest::service::status(&refusal),
            ManageError::Io { .. } => Status::internal(message),
        }
    }
}

fn name(name: &str) -> Result<VolumeName, Status> {
    name.parse().map_err(|error: tandem_proto::volume::InvalidVolumeName| Status::invalid_argument(error.to_string()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the storage daemon failed: see its log"))?
}

#[tonic::async_trait]
impl VolumesRpc for VolumesService {
    type ScrubStream = ReceiverStream<Result<pb::ScrubReply, Status>>;

    async fn scrub(&self, request: Request<pb::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let request = request.into_inner();
        let volume = self.volumes.serving(&name(&request.volume)?).map_err(ManageError::Refused)?;
        Ok(Response::new(scrub::start(volume, request.rate_bytes)?))
    }

    async fn create(
        &self,
        request: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeReply>, Status> {
        let (volumes, name) = (self.volumes.clone(), name(&request.into_inner().volume)?);
        blocking(move || Ok(volumes.create(&name)?)).await?;
        Ok(Response::new(pb::CreateVolumeReply {}))
    }

    async fn configure(
        &self,
        request: Request<pb::ConfigureVolumeRequest>,
    ) -> Result<Response<pb::ConfigureVolumeReply>, Status> {
        let request = request.into_inner();
        let (volumes, name) = (self.volumes.clone(), name(&request.volume)?);
        let special = match request.special.as_str() {
            "" => None,
            word => Some(Special::parse(word).ok_or_else(|| Status::invalid_argument("special: keep or deny"))?),
        };
        let quota = request.quota_bytes.map(|bytes| (bytes > 0).then_some(bytes));
        let now = blocking(move || Ok(volumes.configure(&name, quota, special)?)).await?;
        let special = now.special.as_str().to_owned();
        Ok(Response::new(pb::ConfigureVolumeReply { quota_bytes: now.quota.unwrap_or(0), special }))
    }

    async fn rename(
        &self,
        request: Request<pb::RenameVolumeRequest>,
    ) -> Result<Response<pb::RenameVolumeReply>, Status> {
        let request = request.into_inner();
        let (from, to, force) = (name(&request.volume)?, name(&request.to)?, request.force);
        let (volumes, trust) = (self.volumes.clone(), self.trust.clone());
        blocking(move || {
            volumes.rename(&from, &to, force)?;
            Ok(trust.registry.volume_is_now(&from, Some(&to))?)
        })
        .await?;
        Ok(Response::new(pb::RenameVolumeReply {}))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        let request = request.into_inner();
        let (from, force) = (name(&request.volume)?, request.force);
        let (volumes, trust) = (self.volumes.clone(), self.trust.clone());
        let kept = blocking(move || {
            let kept = volumes.delete(&from, force)?;
            trust.registry.volume_is_now(&from, None)?;
            Ok(kept)
        })
        .await?;
        let until = self.deleted_keep.map_or(0, |keep| now_s().saturating_add(keep.as_secs() as i64));
        Ok(Response::new(pb::DeleteVolumeReply { kept: kept.display().to_string(), kept_until_s: until }))
    }
}
