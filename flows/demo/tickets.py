"""Made-up support tickets: sentences drawn from a grammar, with the moods and typing errors of real ones."""

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
# Weights of a plain ticket having none, one, two ... sentences of each part.
SENTENCES = {"context": (55, 40, 5), "problems": (0, 78, 18, 4), "details": (55, 35, 10), "asks": (45, 55)}
LONG_SENTENCES = {"context": (0, 0, 4, 5, 1), "problems": (0, 2, 3, 2), "details": (0, 2, 4, 3), "asks": (0, 3, 2)}


@dataclass(frozen=True)
class Ticket:
    """A message, the queue that it was filed under, and its flaws as a training example."""

    subject: str
    body: str
    queue: str
    ambiguous: bool = False  # two concerns in one message, and the queue is either
    mislabelled: bool = False  # filed under a queue that it has nothing to do with


@cache
def grammar() -> dict[str, Any]:
    """Return the sentences of tickets, by part."""
    text = (resources.files("flows.demo") / "tickets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def make_ticket(random: Random) -> Ticket:
    """Return the next ticket that `random` holds."""
    queues = grammar()["queues"]
    (queue,) = random.choices(list(queues), [entry["share"] for entry in queues.values()])
    other = random.choice([name for name in queues if name != queue])
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
    """Writes one ticket: order, product and device stay the same throughout."""

    def __init__(self, random: Random, queue: str) -> None:
        self.random = random
        self.queue = queue
        self.of_queue = grammar()["queues"][queue]
        self.common = grammar()["common"]
        slots = grammar()["slots"]
        # The firmware of a scarf would give the game away.
        products = "gadget" if queue == "technical problem" else "product"
        reference = random.choice(("#{}", "{}", "NL-{}", "no. {}"))
        self.fixed_slots = {
            "order": reference.format(random.randint(10_000, 999_999)),
            "product": random.choice(slots[products]),
            "device": random.choice(slots["device"]),
            "plan": random.choice(slots["plan"]),
        }

    def plain(self) -> Ticket:
        """Write about one concern, at any length."""
        weights = LONG_SENTENCES if self.random.random() < LONG else SENTENCES
        sentences = [
            *self.sample(self.common["context"], weights["context"]),
            *self.sample(self.of_queue["problems"], weights["problems"]),
            *self.sample(self.of_queue["details"], weights["details"]),
            *self.sample(self.of_queue["asks"], weights["asks"]),
        ]
        return Ticket(self.subject(0.45), self.letter(sentences), self.queue)

    def short(self) -> Ticket:
        """Write a few words and no more."""
        return Ticket(self.subject(0.15), self.choose(self.of_queue["shorts"]), self.queue)

    def ambiguous(self, other: str) -> Ticket:
        """Write about two concerns, filed under either of their queues."""
        concerns = [self.choose(self.of_queue["problems"]), self.choose(grammar()["queues"][other]["problems"])]
        self.random.shuffle(concerns)
        sentences = [
            *self.sample(self.common["context"], (0.7, 0.3)),
            concerns[0],
            self.choose(self.common["connectors"]),
            concerns[1],
        ]
        return Ticket(self.subject(0.0), self.letter(sentences), self.queue, ambiguous=True)

    def twisted(self, other: str) -> Ticket:
        """Name two concerns and deny one, so that the order of the words decides the queue."""
        twist = self.random.choice(grammar()["twists"])
        denied = grammar()["queues"][other][twist["no"]]
        core = self.random.choice(twist["sentences"]).format(
            yes=self.random.choice(self.of_queue[twist["yes"]]), no=self.random.choice(denied)
        )
        sentences = [
            *self.sample(self.common["context"], (0.5, 0.5)),
            _capitalised(self.fill(core)),
            *self.sample(self.common["context"], (0.7, 0.3)),
        ]
        return Ticket(self.subject(0.0), self.letter(sentences), self.queue)

    def subject(self, of_queue: float) -> str:
        """Return a subject line: none, one that fits any queue or, with this probability, one of its queue."""
        if self.random.random() < 0.12:
            return ""
        source = self.of_queue if self.random.random() < of_queue else self.common
        return _capitalised(self.choose(source["subjects"]))

    def letter(self, sentences: list[str]) -> str:
        """Put an opening, a mood and a closing around sentences, on one line or several."""
        mood = self.random.choice(("polite", "angry", "", "", ""))
        if mood:
            position = self.random.choice((0, len(sentences), len(sentences)))
            sentences = [*sentences[:position], self.choose(self.common[mood]), *sentences[position:]]
        blocks = [
            *self.sample(self.common["openers"], (0.4, 0.6)),
            " ".join(sentences),
            *self.sample(self.common["closings"], (0.5, 0.5)),
        ]
        return self.random.choice((" ", " ", "\n", "\n\n")).join(blocks)

    def sample(self, choices: list[str], weights: Sequence[float]) -> list[str]:
        """Return none, one, two ... different sentences; `weights` are those of each number."""
        (count,) = self.random.choices(range(len(weights)), weights)
        return [_capitalised(self.fill(choice)) for choice in self.random.sample(choices, count)]

    def choose(self, choices: list[str]) -> str:
        """Return a random one of `choices`, with its slots filled."""
        return self.fill(self.random.choice(choices))

    def fill(self, text: str) -> str:
        """Return `text` with its slots filled."""
        return SLOT.sub(lambda slot: self.slot(slot[1]), text)

    def slot(self, name: str) -> str:
        """Return the text for `{name}` in this ticket."""
        random = self.random
        if name in self.fixed_slots:
            return self.fixed_slots[name]
        if name == "amount":
            number = f"{random.randint(4, 320)}.{random.choice(PRICE_ENDINGS)}"
            return random.choice(("${}", "{} EUR", "£{}", "{} dollars", "€{}")).format(number)
        if name == "date":
            day = random.randint(1, 28)
            months = [random.choice(MONTHS), random.choice(MONTHS)]
            numeric, weekday = f"{day:02}/{random.randint(1, 10):02}", random.choice(WEEKDAYS)
            return random.choice((f"{day} {months[0]}", f"{months[1]} {day}", numeric, weekday))
        choice: str = random.choice(grammar()["slots"][name])
        return choice


def _capitalised(text: str) -> str:
    """Return `text` with a capital at the start of each sentence."""
    return SENTENCE_START.sub(lambda start: start[0].upper(), text)


def _as_typed(random: Random, text: str) -> str:
    """Return `text` as someone in a hurry, or in a rage, would have typed it."""

    def misspell(word: str) -> str:
        """Return `word`, sometimes with two letters swapped, one dropped, or one doubled."""
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

    if random.random() < MISSPELT_TICKETS:
        text = LONG_WORD.sub(lambda word: misspell(word[0]), text)
    draw = random.random()
    if draw < LOWER_CASE:
        return text.lower().replace("'", "")
    if draw < LOWER_CASE + SHOUTED:
        return text.upper()
    return text
