"""Plays Apple's push certificate service: checks requests, issues certificates, and misbehaves.

What it expects and answers is written from the description of the service, not from the client.
"""

from __future__ import annotations

import datetime
import hashlib
import plistlib
import random
from collections.abc import Callable
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests import pki

HEADER = {
    "ClientApplicationCredential": "1",
    "ClientApplicationName": "XServer",
    "ClientIPAddress": "1",
    "ClientOSName": "MAC OSX",
    "ClientOSVersion": "2.1",
    "LanguagePreference": "1",
    "TransactionId": "1",
    "Version": "1",
}
NAMES = (
    ("com.apple.servermgrd.apns.calendar", "com.apple.calendar", "Service_Calendar"),
    ("com.apple.servermgrd.apns.contact", "com.apple.contact", "Service_Contact"),
    ("com.apple.servermgrd.apns.mail", "com.apple.mail", "Service_Mail"),
    ("com.apple.servermgrd.apns.mgmt", "com.apple.mgmt", "Service_Mgmt"),
    ("com.apple.server.apns.alerts", "com.apple.alerts", "Service_Alerts"),
)
MAIL = 2

BROKEN_HEADER = b"1;: mode=block\r\n"
_SHA1_WITH_RSA = bytes.fromhex("300d06092a864886f70d0101050500")
_DAY = datetime.timedelta(days=1)


class Wrong(Exception):
    """A request is not what macOS Server sends."""


@attrs.frozen
class Asked:
    """A request that was good."""

    path: str
    time: float
    serials: tuple[str | None, ...]
    keys: tuple[rsa.RSAPublicKey, ...]


