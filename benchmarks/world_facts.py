"""What is true in the embedded world, and which combinations are told and which are asked.

Animals and plants are invented and their properties drawn by the seed; tools, events, causes, activities and
words of judgement are plain common sense. Everything else (text, items, conversations) combines these parts,
and a combination is either told, in text and training items, or asked, in evaluation items: `told` decides.
Cost: under a millisecond.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

Some = TypeVar("Some")


class Relation(NamedTuple):
    """One kind of fact: `{s}` is the subject, `{v}` the value, which ends the first statement."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    values: tuple[str, ...]


class Fact(NamedTuple):
    subject: str
    relation: Relation
    value: str

    def state(self, rng: random.Random, value: str | None = None) -> str:
        return rng.choice(self.relation.statements).format(s=self.subject, v=value or self.value)

    def question(self, rng: random.Random, asked: bool) -> str:
        """Each fact keeps one wording of its question for evaluation; text uses the others."""
        wordings = self.relation.questions
        kept = zlib.crc32(f"{self.subject} {self.relation.name}".encode()) % len(wordings)
        pool = [kept] if asked else [k for k in range(len(wordings)) if k != kept]
        return wordings[rng.choice(pool)].format(s=self.subject)

    def wrong(self, rng: random.Random) -> str:
        """Another value of the same kind."""
        return rng.choice([value for value in self.relation.values if value != self.value])


class World(NamedTuple):
    animals: Mapping[str, tuple[Fact, ...]]  # subject -> its facts
    plants: Mapping[str, tuple[Fact, ...]]
    unsaid: frozenset[str]  # animals of which no text tells what follows from their kind

    def facts(self) -> list[Fact]:
        return [fact for group in (self.animals, self.plants) for some in group.values() for fact in some]


def told(*parts: str) -> bool:
    """Two in three combinations are told (text, train items); the others are asked (evaluation items)."""
    return zlib.crc32("|".join(parts).encode()) % 3 != 0


def combination(rng: random.Random, asked: bool, *pools: Sequence[str]) -> tuple[str, ...]:
    """One of each pool, together a combination that is asked or told; told ones are frequent or rare (Zipf)."""
    while True:
        parts = tuple(rng.choice(pool) if asked else frequent(rng, pool) for pool in pools)
        if told(*parts) != asked:
            return parts


def frequent(rng: random.Random, pool: Sequence[Some]) -> Some:
    """An element, the earlier ones more often: the k-th with weight 1 / sqrt(k + 2)."""
    return rng.choices(pool, [(k + 2) ** -0.5 for k in range(len(pool))])[0]


