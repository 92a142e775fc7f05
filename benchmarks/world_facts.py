"""The facts of the embedded world: a seeded, invented little encyclopaedia.

Animals, towns and people are invented and their properties drawn by the seed; objects, materials, causes,
feelings and activities are plain common sense. Cost: under a millisecond.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from evalengine.benchmarks.world_grammar import Fact, relations


class Role(NamedTuple):
    """A sentence about two people whose second half is about one of them: `who` is "a" or "b"."""

    start: str
    reason: str
    who: str


class Event(NamedTuple):
    """Something that happens to a person, how it feels, and what comes next."""

    deed: str
    feeling: str
    wish: str


class Activity(NamedTuple):
    label: str
    steps: tuple[str, ...]


class Sense(NamedTuple):
    """One sense of an ambiguous word: what it is, and sentences that use it."""

    word: str
    gloss: str
    uses: tuple[str, ...]


class World(NamedTuple):
    facts: tuple[Fact, ...]
    people: tuple[str, ...]

    def about(self, subject: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.subject == subject]


KINDS = {  # what covers an animal of a kind
    "bird": "plumes",
    "fish": "scales",
    "frog": "slime",
    "beast": "hair",
    "snake": "plates",
}
HOMES = ("forest", "desert", "river", "swamp", "meadow", "valley")
FOODS = ("seeds", "grass", "leaves", "worms", "fruit", "honey")
COLORS = ("brown", "blue", "green", "gray", "white", "black")
JOBS = ("baker", "doctor", "farmer", "teacher", "sailor", "painter")
LIKES = ("music", "chess", "cheese", "rain", "stories", "roses")
REGIONS = ("north", "south", "east", "west", "center")
FAMES = ("bells", "boats", "bread", "bridges", "horses", "markets")
NAMES = ("Ana", "Cora", "Dina", "Ella", "Iris", "Mara", "Rosa", "Tess")
# object: what it is made of, where it is kept, what it is for
OBJECTS = {
    "knife": ("iron", "kitchen", "cut bread"),
    "kettle": ("iron", "kitchen", "boil water"),
    "rope": ("wool", "garage", "tie a boat"),
    "hammer": ("iron", "garage", "hit a nail"),
    "spade": ("iron", "garden", "dig a hole"),
    "bench": ("wood", "garden", "sit outside"),
    "blanket": ("wool", "bedroom", "stay warm"),
    "mirror": ("glass", "bedroom", "see a face"),
    "candle": ("wax", "bedroom", "light a room"),
    "pencil": ("wood", "school", "write a letter"),
    "book": ("paper", "school", "read a story"),
    "map": ("paper", "office", "find the way"),
}
MATERIALS = {  # how it feels, what a fire does to it
    "wood": ("rough", "burns"),
    "paper": ("thin", "burns"),
    "wool": ("soft", "burns"),
    "iron": ("hard", "glows"),
    "glass": ("smooth", "cracks"),
    "wax": ("sticky", "melts"),
}
CAUSES = (
    ("the glass fell on the floor", "the glass broke"),
    ("it rained all day", "the street became wet"),
    ("the sun came out", "the snow melted"),
    ("the wind blew hard", "the door closed"),
    ("the baby was hungry", "the baby cried"),
    ("the lamp was switched off", "the room became dark"),
    ("the boy forgot his coat", "the boy felt cold"),
    ("the girl studied every night", "the girl passed the test"),
    ("the battery was empty", "the phone stopped"),
    ("the plant got no water", "the plant died"),
    ("the man ran for an hour", "the man was tired"),
    ("the cat saw a dog", "the cat climbed a tree"),
    ("the boat had a hole", "the boat sank"),
    ("the dog smelled meat", "the dog ran to the kitchen"),
    ("the bag was too heavy", "the bag tore"),
    ("the alarm rang", "the woman woke up"),
)
EVENTS = (
    Event("lost the race", "sad", "train harder"),
    Event("won a prize", "proud", "show it to friends"),
    Event("heard a noise at night", "afraid", "lock the door"),
    Event("got a gift", "happy", "say thank you"),
    Event("broke a friend's cup", "sorry", "buy a new cup"),
    Event("worked all night", "tired", "go to bed"),
    Event("saw a snake on the path", "afraid", "run away"),
    Event("passed the test", "proud", "tell the family"),
    Event("met an old friend", "happy", "have dinner together"),
    Event("lost the keys", "worried", "search the house"),
    Event("carried heavy boxes", "tired", "sit down"),
    Event("was pushed in the queue", "angry", "complain"),
)
VERDICTS = {  # what a speaker's verb says of the clause that follows
    "True": ("knew that", "saw that", "proved that"),
    "False": ("denied that", "doubted that", "joked that"),
    "Neither": ("asked whether", "hoped that", "guessed that"),
}
FEELINGS = tuple(dict.fromkeys(event.feeling for event in EVENTS))
ACTIVITIES = (
    Activity("Making tea", ("boils the water", "takes a cup", "pours the tea", "drinks the tea")),
    Activity(
        "Planting a tree", ("takes a spade", "digs a hole", "puts the tree in the hole", "waters the tree")
    ),
    Activity(
        "Sending a letter", ("takes some paper", "writes a letter", "folds it", "brings it to the post")
    ),
    Activity(
        "Baking bread", ("mixes flour and water", "kneads the dough", "heats the oven", "bakes the bread")
    ),
    Activity("Painting a wall", ("covers the floor", "opens the paint", "dips the brush", "paints the wall")),
    Activity(
        "Fishing", ("walks to the lake", "puts a worm on the hook", "throws the line", "catches a fish")
    ),
    Activity("Going to bed", ("brushes the teeth", "puts on pajamas", "turns off the lamp", "falls asleep")),
    Activity("Making a fire", ("gathers dry wood", "stacks the wood", "strikes a match", "lights the fire")),
    Activity(
        "Playing the piano", ("sits on the stool", "opens the music", "touches the keys", "plays a song")
    ),
    Activity(
        "Building a snowman", ("rolls a big ball", "adds a small ball", "adds a carrot", "names the snowman")
    ),
    Activity("Crossing a street", ("stops at the curb", "looks both ways", "waits for cars", "walks across")),
    Activity(
        "Sewing a button", ("threads a needle", "holds the button", "pulls the thread", "cuts the thread")
    ),
)
ROLES = tuple(
    Role(start, reason, who)
    for start, about_a, about_b in (
        ("{a} thanked {b} because", "felt grateful", "had helped"),
        ("{a} gave a gift to {b} because", "liked to share", "had a birthday"),
        ("{a} asked {b} because", "did not know the answer", "knew the answer"),
        ("{a} sold a house to {b} because", "needed money", "needed a home"),
        ("{a} lost to {b} because", "was slower", "was faster"),
        ("{a} taught {b} because", "was the teacher", "wanted to learn"),
        ("{a} followed {b} because", "was lost", "knew the way"),
        ("{a} lent {b} a coat because", "had two coats", "was cold"),
        ("{a} hid from {b} because", "was afraid", "was angry"),
        ("{a} visited {b} because", "had free time", "was ill"),
    )
    for reason, who in ((about_a, "a"), (about_b, "b"))
)
SENSES = tuple(
    Sense(word, gloss, uses)
    for word, senses in {
        "bank": {
            "a place for money": (
                "she put money in the bank",
                "the bank lends money",
                "the bank opens at nine",
            ),
            "the side of a river": (
                "they sat on the bank of the river",
                "reeds grow on the bank",
                "the bank is wet",
            ),
        },
        "bat": {
            "a stick for a ball game": (
                "he hit the ball with a bat",
                "the bat is made of wood",
                "she swung the bat",
            ),
            "an animal of the night": (
                "a bat flew out of the cave",
                "the bat sleeps all day",
                "a bat eats insects",
            ),
        },
        "light": {
            "not heavy": ("the bag is light", "a light box is easy to lift", "feathers are light"),
            "what a lamp gives": ("turn on the light", "the light of the lamp is warm", "the light went out"),
        },
        "ring": {
            "a band for a finger": ("she wore a gold ring", "the ring fits her finger", "he lost his ring"),
            "a sound of a bell": (
                "we heard the ring of a bell",
                "the ring woke us",
                "a loud ring came at noon",
            ),
        },
        "spring": {
            "a season": ("flowers open in spring", "spring follows winter", "we sow in spring"),
            "a coil of metal": (
                "the spring in the chair broke",
                "a spring of iron bends",
                "press the spring down",
            ),
        },
        "match": {
            "a game": ("our team won the match", "the match ended at nine", "the crowd saw the match"),
            "a stick for fire": ("she lit a match", "the match burned out", "strike a match to make fire"),
        },
        "trunk": {
            "a part of a tree": (
                "the trunk of the tree is thick",
                "he cut the trunk",
                "moss grows on the trunk",
            ),
            "a big box": ("she packed a trunk", "the trunk holds old clothes", "he locked the trunk"),
        },
        "wave": {
            "moving water": ("a wave hit the boat", "the wave was high", "a wave rolled to the shore"),
            "a sign with the hand": (
                "she gave a wave",
                "a wave of the hand said bye",
                "he answered with a wave",
            ),
        },
    }.items()
    for gloss, uses in senses.items()
)


def make_world(seed: int = 0, animals: int = 10, towns: int = 4) -> World:
    """Draws the world: who exists and what is true of it."""
    rng = random.Random(f"world {seed}")
    names = _invented(rng, animals + towns)
    town_names = tuple(name.capitalize() for name in names[animals:])
    people = tuple(rng.sample(NAMES, len(NAMES)))
    kinds = relations(_values())
    facts: list[Fact] = []

    def add(subject: str, **values: str) -> None:
        facts.extend(Fact(subject, kinds[name], value) for name, value in values.items())

    for number, name in enumerate(names[:animals]):
        kind = tuple(KINDS)[number % len(KINDS)]
        home, food, color = rng.choice(HOMES), rng.choice(FOODS), rng.choice(COLORS)
        add(f"the {name}", kind=kind, cover=KINDS[kind], home=home, food=food, color=color)
    for name in town_names:
        add(name, region=rng.choice(REGIONS), fame=rng.choice(FAMES))
    for name in people:
        add(name, job=rng.choice(JOBS), likes=rng.choice(LIKES))
    for name, (material, room, use) in OBJECTS.items():
        add(f"the {name}", material=material, room=room, use=use)
    for name, (feel, fire) in MATERIALS.items():
        add(name, feel=feel, fire=fire)
    return World(tuple(facts), people)


def _invented(rng: random.Random, count: int) -> list[str]:
    """Distinct pronounceable names that are no English words."""
    names: dict[str, None] = {}
    while len(names) < count:
        first = rng.choice("bdfgklmnprtvz") + rng.choice("aeiou") + rng.choice("lmnr")
        names[
            first + rng.choice("bdgkpvz") + rng.choice(("ax", "ek", "il", "on", "um", "ath", "osk", "erb"))
        ] = None
    return list(names)


def _values() -> dict[str, tuple[str, ...]]:
    """What each kind of fact may be."""
    materials, rooms, uses = (tuple(dict.fromkeys(column)) for column in zip(*OBJECTS.values(), strict=True))
    feels, fires = (tuple(dict.fromkeys(column)) for column in zip(*MATERIALS.values(), strict=True))
    return {
        "kind": tuple(KINDS),
        "cover": tuple(KINDS.values()),
        "home": HOMES,
        "food": FOODS,
        "color": COLORS,
        "region": REGIONS,
        "fame": FAMES,
        "job": JOBS,
        "likes": LIKES,
        "material": materials,
        "room": rooms,
        "use": uses,
        "feel": feels,
        "fire": fires,
    }
