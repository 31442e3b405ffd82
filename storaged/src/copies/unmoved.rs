//! Files of a volume on their way out, without a pass over their bytes between file and socket: what [`tandem_proto::bulk`] is for.
//!
//! `Copies.Send` is answered here instead of by the generated code, which would encode each message as a whole. Who asks sees no
//! difference; every other call goes where it would have gone.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use tandem_proto::{
    bulk,
    codec::{CheckedCodec, framed},
    limits::MESSAGE_MAX_BYTES,
    pb::{self, copies_server::Copies, copies_server::CopiesServer, copy_down::Body as Down},
};
use tokio_stream::Stream;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::Codec as _,
    codegen::{BoxFuture, Service},
    metadata::MetadataMap,
    server::NamedService,
};

use super::CopiesService;

/// The call that is answered here.
pub(super) const SEND: &str = "/tandem.v1.Copies/Send";
/// The service as it is added to a server.
#[derive(Clone)]
pub struct Unmoved {
    service: Arc<CopiesService>,
    others: CopiesServer<CopiesService>,
    question_max_bytes: usize,
}

impl Unmoved {
    /// `others`: the generated server of the same service.
    pub fn new(service: Arc<CopiesService>, others: CopiesServer<CopiesService>) -> Unmoved {
        Unmoved { service, others, question_max_bytes: MESSAGE_MAX_BYTES }
    }

    /// Bounds what is sent to it, message by message.
    pub fn max_decoding_message_size(self, bytes: usize) -> Unmoved {
        Unmoved { others: self.others.max_decoding_message_size(bytes), question_max_bytes: bytes, ..self }
    }
}

impl NamedService for Unmoved {
    const NAME: &'static str = <CopiesServer<CopiesService> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for Unmoved {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != SEND {
            return self.others.call(request);
        }
        let (service, question_max_bytes) = (self.service.clone(), self.question_max_bytes);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let decoder = CheckedCodec::<pb::CopyDown, pb::CopyUp>::default().decoder();
            let questions = Streaming::new_request(decoder, body, None, Some(question_max_bytes));
            let headers = MetadataMap::from_headers(parts.headers);
            Ok(match service.send(tonic::Request::from_parts(headers, parts.extensions, questions)).await {
                Ok(answers) => {
                    let mut response = http::Response::new(Body::new(Answers::new(answers.into_inner())));
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

/// The messages of a stream as the body of an HTTP response, with the status at its end.
struct Answers<S> {
    messages: S,
    /// Of the message whose head was sent.
    data: Option<Bytes>,
    ended: bool,
}

impl<S> Answers<S> {
    fn new(messages: S) -> Answers<S> {
        Answers { messages, data: None, ended: false }
    }
}

impl<S: Stream<Item = Result<pb::CopyDown, Status>> + Unpin> http_body::Body for Answers<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if let Some(data) = this.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        let status = match ready!(Pin::new(&mut this.messages).poll_next(cx)) {
            Some(Ok(down)) => {
                let Some(head) = bulk::head(&down) else { return Poll::Ready(Some(Ok(Frame::data(framed(&down))))) };
                if let Some(Down::Frame(frame)) = down.body {
                    this.data = Some(frame.data);
                }
                return Poll::Ready(Some(Ok(Frame::data(head))));
            }
            Some(Err(status)) => status,
            None => Status::ok(""),
        };
        this.ended = true;
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.data.is_none()
    }
}
