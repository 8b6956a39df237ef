"""TLS of the server: its certificate, the authorities it trusts to vouch for clients, and their renewal in place."""

from __future__ import annotations

import datetime
import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from kaem.errors import ConfigError
from kaem.files import read_regular
from serve.calls.validity import validity_of
from serve.reloaded_file import ReloadedFile
from serve.settings import ServeSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the server shows and demands, as PEM.

    Attributes:
        certificate: Its certificate and the chain behind it.
        key: The private key of that certificate.
        authorities: Who may vouch for clients; None where clients need no certificate.
    """

    certificate: bytes
    key: bytes
    authorities: bytes | None


class Tls:
    """Certificates of one server, from the files that its settings name.

    Args:
        settings: With `certificate_file` and `key_file`.

    Raises:
        ConfigError: A file cannot be read, is not PEM, or key and certificate do not belong together.
    """

    def __init__(self, settings: ServeSettings) -> None:
        if not settings.certificate_file or not settings.key_file:
            raise ConfigError("TLS needs a certificate and a key")
        self._certificate, self._key = Path(settings.certificate_file), Path(settings.key_file)
        self._authorities = Path(settings.client_ca_file) if settings.client_ca_file else None
        paths = [self._certificate, self._key, *([self._authorities] if self._authorities else [])]
        self._identity = ReloadedFile("certificates", paths, self._read)
        self._given: Identity | None = None  # to gRPC
        self._http: tuple[Identity, ssl.SSLContext] | None = None
        self._told: dict[Path, str] = {}  # what the log was told of a file

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for a gRPC port; the files are looked at again before every handshake."""
        self._given = self._present()
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._given), self._renew, require_client_authentication=self._authorities is not None
        )

    def http_context(self) -> ssl.SSLContext:
        """Return a context for HTTPS; certificates are renewed likewise, and clients need none: probes have none."""
        self._present()
        context = self._context()
        context.sni_callback = self._switch
        return context

    def _present(self) -> Identity:
        """Return what is shown now, and warn of what clients will not take, once for each change of that."""
        identity, now = self._identity.value(), datetime.datetime.now(datetime.UTC)
        for path, content in ((self._certificate, identity.certificate), (self._authorities, identity.authorities)):
            if path is None or content is None:
                continue
            validity = validity_of(content)
            trouble = "" if validity is None else validity.trouble(now)
            if trouble != self._told.get(path, ""):
                self._told[path] = trouble
                if trouble:
                    _log.warning("certificate %s %s: renew the file in place", path, trouble)
        return identity

    def _renew(self) -> Any:
        """Return the changed configuration, or None where nothing changed."""
        identity = self._present()
        if identity is self._given:
            return None
        self._given = identity
        return _configuration(identity)

    def _switch(self, connection: Any, name: str | None, old: ssl.SSLContext) -> None:
        identity = self._present()
        if self._http is None or self._http[0] is not identity:
            self._http = identity, self._context()
        connection.context = self._http[1]

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_pair(context, self._certificate, self._key)
        return context

    def _read(self) -> Identity:
        certificate = _content("certificate", self._certificate)
        key = _content("key", self._key)
        authorities = _content("client CA file", self._authorities) if self._authorities else None
        # gRPC itself would only say that the port cannot be opened.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(context, self._certificate, self._key)
        if authorities is not None:
            try:
                context.load_verify_locations(cadata=authorities.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise ConfigError(f"the client CA file {self._authorities} holds no PEM certificate") from None
        return Identity(certificate, key, authorities)


def _configuration(identity: Identity) -> Any:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], root_certificates=identity.authorities
    )


def _content(what: str, path: Path) -> bytes:
    try:
        return read_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the {what} {path}: {reason}") from None


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # A key that is locked must not stop to ask a human for its password.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"certificate {certificate} and key {key} cannot be used together: "
            f"{getattr(error, 'reason', None) or error}",
            hint="give PEM files of one pair, the key without a password",
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {certificate} and {key}: {error.strerror}") from None
