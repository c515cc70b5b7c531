"""Files from the network, or a clear line that says where to put them by hand.

Mirrors are tried in order. A file is written beside its place as .part, and takes its name only when its
length and its sha256 are the published ones: whatever goes wrong, nothing half-written is left. What began as
https never goes on as http.
"""

import hashlib
import os
import time
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import HTTPRedirectHandler, build_opener

from minisagan.errors import DataError
from minisagan.stderr import progress

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 18


def fetch(files, mirrors, folder):
    """Download `files`, {name: (bytes, sha256)}, into `folder`; DataError when no mirror has one."""
    for file, (size, sha256) in files.items():
        failures = []
        for mirror in mirrors:
            try:
                _fetch(mirror + file, folder / file, size, sha256)
                break
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{mirror}: {error}")
        else:
            raise DataError(
                f"cannot download {file} ({'; '.join(failures)}): put {' and '.join(files)} into {folder}, "
                "or choose data that needs no download: drawn-digits, or a folder of images"
            )


def _fetch(url, path, size, sha256):
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may fetch it too
    digest, got = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{path.name}.*.part"):
        if time.time() - left.stat().st_mtime > 10 * TIMEOUT:  # who writes one, writes often: this one was killed
            left.unlink()
    try:
        with build_opener(_NeverToPlainHttp).open(url, timeout=TIMEOUT) as reply, open(part, "wb") as file:
            if reply.headers.get_content_type() == "text/html":
                raise ValueError("a web page came instead of the file")
            while got <= size and (data := reply.read(CHUNK)):
                file.write(data)
                digest.update(data)
                got += len(data)
                progress(f"downloading {path.name}", min(got, size), size)
        if got != size:
            raise ValueError(f"{'more than ' * (got > size)}{min(got, size)} bytes came, not {size}")
        if digest.hexdigest() != sha256:
            raise ValueError(f"sha256 {digest.hexdigest()} came, not {sha256}")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class _NeverToPlainHttp(HTTPRedirectHandler):
    def redirect_request(self, request, reply, code, message, headers, url):
        if request.type == "https" and not url.lower().startswith("https:"):
            raise URLError(f"refused to go on from https to {url}")
        return super().redirect_request(request, reply, code, message, headers, url)
