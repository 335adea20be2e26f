use super::client::Client;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A node that follows a script, one thread a connection.
pub struct Node {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The heads of all requests that arrived, in order.
    requests: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
}

/// A connection as the node sees it.
pub struct Peer {
    pub client: Client,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// The script gets every connection; when it returns, the connection closes.
    pub fn start(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let node = Node { address, connections: Arc::default(), requests: Arc::default(), stopped: Arc::default() };
        let (connections, requests, stopped) =
            (Arc::clone(&node.connections), Arc::clone(&node.requests), Arc::clone(&node.stopped));
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                std::thread::spawn(move || {
                    let mut peer = Peer { client: Client::over(stream), requests };
                    script(&mut peer);
                });
            }
        });
        node
    }

    /// Answers every request with 200, its own name and what it was asked.
    pub fn echo() -> Node {
        Node::start(|peer| {
            while let Some(head) = peer.request() {
                let body = peer.body_of(&head);
                let text = format!("{head}\n\n{}", String::from_utf8_lossy(&body));
                peer.answer(&text);
            }
        })
    }

    /// Answers every request with these bytes.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Node {
        let answer = answer.into();
        Node::start(move |peer| {
            while let Some(head) = peer.request() {
                peer.body_of(&head);
                peer.send(&answer);
            }
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

impl Peer {
    pub fn over(stream: TcpStream) -> Peer {
        Peer { client: Client::over(stream), requests: Arc::default() }
    }

    /// The head of the next request; `None` where the proxy has closed.
    pub fn request(&mut self) -> Option<String> {
        if self.client.has_ended() {
            return None;
        }
        let head = self.client.head();
        self.requests.lock().unwrap().push(head.clone());
        Some(head)
    }

    /// Has something stand among the requests that have come, for nodes that read them in another way.
    pub fn note(&self, what: &str) {
        self.requests.lock().unwrap().push(what.to_owned());
    }

    /// Reads the body that a head announces, and gives it with its trailers as they came.
    pub fn body_of(&mut self, head: &str) -> Vec<u8> {
        let field = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        if field("transfer-encoding").is_some() {
            return self.client.chunked_body();
        }
        let length = field("content-length").map_or(0, |length| length.parse().unwrap());
        self.client.exactly(length)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The proxy may have gone away, which is for the test to judge.
        let _ = self.client.stream.write_all(bytes.as_ref());
    }

    pub fn answer(&mut self, body: &str) {
        self.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    }

    /// Closes with a reset.
    pub fn reset(&mut self) {
        let socket = socket2::SockRef::from(&self.client.stream);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}
