"""How the embedded world states, asks and doubts a fact.

Text, questions and the benchmarks' items all come from this one grammar. Cost: nothing worth a figure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import NamedTuple


class Relation(NamedTuple):
    """One kind of fact. `{s}` is the subject, `{v}` the value; the first statement ends with the value."""

    name: str
    topic: str  # what its subjects are: animal, material, object, person, town
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    polar: str  # a yes-no question, without its question mark
    values: tuple[str, ...]


class Fact(NamedTuple):
    subject: str
    relation: Relation
    value: str

    def state(self, rng: random.Random, value: str | None = None) -> str:
        return rng.choice(self.relation.statements).format(s=self.subject, v=value or self.value)

    def ask(self, rng: random.Random) -> str:
        return rng.choice(self.relation.questions).format(s=self.subject)

    def doubt(self, value: str) -> str:
        return self.relation.polar.format(s=self.subject, v=value)

    def wrong(self, rng: random.Random) -> str:
        """Another value of the same kind."""
        value = rng.choice(self.relation.values)
        return value if value != self.value else self.wrong(rng)


def relations(values: Mapping[str, tuple[str, ...]]) -> dict[str, Relation]:
    """Every kind of fact by name; `values` holds what each may be."""
    return {
        "kind": Relation(
            "kind",
            "animal",
            ("{s} is a kind of {v}", "{s} belongs to the {v} family", "experts call {s} a {v}"),
            (
                "what kind of animal is {s}?",
                "to which family does {s} belong?",
                "{s} is what kind of animal?",
            ),
            "is {s} a kind of {v}",
            values["kind"],
        ),
        "cover": Relation(
            "cover",
            "animal",
            ("{s} is covered with {v}", "the body of {s} has {v}", "the body of {s} wears {v}"),
            ("what is {s} covered with?", "what does the body of {s} have?", "what covers {s}?"),
            "is {s} covered with {v}",
            values["cover"],
        ),
        "home": Relation(
            "home",
            "animal",
            ("{s} lives in the {v}", "the home of {s} is the {v}", "you can find {s} in the {v}"),
            ("where does {s} live?", "what is the home of {s}?", "where can you find {s}?"),
            "does {s} live in the {v}",
            values["home"],
        ),
        "food": Relation(
            "food",
            "animal",
            ("{s} eats {v}", "{s} feeds on {v}", "the food of {s} is {v}"),
            ("what does {s} eat?", "what does {s} feed on?", "what is the food of {s}?"),
            "does {s} eat {v}",
            values["food"],
        ),
        "color": Relation(
            "color",
            "animal",
            ("the color of {s} is {v}", "the body of {s} is {v}", "people paint {s} in {v}"),
            ("what color is {s}?", "what is the color of {s}?", "which color does {s} have?"),
            "is the color of {s} {v}",
            values["color"],
        ),
        "region": Relation(
            "region",
            "town",
            (
                "{s} is a town in the {v}",
                "the town of {s} lies in the {v}",
                "to reach {s} you go to the {v}",
            ),
            ("where does {s} lie?", "in which region is {s}?", "in which part is the town of {s}?"),
            "is {s} a town in the {v}",
            values["region"],
        ),
        "fame": Relation(
            "fame",
            "town",
            (
                "{s} is famous for its {v}",
                "people visit {s} for its {v}",
                "everyone in {s} is proud of its {v}",
            ),
            ("what is {s} famous for?", "why do people visit {s}?", "what is famous in {s}?"),
            "is {s} famous for its {v}",
            values["fame"],
        ),
        "job": Relation(
            "job",
            "person",
            ("{s} works as a {v}", "{s} is a {v}", "the job of {s} is {v}"),
            ("what does {s} work as?", "what is the job of {s}?", "which job does {s} have?"),
            "does {s} work as a {v}",
            values["job"],
        ),
        "likes": Relation(
            "likes",
            "person",
            ("{s} likes {v}", "{s} is fond of {v}", "what {s} loves is {v}"),
            ("what does {s} like?", "what is {s} fond of?", "what does {s} love?"),
            "does {s} like {v}",
            values["likes"],
        ),
        "material": Relation(
            "material",
            "object",
            ("{s} is made of {v}", "people make {s} from {v}", "the material of {s} is {v}"),
            ("what is {s} made of?", "what is the material of {s}?", "what do people make {s} from?"),
            "is {s} made of {v}",
            values["material"],
        ),
        "room": Relation(
            "room",
            "object",
            ("people keep {s} in the {v}", "the place of {s} is the {v}", "{s} belongs in the {v}"),
            ("where do people keep {s}?", "where does {s} belong?", "what is the place of {s}?"),
            "do people keep {s} in the {v}",
            values["room"],
        ),
        "use": Relation(
            "use",
            "object",
            ("{s} is used to {v}", "to {v} you need {s}", "you can {v} with {s}"),
            ("what is {s} used for?", "what do you need {s} for?", "what can you do with {s}?"),
            "is {s} used to {v}",
            values["use"],
        ),
        "feel": Relation(
            "feel",
            "material",
            ("{s} feels {v}", "to the touch {s} is {v}", "the hand tells that {s} is {v}"),
            ("how does {s} feel?", "how is {s} to the touch?", "what does {s} feel like?"),
            "does {s} feel {v}",
            values["feel"],
        ),
        "fire": Relation(
            "fire",
            "material",
            ("in a fire {s} {v}", "{s} {v} when it gets hot", "heat a piece of {s} and it {v}"),
            (
                "what happens to {s} in a fire?",
                "what does {s} do when it gets hot?",
                "what does heat do to {s}?",
            ),
            "is it true that in a fire {s} {v}",
            values["fire"],
        ),
    }
