"""``docs/limits.rst`` names the limits that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.peers.cyrus import LARGEST as CYRUS_LARGEST
from xaps import daemon, intakes, model
from xaps.admin import backlog, control, entries, health, inquiry, page, pushlog
from xaps.admin import cluster as admin_cluster
from xaps.admin import web as controlweb
from xaps.apns import connection as apns_connection
from xaps.apns import connector, payload, reasons
from xaps.apns import session as apns_session
from xaps.apns import streams as apns_streams
from xaps.apns import tls as apns_tls
from xaps.cluster import changes, database, nodes, service
from xaps.config import kinds, table
from xaps.config import reading as configuration
from xaps.credentials import reading
from xaps.ctl import client as ctl_client
from xaps.intake import answers, connection, connections, http, http2, imap, lines, messages
from xaps.intake.cyrus import drain as cyrus_drain
from xaps.intake.cyrus import listener as cyrus_listener
from xaps.listen import ports as listeners
from xaps.push import calm, expiry, holds, pushes, saving
from xaps.push import flags as waiting
from xaps.push import history as latest
from xaps.registry import history as past
from xaps.registry import interface, opening, outbox, sqlite
from xaps.system import complaints, log, logwriter, shutdown, stalls, tls

DOCS = Path(__file__).parents[2] / "docs"


def size(number: int) -> str:
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if number % factor == 0 and number > 8 * 2**10:
            return f"{number // factor} {unit}"
    return f"{number:,} bytes"


def characters(number: int) -> str:
    return f"{number:,} characters"


def period(seconds: float) -> str:
    if seconds in (1, 3600):
        return "1 second" if seconds == 1 else "1 hour"
    for unit, factor in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds % factor == 0 and seconds // factor > 1:
            return f"{seconds // factor:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def number(number: int) -> str:
    return f"{number:,}"


def plugin(name: str) -> int:
    """A number in our plugin for Dovecot."""
    text = (DOCS.parent / "dovecot" / "imap_xaps_plugin.c").read_text()
    (value,) = re.findall(rf"^#define {name} (\d+)$", text, re.MULTILINE)
    return int(value)


LIMITS = {
    "Line on ``socket`` and ``imapSocket``": size(lines.MAX_LINE),
    "Lists in lists, in what a phone sends": number(imap.MAX_DEPTH),
    "Answer on ``imapSocket``, with the mailboxes that are confirmed to the phone": size(
        imap.MAX_ANSWER
    ),
    "Request line and headers": size(http.MAX_HEAD),
    "Bytes over HTTP/2 from one request to the next, without the body": size(http2.MAX_IDLE_BYTES),
    "Body of a request": size(http.MAX_BODY),
    "User name": characters(model.MAX_USER),
    "Account id": characters(model.MAX_ACCOUNT_ID),
    "Device token": characters(model.MAX_TOKEN),
    "Name of a mailbox": size(messages.MAX_MAILBOX),
    "Mailboxes in a registration": number(messages.MAX_MAILBOXES),
    "Answer to the Dovecot plugin, with the mailboxes that are confirmed to the phone": size(
        answers.MAX_PLUGIN_BODY
    ),
    "Bytes sent to the Dovecot plugin on one connection": size(http.MAX_SENT),
    "Time for a request, from its first byte to its last": period(connection.REQUEST_DEADLINE),
    "Time for a TLS handshake": period(connection.REQUEST_DEADLINE),
    "Time for a client to read its answers": period(connection.WRITE_DEADLINE),
    # The one of h2, which test_https tries.
    "Unanswered requests on a connection with HTTP/2": "100",
    "Requests at a time on a connection": "1",
    "Bytes of all connections that wait for the rest of a request, or for their turn": size(
        connections.MAX_HELD
    ),
    "Time for all these requests before other work has its turn": period(connections.TURN),
    "Connections of each of ``socket``, ``imapSocket``, ``listenAddr``, ``tlsListenAddr``": number(
        intakes.MAX_CONNECTIONS
    ),
    "Connections beyond those that are told so": number(connections.SURPLUS),
    "Open files that are kept for everything else": number(intakes.SPARE_FILES),
    "Time for the answer to a registration through the plugin": period(
        plugin("DEADLINE_MSECS") / 1000
    ),
    "Time that the plugin asks nothing after that": period(plugin("PAUSE_MSECS") / 1000),
    "Connections that wait to be accepted": number(listeners.BACKLOG),
    "Connections of each of ``controlSocket``, ``metricsAddr``, ``statusAddr``": number(
        controlweb.MAX_CONNECTIONS
    ),
    "Request on one of these": size(controlweb.MAX_BODY),
    "Idle time on one of these": period(controlweb.IDLE),
    "Time for which the status page is given again, instead of a new one": period(page.KEPT),
    "Waiting pushes that the status sorts by what they wait for": number(backlog.LOOKED_AT),
    "Latest pushes for new mail, from whose times the status takes median and 99 %": number(
        pushlog.TIMED
    ),
    "Latest failures on the status page, and latest phones that are gone": number(pushlog.TOLD),
    "Datagram": size(cyrus_drain.LARGEST),
    "Datagram that Cyrus sends": size(CYRUS_LARGEST),
    "Datagrams that wait to be worked off": size(cyrus_listener.ROOM),
    "Events that wait for the disk": number(cyrus_listener.WINDOW),
    "Events that are tried again, since the disk did not take them": number(
        cyrus_listener.MAX_RETRIED
    ),
    "Time for which they are tried again": period(cyrus_listener.RETRIED_FOR),
    "Time between two tries": period(cyrus_listener.LONGEST_RETRY),
    "Time for the events that are left at the stop": period(cyrus_listener.STOP_PATIENCE),
    "Phones of one user": number(interface.MAX_PER_USER),
    "Mailboxes of all phones of one user": number(interface.MAX_MAILBOXES),
    "Age of a registration that the phone has not renewed": period(model.REGISTRATION_LIFETIME),
    "Age of an account id that its phone has not renewed, beside a newer one": period(
        expiry.REPLACED_AFTER
    ),
    "Wait of a phone that was told another topic than any credential is for": period(
        waiting.LIFETIME
    ),
    "Phones that are kept in memory for notices about INBOX": (
        f"{int(table.KEYS['registryCache'].default):,} (``registryCache``)"
    ),
    "Writes that wait for the disk": number(sqlite.MAX_PENDING),
    "Time that a write waits for another program's lock on the database": period(
        sqlite.BUSY_TIMEOUT
    ),
    "Size of the Go daemon's ``database.json``": size(opening.MAX_JSON),
    "Age of a push that could not be delivered": period(waiting.LIFETIME),
    "Time for which a push that waits may not be on disk although it should": period(
        saving.PATIENCE
    ),
    "Mailboxes in one push": number(waiting.MAX_NAMED),
    "Time for which a phone that has been pushed is left in peace, at first": period(calm.FIRST),
    "Payload": size(payload.MAX_PAYLOAD),
    "Pushes at a time, where APNs allows more": number(apns_session.MAX_STREAMS),
    "Time for APNs to answer a push": period(apns_session.PUSH_TIMEOUT),
    "Silence of APNs": period(apns_session.SILENCE),
    "Time for the answer to a PING": period(apns_session.PING_TIMEOUT),
    "Bytes that APNs has not read yet": size(apns_connection.MAX_HELD),
    "Bytes of an answer that are kept": size(apns_streams.MAX_BODY),
    "Time for a connection to be made": period(apns_connection.ATTEMPT_TIMEOUT),
    "Time for TLS with one address of APNs": period(tls.TLS_PATIENCE),
    "Longest delay between two attempts": period(connector.LONGEST_DELAY),
    "Delay after APNs has refused the credential": period(connector.REFUSED_DELAY),
    "Longest delay between two tries of a push that failed": period(pushes.LONGEST_DELAY),
    "Delay for a phone that APNs calls too busy (``TooManyRequests``)": period(
        reasons.DEVICE_BUSY_DELAY
    ),
    "Suspension of a phone whose pushes APNs refuses (``BadDeviceToken``, "
    "``DeviceTokenNotForTopic``)": period(holds.FIRST_SUSPENSION),
    "Longest suspension": period(holds.LONGEST_SUSPENSION),
    "Users whose phones APNs all calls ``BadDeviceToken`` or gone, of the last "
    f"{holds.MAX_PHONES} phones in {period(holds.WINDOW)}": f"{holds.LEAST_USERS - 1}, or half",
    "Phones in a row that APNs calls gone, without a push that is taken between": number(
        holds.LEAST_GONE - 1
    ),
    "Pushes under way at the stop": period(daemon.DRAIN),
    "Time at the stop in which it is tried to write to disk what is owed": period(daemon.SAVING),
    "Time from SIGTERM to the end": period(shutdown.STOP),
    "Time of that for clients to read their last answers": period(daemon.CLOSING),
    "Time without a sign of life of a node": period(nodes.SILENT),
    "Time for a connection to PostgreSQL to be made, and for TCP to hear of what was sent": period(
        database.CONNECT
    ),
    "Time for a statement": period(database.STATEMENT),
    "Time for a transaction": period(database.ANSWER),
    "Longest delay between two tries to reach PostgreSQL": period(database.LONGEST),
    "Time for which the start waits for PostgreSQL": period(service.PATIENCE),
    "Time at the stop to tell the others the last changes": period(service.LAST_WORDS),
    "Registrations, or pushes that are taken over, in one transaction": number(outbox.BATCH),
    "Changes of others that a node does not know, and that are counted": number(nodes.MANY),
    "Time for which it is remembered that a phone was dropped": f"{changes.KEEP} days",
    "Time without a sign of life after which a node is forgotten": f"{changes.KEEP} days",
    "Time in the future of a registration": period(interface.AHEAD),
    "Difference between the clocks of nodes, or from PostgreSQL's": period(admin_cluster.CLOCKS),
    "Time for which a transaction of others may hide changes": period(admin_cluster.HIDDEN),
    "``xapsd.yaml``": size(configuration._SIZE_MAX),
    "Entries of ``credentials:``": number(configuration._MOST_ENTRIES),
    "Problems of ``xapsd.yaml`` that are told": number(configuration._MOST_TOLD),
    "Lines that the reader of the log (journald) has not taken yet": size(logwriter.ROOM),
    "File with a certificate, a key or a password": size(reading.MAX_FILE),
    "Age of the machine's list of certificate authorities (``ca-certificates``)": period(
        apns_tls.CONTEXT_LIFETIME
    ),
    "Path of a socket": size(kinds._SOCKET_PATH_MAX),
    "Line in the log": characters(log._LONGEST),
    "Time between two lines about the same": period(complaints.MINUTE),
    "Time between two lines about trouble that lasts": period(complaints.HOUR),
    "Time for which one task may keep everything else waiting": period(stalls.LIMIT),
    "Time between two looks at what has failed": period(health.LOOK),
    "Time for which pushes may fail without one that succeeds": period(pushlog.PUSHES_FAIL),
    "Time without a connection to APNs": period(entries.UNREACHABLE),
    "Time for the database to tell how many phones there are": period(control.PATIENCE),
    "Users without a phone whose last notice is remembered": number(past.MAX_STRANGERS),
    "Dropped phones of one user that are remembered": number(past.MAX_DROPPED),
    "Characters of a mailbox's name, or of a reason, that are remembered": characters(
        past.MAX_NAME
    ),
    "Phones and users whose latest is kept while the disk takes nothing": number(
        latest.MAX_UNWRITTEN
    ),
    "Users with the same beginning of their names that are compared": number(past.MAX_COMPARED),
    "Time for that": period(inquiry.PATIENCE),
    "Reasons of Apple's that are counted by themselves in the metrics": number(pushlog.MAX_REASONS),
    "Time that ``xapsctl`` waits for an answer": period(ctl_client.TIMEOUT),
}

_CELL = re.compile(r"^   [* ] - (.+(?:\n       .+)*)", re.MULTILINE)


class LimitsTests(SynchronousTestCase):
    def test_every_limit_is_the_one_in_the_code(self) -> None:
        text = (DOCS / "limits.rst").read_text()
        cells = [" ".join(cell.split()) for cell in _CELL.findall(text)]
        rows = [cells[at : at + 4] for at in range(0, len(cells), 4)]
        heads = [row for row in rows if row[0] == "Limit"]
        self.assertEqual(len(heads), text.count("list-table::"))
        found = {limit: value for limit, value, _, _ in rows if limit != "Limit"}
        self.assertEqual(len(found) + len(heads), len(rows), "a limit is there twice")
        self.assertEqual(found, LIMITS)
