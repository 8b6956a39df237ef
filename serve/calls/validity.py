"""When certificates hold: read from their DER, of which the standard library shows the dates of authorities only.

SEQUENCE { SEQUENCE { [0] version?, serial, algorithm, issuer, SEQUENCE { from, until }, ... }, ... }
"""

from __future__ import annotations

import datetime
import re
import ssl
from typing import NamedTuple

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME = 0xA0, 0x17
_SOON = datetime.timedelta(days=7)


class Validity(NamedTuple):
    """Between which moments certificates hold: all of a file together."""

    begin: datetime.datetime
    end: datetime.datetime

    def trouble(self, now: datetime.datetime) -> str:
        """Return what is wrong at a moment, as what the certificate does or is; "" if nothing is."""
        if now >= self.end:
            return f"has expired on {self.end:%Y-%m-%d %H:%M} UTC"
        if now < self.begin:
            return f"is not valid before {self.begin:%Y-%m-%d %H:%M} UTC"
        return f"expires on {self.end:%Y-%m-%d %H:%M} UTC" if self.end - now < _SOON else ""


def validity_of(pem: bytes) -> Validity | None:
    """Return when all certificates of a PEM file hold; None where their dates cannot be read."""
    try:
        found = [_validity(ssl.PEM_cert_to_DER_cert(text)) for text in _PEM.findall(pem.decode("ascii", "replace"))]
        return Validity(max(one.begin for one in found), min(one.end for one in found))
    except (ValueError, IndexError):
        return None


def _validity(der: bytes) -> Validity:
    place = _content(der, _content(der, 0)[1])[1]  # into the certificate, and into what is signed
    if der[place] == _VERSION:
        place = _content(der, place)[2]
    for _ in ("serial", "algorithm", "issuer"):
        place = _content(der, place)[2]
    first = _content(der, _content(der, place)[1])
    return Validity(_moment(der, first), _moment(der, _content(der, first[2])))


def _content(der: bytes, place: int) -> tuple[int, int, int]:
    """Return the tag of an element, where its content begins, and where it ends."""
    length, begin = der[place + 1], place + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[place + 2 : begin], "big")
    return der[place], begin, begin + length


def _moment(der: bytes, element: tuple[int, int, int]) -> datetime.datetime:
    tag, begin, end = element
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year, from 1950 on
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC)