class AppleCertificates:
    """The service without its connections.

    :param now: seconds since the epoch; what is issued begins an hour before.
    :param authority: issues the certificates.
    :ivar behaviour: ``good``; ``shuffled`` entries; ``numbers`` or ``types`` alone to tell the
        entries apart; ``wrong key``: certificates for keys of its own; ``swapped``: the entries'
        certificates are not what their names say; ``mail missing``; ``mail only``;
        ``html``; ``junk``; ``no response``; ``error CODE``.
    :ivar asked: the good requests.
    :ivar wrong: why other requests were refused.
    """

    def __init__(
        self,
        identity: pki.Issued,
        now: Callable[[], float],
        *,
        apple_id: str = "alice@example.org",
        password: str = "correct horse",
        authority: pki.Authority | None = None,
    ) -> None:
        self.behaviour = "good"
        self.lifetime = 365 * _DAY
        self.topic = pki.MAIL_TOPIC
        self.asked: list[Asked] = []
        self.wrong: list[str] = []
        self.serials: set[str] = set()
        self._authority = authority or pki.Authority.create("a stand-in for Apple")
        self._identity = identity
        self._now = now
        self._user = {
            "AccountName": apple_id,
            "PasswordHash": hashlib.sha256(password.encode()).hexdigest(),
        }
        self._random = random.Random(1)

    def answer(self, path: str, body: bytes) -> bytes:
        """The body of the answer to a request."""
        try:
            asked = self._check(path, body)
        except Wrong as wrong:
            self.wrong.append(str(wrong))
            return status(-1, str(wrong))
        self.asked.append(asked)
        if self.behaviour.startswith("error "):
            code = int(self.behaviour.removeprefix("error "))
            return status(code, "ServiceType is Invalid" if code == -80010 else "No")
        if self.behaviour == "html":
            return b"<!DOCTYPE html>\n<html><body>Sign in to the network</body></html>"
        if self.behaviour == "junk":
            return b"\x00\xff" * 100
        if self.behaviour == "no response":
            return plistlib.dumps({"Header": HEADER})
        return plistlib.dumps(
            {
                "Header": HEADER,
                "Response": {
                    "Status": {"ErrorCode": 0, "ErrorMessage": "", "ErrorDescription": ""},
                    "Certificates": self._entries(asked),
                },
            }
        )

    # -------------------------------------------------------------- checking

    def _check(self, path: str, body: bytes) -> Asked:
        outer = plistlib.loads(body, fmt=plistlib.FMT_XML)
        if not isinstance(outer, dict):
            raise Wrong("not a dictionary")
        _same("outer keys", set(outer), {
            "PushCertCertificateChain", "PushCertRequestPlist", "PushCertSignature",
            "PushCertSignedRequest",
        })  # fmt: skip
        _same("PushCertSignedRequest", outer["PushCertSignedRequest"], True)
        chain = [self._identity.certificate, *self._identity.chain]
        expected = b"".join(c.public_bytes(serialization.Encoding.DER) for c in chain)
        _same("PushCertCertificateChain", outer["PushCertCertificateChain"], expected)
        signer = self._identity.certificate.public_key()
        assert isinstance(signer, rsa.RSAPublicKey)
        _verify(signer, outer["PushCertSignature"], outer["PushCertRequestPlist"])
        inner = plistlib.loads(outer["PushCertRequestPlist"], fmt=plistlib.FMT_XML)
        _same("inner keys", set(inner), {"Header", "Request"})
        _same("Header", inner["Header"], HEADER)
        request = inner["Request"]
        entries = request.pop("CertRequestList")
        _same("Request", request, {
            "ProfileType": "Production", "RequesterType": "XServer", "User": self._user,
        })  # fmt: skip
        _same("number of entries", len(entries), 5)
        for number, entry in enumerate(entries):
            self._check_entry(path, number, entry)
        return Asked(
            path,
            self._now(),
            tuple(entry.get("CertificateSerialNumber") for entry in entries),
            tuple(_check_csr(number, entry["CSR"]) for number, entry in enumerate(entries)),
        )

    def _check_entry(self, path: str, number: int, entry: dict[str, Any]) -> None:
        _, description, service_type = NAMES[number]
        _same("CertRequestNo", entry["CertRequestNo"], number)
        _same("ServiceType", entry["ServiceType"], service_type)
        host, _, rest = entry["Description"].partition(" - apns:")
        _same("Description", (bool(host), rest), (True, description))
        names = {"CSR", "CertRequestNo", "Description", "ServiceType"}
        serial = entry.get("CertificateSerialNumber")
        if path.endswith("/renew"):
            if number == MAIL or serial is not None:
                _same("serial number is known", serial in self.serials, True)
                names.add("CertificateSerialNumber")
        elif not path.endswith("/new"):
            raise Wrong(f"path {path}")
        _same("keys of the entry", set(entry), names)

    # -------------------------------------------------------------- issuing

    def _entries(self, asked: Asked) -> list[dict[str, object]]:
        certificates = [self._issue(number, key) for number, key in enumerate(asked.keys)]
        if self.behaviour == "swapped":
            certificates = certificates[1:] + certificates[:1]
        entries: list[dict[str, object]] = [
            {
                "Certificate": certificate.decode(),
                "CertRequestNo": number,
                "Description": f"x - apns:{NAMES[number][1]}",
                "ServiceType": NAMES[number][2],
            }
            for number, certificate in enumerate(certificates)
        ]
        if self.behaviour == "mail missing":
            del entries[MAIL]
        if self.behaviour == "mail only":
            entries = [entries[MAIL]]
        if self.behaviour in ("shuffled", "numbers", "types"):
            self._random.shuffle(entries)
        for name, only in (("ServiceType", "numbers"), ("CertRequestNo", "types")):
            if self.behaviour == only:
                for entry in entries:
                    del entry[name]
        return entries

    def _issue(self, number: int, asked: rsa.RSAPublicKey) -> bytes:
        own = self._authority.key.public_key()
        key = own if self.behaviour == "wrong key" else asked
        topic = self.topic if number == MAIL else self.topic.replace("mail", f"other{number}")
        now = datetime.datetime.fromtimestamp(self._now(), datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.USER_ID, topic),
                        x509.NameAttribute(NameOID.COMMON_NAME, f"APSP:{number}"),
                        x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
                    ]
                )
            )
            .issuer_name(self._authority.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY / 24)
            .not_valid_after(now + self.lifetime)
            .add_extension(x509.UnrecognizedExtension(pki.PRODUCTION, b"\x05\x00"), False)
            .sign(self._authority.key, hashes.SHA256())
        )
        self.serials.add(f"{certificate.serial_number:x}")
        return certificate.public_bytes(serialization.Encoding.PEM)


