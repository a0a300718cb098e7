"""Made-up support tickets: sentences drawn from a grammar, with the moods and slips of real ones."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from random import Random
from typing import Any

SLOT = re.compile(r"\{(\w+)\}")
SENTENCE_START = re.compile(r"(?:^|[.!?] )[a-z]")
LONG_WORD = re.compile(r"[A-Za-z]{4,}")
PRICE_ENDINGS = ("00", "49", "50", "90", "95", "99")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

TWISTED, SHORT, AMBIGUOUS = 0.13, 0.06, 0.04  # shares of all tickets; the rest are plain
MISLABELLED = 0.02
MISSPELT_TICKETS, MISSPELT_WORDS = 0.25, 0.08
LOWER_CASE, SHOUTED = 0.12, 0.03
LONG = 0.07
# How often a plain ticket has none, one, two ... sentences of a kind.
TOLD = {"context": (55, 40, 5), "problems": (0, 78, 18, 4), "details": (55, 35, 10), "asks": (45, 55)}
TOLD_AT_LENGTH = {"context": (0, 0, 4, 5, 1), "problems": (0, 2, 3, 2), "details": (0, 2, 4, 3), "asks": (0, 3, 2)}


@dataclass(frozen=True)
class Ticket:
    """One message, the queue that it was filed under, and what is wrong with it as an example."""

    subject: str
    body: str
    queue: str
    ambiguous: bool = False  # two concerns in one message, and the queue is either
    mislabelled: bool = False  # filed under a queue that it has nothing to do with


@cache
def grammar() -> dict[str, Any]:
    """Return the sentences that tickets are made of, by part."""
    text = (resources.files("flows.demo") / "tickets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def make_ticket(random: Random) -> Ticket:
    """Return the next ticket that `random` holds."""
    queue, other = _two_queues(random)
    writer = _Writer(random, queue)
    draw = random.random()
    if draw < TWISTED:
        ticket = writer.twisted(other)
    elif draw < TWISTED + SHORT:
        ticket = writer.short()
    elif draw < TWISTED + SHORT + AMBIGUOUS:
        ticket = writer.ambiguous(other)
    else:
        ticket = writer.plain()
    if not ticket.ambiguous and random.random() < MISLABELLED:
        ticket = replace(ticket, queue=other, mislabelled=True)
    return replace(ticket, body=_as_typed(random, ticket.body))


class _Writer:
    """Writes one ticket: the order, the product and the device stay the same all through it."""

    def __init__(self, random: Random, queue: str) -> None:
        self.random = random
        self.queue = queue
        self.own = grammar()["queues"][queue]
        self.common = grammar()["common"]
        slots = grammar()["slots"]
        # The firmware of a scarf would give the game away.
        things = "gadget" if queue == "technical problem" else "product"
        reference = random.choice(("#{}", "{}", "NL-{}", "no. {}"))
        self.kept = {
            "order": reference.format(random.randint(10_000, 999_999)),
            "product": random.choice(slots[things]),
            "device": random.choice(slots["device"]),
            "plan": random.choice(slots["plan"]),
        }

    def plain(self) -> Ticket:
        """Write about one concern, at any length."""
        chances = TOLD_AT_LENGTH if self.random.random() < LONG else TOLD
        sentences = [
            *self.several(self.common["context"], chances["context"]),
            *self.several(self.own["problems"], chances["problems"]),
            *self.several(self.own["details"], chances["details"]),
            *self.several(self.own["asks"], chances["asks"]),
        ]
        return Ticket(self.subject(own=0.45), self.letter(sentences), self.queue)

    def short(self) -> Ticket:
        """Write a few words and no more."""
        return Ticket(self.subject(own=0.15), self.one(self.own["shorts"]), self.queue)

    def ambiguous(self, other: str) -> Ticket:
        """Write about two concerns; which of the two queues it was filed under is a toss-up."""
        concerns = [self.one(self.own["problems"]), self.one(grammar()["queues"][other]["problems"])]
        self.random.shuffle(concerns)
        sentences = [
            *self.several(self.common["context"], (0.7, 0.3)),
            concerns[0],
            self.one(self.common["connectors"]),
            concerns[1],
        ]
        return Ticket(self.subject(own=0.0), self.letter(sentences), self.queue, ambiguous=True)

    def twisted(self, other: str) -> Ticket:
        """Name two concerns of which one is denied, so that the order of the words decides the queue."""
        twist = self.random.choice(grammar()["twists"])
        denied = grammar()["queues"][other][twist["no"]]
        core = self.random.choice(twist["sentences"]).format(
            yes=self.random.choice(self.own[twist["yes"]]), no=self.random.choice(denied)
        )
        sentences = [
            *self.several(self.common["context"], (0.5, 0.5)),
            _capitalised(self.fill(core)),
            *self.several(self.common["context"], (0.7, 0.3)),
        ]
        return Ticket(self.subject(own=0.0), self.letter(sentences), self.queue)

    def subject(self, own: float) -> str:
        """Return a subject line: none, one that fits any queue or, with chance `own`, one of this queue."""
        if self.random.random() < 0.12:
            return ""
        source = self.own if self.random.random() < own else self.common
        return _capitalised(self.one(source["subjects"]))

    def letter(self, sentences: list[str]) -> str:
        """Put an opening, a mood and a closing around sentences, on one line or several."""
        mood = self.random.choice(("polite", "angry", "", "", ""))
        if mood:
            place = self.random.choice((0, len(sentences), len(sentences)))
            sentences = [*sentences[:place], self.one(self.common[mood]), *sentences[place:]]
        blocks = [
            *self.several(self.common["openers"], (0.4, 0.6)),
            " ".join(sentences),
            *self.several(self.common["closings"], (0.5, 0.5)),
        ]
        return self.random.choice((" ", " ", "\n", "\n\n")).join(blocks)

    def several(self, choices: list[str], chances: Sequence[float]) -> list[str]:
        """Return none, one, two ... different sentences; `chances` says how often each number comes."""
        (count,) = self.random.choices(range(len(chances)), chances)
        return [_capitalised(self.fill(choice)) for choice in self.random.sample(choices, count)]

    def one(self, choices: list[str]) -> str:
        """Return one of `choices`."""
        return self.fill(self.random.choice(choices))

    def fill(self, text: str) -> str:
        """Return `text` with its slots filled."""
        return SLOT.sub(lambda slot: self.slot(slot[1]), text)

    def slot(self, name: str) -> str:
        """Return what stands for `{name}` in this ticket."""
        if name in self.kept:
            return self.kept[name]
        if name == "amount":
            return _amount(self.random)
        if name == "date":
            return _date(self.random)
        choice: str = self.random.choice(grammar()["slots"][name])
        return choice


def _two_queues(random: Random) -> tuple[str, str]:
    queues = grammar()["queues"]
    (queue,) = random.choices(list(queues), [queue["share"] for queue in queues.values()])
    return queue, random.choice([name for name in queues if name != queue])


def _amount(random: Random) -> str:
    number = f"{random.randint(4, 320)}.{random.choice(PRICE_ENDINGS)}"
    return random.choice(("${}", "{} EUR", "£{}", "{} dollars", "€{}")).format(number)


def _date(random: Random) -> str:
    day = random.randint(1, 28)
    return random.choice(
        (
            f"{day} {random.choice(MONTHS)}",
            f"{random.choice(MONTHS)} {day}",
            f"{day:02}/{random.randint(1, 10):02}",
            random.choice(WEEKDAYS),
        )
    )


def _capitalised(text: str) -> str:
    """Return `text` with a capital at the start of each sentence."""
    return SENTENCE_START.sub(lambda start: start[0].upper(), text)


def _as_typed(random: Random, text: str) -> str:
    """Return `text` as someone in a hurry, or in a rage, would have typed it."""
    if random.random() < MISSPELT_TICKETS:
        text = LONG_WORD.sub(lambda word: _misspelt(random, word[0]), text)
    draw = random.random()
    if draw < LOWER_CASE:
        return text.lower().replace("'", "")
    if draw < LOWER_CASE + SHOUTED:
        return text.upper()
    return text


def _misspelt(random: Random, word: str) -> str:
    """Return `word`, now and then with two letters swapped, one dropped, or one doubled."""
    if random.random() >= MISSPELT_WORDS:
        return word
    at = random.randrange(1, len(word) - 1)
    return random.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
