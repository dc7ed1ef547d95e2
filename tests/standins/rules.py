"""What Apple's push service checks in a request, as a function of the request alone.

The order and the reasons are those of Apple's documentation ("Sending notification requests to
APNs", "Handling notification responses from APNs"). Where Apple only recommends (push type), or
cannot know (that the payload is one for iOS Mail), the stand-in insists, so that a slip of the
client does not pass unseen.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID
from pyasn1.codec.der import decoder

from tests import pki

PUSH_TYPES = ("alert", "background", "complication", "location", "mdm", "voip")
MAXIMUM_BODY = 4096
TOKEN_LIFE = 3600.0
"""Seconds after ``iat`` for which a provider token is good."""
CLOCK_SKEW = 60.0
"""Seconds that ``iat`` may lie ahead."""
NOT_A_MAIL_PUSH = "NotAMailPush"
"""The one reason that is not Apple's: the payload is not ``{"aps": {"account-id": ...}}``."""

_DEVICE = re.compile(r"/3/device/(.*)")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){1,100}")


@attrs.frozen
class Answer:
    """What APNs says to a push."""

    status: int = 200
    reason: str = ""
    timestamp: int | None = None
    """Milliseconds since the epoch; sent with 410."""
    raw: bytes | None = None
    """A body to send instead of the JSON one."""

    @property
    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status == 200:
            return b""
        content: dict[str, Any] = {"reason": self.reason}
        if self.timestamp is not None:
            content["timestamp"] = self.timestamp
        return json.dumps(content).encode()


@attrs.frozen
class PushRequest:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, Sequence[str]]
    """Lower-case names; a name that came twice has two values."""
    body: bytes

    @property
    def device_token(self) -> str:
        """As in the path; empty if there is none."""
        match = _DEVICE.fullmatch(self.path)
        return match[1] if match else ""

    @property
    def payload(self) -> Any:
        """The parsed body; ``None`` if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def header(self, name: str) -> str:
        values = self.headers.get(name)
        return values[0] if values else ""


def check(
    request: PushRequest,
    certificate: x509.Certificate | None,
    keys: Sequence[pki.SigningKey],
    now: float,
) -> Answer:
    """The answer that APNs gives to `request`.

    :param certificate: the client's, already verified by TLS. With it, as Apple documents, an
        ``authorization`` header is ignored.
    :param keys: those whose provider tokens are accepted.
    :param now: seconds since the epoch.
    """
    if certificate is None:
        refusal = check_token(request.header("authorization"), keys, now)
        allowed: frozenset[str] | None = None
    else:
        refusal = check_environment(certificate)
        allowed = certificate_topics(certificate)
    return refusal or _check_request(request, allowed) or Answer()


def check_environment(certificate: x509.Certificate) -> Answer | None:
    if any(extension.oid == pki.PRODUCTION for extension in certificate.extensions):
        return None
    return Answer(403, "BadCertificateEnvironment")


def certificate_topic(certificate: x509.Certificate) -> str | None:
    """The topic in the subject."""
    attributes = certificate.subject.get_attributes_for_oid(NameOID.USER_ID)
    return str(attributes[0].value) if attributes else None


def certificate_topics(certificate: x509.Certificate) -> frozenset[str]:
    """All topics that the certificate may push to."""
    topic = certificate_topic(certificate)
    topics = set() if topic is None else {topic}
    for extension in certificate.extensions:
        if extension.oid == pki.TOPICS:
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            sequence, _ = decoder.decode(extension.value.value)
            topics.update(str(sequence[i]) for i in range(0, len(sequence), 2))
    return frozenset(topics)


def check_token(authorization: str, keys: Sequence[pki.SigningKey], now: float) -> Answer | None:
    """Verify a provider token: an ES256 JWT with ``kid``, ``iss`` and ``iat``."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        return Answer(403, "MissingProviderToken")
    invalid = Answer(403, "InvalidProviderToken")
    try:
        encoded_header, encoded_claims, encoded_signature = token.split(".")
        header = json.loads(_base64url(encoded_header))
        claims = json.loads(_base64url(encoded_claims))
        signature = _base64url(encoded_signature)
        key = next(k for k in keys if k.key_id == header["kid"])
        if header["alg"] != "ES256" or claims["iss"] != key.team_id or len(signature) != 64:
            return invalid
        numbers = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        key.public_key.verify(
            encode_dss_signature(*numbers),
            f"{encoded_header}.{encoded_claims}".encode(),
            ec.ECDSA(hashes.SHA256()),
        )
        issued_at = claims["iat"]
    except (ValueError, KeyError, TypeError, StopIteration, InvalidSignature):
        return invalid
    if type(issued_at) is not int:
        return invalid
    if not now - TOKEN_LIFE <= issued_at <= now + CLOCK_SKEW:
        return Answer(403, "ExpiredProviderToken")
    return None


def _base64url(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("not base64url without padding")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _check_request(request: PushRequest, allowed: frozenset[str] | None) -> Answer | None:
    if not _DEVICE.fullmatch(request.path):
        return Answer(404, "BadPath")
    if request.method != "POST":
        return Answer(405, "MethodNotAllowed")
    if not request.device_token:
        return Answer(400, "MissingDeviceToken")
    if not _HEX.fullmatch(request.device_token):
        return Answer(400, "BadDeviceToken")
    return _check_headers(request, allowed) or _check_body(request)


def _check_headers(request: PushRequest, allowed: frozenset[str] | None) -> Answer | None:
    if any(n.startswith("apns-") and len(values) > 1 for n, values in request.headers.items()):
        return Answer(400, "DuplicateHeaders")
    topic = request.header("apns-topic")
    if not topic:
        return Answer(400, "MissingTopic")
    if allowed is not None and topic not in allowed:
        return Answer(400, "TopicDisallowed")
    if request.header("apns-push-type") not in PUSH_TYPES:
        return Answer(400, "InvalidPushType")
    if request.header("apns-priority") not in ("", "10", "5", "1"):
        return Answer(400, "BadPriority")
    if not re.fullmatch(r"\d*", request.header("apns-expiration")):
        return Answer(400, "BadExpirationDate")
    if len(request.header("apns-collapse-id").encode()) > 64:
        return Answer(400, "BadCollapseId")
    apns_id = request.header("apns-id")
    if apns_id:
        try:
            canonical = str(uuid.UUID(apns_id))
        except ValueError:
            canonical = ""
        if canonical != apns_id.lower():
            return Answer(400, "BadMessageId")
    return None


def _check_body(request: PushRequest) -> Answer | None:
    if not request.body:
        return Answer(400, "PayloadEmpty")
    if len(request.body) > MAXIMUM_BODY:
        return Answer(413, "PayloadTooLarge")
    match request.payload:
        case {"aps": {"account-id": str(account), **rest}} if account:
            hashes_or_none = rest.get("m")
            if hashes_or_none is None or isinstance(hashes_or_none, list):
                return None
    return Answer(400, NOT_A_MAIL_PUSH)
