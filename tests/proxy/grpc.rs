//! gRPC through the proxy, by tonic: one message each way, and streams both ways at once.

use crate::support::Proxy;
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{StreamingService, UnaryService};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Response, Status, Streaming};

/// Messages are texts, without a schema.
#[derive(Clone, Copy, Default)]
struct Texts;

impl Codec for Texts {
    type Encode = String;
    type Decode = String;
    type Encoder = Texts;
    type Decoder = Texts;

    fn encoder(&mut self) -> Texts {
        Texts
    }

    fn decoder(&mut self) -> Texts {
        Texts
    }
}

impl Encoder for Texts {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Texts {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        String::from_utf8(bytes.to_vec()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Says what it was told.
#[derive(Clone)]
struct Echo;

async fn answer(request: http::Request<tonic::body::Body>) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let is_stream = request.uri().path() == "/test.Echo/Stream";
    let mut grpc = tonic::server::Grpc::new(Texts);
    Ok(match is_stream {
        true => grpc.streaming(Echo, request).await,
        false => grpc.unary(Echo, request).await,
    })
}

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = Answering<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move {
            match request.into_inner().as_str() {
                "fail" => Err(Status::failed_precondition("as was asked")),
                text => Ok(Response::new(format!("you said {text}"))),
            }
        })
    }
}

impl StreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<String, Status>> + Send>>;
    type Future = Answering<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<String>>) -> Self::Future {
        Box::pin(async move {
            let said = request.into_inner().map(|text| text.map(|text| format!("you said {text}")));
            Ok(Response::new(Box::pin(said) as Self::ResponseStream))
        })
    }
}

fn start_echo() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((socket, _)) = listener.accept().await {
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
                    answer(request.map(tonic::body::Body::new))
                });
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                tokio::spawn(builder.serve_connection(hyper_util::rt::TokioIo::new(socket), service));
            }
        });
    });
    address
}

#[test]
fn calls_and_streams_pass_both_ways() {
    let proxy = Proxy::start(&Proxy::pool(&[start_echo()], "    protocol: http2\n"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{}", proxy.address)).unwrap().connect().await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        let unary = PathAndQuery::from_static("/test.Echo/Unary");
        for number in 0..20 {
            client.ready().await.unwrap();
            let answer = client.unary(Request::new(format!("{number}")), unary.clone(), Texts).await.unwrap();
            assert_eq!(answer.into_inner(), format!("you said {number}"));
        }
        client.ready().await.unwrap();
        let failed = client.unary(Request::new("fail".to_owned()), unary, Texts).await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (Code::FailedPrecondition, "as was asked"));

        // Each answer comes before the next question is asked.
        let (ask, questions) = tokio::sync::mpsc::unbounded_channel();
        client.ready().await.unwrap();
        let stream = PathAndQuery::from_static("/test.Echo/Stream");
        ask.send("first".to_owned()).unwrap();
        let questions = Request::new(UnboundedReceiverStream::new(questions));
        let mut answers = client.streaming(questions, stream, Texts).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap(), "you said first");
        for number in 0..50 {
            ask.send(format!("{number}")).unwrap();
            assert_eq!(answers.message().await.unwrap().unwrap(), format!("you said {number}"));
        }
        drop(ask);
        assert_eq!(answers.message().await.unwrap(), None);
    });
}
