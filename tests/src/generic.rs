//! A generic gRPC client, as grpcurl is one: it knows no message of TandemFS beforehand, only the reflection service.

use bytes::{Buf as _, BufMut as _, Bytes};
use tokio_stream::StreamExt as _;
use tonic::{
    Request, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn reflect(channel: Channel, request: MessageRequest) -> Result<MessageResponse, Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(channel);
    let mut replies = client.server_reflection_info(tokio_stream::once(request)).await?.into_inner();
    let reply = replies.next().await.ok_or_else(|| Status::internal("no reply"))??;
    reply.message_response.ok_or_else(|| Status::internal("an empty reply"))
}

/// Names of all services.
pub async fn services(channel: Channel) -> Result<Vec<String>, Status> {
    match reflect(channel, MessageRequest::ListServices(String::new())).await? {
        MessageResponse::ListServicesResponse(list) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        other => Err(Status::internal(format!("not a list of services: {other:?}"))),
    }
}

/// The encoded schema of the file that defines a symbol.
pub async fn schema(channel: Channel, symbol: &str) -> Result<Vec<u8>, Status> {
    match reflect(channel, MessageRequest::FileContainingSymbol(symbol.to_owned())).await? {
        MessageResponse::FileDescriptorResponse(files) => Ok(files.file_descriptor_proto.concat()),
        other => Err(Status::internal(format!("not a file descriptor: {other:?}"))),
    }
}

/// Calls a method with an empty message and returns the reply as it is on the wire.
pub async fn call(channel: Channel, path: &'static str, secret: Option<&str>) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(Bytes::new());
    if let Some(secret) = secret {
        let value: MetadataValue<Ascii> =
            secret.parse().map_err(|_| Status::invalid_argument("the secret is no text"))?;
        request.metadata_mut().insert(tandem_runtime::secret::METADATA_KEY, value);
    }
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
    Ok(client.unary(request, path, Raw).await?.into_inner())
}

/// Messages as bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}
