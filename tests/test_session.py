"""A session on a broker that does what it is told: quotas, repetitions, silence, and other brokers' bad manners."""

from __future__ import annotations

import threading

import pytest

from agent.mqtt import packets
from agent.mqtt.messages import Incoming, Outgoing
from agent.mqtt.session import Session
from tests.scripted_broker import CONNACK, RESUMED, ScriptedBroker, eventually


@pytest.fixture
def scripted():
    broker = ScriptedBroker()
    yield broker
    broker.close()


@pytest.fixture
def session(scripted):
    made: list[Session] = []

    def make(most: int = 1 << 20, most_held: int = 1 << 20, **settings) -> Session:
        got: list[Incoming] = []
        session = Session(scripted.settings(**settings), "me", [("in/#", 1)], got.append,
                          will=Outgoing("will", b"gone"), most=most, most_held=most_held)  # fmt: skip
        session.got = got
        made.append(session)
        session.start()
        return session

    yield make
    for s in made:
        s._stopping.set()
        if s._link is not None:
            s._link.finish()
        scripted.close()
        s.stop()


def _deliver(broker: ScriptedBroker, mid: int, payload: bytes = b"x", duplicate: bool = False) -> None:
    broker.send(packets.publish(Outgoing("in/1", payload), mid, True, duplicate))


def test_no_more_publications_are_under_way_than_the_broker_takes(scripted, session) -> None:
    me = session()
    scripted.accept(b"\x20\x06\x00\x00\x03\x21\x00\x02")  # receive maximum 2
    assert me.wait_ready(5)
    confirmed: list[int] = []
    for i in range(5):
        me.publish(Outgoing(f"out/{i}", b""), lambda reason, i=i: confirmed.append(i))
    first, second = scripted.published(), scripted.published()
    assert (first[0], second[0]) == ("out/0", "out/1")
    assert scripted.silent()
    scripted.confirm(second[2])
    assert scripted.published()[0] == "out/2"
    assert scripted.silent()
    assert eventually(lambda: confirmed == [1])


@pytest.mark.parametrize(("hangs_up", "level"), [(1, 5), (2, 4), (4, 5)])
def test_mqtt_5_is_given_up_where_a_broker_hangs_up_on_it_twice(scripted, session, hangs_up: int, level: int) -> None:
    session(protocol="auto")
    for _ in range(hangs_up):
        scripted.accept(None)
        scripted.hang_up()
    assert scripted.accept(None)[6] == level


def test_what_a_broker_delivers_past_the_receive_maximum_waits_in_order(scripted, session) -> None:
    me = session(receive_maximum=2)
    scripted.accept(RESUMED)
    for mid in range(1, 6):
        _deliver(scripted, mid)
    assert eventually(lambda: len(me._in._unacked) == 5)
    assert [m.mid for m in me.got] == [1, 2]
    me.done(me.got[1])  # the second; no acknowledgement may leave yet, and so nothing new comes
    assert scripted.silent()
    assert len(me.got) == 2
    me.done(me.got[0])
    assert [scripted.receive() for _ in range(2)] == [(0x40, b"\0\1"), (0x40, b"\0\2")]
    assert eventually(lambda: [m.mid for m in me.got] == [1, 2, 3, 4])
    scripted.hang_up()
    scripted.accept(RESUMED)
    for mid in (3, 4, 5):
        _deliver(scripted, mid, duplicate=True)
    assert eventually(lambda: [m.mid for m in me.got[4:]] == [3, 4])
    assert len(me._in._unacked) == 3


def test_past_the_bytes_that_may_be_held_all_is_handed_on(scripted, session) -> None:
    me = session(receive_maximum=1, most_held=10)
    scripted.accept(RESUMED)
    for mid in range(1, 5):
        _deliver(scripted, mid, b"12345")
    assert eventually(lambda: [m.mid for m in me.got] == [1, 4])