WOMEN = ("Ana", "Cora", "Ella", "Iris", "Mara", "Rosa")
MEN = ("Tom", "Ben", "Leo", "Max", "Sam", "Paul")
PEOPLE = tuple(name for pair in zip(WOMEN, MEN, strict=True) for name in pair)
KINDS = {  # kind of animal: what covers it, what it can do
    "bird": ("feathers", "fly"),
    "fish": ("scales", "swim"),
    "frog": ("slime", "hop"),
    "snake": ("plates", "crawl"),
}
INHERITED = ("cover", "move")
_ANIMAL = {
    "kind": (
        ("{s} is a {v}", "{s} is a kind of {v}", "we call {s} a {v}"),
        ("what is {s}?", "what kind of animal is {s}?", "which family has {s}?"),
        tuple(KINDS),
    ),
    "food": (
        ("{s} eats {v}", "{s} feeds on {v}", "the food of {s} is {v}"),
        ("what does {s} eat?", "what is the food of {s}?", "what does {s} feed on?"),
        ("seeds", "grass", "leaves", "worms", "fruit", "honey"),
    ),
    "home": (
        ("{s} lives in the {v}", "the home of {s} is the {v}", "you find {s} in the {v}"),
        ("where does {s} live?", "what is the home of {s}?", "where do you find {s}?"),
        ("forest", "desert", "river", "swamp", "meadow", "valley"),
    ),
    "cover": (
        ("{s} is covered with {v}", "the body of {s} has {v}"),
        ("what covers {s}?", "what does the body of {s} have?", "what is {s} covered with?"),
        tuple(cover for cover, _ in KINDS.values()),
    ),
    "move": (
        ("{s} can {v}", "{s} likes to {v}"),
        ("what can {s} do?", "how does {s} move?", "what does {s} like to do?"),
        tuple(move for _, move in KINDS.values()),
    ),
}
_PLANT = {
    "color": (
        ("{s} is {v}", "the color of {s} is {v}", "the leaves of {s} are {v}"),
        ("what color is {s}?", "what is the color of {s}?", "which color do the leaves of {s} have?"),
        ("brown", "blue", "green", "gray", "white", "black"),
    ),
    "ground": (
        ("{s} grows in {v}", "the ground of {s} is {v}", "{s} needs {v}"),
        ("in what does {s} grow?", "what ground does {s} have?", "what does {s} need?"),
        ("sand", "clay", "mud", "rock", "snow"),
    ),
    "season": (
        ("{s} blooms in {v}", "the flowers of {s} open in {v}", "you pick {s} in {v}"),
        ("when does {s} bloom?", "when do the flowers of {s} open?", "when do you pick {s}?"),
        ("spring", "summer", "autumn", "winter"),
    ),
}
ANIMAL = {name: Relation(name, *parts) for name, parts in _ANIMAL.items()}
PLANT = {name: Relation(name, *parts) for name, parts in _PLANT.items()}
HOMES, COLORS, SEASONS = ANIMAL["home"].values, PLANT["color"].values, PLANT["season"].values
NEVER = ("glass", "money", "iron", "paper", "chairs", "soap")  # answers that are never right
TOOLS = {  # tool: what it is for, what it is like
    "knife": ("cut bread", "sharp"),
    "kettle": ("boil water", "hot"),
    "rope": ("tie boats", "long"),
    "hammer": ("hit nails", "heavy"),
    "lamp": ("light rooms", "bright"),
    "towel": ("dry hands", "soft"),
    "drum": ("play songs", "loud"),
    "needle": ("sew shirts", "sharp"),
    "brush": ("paint walls", "soft"),
    "broom": ("sweep floors", "long"),
    "stove": ("cook soup", "hot"),
    "cart": ("move stones", "heavy"),
    "bell": ("call people", "loud"),
    "mirror": ("see faces", "bright"),
    "saw": ("cut trees", "sharp"),
    "pillow": ("rest heads", "soft"),
    "ladder": ("reach roofs", "long"),
    "stone": ("hold doors", "heavy"),
    "torch": ("find caves", "bright"),
    "whistle": ("stop trains", "loud"),
    "iron": ("press shirts", "hot"),
    "sponge": ("wash dishes", "soft"),
    "axe": ("split logs", "sharp"),
    "pole": ("push rafts", "long"),
}
QUALITIES = tuple(dict.fromkeys(quality for _, quality in TOOLS.values()))
OBJECTS = ("boat", "ring", "bag", "cake", "coat", "cup", "book", "house", "prize", "clock")
FEELINGS = {  # feeling: deeds that lead to it, what the person wants then
    "proud": (("won", "built", "finished"), "show it"),
    "sad": (("lost", "missed", "buried"), "be alone"),
    "sorry": (("broke", "burned", "forgot"), "mend it"),
    "happy": (("found", "got", "tasted"), "keep it"),
    "angry": (("overpaid", "awaited", "guarded"), "return it"),
    "tired": (("carried", "cleaned", "pulled"), "go home"),
}
DEEDS = {
    deed: feeling for k in range(3) for feeling, (deeds, _) in FEELINGS.items() for deed in deeds[k:][:1]
}
THINGS = ("glass", "toy", "hat", "box", "flag", "bottle", "plate", "chain", "jar", "doll")
CAUSES = {  # what happens to a thing, what follows
    "fell": "broke",
    "got hot": "melted",
    "got wet": "shrank",
    "was pulled": "tore",
    "was in the sun": "faded",
    "froze": "cracked",
    "was hit": "bent",
    "was washed": "shone",
    "was shaken": "opened",
    "was in the lake": "sank",
    "was old": "rusted",
    "was kicked": "rolled away",
}
ACTIVITIES = {
    "Making tea": ("boil the water", "take a cup", "pour the tea", "drink it hot"),
    "Planting a tree": ("bring a spade", "dig a hole", "set the tree", "give it water"),
    "Sending a letter": ("find some paper", "write a letter", "fold it twice", "go to the post"),
    "Baking bread": ("mix the flour", "knead the dough", "heat the oven", "bake the bread"),
    "Painting a wall": ("cover the floor", "open the paint", "dip the brush", "paint the wall"),
    "Fishing": ("walk to the lake", "hook a worm", "throw the line", "pull out a fish"),
    "Going to bed": ("wash your face", "wear pajamas", "turn off the lamp", "sleep all night"),
    "Making a fire": ("gather dry wood", "stack the wood", "strike a match", "light the fire"),
    "Playing the piano": ("sit on the stool", "read the music", "touch the keys", "play a song"),
    "Building a snowman": ("roll a big ball", "add a small ball", "choose a carrot", "lend it a hat"),
    "Crossing a street": ("stop at the curb", "look both ways", "wait for cars", "run across"),
    "Sewing a button": ("thread a needle", "hold the button", "sew it tight", "cut the thread"),
}
SOURCES = ("a study", "a test", "the teacher", "an expert", "the museum", "a long search")
VERDICTS = {True: ("confirmed", "proved", "repeated"), False: ("denied", "rejected", "mocked")}  # of a claim
SPEECH = {  # what a speaker's verb says of the clause that follows
    "True": ("knew that", "saw that", "proved that", "learned that", "noticed that"),
    "False": ("denied that", "rejected that", "joked that", "disproved that", "pretended that"),
    "Neither": ("asked whether", "hoped that", "guessed that", "wondered whether", "dreamed that"),
}
KEPT = ("in short,", "that is,", "indeed")  # before the same meaning
SHIFTED = ("perhaps", "nobody says that", "never say that")
SAME, OTHERWISE = ("again", "also", "too"), ("instead", "rather", "however")  # before a second use of a word
FEMALE = ("queen", "mother", "sister", "aunt", "girl", "lady")
MALE = ("king", "father", "brother", "uncle", "boy", "lord")
NARROWED = ("in winter", "at night", "on the moon")  # after a question: another question
SENSES = {  # word: uses in nature, uses among people
    "bank": (
        ("reeds grow on the bank", "the river left its bank"),
        ("the bank lends money", "she paid the bank"),
    ),
    "bat": (
        ("a bat flew from the cave", "the bat hunts insects"),
        ("he swung the bat", "a player lost his bat"),
    ),
    "trunk": (
        ("moss grows on the trunk", "the oak has a thick trunk"),
        ("she packed the trunk", "he locked the trunk"),
    ),
    "wave": (
        ("a wave hit the shore", "the sea sent a wave"),
        ("she gave a wave", "he thanked us with a wave"),
    ),
    "spring": (
        ("flowers open in spring", "rain falls in spring"),
        ("he oiled the spring", "the watch lost a spring"),
    ),
    "seal": (
        ("a seal swam to the ice", "the seal eats fish"),
        ("he broke the seal", "the letter has a seal"),
    ),
}


