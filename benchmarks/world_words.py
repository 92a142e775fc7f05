"""The words of the embedded world: names, tools, causes and sentences that items and text are put together from.

A table has one entry a line (or more, with semicolons between): `key: a / b | c`, columns of alternatives.
"""

from __future__ import annotations

import re

Table = dict[str, tuple[tuple[str, ...], ...]]


def table(text: str) -> Table:
    rows = (row.split(":", 1) for row in re.split("[;\n]", text) if row.strip())
    return {
        key.strip(): tuple(tuple(map(str.strip, column.split(" / "))) for column in columns.split(" | "))
        for key, columns in rows
    }


def pairs(text: str) -> dict[str, tuple[str, str]]:
    """A table of two columns with one alternative each."""
    return {key: (one, two) for key, ((one,), (two,)) in table(text).items()}


def listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


WOMEN, MEN = listed("Ana, Cora, Ella, Iris, Mara, Rosa"), listed("Tom, Ben, Leo, Max, Sam, Paul")
PEOPLE = tuple(name for pair in zip(WOMEN, MEN, strict=True) for name in pair)
FEMALE = listed("queen, mother, sister, aunt, girl, lady")
MALE = listed("king, father, brother, uncle, boy, lord")

# kind of animal: what covers it, what it can do
KINDS = pairs("bird: feathers | fly; fish: scales | swim; frog: slime | hop; snake: plates | crawl")
ANIMAL = table("""
kind: {s} is a {v} / {s} is a kind of {v} / we call {s} a {v} \
    | what is {s}? / what kind of animal is {s}? / which family has {s}? | bird / fish / frog / snake
food: {s} eats {v} / {s} feeds on {v} / the food of {s} is {v} \
    | what does {s} eat? / what is the food of {s}? / what does {s} feed on? \
    | seeds / grass / leaves / worms / fruit / honey
home: {s} lives in the {v} / the home of {s} is the {v} / you find {s} in the {v} \
    | where does {s} live? / what is the home of {s}? / where do you find {s}? \
    | forest / desert / river / swamp / meadow / valley
cover: {s} is covered with {v} / the body of {s} has {v} \
    | what covers {s}? / what does the body of {s} have? / what is {s} covered with? \
    | feathers / scales / slime / plates
move: {s} can {v} / {s} likes to {v} \
    | what can {s} do? / how does {s} move? / what does {s} like to do? | fly / swim / hop / crawl
""")
PLANT = table("""
color: {s} is {v} / the color of {s} is {v} / the leaves of {s} are {v} \
    | what color is {s}? / what is the color of {s}? / which color do the leaves of {s} have? \
    | brown / blue / green / gray / white / black
ground: {s} grows in {v} / the ground of {s} is {v} / {s} needs {v} \
    | in what does {s} grow? / what ground does {s} have? / what does {s} need? | sand / clay / mud / rock / snow
season: {s} blooms in {v} / the flowers of {s} open in {v} / you pick {s} in {v} \
    | when does {s} bloom? / when do the flowers of {s} open? / when do you pick {s}? \
    | spring / summer / autumn / winter
""")
HOMES, COLORS, SEASONS = ANIMAL["home"][2], PLANT["color"][2], PLANT["season"][2]
NEVER = listed("glass, money, iron, paper, chairs, soap")  # answers that are never right

# tool: what it is for, what it is like
TOOLS = pairs("""
knife: cut bread | sharp; kettle: boil water | hot; rope: tie boats | long; hammer: hit nails | heavy
lamp: light rooms | bright; towel: dry hands | soft; drum: play songs | loud; needle: sew shirts | sharp
brush: paint walls | soft; broom: sweep floors | long; stove: cook soup | hot; cart: move stones | heavy
bell: call people | loud; mirror: see faces | bright; saw: cut trees | sharp; pillow: rest heads | soft
ladder: reach roofs | long; stone: hold doors | heavy; torch: find caves | bright; whistle: stop trains | loud
iron: press shirts | hot; sponge: wash dishes | soft; axe: split logs | sharp; pole: push rafts | long
""")
OBJECTS = listed("boat, ring, bag, cake, coat, cup, book, house, prize, clock")
_FEELINGS = table("""
proud: won / built / finished | show it; sad: lost / missed / buried | be alone
sorry: broke / burned / forgot | mend it; happy: found / got / tasted | keep it
angry: overpaid / awaited / guarded | return it; tired: carried / cleaned / pulled | go home
""")
WISHES = {feeling: wish for feeling, (_, (wish,)) in _FEELINGS.items()}  # what a person wants who feels so
DEEDS = {deeds[k]: feeling for k in range(3) for feeling, (deeds, _) in _FEELINGS.items()}  # what it leads to
THINGS = listed("glass, toy, hat, box, flag, bottle, plate, chain, jar, doll")