def status(code: int, message: str) -> bytes:
    """The answer of a service that issues nothing."""
    return plistlib.dumps(
        {
            "Response": {
                "Status": {"ErrorCode": code, "ErrorMessage": message, "ErrorDescription": message}
            }
        }
    )


def _same(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found!r}, not {expected!r}")


def _verify(key: rsa.RSAPublicKey, signature: bytes, content: bytes) -> None:
    try:
        key.verify(signature, content, padding.PKCS1v15(), hashes.SHA1())
    except InvalidSignature:
        raise Wrong("a signature is wrong") from None


def _check_csr(number: int, text: str) -> rsa.RSAPublicKey:
    csr = x509.load_pem_x509_csr(text.encode())
    subject = sorted((a.oid.dotted_string, str(a.value)) for a in csr.subject)
    _same("CSR subject", subject, [
        (NameOID.COMMON_NAME.dotted_string, NAMES[number][0]),
        (NameOID.COUNTRY_NAME.dotted_string, "US"),
    ])  # fmt: skip
    key = csr.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    _same("CSR key size", key.key_size, 2048)
    # cryptography does not verify SHA-1 in signing requests any more.
    der = csr.public_bytes(serialization.Encoding.DER)
    _same("CSR algorithm", _SHA1_WITH_RSA in der, True)
    _verify(key, csr.signature, csr.tbs_certrequest_bytes)
    return key


# ---------------------------------------------------------------- over HTTP


class AppleCertificatesFactory(Factory):
    """The service on HTTP/1.1, one request a connection.

    :ivar misbehaviour: none if it is empty; ``hang``: no answer; ``drop``: the connection is
        closed instead; ``truncated``: it is closed in the middle of the body; ``endless``: the
        body has no end; ``status LINE``: another status line; ``chunked``: the body comes so.
    :ivar broken: bytes put among the headers; by default what Apple's service is known to send.
    :ivar requests: how many came, good and bad.
    """

    def __init__(self, service: AppleCertificates) -> None:
        self.service = service
        self.misbehaviour = ""
        self.broken = BROKEN_HEADER
        self.requests = 0

    def buildProtocol(self, address: object) -> _Server:
        return _Server(self)


class _Server(Protocol):
    def __init__(self, factory: AppleCertificatesFactory) -> None:
        self._factory = factory
        self._buffer = b""
        self._answered = False

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or self._answered:
            return
        first, *lines = head.decode("ascii").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if len(body) < int(headers["content-length"]):
            return
        self._answered = True
        self._factory.requests += 1
        method, path, _ = first.split(" ")
        answer = self._factory.service.answer(path, body)
        if method != "POST" or headers["content-type"] != "text/x-xml-plist":
            self._factory.service.wrong.append(f"{method} with {headers['content-type']}")
        self._respond(answer)

    def _respond(self, body: bytes) -> None:
        assert self.transport is not None
        misbehaviour = self._factory.misbehaviour
        if misbehaviour == "hang":
            return
        if misbehaviour == "drop":
            self.transport.loseConnection()
            return
        line = b"HTTP/1.1 200 OK"
        if misbehaviour.startswith("status "):
            line = b"HTTP/1.1 " + misbehaviour.removeprefix("status ").encode()
        length = b"Content-Length: %d\r\n" % len(body)
        if misbehaviour == "chunked":
            length = b"Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        if misbehaviour == "truncated":
            body = body[: len(body) // 2]
        if misbehaviour == "endless":
            length, body = b"", b"<" * (2 * 1024 * 1024)
        self.transport.write(
            line
            + b"\r\nContent-Type: text/x-xml-plist\r\n"
            + self._factory.broken
            + length
            + b"Connection: close\r\n\r\n"
            + body
        )
        if misbehaviour != "endless":
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._buffer = b""
