"""The rehearsal server's certificate: the one it is given, or one made at start for localhost and 127.0.0.1.

A certificate is made by `openssl`, which is on nearly every machine; only a server that encrypts needs it.

Invariants
- A key that was made here is never left on the disk.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

from broker.contract.errors import EcmError

__all__ = ["server_context"]

_DAYS = 30
_WITHIN_S = 30.0


def server_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """A server's TLS context. Raises EcmError sink_failed if there is no certificate to be had."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if certificate is not None:
        _load(context, certificate, key)
        return context
    with tempfile.TemporaryDirectory(prefix="ecm-sink-") as place:
        made, made_key = Path(place) / "cert.pem", Path(place) / "key.pem"
        _make(made, made_key)
        _load(context, made, made_key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        # OpenSSL gives no reason for a file in which there is nothing in PEM.
        reason = error.reason.replace("_", " ").lower() if error.reason else "nothing in PEM is there"
        raise EcmError(
            "sink_failed",
            f"not a certificate and its key: {certificate}, {key}: {reason}",
            hint="--cert takes a certificate chain and --key its private key, both in PEM; without them one is made",
        ) from error
    except OSError as error:
        raise EcmError("sink_failed", f"cannot read {certificate} or {key}: {error.strerror}") from error


def _make(certificate: Path, key: Path) -> None:
    if shutil.which("openssl") is None:
        raise EcmError(
            "sink_failed", "no openssl to make a certificate with", hint="install it, or give --cert and --key"
        )
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(_DAYS), "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_WITHIN_S)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
        raise EcmError("sink_failed", f"openssl made no certificate: {last}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EcmError("sink_failed", f"openssl made no certificate: {error}") from error
