//! One call of another storage daemon's `Copies.Send`: questions go out, the list and the bytes come in. Bulk data is handed on in the
//! pieces that the network delivers ([`tandem_proto::bulk`]): the generated client would put each message together first.

use std::{future::poll_fn, pin::Pin, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Version, header};
use parking_lot::Mutex;
use tandem_proto::{
    bulk::Unframer,
    codec::CheckedCodec,
    pb::{self, copy_down::Body as Down},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Code, Status,
    body::Body,
    codec::{Codec as _, EncodeBody},
    codegen::{Body as _, Service as _},
    transport::Channel,
};

use super::unmoved::SEND;

/// Pieces that came and are not written yet: 4 MiB, if the network delivers 64 KiB at a time.
const PIECES_AHEAD: usize = 64;

/// What comes, and once it has ended, why.
pub(super) struct Answers {
    /// The messages.
    pub input: mpsc::Receiver<Down>,
    /// Why it ended, if it was not the end of the call.
    pub why: Arc<Mutex<Option<Status>>>,
}

/// Calls. `stalled`: after so long without anything the call counts as broken.
pub(super) async fn ask(
    mut channel: Channel,
    questions: mpsc::Receiver<pb::CopyUp>,
    stalled: Duration,
) -> Result<Answers, Status> {
    let encoder = CheckedCodec::<pb::CopyUp, pb::CopyDown>::default().encoder();
    let questions = EncodeBody::new_client(encoder, ReceiverStream::new(questions).map(Ok), None, None);
    let mut request = http::Request::new(Body::new(questions));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(SEND);
    let headers = request.headers_mut();
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let broken = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(broken)?;
    let response = channel.call(request).await.map_err(broken)?;
    if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    if !response.status().is_success() {
        return Err(Status::unknown(format!("the source answers with HTTP {}", response.status())));
    }
    let (to, input) = mpsc::channel(PIECES_AHEAD);
    let why = Arc::<Mutex<Option<Status>>>::default();
    let noted = why.clone();
    tokio::spawn(async move {
        if let Err(status) = hand_on(response.into_body(), &to, stalled).await {
            *noted.lock() = Some(status);
        }
    });
    Ok(Answers { input, why })
}

/// Until it ends, or nobody takes it.
async fn hand_on(mut body: Body, to: &mpsc::Sender<Down>, stalled: Duration) -> Result<(), Status> {
    let mut unframer = Unframer::default();
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let next = tokio::select! {
            () = to.closed() => return Ok(()),
            next = tokio::time::timeout(stalled, next) => next,
        };
        let frame = match next {
            Err(_) => return Err(Status::unavailable(format!("nothing came for {} s", stalled.as_secs()))),
            Ok(None) => return Ok(()),
            Ok(Some(frame)) => frame?,
        };
        let chunk = match frame.into_data() {
            Ok(chunk) => chunk,
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return match Status::from_header_map(&trailers) {
                    Some(status) if status.code() != Code::Ok => Err(status),
                    _ => Ok(()),
                };
            }
        };
        unframer.push(chunk);
        while let Some(down) = unframer.message()? {
            let body = down.body.ok_or_else(|| Status::unimplemented("a message that this version does not know"))?;
            if to.send(body).await.is_err() {
                return Ok(());
            }
        }
    }
}
