//! The table of nginx's directives: which are translated, which need no counterpart, and what to do about the others.

/// The treatment of a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Another file of this folder reads it, and lists what it cannot translate.
    Translated,
    /// Ringway does the same by itself, or needs nothing of the kind.
    Needless,
    /// It has no counterpart; the text says what to do.
    Lost(&'static str),
}

use Treatment::{Lost, Needless, Translated};

const COMPRESSION: Treatment = Lost("Ringway does not compress responses: leave that to the nodes");
const SCRIPT: Treatment = Lost("Ringway runs no scripts");
const FILES: Treatment = Lost("Ringway serves no files: let a node do it");
const GATEWAY: Treatment = Lost("Ringway speaks HTTP to its nodes, and no other protocol");
const CONDITION: Treatment = Lost("Ringway has no variables: use the `headers` or `methods` of a route, or the nodes");
const CONTENT: Treatment = Lost("Ringway does not change the content of responses");
const ACCESS: Treatment = Lost("Ringway does not check this: the routes that it protects are refused until you decide");
const LOG: Treatment = Lost("the access log of Ringway is JSON with the fields that `access_log.fields` names");

/// Returns the treatment of a directive.
pub(super) fn treatment(name: &str) -> Treatment {
    match name {
        "http"
        | "events"
        | "server"
        | "location"
        | "upstream"
        | "if"
        | "worker_processes"
        | "listen"
        | "server_name"
        | "ssl_certificate"
        | "ssl_certificate_key"
        | "ssl_protocols"
        | "ssl_client_certificate"
        | "ssl_verify_client"
        | "return"
        | "rewrite"
        | "proxy_pass"
        | "grpc_pass"
        | "proxy_set_header"
        | "grpc_set_header"
        | "add_header"
        | "proxy_hide_header"
        | "proxy_connect_timeout"
        | "proxy_read_timeout"
        | "grpc_connect_timeout"
        | "grpc_read_timeout"
        | "proxy_next_upstream"
        | "proxy_next_upstream_tries"
        | "proxy_cache"
        | "proxy_cache_valid"
        | "proxy_cache_key"
        | "proxy_cache_bypass"
        | "proxy_no_cache"
        | "proxy_ignore_headers"
        | "proxy_cache_use_stale"
        | "proxy_cache_path"
        | "proxy_cache_background_update"
        | "limit_req"
        | "limit_req_zone"
        | "limit_req_status"
        | "limit_conn"
        | "limit_conn_zone"
        | "client_max_body_size"
        | "client_header_timeout"
        | "client_body_timeout"
        | "send_timeout"
        | "keepalive_timeout"
        | "keepalive_requests"
        | "underscores_in_headers"
        | "access_log"
        | "set_real_ip_from"
        | "real_ip_header"
        | "proxy_ssl_verify"
        | "proxy_ssl_name"
        | "proxy_ssl_trusted_certificate"
        | "proxy_ssl_server_name"
        | "proxy_ssl_certificate"
        | "proxy_ssl_certificate_key"
        | "deny"
        | "allow"
        | "internal"
        | "try_files"
        | "auth_basic"
        | "auth_request"
        | "auth_jwt"
        | "satisfy"
        | "valid_referers"
        | "secure_link"
        | "limit_except"
        | "hash"
        | "ip_hash"
        | "least_conn"
        | "random"
        | "least_time"
        | "sticky"
        | "root"
        | "alias"
        | "fastcgi_pass"
        | "uwsgi_pass"
        | "scgi_pass"
        | "memcached_pass"
        | "stub_status" => Translated,
        // Processes, sockets and buffers; connections to nodes are kept, upgrades pass, errors have documents.
        "user"
        | "pid"
        | "error_log"
        | "daemon"
        | "master_process"
        | "load_module"
        | "pcre_jit"
        | "env"
        | "worker_rlimit_nofile"
        | "worker_rlimit_core"
        | "worker_cpu_affinity"
        | "worker_priority"
        | "worker_shutdown_timeout"
        | "thread_pool"
        | "worker_connections"
        | "multi_accept"
        | "use"
        | "accept_mutex"
        | "sendfile"
        | "sendfile_max_chunk"
        | "tcp_nopush"
        | "tcp_nodelay"
        | "aio"
        | "directio"
        | "types"
        | "types_hash_max_size"
        | "types_hash_bucket_size"
        | "default_type"
        | "server_names_hash_bucket_size"
        | "server_names_hash_max_size"
        | "variables_hash_max_size"
        | "variables_hash_bucket_size"
        | "map_hash_bucket_size"
        | "map_hash_max_size"
        | "proxy_headers_hash_max_size"
        | "proxy_headers_hash_bucket_size"
        | "server_tokens"
        | "charset"
        | "open_file_cache"
        | "open_file_cache_valid"
        | "open_file_cache_min_uses"
        | "open_file_cache_errors"
        | "ignore_invalid_headers"
        | "reset_timedout_connection"
        | "client_body_buffer_size"
        | "client_body_temp_path"
        | "client_header_buffer_size"
        | "large_client_header_buffers"
        | "connection_pool_size"
        | "request_pool_size"
        | "output_buffers"
        | "postpone_output"
        | "lingering_close"
        | "lingering_time"
        | "lingering_timeout"
        | "http2"
        | "http2_max_concurrent_streams"
        | "http2_recv_buffer_size"
        | "http2_chunk_size"
        | "ssl_session_cache"
        | "ssl_session_timeout"
        | "ssl_session_tickets"
        | "ssl_ciphers"
        | "ssl_prefer_server_ciphers"
        | "ssl_dhparam"
        | "ssl_ecdh_curve"
        | "ssl_buffer_size"
        | "ssl_conf_command"
        | "ssl_early_data"
        | "ssl"
        | "proxy_http_version"
        | "proxy_buffering"
        | "proxy_buffer_size"
        | "proxy_buffers"
        | "proxy_busy_buffers_size"
        | "proxy_max_temp_file_size"
        | "proxy_temp_path"
        | "proxy_temp_file_write_size"
        | "proxy_request_buffering"
        | "proxy_send_timeout"
        | "proxy_socket_keepalive"
        | "proxy_ssl_session_reuse"
        | "proxy_ssl_protocols"
        | "proxy_ssl_ciphers"
        | "proxy_cache_lock"
        | "proxy_cache_lock_timeout"
        | "proxy_cache_lock_age"
        | "proxy_cache_revalidate"
        | "proxy_cache_methods"
        | "proxy_cache_convert_head"
        | "proxy_pass_header"
        | "grpc_send_timeout"
        | "grpc_buffer_size"
        | "keepalive"
        | "keepalive_time"
        | "zone"
        | "resolver"
        | "resolver_timeout"
        | "log_not_found"
        | "log_subrequest"
        | "rewrite_log"
        | "real_ip_recursive"
        | "break"
        | "index"
        | "etag"
        | "if_modified_since"
        | "limit_req_log_level"
        | "limit_conn_log_level"
        | "limit_conn_status"
        | "recursive_error_pages"
        | "absolute_redirect"
        | "port_in_redirect"
        | "server_name_in_redirect"
        | "chunked_transfer_encoding"
        | "auth_basic_user_file"
        | "auth_request_set"
        | "uninitialized_variable_warn"
        | "proxy_headers"
        | "fastcgi_param"
        | "fastcgi_index"
        | "fastcgi_split_path_info"
        | "fastcgi_read_timeout"
        | "fastcgi_buffers"
        | "fastcgi_buffer_size"
        | "uwsgi_param"
        | "scgi_param"
        | "autoindex"
        | "autoindex_exact_size"
        | "autoindex_localtime"
        | "disable_symlinks" => Needless,
        "map" | "geo" | "split_clients" | "set" | "geoip2" => CONDITION,
        "stream" | "mail" => Lost("Ringway proxies HTTP only"),
        "log_format" => LOG,
        "error_page" | "proxy_intercept_errors" => {
            Lost("errors of nodes pass unchanged; those of Ringway are problem documents (RFC 9457)")
        }
        "expires" => Lost("let the nodes send `Cache-Control`, or set it by `response_headers`"),
        "mirror" => Lost("Ringway does not mirror requests"),
        "limit_rate" | "limit_rate_after" => Lost("Ringway does not limit the rate of a response"),
        "proxy_cache_min_uses" => Lost("every response that may be stored is stored at its first request"),
        "proxy_bind" => Lost("the system chooses the address of connections to nodes"),
        "ssl_stapling" | "ssl_stapling_verify" | "ssl_trusted_certificate" => {
            Lost("Ringway does not staple OCSP responses")
        }
        "ssl_crl" | "ssl_verify_depth" | "ssl_password_file" => Lost("Ringway's TLS does not have this"),
        "proxy_cookie_path" | "proxy_cookie_domain" | "proxy_cookie_flags" => {
            Lost("Ringway does not change the cookies of nodes")
        }
        "proxy_method" | "proxy_set_body" => Lost("Ringway does not change method and body of a request"),
        "proxy_pass_request_headers" | "proxy_pass_request_body" => {
            Lost("nodes get the whole request: remove fields by `request_headers`")
        }
        "proxy_redirect" => Lost("the Location of nodes passes unchanged"),
        "merge_slashes" => Lost("slashes of a path are kept: //x and /x are different paths"),
        "ntlm" => Lost("connections to nodes are shared by all clients"),
        "health_check" => Lost("write a `health_check` for the pool"),
        "slow_start" => Lost("write `slow_start` for the pool"),
        name if name.starts_with("gzip")
            || name.starts_with("brotli")
            || name.starts_with("zstd")
            || name == "gunzip" =>
        {
            COMPRESSION
        }
        name if name.contains("lua") || name.starts_with("js_") || name.starts_with("perl") => SCRIPT,
        name if name.starts_with("sub_filter") || name.starts_with("ssi") || name.starts_with("image_filter") => {
            CONTENT
        }
        name if name.starts_with("add_before") || name.starts_with("add_after") || name.starts_with("xslt") => CONTENT,
        name if name.starts_with("dav") || name.starts_with("mp4") || name == "flv" || name == "empty_gif" => FILES,
        name if name.starts_with("fastcgi_") || name.starts_with("uwsgi_") || name.starts_with("scgi_") => GATEWAY,
        name if name.starts_with("auth_") || name.starts_with("secure_link") => ACCESS,
        _ => Lost("it has no counterpart in Ringway"),
    }
}
