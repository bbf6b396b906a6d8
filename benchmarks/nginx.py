"""The free upstream: nginx answering from memory, and nginx as a plain reverse proxy for comparison."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .paced import completion

CONF = """
worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log; daemon off;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 3600; default_type application/json;
  client_body_temp_path {dir}/tmp; proxy_temp_path {dir}/tmp; fastcgi_temp_path {dir}/tmp;
  uwsgi_temp_path {dir}/tmp; scgi_temp_path {dir}/tmp; client_body_buffer_size 1m;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{body}'; }} }}
}}
"""


def start(folder: Path, port: int = 9100) -> subprocess.Popen[bytes]:
    """Answer every request with one JSON completion."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    conf = folder / "nginx.conf"
    conf.write_text(CONF.format(dir=folder, port=port, body=completion().decode()))
    return subprocess.Popen([nginx, "-c", str(conf), "-p", str(folder)], start_new_session=True)
