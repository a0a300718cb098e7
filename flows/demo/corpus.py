"""The files of `nightlabel demo`: labelled support tickets and a night's batch, damaged like real exports."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from random import Random

from flows.demo.tickets import Ticket, make_ticket

COLUMNS = ("id", "created_at", "channel", "subject", "body", "queue")
CHANNELS, CHANNEL_SHARES = ("email", "web form", "chat", "app"), (0.5, 0.25, 0.15, 0.1)
FIRST_DAY, NIGHT = datetime(2026, 1, 5), datetime(2026, 11, 20)
BROKEN, SENT_AGAIN, EMPTY = 0.01, 0.012, 0.004  # shares of the rows
REPEATED_ROWS = 2
KINDS = ("ragged row", "invalid UTF-8", "NUL byte", "id conflict")
UNCLOSED = "unclosed quote"
DAMAGE = "\ue000"  # stands where a byte that is no text will be
DAMAGED_BYTES = {"invalid UTF-8": b"\xe9", "NUL byte": b"\0"}  # the first is an e acute in Latin-1


@dataclass(frozen=True)
class Planted:
    """The planted content of a file, counted in rows (of CSV, not lines) without its header."""

    rows: int
    broken: dict[str, int]  # by kind; rows that ingest should refuse
    repeated_rows: int  # the same id and the same text a second time
    sent_again: int  # the text of an earlier row under a new id
    mislabelled: int
    ambiguous: int
    empty: int


@dataclass(frozen=True)
class DemoFiles:
    """The files of the demo, and their planted content."""

    tickets: Path
    night: Path
    planted_tickets: Planted
    planted_night: Planted


@dataclass(frozen=True)
class _Row:
    id: str
    created_at: datetime
    channel: str
    ticket: Ticket
    sent_again: bool = False

    def fields(self) -> list[str]:
        ticket = self.ticket
        created_at = self.created_at.isoformat(" ")
        return [self.id, created_at, self.channel, ticket.subject, ticket.body, ticket.queue]


def write_tickets(folder: Path, *, labelled: int = 6000, night: int = 1500, seed: int = 7) -> DemoFiles:
    """Write `tickets.csv` (with the column `queue`) and `night.csv` (without it) into `folder`.

    The same seed and numbers give the same bytes. About one row in a hundred is broken, and four in a hundred
    are ambiguous or mislabelled, so that the demo shows rejects, reviews and a realistic accuracy.

    Args:
        folder: created if it does not exist.
        labelled: rows of `tickets.csv`, broken and repeated ones included.
        night: rows of `night.csv`, likewise.
        seed: chooses the tickets.
    """
    random = Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    past = _rows(random, labelled, first_id=100_001, start=FIRST_DAY, span=NIGHT - FIRST_DAY)
    tonight = _rows(random, night, first_id=100_001 + labelled, start=NIGHT, span=timedelta(days=1))
    tickets_path, night_path = folder / "tickets.csv", folder / "night.csv"
    planted_tickets = _write(tickets_path, random, past, COLUMNS)
    nothing = Ticket(subject="", body="", queue="")
    for position in random.sample(range(0, night, 2), round(night * EMPTY)):
        tonight[position] = replace(tonight[position], ticket=nothing, sent_again=False)
    planted_night = _write(night_path, random, tonight, COLUMNS[:-1])
    return DemoFiles(tickets_path, night_path, planted_tickets, planted_night)


def _rows(random: Random, count: int, first_id: int, start: datetime, span: timedelta) -> list[_Row]:
    seconds = sorted(random.randrange(int(span.total_seconds())) for _ in range(count))
    rows: list[_Row] = []
    for position, second in enumerate(seconds):
        sent_again = position > 0 and random.random() < SENT_AGAIN
        rows.append(
            _Row(
                id=f"T-{first_id + position}",
                created_at=start + timedelta(seconds=second),
                channel=random.choices(CHANNELS, CHANNEL_SHARES)[0],
                # Even positions are never broken (see _plan_damage), so the original is there to be repeated.
                ticket=random.choice(rows[::2]).ticket if sent_again else make_ticket(random),
                sent_again=sent_again,
            )
        )
    return rows


def _write(path: Path, random: Random, rows: list[_Row], columns: Sequence[str]) -> Planted:
    repeats = min(REPEATED_ROWS, len(rows) // 100)
    unique = rows[: len(rows) - repeats]
    damage = _plan_damage(random, len(unique))
    undamaged = [position for position in range(len(unique)) if position not in damage]
    repeated = set(random.sample(undamaged, repeats))
    with path.open("wb") as file:
        file.write(_record(columns))
        for position, row in enumerate(unique):
            kind = damage.get(position)
            record = (
                _record(row.fields()[: len(columns)])
                if kind is None
                else _broken_record(row, unique[position - 1].id, kind, len(columns))
            )
            file.write(record * (1 + (position in repeated)))
    intact = [unique[position] for position in undamaged]
    return Planted(
        rows=len(rows),
        broken=dict(sorted(Counter(damage.values()).items())),
        repeated_rows=repeats,
        sent_again=sum(row.sent_again for row in intact),
        mislabelled=sum(row.ticket.mislabelled for row in intact),
        ambiguous=sum(row.ticket.ambiguous for row in intact),
        empty=sum(not row.ticket.body for row in intact),
    )


def _plan_damage(random: Random, count: int) -> dict[int, str]:
    """Return which rows are broken, and how; only odd positions, so the row before a broken one is intact."""
    broken = round(count * BROKEN)
    if not broken:
        return {}
    damage = dict(zip(random.sample(range(1, count - 1, 2), broken - 1), cycle(KINDS), strict=False))
    # A quote that is never closed swallows the rest of the file: in the last row it swallows no other.
    damage[count - 1] = UNCLOSED
    return damage


def _record(fields: Sequence[str]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(fields)
    return buffer.getvalue().encode()


def _broken_record(row: _Row, id_before: str, kind: str, width: int) -> bytes:
    fields = row.fields()[:width]
    if kind == UNCLOSED:
        body = row.ticket.body.replace('"', "").replace("\n", " ")
        return _record(fields[:4]).rstrip(b"\n") + f',"{body}\n'.encode()
    if kind == "id conflict":
        return _record([id_before, *fields[1:]])
    if kind == "ragged row":
        return _record([fields[0], *fields[2:]])
    middle = len(fields[4]) // 2
    fields[4] = fields[4][:middle] + DAMAGE + fields[4][middle:]
    return _record(fields).replace(DAMAGE.encode(), DAMAGED_BYTES[kind])
