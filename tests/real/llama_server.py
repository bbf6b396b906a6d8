"""Run llama.cpp's own HTTP server (the C++ one) on loopback, out of the xllamacpp wheel.

``python -m tests.real.llama_server MODEL.gguf --port N [--api-key KEY] [--embedding] [--no-alias]
[--endless]`` prints one line ``running on http://127.0.0.1:N`` when it answers; SIGTERM stops it.
"""

# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import argparse
import signal
import sys
import threading


def main() -> None:
    """Serve until somebody says stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key")
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--no-alias", action="store_true", help="the model is called by its file's path")
    parser.add_argument("--endless", action="store_true", help="no answer ends before its limit")
    options = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    if not options.no_alias:
        params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_ctx = 8192  # shared by the slots
    params.n_parallel = 2
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.use_jinja = True
    params.endpoint_slots = True
    params.sampling.ignore_eos = options.endless
    params.embedding = options.embedding
    if options.embedding:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    if options.api_key:
        params.api_keys = [options.api_key]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    sys.stdout.write(f"running on {server.listening_address}\n")
    sys.stdout.flush()
    stop.wait()
    del server


if __name__ == "__main__":
    main()