def test_what_was_not_confirmed_is_sent_again_in_order_and_marked_where_the_session_lives(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    confirmed: list[str] = []
    for name in "abc":
        me.publish(Outgoing(name, b""), lambda reason, name=name: confirmed.append(name))
    sent = [scripted.published() for _ in range(3)]
    scripted.confirm(sent[1][2])
    assert eventually(lambda: confirmed == ["b"])
    scripted.hang_up()
    scripted.accept(RESUMED)
    again = [scripted.published() for _ in range(2)]
    assert [(topic, mid, dup) for topic, _, mid, dup in again] == [("a", sent[0][2], True), ("c", sent[2][2], True)]
    scripted.hang_up()
    scripted.accept(CONNACK)  # the broker has forgotten us: the same messages, as new ones
    assert [scripted.published()[3] for _ in range(2)] == [False, False]
    for _, _, mid, _ in again:
        scripted.confirm(mid)
    assert eventually(lambda: confirmed == ["b", "a", "c"])


def test_what_is_published_without_a_connection_waits_for_one_and_expires(scripted, session) -> None:
    me = session()
    reasons: list[str | None] = []
    me.publish(Outgoing("late", b""), reasons.append, expires=0.0)
    me.publish(Outgoing("kept", b""), reasons.append)
    me.publish(Outgoing("now or never", b"", qos=0), reasons.append)
    assert reasons == ["no connection"]
    scripted.accept()
    topic, _, mid, _ = scripted.published()
    assert topic == "kept"
    scripted.confirm(mid)
    assert eventually(lambda: reasons == ["no connection", "expired", None])


def test_a_refused_publication_says_why_and_one_that_is_too_large_is_not_sent(scripted, session) -> None:
    me = session()
    scripted.accept(b"\x20\x08\x00\x00\x05\x27\x00\x00\x00\x64")  # maximum packet size 100
    assert me.wait_ready(5)
    reasons: list[str | None] = []
    me.publish(Outgoing("a", b""), reasons.append)
    scripted.confirm(scripted.published()[2], 0x87)
    assert eventually(lambda: reasons == ["Not authorized"])
    me.publish(Outgoing("a", bytes(101)), reasons.append)
    assert "packets of 100 at most" in str(reasons[1])
    me.publish(Outgoing("", b""), reasons.append)
    assert "can't be published to" in str(reasons[2])
    me.publish(Outgoing("a", b""), reasons.append)
    scripted.confirm(scripted.published()[2], 0x10)  # nobody has subscribed: taken all the same
    assert eventually(lambda: reasons[3:] == [None])


def test_inputs_are_acknowledged_in_order_and_only_on_their_own_connection(scripted, session) -> None:
    me = session()
    scripted.accept()
    for mid in (1, 2, 3):
        _deliver(scripted, mid)
    assert eventually(lambda: len(me.got) == 3)
    me.done(me.got[1])
    assert scripted.silent()
    me.done(me.got[0])
    assert [scripted.receive() for _ in range(2)] == [(0x40, b"\0\1"), (0x40, b"\0\2")]
    scripted.hang_up()
    scripted.accept(RESUMED)
    _deliver(scripted, 3, duplicate=True)
    assert eventually(lambda: len(me.got) == 4)
    me.done(me.got[2])  # of the lost connection: id 3 may be another message by now
    assert scripted.silent()
    me.done(me.got[3])
    assert scripted.receive() == (0x40, b"\0\3")
    assert me.got[3].duplicate


def test_a_handler_that_raises_costs_neither_the_connection_nor_the_acknowledgement(scripted, session) -> None:
    me = session()

    def handler(message: Incoming) -> None:
        raise RuntimeError("a bug")

    me._in._on_message = handler
    scripted.accept()
    _deliver(scripted, 9)
    assert scripted.receive() == (0x40, b"\0\x09")


def test_a_message_larger_than_what_is_taken_comes_without_its_end(scripted, session) -> None:
    me = session(most=1000)
    scripted.accept()
    _deliver(scripted, 1, bytes(5_000_000))
    _deliver(scripted, 2, b"next")
    assert eventually(lambda: len(me.got) == 2)
    assert len(me.got[0].payload) + me.got[0].missing == 5_000_000
    assert me.got[1].payload == b"next"


def test_a_broker_that_falls_silent_is_left(scripted, session) -> None:
    session(keepalive_s=1)
    scripted.accept()
    assert scripted.receive()[0] >> 4 == packets.PINGREQ  # it is asked first
    half_open = scripted.socket
    scripted.accept()
    half_open.close()


def test_a_broker_that_answers_pings_is_kept(scripted, session) -> None:
    me = session(keepalive_s=1)
    scripted.accept()
    for _ in range(5):
        assert scripted.receive()[0] >> 4 == packets.PINGREQ
        scripted.send(bytes([packets.PINGRESP << 4, 0]))
    assert me.epoch == 1


def test_rubbish_from_a_broker_costs_the_connection_and_no_more(scripted, session) -> None:
    me = session()
    scripted.accept()
    scripted.send(b"\x32\xff\xff\xff\xff")
    scripted.accept()
    _deliver(scripted, 1)
    assert eventually(lambda: len(me.got) == 1)


def test_who_is_thrown_out_by_another_of_its_name_does_not_throw_it_out_at_once(scripted, session, caplog) -> None:
    session(reconnect_max_s=0.6)
    scripted.accept()
    scripted.send(bytes([0xE0, 1, packets.TAKEN_OVER]))
    scripted.accept()
    assert "another client has the id 'me'" in caplog.text
    assert "trying again in 0.6 s" in caplog.text


def test_a_reader_that_stops_reading_blocks_nobody_and_gets_all_in_the_end(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    confirmed: list[str | None] = []
    for i in range(40):  # 40 MB: more than the sockets hold
        me.publish(Outgoing(f"out/{i}", bytes(1_000_000)), confirmed.append)
    for i in range(40):
        topic, payload, mid, _ = scripted.published()
        assert (topic, len(payload)) == (f"out/{i}", 1_000_000)
        scripted.confirm(mid)
    assert eventually(lambda: confirmed == [None] * 40)


def test_many_threads_publish_and_nothing_is_mixed_up_or_lost(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    confirmed: list[str | None] = []

    def publish(thread: int) -> None:
        for i in range(500):
            me.publish(Outgoing(f"{thread}", str(i).encode()), confirmed.append)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    got: dict[str, list[int]] = {}
    for _ in range(2000):
        topic, payload, mid, _ = scripted.published()
        got.setdefault(topic, []).append(int(payload))
        scripted.confirm(mid)
    assert got == {str(n): list(range(500)) for n in range(4)}
    assert eventually(lambda: len(confirmed) == 2000)


def test_a_stop_says_goodbye_so_that_no_will_is_published(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    me.publish(Outgoing("last", b"words"))
    me.stop()
    assert scripted.published()[0] == "last"
    first, body = scripted.receive()
    assert first >> 4 == packets.DISCONNECT
    assert body[0] == 0
    assert not me.connected


def test_a_publication_that_ends_every_connection_is_found_and_given_up(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    results: dict[str, str | None] = {}
    for name in ("good/1", "bad", "good/2"):
        me.publish(Outgoing(name, b""), lambda reason, name=name: results.update({name: reason}))
    for _ in range(3):
        scripted.published()
    for _ in range(20):
        scripted.hang_up()
        scripted.accept(RESUMED)
        while (sent := scripted.published())[0] != "bad":  # what comes before it is confirmed
            scripted.confirm(sent[2])
            if sent[0] == "good/2":
                break
        else:
            continue
        break
    assert eventually(lambda: len(results) == 3)
    assert (results["good/1"], results["good/2"]) == (None, None)
    assert "ends the connection" in str(results["bad"])
    for i in range(3):  # and all at once again
        me.publish(Outgoing(f"later/{i}", b""))
    assert [scripted.published()[0] for _ in range(3)] == ["later/0", "later/1", "later/2"]


def test_a_broker_that_dies_often_is_not_blamed_on_a_publication(scripted, session) -> None:
    me = session()
    scripted.accept()
    assert me.wait_ready(5)
    reasons: list[str | None] = []
    for i in range(8):
        me.publish(Outgoing(f"out/{i}", b""), reasons.append)
    for _ in range(7):  # one is confirmed on each connection
        scripted.confirm(scripted.published()[2])
        scripted.hang_up()
        scripted.accept(RESUMED)
    scripted.confirm(scripted.published()[2])
    assert eventually(lambda: reasons == [None] * 8)
