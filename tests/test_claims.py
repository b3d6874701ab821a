"""Claims: one worker has a piece at a time, a dead one's is taken up, and what protects a level is its publishing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gentickets.errors import GenticketsError
from gentickets.lab.run import claims as claims_module
from gentickets.lab.run import folder as disk
from gentickets.lab.run import publishing
from gentickets.lab.run.claims import Claims, check_at_rest, is_gone

NAME = "seed-0/level-00"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "seed-0").mkdir()
    return tmp_path


def write_beat(place: Path, number: int, content: str) -> None:
    (place / ".claims" / "seed-0+level-00" / f"{number}.beat").write_text(content)


def of_another_machine(place: Path, number: int) -> None:
    """Turns a claim into one whose owner cannot be looked at from here."""
    path = place / ".claims" / "seed-0+level-00" / str(number)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))


def test_one_has_it_and_gives_it_back(place):
    first, second = Claims(place), Claims(place)
    claim = first.take(NAME)
    assert (claim.number, second.take(NAME), second.is_live(NAME)) == (1, None, True)
    claim.give_back("it rained")
    assert (second.newest(NAME).failure, second.is_live(NAME)) == ("it rained", False)
    again = second.take(NAME)
    assert (again.number, again.ended) == (2, {1})
    again.complete(second, NAME)
    assert not (place / ".claims").exists()


def take_and_end(place, queue, gate):
    gate.wait()
    claim = Claims(place).take(NAME)
    queue.put(None if claim is None else claim.number)
    time.sleep(0.3)  # while the others try


def test_of_many_at_once_one_gets_it(place):
    context = multiprocessing.get_context("fork")
    queue, gate = context.Queue(), context.Event()
    processes = [context.Process(target=take_and_end, args=(place, queue, gate)) for _ in range(8)]
    for process in processes:
        process.start()
    gate.set()
    numbers = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for number in numbers if number) == [1]


def take_and_wait(place, told):
    Claims(place).take(NAME)
    told.set()
    signal.pause()


def started(target, *given):
    context = multiprocessing.get_context("fork")
    told = context.Event()
    process = context.Process(target=target, args=(*given, told))
    process.start()
    assert told.wait(30)
    return process


def test_who_was_killed_on_this_machine_is_noticed_at_once(place):
    process = started(take_and_wait, place)
    claims = Claims(place, lease_seconds=10_000)
    assert claims.take(NAME) is None
    with pytest.raises(GenticketsError, match="is being worked on"):
        check_at_rest(place)
    process.kill()
    process.join()
    check_at_rest(place)
    claim = claims.take(NAME)
    assert (claim.number, claim.ended) == (2, {1})
    claim.give_back()


def test_a_number_that_is_used_again_is_not_taken_for_the_owner(place):
    claim = Claims(place).take(NAME)
    owner = Claims(place).newest(NAME).owner
    assert not is_gone(owner)
    assert is_gone(claims_module.Owner(owner.token, owner.machine, owner.host, owner.process, "1"))
    claim.give_back()


def test_who_is_silent_for_a_lease_loses_it_by_the_watchers_own_clock(place):
    process = started(take_and_wait, place)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        claims = Claims(place, lease_seconds=0.5)
        begun = time.monotonic()
        assert claims.take(NAME) is None  # a watcher that only comes knows nothing of how long it has been silent
        while (claim := claims.take(NAME)) is None:
            time.sleep(0.02)
        assert time.monotonic() - begun >= 0.5
        assert (claim.number, claim.ended) == (2, set())
        claim.give_back()
    finally:
        process.kill()
        process.join()


def test_files_dated_in_the_past_or_the_future_change_nothing(place):
    """The clocks of two machines, and one that jumps: no time that anybody wrote is read."""
    claim = Claims(place).take(NAME)
    of_another_machine(place, 1)
    claims = Claims(place, lease_seconds=0.5)
    for date in (0, 4e9):
        for file in (place / ".claims" / "seed-0+level-00").iterdir():
            os.utime(file, (date, date))
        assert claims.take(NAME) is None
    claim.give_back()


def test_a_beat_of_another_machine_keeps_it(place):
    claim = Claims(place, lease_seconds=1e6).take(NAME)
    of_another_machine(place, 1)
    claims = Claims(place, lease_seconds=0.5)
    for beat in range(12):
        write_beat(place, 1, json.dumps({"seconds": beat}))
        assert claims.take(NAME) is None
        time.sleep(0.1)
    claim.give_back()


def test_whoever_lost_it_is_told_and_the_next_has_its_own_folder(place):
    slow = Claims(place, lease_seconds=36).take(NAME)  # a beat a second
    assert not slow.lost
    of_another_machine(place, 1)
    (publishing.partial_of(place / NAME, 1)).mkdir()
    (publishing.partial_of(place / NAME, 1) / "curve.jsonl").write_text("{}\n")
    claims = Claims(place, lease_seconds=0.5)
    while (fast := claims.take(NAME)) is None:
        time.sleep(0.02)
    deadline = time.monotonic() + 10
    while not slow.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert slow.lost
    publishing.go_on_from(place / NAME, fast.number, fast.ended)
    ours, theirs = publishing.partial_of(place / NAME, 2), publishing.partial_of(place / NAME, 1)
    with open(theirs / "curve.jsonl", "a") as file:
        file.write("of one who woke up\n")
    assert (ours / "curve.jsonl").read_text() == "{}\n"
    slow.give_back()
    fast.give_back()


def test_the_publishing_protects(place, tmp_path):
    """Both believe that the piece is theirs, and both folders are whole; the first one's stays, to the byte."""

    def sleep_over_the_end():
        with publishing.building(place / NAME, 1) as slow:
            (slow / "metrics.json").write_text("of the one who slept")
            shutil.copytree(slow, tmp_path / "kept")
            with publishing.building(place / NAME, 2) as fast:
                (fast / "metrics.json").write_text("of the second")
            shutil.copytree(tmp_path / "kept", slow)

    for _ in range(2):
        with pytest.raises(publishing.Published):
            sleep_over_the_end()
        assert (place / NAME / "metrics.json").read_text() == "of the second"
        assert [entry.name for entry in (place / "seed-0").iterdir()] == ["level-00"]


