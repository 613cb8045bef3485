"""The emulator as a program: ``main.py DATA REST_PORT GRPC_PORT``, on loopback; port 0 takes a free one.

Prints one line of JSON with the ports once it answers. Runs with the emulator's Python and ends with its parent.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from pathlib import Path

HOST = "127.0.0.1"


def main() -> None:
    """Serve until told to stop."""
    data, rest_port, grpc_port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # With the protocol named, asyncio turns Nagle's algorithm off, which costs 40 ms per answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, rest_port))
    os.environ["DATA_DIR"] = str(data)
    os.environ["DEFAULT_PROJECT_ID"] = os.environ["DEFAULT_DATASET_ID"] = "local"
    # The settings are read when these are imported.
    import fixes
    import memory
    import speed
    import storage
    import strict
    import uvicorn
    from local_bigquery.app import app
    from local_bigquery.engine import database
    from local_bigquery.grpc import server as grpc_server

    storage.apply()
    memory.apply()
    speed.apply(app)
    fixes.apply()
    strict.apply(app)
    database.connection()
    grpc, port = grpc_server.start(HOST, grpc_port)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(json.dumps({"rest": listener.getsockname()[1], "grpc": port}), flush=True)
    asyncio.run(server.serve(sockets=[listener]))
    grpc.stop(None)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
