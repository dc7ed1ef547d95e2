"""What is said to Apple's push certificate service, and what it answers; pure.

The messages are those of macOS Server ("XServer"), as the daemons that stood in for it send them
(dovecot-xaps-daemon, macos-server-apns-certs).
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from xaps.credentials.certificate import CertificateInfo, CredentialError, ascii_line
from xaps.credentials.reading import Blob, as_pem, read_any

CONTENT_TYPE = "text/x-xml-plist"

_SHA1_WITH_RSA = bytes.fromhex("300d06092a864886f70d0101050500")
"""AlgorithmIdentifier sha1WithRSAEncryption (RFC 3279)."""

_CODE = re.compile("-?[0-9]{1,18}", re.ASCII)


class ServiceError(Exception):
    """The service gave no certificate; `what` goes on after its name, in one line."""

    def __init__(self, what: str) -> None:
        super().__init__(f"Apple's certificate service {what}")


@attrs.frozen
class Service:
    """One of the five certificates that macOS Server asks for at once."""

    number: int
    common_name: str
    description: str
    service_type: str


SERVICES = (
    Service(0, "com.apple.servermgrd.apns.calendar", "com.apple.calendar", "Service_Calendar"),
    Service(1, "com.apple.servermgrd.apns.contact", "com.apple.contact", "Service_Contact"),
    Service(2, "com.apple.servermgrd.apns.mail", "com.apple.mail", "Service_Mail"),
    Service(3, "com.apple.servermgrd.apns.mgmt", "com.apple.mgmt", "Service_Mgmt"),
    Service(4, "com.apple.server.apns.alerts", "com.apple.alerts", "Service_Alerts"),
)
MAIL = SERVICES[2]

Keys: TypeAlias = Mapping[Service, rsa.RSAPrivateKey]


@attrs.frozen
class Account:
    apple_id: str
    password_hash: str = attrs.field(repr=False)
    """SHA-256 of the password, in lower-case hex. Never logged."""


def read_server_identity(file: Blob, password: bytes | None = None) -> CertificateInfo:
    """Key and certificates of a copy of macOS Server, which sign requests; PEM or PKCS#12."""
    info = read_any(file, password)
    if info.key is None:
        what = "there is no private key"
    elif not info.key_matches:
        what = "certificate and private key do not match"
    elif not isinstance(info.key, rsa.RSAPrivateKey):
        what = "the private key is not an RSA key"
    else:
        return info
    wanted = "serverIdentity must hold the key and the certificates of your macOS Server"
    raise CredentialError(file.name, what, wanted)


def request_body(
    identity: CertificateInfo,
    account: Account,
    host_name: str,
    keys: Keys,
    serials: Mapping[Service, str],
) -> bytes:
    """The body of a request for all five certificates.

    :param keys: the new ones, which the certificates are for.
    :param serials: of the certificates to be renewed, in hex; empty for the first issue.
    """
    entries = []
    for service in SERVICES:
        entry = {
            "CSR": signing_request(service.common_name, keys[service]).decode(),
            "CertRequestNo": service.number,
            "Description": f"{host_name} - apns:{service.description}",
            "ServiceType": service.service_type,
        }
        if service in serials:
            entry["CertificateSerialNumber"] = serials[service]
        entries.append(entry)
    inner = plistlib.dumps(
        {
            "Header": {
                "ClientApplicationCredential": "1",
                "ClientApplicationName": "XServer",
                "ClientIPAddress": "1",
                "ClientOSName": "MAC OSX",
                "ClientOSVersion": "2.1",
                "LanguagePreference": "1",
                "TransactionId": "1",
                "Version": "1",
            },
            "Request": {
                "CertRequestList": entries,
                "ProfileType": "Production",
                "RequesterType": "XServer",
                "User": {"AccountName": account.apple_id, "PasswordHash": account.password_hash},
            },
        }
    )
    assert isinstance(identity.key, rsa.RSAPrivateKey)
    chain = [c.public_bytes(serialization.Encoding.DER) for c in identity.chain]
    return plistlib.dumps(
        {
            "PushCertCertificateChain": b"".join(chain),
            "PushCertRequestPlist": inner,
            "PushCertSignature": _sign(identity.key, inner),
            "PushCertSignedRequest": True,
        }
    )


def _sign(key: rsa.RSAPrivateKey, content: bytes) -> bytes:
    # SHA-1 is what the service verifies.
    return key.sign(content, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303 - Apple's choice


def signing_request(common_name: str, key: rsa.RSAPrivateKey) -> bytes:
    """A PKCS#10 request, PEM, signed with SHA-1 as the service wants it.

    cryptography refuses to make these by now, so its request is signed anew.
    """
    names = ((NameOID.COUNTRY_NAME, "US"), (NameOID.COMMON_NAME, common_name))
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    content = builder.sign(key, hashes.SHA256()).tbs_certrequest_bytes
    signature = _der(0x03, b"\x00" + _sign(key, content))
    return as_pem("CERTIFICATE REQUEST", _der(0x30, content + _SHA1_WITH_RSA + signature))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    assert len(content) > 127  # else the length takes another form
    return bytes([tag, 0x80 | len(size)]) + size + content


def read_answer(body: bytes) -> list[tuple[Service, bytes]]:
    """The certificates (PEM) in the service's answer, in whichever order they are; those that
    nobody can tell what they are for are left out.

    :raises ServiceError: it refused, or the answer cannot be understood.
    """
    start = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise ServiceError(
            "answered with a web page, not a property list; something is in between, or the"
            " service is out of order"
        )
    try:
        document: Any = plistlib.loads(body, fmt=plistlib.FMT_XML)
    except Exception as error:  # damaged ones make it fail in any way
        raise ServiceError(
            f"sent no property list, or a damaged one ({type(error).__name__})"
        ) from None
    response = document.get("Response") if isinstance(document, dict) else None
    if not isinstance(response, dict):
        raise ServiceError("sent a property list without a Response")
    _check_status(response.get("Status"))
    entries = response.get("Certificates")
    if not isinstance(entries, list):
        raise ServiceError("sent no certificates")
    certificates = []
    for entry in filter(lambda entry: isinstance(entry, dict), entries):
        service, pem = _service(entry), entry.get("Certificate")
        if isinstance(pem, str):
            pem = pem.encode("utf-8", "replace")
        if service is not None and isinstance(pem, bytes):
            certificates.append((service, pem))
    return certificates


def _check_status(status: Any) -> None:
    try:
        code = str(status["ErrorCode"])
    except (TypeError, LookupError, ValueError):  # Python prints no number of thousands of digits
        code = ""
    if not isinstance(status, dict) or not _CODE.fullmatch(code):
        raise ServiceError("sent an answer without an ErrorCode")
    if int(code) == 0:
        return
    words = [status.get(name) for name in ("ErrorMessage", "ErrorDescription")]
    said = ", ".join(dict.fromkeys(ascii_line(word) for word in words if isinstance(word, str)))
    explained = ""
    if int(code) == -80010:  # "service type invalid"
        explained = (
            ": since late 2024 Apple issues and renews no certificates for macOS Server, so a"
            " certificate for a topic com.apple.mobilemail.push... is needed (certificateFilePem)"
        )
    raise ServiceError(f"refused with error {code} ({said}){explained}")


def _service(entry: Mapping[str, object]) -> Service | None:
    """What an entry is for, by its type or else its number, never by position."""
    service_type, number = entry.get("ServiceType"), entry.get("CertRequestNo")
    for service in SERVICES:
        if service_type == service.service_type:
            return service
        if service_type is None and number in (service.number, str(service.number)):
            return service
    return None
