"""dovecot-xaps-plugin in one long IMAP session: no line of an answer is cut, and nothing is stored
as confirmed that the phone was not told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests import examples
from tests.intake.case import NOTICE, NOTIFY, TOPIC, IntakeCase, post, registration
from tests.intake.plugin import LINE, Exchange, Plugin, confirmed_by

BAD_NOTICE = post("/notify", {**NOTICE, "Mailbox": "\x01"})
LONG_REFUSAL = post("/register", registration(ApsSubtopic="\x7f" * 80))


def register(*mailboxes: str, target: str = "/register", header: str = "X: y") -> bytes:
    return post(target, registration(Mailboxes=list(mailboxes)), header)


def folders(count: int, length: int = 20) -> list[str]:
    return ["INBOX", *(f"{number:03d}".ljust(length, "x") for number in range(count - 1))]


class SessionTests(IntakeCase):
    def setUp(self) -> None:
        super().setUp()
        self.listen(max_connections=10_000)
        self.plugin = Plugin(self.connection)

    def connection(self) -> Exchange:
        client = self.connect()

        def exchange(request: bytes) -> bytes:
            answer = client.send(request)
            closing = b"\r\nConnection: close\r\n" in answer
            self.assertEqual(client.wire.ended, closing)
            self.assertEqual(len(client.wire.writes), 1)
            client.wire.writes.clear()
            if closing:
                client.lose()
            return answer

        return exchange

    def assert_registered(self, lines: list[str]) -> None:
        """The phone got whole lines, and those that are stored as confirmed."""
        self.assertEqual(lines[0], (LINE % TOPIC).strip())
        told = confirmed_by(lines)
        self.assertEqual(len(told), len(lines) - 1, lines[-1])
        self.assertEqual(self.handler.registrations[-1].confirmed, set(told))

    def test_registrations_of_one_session(self) -> None:
        for count in (10, 28, 100):
            for _ in range(30):
                self.assert_registered(self.plugin.ask(register(*folders(count))))
                self.assertEqual(len(self.handler.registrations[-1].confirmed), count)
        self.assert_no_timers()

    def test_a_registration_after_many_changes_of_flags(self) -> None:
        for count in range(0, 230, 7):
            for _ in range(count):
                self.assertEqual(self.plugin.ask(NOTIFY), [])
            self.assert_registered(self.plugin.ask(register(*folders(100))))

    def test_a_connection_serves_many_notices(self) -> None:
        for _ in range(300):
            self.plugin.ask(NOTIFY)
        self.assertLess(self.plugin.connections, 12)

    def test_more_mailboxes_than_have_room(self) -> None:
        for before in range(60):
            for _ in range(before):
                self.plugin.ask(NOTIFY)
            self.assert_registered(self.plugin.ask(register(*folders(1000)[::-1])))
            self.assertIn("INBOX", self.handler.registrations[-1].confirmed)
            self.assertGreater(len(self.handler.registrations[-1].confirmed), 100)

    @given(
        st.lists(
            st.integers(1, 60)
            | st.sampled_from([BAD_NOTICE, LONG_REFUSAL])
            | st.tuples(st.integers(1, 300), st.integers(3, 60)),
            max_size=20,
        )
    )
    @settings(max_examples=examples(60), deadline=None)
    def test_any_session(self, steps: list[int | bytes | tuple[int, int]]) -> None:
        self.setUp()
        for step in steps:
            if isinstance(step, int):
                for _ in range(step):
                    self.plugin.ask(NOTIFY)
            elif isinstance(step, bytes):
                self.plugin.ask(step)
            else:
                self.assert_registered(self.plugin.ask(register(*folders(*step))))


class ConfirmedTests(IntakeCase):
    """A phone counts as told of a mailbox only where the plugin can have printed its line."""

    def test_what_a_plugin_does_not_print_is_not_confirmed(self) -> None:
        for target, header in (
            ("/register?bare", "X: y"),
            ("/register", "User-Agent: curl/8"),
            ("/register", "Accept: */*"),
        ):
            answer = self.connect().send(register(*folders(3), target=target, header=header))
            self.assertTrue(answer.endswith(b"\r\n\r\n" + TOPIC.encode()))
            self.assertEqual(self.handler.registrations.pop().confirmed, frozenset())

    def test_a_plugin_that_prints_nothing_but_the_topic_is_closed_as_well(self) -> None:
        client = self.connect()
        answer = client.send(register("INBOX", target="/register?bare"))
        self.assertIn(b"\r\nConnection: close\r\n", answer)
        self.assertTrue(client.wire.ended)

    def test_programs_that_name_themselves_keep_their_connection(self) -> None:
        client = self.connect()
        for _ in range(100):
            answer = client.send(register("INBOX", header="User-Agent: James"))
            self.assertNotIn(b"Connection: close", answer)
        self.assertFalse(client.wire.ended)

    def test_nobody_who_sends_ahead_is_closed(self) -> None:
        """The plugin never does; and what follows would be lost."""
        client = self.connect()
        answers = client.send(register("INBOX") + NOTIFY * 200)
        answers += client.send(NOTIFY)
        self.assertEqual(answers.count(b"HTTP/1.1 200"), 202)
        self.assertNotIn(b"Connection: close", answers)

    def test_a_100_never_closes(self) -> None:
        client = self.connect()
        head, _, body = post("/notify", NOTICE, "Expect: 100-continue").partition(b"\r\n\r\n")
        for _ in range(50):
            self.assertEqual(client.send(head + b"\r\n\r\n"), b"HTTP/1.1 100 Continue\r\n\r\n")
            answer = client.send(body)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200 OK\r\n"))
            if b"\r\nConnection: close\r\n" in answer:
                break
        self.assertTrue(client.wire.ended)