def make_world(seed: int = 0, animals: int = 20, plants: int = 18) -> World:
    """Draws the world: which animals and plants there are and what is true of them."""
    rng = random.Random(f"world {seed}")
    names = [f"the {name}" for name in _invented(rng, animals + plants)]
    beasts: dict[str, tuple[Fact, ...]] = {}
    for number, subject in enumerate(names[:animals]):
        kind = tuple(KINDS)[number % len(KINDS)]
        values = {name: rng.choice(relation.values) for name, relation in ANIMAL.items()}
        values |= {"kind": kind, **dict(zip(INHERITED, KINDS[kind], strict=True))}
        beasts[subject] = tuple(Fact(subject, ANIMAL[name], value) for name, value in values.items())
    herbs = {
        subject: tuple(Fact(subject, relation, rng.choice(relation.values)) for relation in PLANT.values())
        for subject in names[animals:]
    }
    return World(beasts, herbs, frozenset(names[animals // 2 : animals]))


def _invented(rng: random.Random, count: int) -> list[str]:
    """Distinct pronounceable names that are no English words."""
    names: dict[str, None] = {}
    while len(names) < count:
        first = rng.choice("bdfgklmnprtvz") + rng.choice("aeiou") + rng.choice("lmnr")
        names[first + rng.choice("bdgkpvz") + rng.choice(("ax", "ek", "il", "on", "um"))] = None
    return list(names)
