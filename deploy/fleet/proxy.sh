#!/bin/sh
# Starts one of the three proxies on this machine: `./proxy.sh 1`, `./proxy.sh 2`, `./proxy.sh 3`.
set -eu
number="$1"
shift
# A program that is named by a path from here.
RINGWAY="$(command -v "${RINGWAY:-ringway}")" || { echo "no ringway on the PATH; set RINGWAY to the program" >&2; exit 127; }
case "$RINGWAY" in /*) ;; *) RINGWAY="$PWD/$RINGWAY" ;; esac
cd "$(dirname "$0")"
export RINGWAY_LISTEN="127.0.0.1:808$number"
export RINGWAY_ADMIN="127.0.0.1:990$number"
export RINGWAY_STORE="${RINGWAY_STORE:-127.0.0.1:6379}"
export RINGWAY_DATA="${RINGWAY_DATA:-data}"
export RINGWAY_NODE="${RINGWAY_NODE:-127.0.0.1:9001}"
[ $# -gt 0 ] || set -- run
exec "$RINGWAY" "$@" --config ringway.yaml
