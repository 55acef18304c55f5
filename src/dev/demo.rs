//! The demo services behind the sample site: an upstream DNS server and two web backends, on loopback. They live in the
//! `dev` process itself.

use std::{io, net::SocketAddr, str::FromStr};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// The suffix the demo upstream knows; each name in it has one address.
const SUFFIX: &str = "upstream.test.";
const TTL: u32 = 30;
/// Octets of a request that are read before the answer is sent.
const MAX_REQUEST: usize = 16 << 10;

/// Answers A questions below `upstream.test.` until dropped.
pub(super) async fn serve_upstream(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(address).await?;
    let mut buffer = [0; 1232];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await?;
        if let Some(reply) = answer(&buffer[..length]) {
            // A client that is gone is no reason to stop.
            let _ = socket.send_to(&reply, client).await;
        }
    }
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    let suffix = Name::from_str(SUFFIX).ok()?;
    if !suffix.zone_of(question.name()) {
        reply.metadata.response_code = ResponseCode::Refused;
    } else if question.query_type() == RecordType::A {
        let record = Record::from_rdata(
            question.name().clone(),
            TTL,
            RData::A(A::new(192, 0, 2, 53)),
        );
        reply.add_answer(record);
    }
    reply.add_query(question);
    reply.to_vec().ok()
}

/// Answers every HTTP request with the backend's name until dropped.
pub(super) async fn serve_backend(address: SocketAddr, name: String) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(greet(stream, name.clone()));
    }
}

async fn greet(mut stream: TcpStream, name: String) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < MAX_REQUEST {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()), // a health check
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    let body = format!("hello from {name}\n");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n";
    let reply = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}