def test_a_watcher_that_was_stopped_itself_has_not_seen_a_lease_of_silence(place, monkeypatch):
    """All of a group were stopped, by Ctrl-Z: whoever wakes first must not take what the others had no time to keep."""
    claim = Claims(place, lease_seconds=1e6).take(NAME)
    of_another_machine(place, 1)
    claims, now = Claims(place, lease_seconds=10), time.monotonic()
    assert claims.take(NAME) is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    assert claims.take(NAME) is None
    claim.give_back()


def test_one_of_another_user_is_there_though_nothing_of_it_can_be_read(place, monkeypatch):
    """As where /proc hides the processes of others: its number cannot be signalled, and so is somebody's."""
    claim = Claims(place).take(NAME)
    owner = Claims(place).newest(NAME).owner
    kill, read = os.kill, Path.read_text

    def hidden(path, *more, **how):
        if path.name == "stat":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read(path, *more, **how)

    def refused(number, which):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", hidden)
        assert not is_gone(owner)
        patch.setattr(os, "kill", refused)
        assert not is_gone(owner)
        patch.setattr(os, "kill", kill)
        assert is_gone(replace(owner, process=2**22 + 1))
    claim.give_back()


@pytest.mark.parametrize("name", ["\N{SUPERSCRIPT TWO}", "1" * 30, "-1", "1.over.over", ".1", "x"])
def test_other_files_are_no_claims(place, name):
    claims = Claims(place)
    (place / ".claims" / "seed-0+level-00").mkdir(parents=True)
    (place / ".claims" / "seed-0+level-00" / name).write_text("{}")
    assert claims.newest(NAME) is None
    claim = claims.take(NAME)
    assert claim.number == 1
    claim.complete(claims, NAME)
    assert not (place / ".claims").exists()


def test_a_link_in_the_place_of_the_claims_is_not_followed(place, tmp_path):
    (tmp_path / "precious").mkdir()
    (place / ".claims").symlink_to(tmp_path / "precious")
    with pytest.raises(GenticketsError, match="is a link, and no folder of ours: remove it"):
        Claims(place).take(NAME)
    assert not list((tmp_path / "precious").iterdir())


def try_as_nobody(place, queue):
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        with disk.one_line_errors(place):
            Claims(place).take(NAME)
    except GenticketsError as error:
        queue.put(str(error))
    else:
        queue.put("taken")


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_claims_that_may_not_be_written_are_one_line(mode):
    # In a folder that everybody may enter, unlike that of pytest.
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        (place / ".claims").mkdir()
        (place / ".claims").chmod(mode)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=try_as_nobody, args=(place, queue))
        process.start()
        said = queue.get(timeout=30)
        process.join()
        (place / ".claims").chmod(0o755)
        assert said == f"cannot write to {place}: Permission denied"


def test_a_file_system_without_links_has_claims_too(place, monkeypatch):
    def link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    claim = Claims(place).take(NAME)
    assert (claim.number, Claims(place).take(NAME)) == (1, None)
    claim.give_back()
    again = Claims(place).take(NAME)
    assert (again.number, again.ended) == (2, {1})
    again.complete(Claims(place), NAME)
    assert not (place / ".claims").exists()


def test_an_answer_that_was_lost_is_no_loss(place, monkeypatch):
    """Over NFS a link may be made, and its answer lost: tried again, it is there already, and is ours."""
    link = os.link

    def lost(*given):
        link(*given)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", lost)
    claim = Claims(place).take(NAME)
    assert claim.number == 1
    claim.give_back()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner": 3}', b"\xff" * 9])
def test_files_of_claims_that_are_half_or_nonsense_are_nobodys_end(place, content):
    claim = Claims(place).take(NAME)
    folder = place / ".claims" / "seed-0+level-00"
    (folder / "1").write_bytes(content)
    (folder / "1.beat").write_bytes(content)
    claims = Claims(place, lease_seconds=0.5)
    assert claims.take(NAME) is None
    assert claims.newest(NAME).owner is None
    claim.give_back()


def test_the_lease_is_said_in_seconds(place, monkeypatch):
    monkeypatch.setenv("GENTICKETS_LEASE", "soon")
    with pytest.raises(GenticketsError, match="GENTICKETS_LEASE='soon'"):
        Claims(place)