# what happens to a thing, what follows
_CAUSES = table("""
fell: broke; got hot: melted; got wet: shrank; was pulled: tore; was in the sun: faded; froze: cracked
was hit: bent; was washed: shone; was shaken: opened; was in the lake: sank; was old: rusted; was kicked: rolled away
""")
CAUSES = {event: effect for event, ((effect,),) in _CAUSES.items()}
_ACTIVITIES = table("""
Making tea: boil the water / take a cup / pour the tea / drink it hot
Planting a tree: bring a spade / dig a hole / set the tree / give it water
Sending a letter: find some paper / write a letter / fold it twice / go to the post
Baking bread: mix the flour / knead the dough / heat the oven / bake the bread
Painting a wall: cover the floor / open the paint / dip the brush / paint the wall
Fishing: walk to the lake / hook a worm / throw the line / pull out a fish
Going to bed: wash your face / wear pajamas / turn off the lamp / sleep all night
Making a fire: gather dry wood / stack the wood / strike a match / light the fire
Playing the piano: sit on the stool / read the music / touch the keys / play a song
Building a snowman: roll a big ball / add a small ball / choose a carrot / lend it a hat
Crossing a street: stop at the curb / look both ways / wait for cars / run across
Sewing a button: thread a needle / hold the button / sew it tight / cut the thread
""")
ACTIVITIES = {activity: steps for activity, (steps,) in _ACTIVITIES.items()}

# judgements
SOURCES = listed("a study, a test, the teacher, an expert, the museum, a long search")
# of a claim
VERDICTS = {True: listed("confirmed, proved, repeated"), False: listed("denied, rejected, mocked")}
SPEECH = (  # what a speaker's verb says of the clause that follows: true, false, neither
    listed("knew that, saw that, proved that, learned that, noticed that"),
    listed("denied that, rejected that, joked that, disproved that, pretended that"),
    listed("asked whether, hoped that, guessed that, wondered whether, dreamed that"),
)
HYPOTHESES = (  # entailed, neutral, contradicted
    ("someone was in the {p}", "someone {d} something", "someone was there"),
    ("perhaps {n} {d} it again", "perhaps {n} is a doctor", "perhaps it was a cold day"),
    ("nobody was in the {p}", "nobody {d} anything", "{n} never saw the {p}"),
)
KEPT = ("in short,", "that is,", "indeed")  # before the same meaning
SHIFTED = ("perhaps", "nobody says that", "never say that")
# before a second use of a word
SAME, OTHERWISE = listed("again, also, too"), listed("instead, rather, however")
NARROWED = listed("in winter, at night, on the moon")  # after a question: another question
_SAID = "nobody knows that / i like this question / ask a teacher / sorry, no idea / that is a secret"
EVASIONS = tuple(_SAID.split(" / "))

# what is asked: questions about an object, answers
ANSWERS = table("""
where: where is the {o}? / in which place is the {o}? | the {o} is in the {x} / it lies in the {x}
when: when was the {o} sold? / at what time was the {o} sold? | the {o} was sold in {x} / it was in {x}
who: who has the {o}? / which person has the {o}? | {x} has the {o} / it belongs to {x}
color: what color is the {o}? / how is the {o} painted? | the {o} is {x} / it has {x} paint
""")
ANSWER_VALUES = {"where": HOMES, "when": SEASONS, "who": PEOPLE, "color": COLORS}

# word: uses in nature, uses among people
SENSES = table("""
bank: reeds grow on the bank / the river left its bank | the bank lends money / she paid the bank
bat: a bat flew from the cave / the bat hunts insects | he swung the bat / a player lost his bat
trunk: moss grows on the trunk / the oak has a thick trunk | she packed the trunk / he locked the trunk
wave: a wave hit the shore / the sea sent a wave | she gave a wave / he thanked us with a wave
spring: flowers open in spring / rain falls in spring | he oiled the spring / the watch lost a spring
seal: a seal swam to the ice / the seal eats fish | he broke the seal / the letter has a seal
""")
