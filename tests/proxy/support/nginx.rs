use super::{eventually, have};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// An nginx with one server, ended when dropped.
pub struct Nginx {
    pub address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    /// `listens` stands behind its port; `None` where nginx is not installed.
    pub fn start(listens: &str, server: &str) -> Option<Nginx> {
        if !have("nginx", "nginx") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().display();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {place}/{name};\n"))
            .concat();
        let config = folder.path().join("nginx.conf");
        std::fs::write(
            &config,
            format!(
                "daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n{temporary}server {{ listen {address} {listens}; {server} }} }}\n"
            ),
        )
        .unwrap();
        let child =
            Command::new("nginx").arg("-c").arg(&config).args(["-e", "stderr"]).stderr(Stdio::null()).spawn().unwrap();
        eventually("nginx", || TcpStream::connect(address).is_ok());
        Some(Nginx { address, child, _folder: folder })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
