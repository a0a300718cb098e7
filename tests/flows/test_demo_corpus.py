"""The demo's tickets are varied, hard enough to be honest, and damaged the way exports are."""

import csv
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from conftest import one_hot

from flows.demo.corpus import COLUMNS, DemoFiles, write_tickets
from flows.demo.tickets import Ticket, grammar, make_ticket
from pipeline.training.linear.baseline import LabelledTexts, linear_baseline

QUEUES = list(grammar()["queues"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_tickets(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def tickets() -> list[Ticket]:
    random = Random(7)
    return [make_ticket(random) for _ in range(4000)]


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return list(csv.reader(file))


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    written = [write_tickets(tmp_path / name, labelled=300, night=200) for name in ("a", "b")]
    assert written[0].tickets.read_bytes() == written[1].tickets.read_bytes()
    assert written[0].night.read_bytes() == written[1].night.read_bytes()
    other = write_tickets(tmp_path / "c", labelled=300, night=200, seed=8)
    assert other.tickets.read_bytes() != written[0].tickets.read_bytes()


def test_every_planted_row_is_in_the_files(files):
    header, *past = rows(files.tickets)
    assert header == list(COLUMNS)
    assert len(past) == files.planted_tickets.rows == 6000
    header, *tonight = rows(files.night)
    assert header == list(COLUMNS[:-1])
    assert len(tonight) == files.planted_night.rows == 1500


def test_a_hundredth_of_the_rows_is_broken_in_every_way(files):
    broken = files.planted_tickets.broken
    assert set(broken) == {"ragged row", "invalid UTF-8", "NUL byte", "id conflict", "unclosed quote"}
    assert sum(broken.values()) == 60
    past = rows(files.tickets)[1:]
    assert sum("\0" in "".join(row) for row in past) == broken["NUL byte"]
    assert sum("\ufffd" in "".join(row) for row in past) == broken["invalid UTF-8"]
    assert sum(len(row) != 6 for row in past) == broken["ragged row"] + broken["unclosed quote"]


def test_an_id_is_used_twice_only_where_planted(files):
    planted = files.planted_tickets
    past = [row for row in rows(files.tickets)[1:] if len(row) == 6]
    same_row = sum(first == second for first, second in pairwise(past))
    same_id = sum(count - 1 for count in Counter(row[0] for row in past).values())
    assert same_row == planted.repeated_rows == 2
    assert same_id == planted.repeated_rows + planted.broken["id conflict"]


def test_some_messages_of_the_night_are_empty_and_none_of_the_past(files):
    tonight = [row for row in rows(files.night)[1:] if len(row) == 5]
    assert sum(not row[3] and not row[4] for row in tonight) == files.planted_night.empty == 6
    assert files.planted_tickets.empty == 0


def test_the_night_brings_other_tickets(files):
    seen = {row[0] for row in rows(files.tickets)}
    assert not seen & {row[0] for row in rows(files.night)[1:]}


def test_a_few_rows_are_as_good_as_many(tmp_path):
    files = write_tickets(tmp_path / "new" / "folder", labelled=10, night=1)
    assert len(rows(files.tickets)) == 11
    assert len(rows(files.night)) == 2
    assert not files.planted_tickets.broken


def test_queues_come_unevenly(tickets):
    shares = Counter(ticket.queue for ticket in tickets)
    assert set(shares) == set(QUEUES)
    assert shares.most_common()[0][1] > 4 * shares.most_common()[-1][1]


def test_tickets_hardly_repeat_and_have_every_length(tickets):
    bodies = [ticket.body for ticket in tickets]
    assert len(set(bodies)) > 0.93 * len(bodies)
    lengths = sorted(len(body) for body in bodies)
    assert lengths[40] < 25
    assert lengths[-40] > 350
    assert not any("{" in body for body in bodies)
    for mark in ("\n", ",", '"'):
        assert sum(mark in body for body in bodies) > 40


def test_ambiguous_and_mislabelled_tickets_are_few(tickets):
    assert sum(ticket.ambiguous for ticket in tickets) == pytest.approx(0.04 * len(tickets), rel=0.25)
    assert sum(ticket.mislabelled for ticket in tickets) == pytest.approx(0.02 * len(tickets), rel=0.35)


def test_a_linear_model_does_well_but_not_perfectly(tickets):
    """So that the demo shows an honest number, with something left for a model that reads in order."""
    texts = [ticket.body.lower() for ticket in tickets]
    targets = one_hot([QUEUES.index(ticket.queue) for ticket in tickets], len(QUEUES))
    train, validation, test = (
        LabelledTexts(texts[rows], texts[rows], targets[rows])
        for rows in (slice(2700), slice(2700, 3000), slice(3000, None))
    )
    result = linear_baseline(train, validation, test)
    assert 0.88 < result["accuracy"] < 0.97
