#!/bin/sh
# Starts one of the three proxies on this machine: `./proxy.sh 1`, `./proxy.sh 2`, `./proxy.sh 3`.
set -eu
cd "$(dirname "$0")"
export RINGWAY_LISTEN="127.0.0.1:808$1"
export RINGWAY_ADMIN="127.0.0.1:990$1"
export RINGWAY_STORE="${RINGWAY_STORE:-127.0.0.1:6379}"
export RINGWAY_DATA="${RINGWAY_DATA:-data}"
export RINGWAY_NODE="${RINGWAY_NODE:-127.0.0.1:9001}"
exec "${RINGWAY:-ringway}" "${2:-run}" --config ringway.yaml
