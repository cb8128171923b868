"""A small table of our own: the 80 object names of COCO, with everyday synonyms.

It is not the reference table of CHAIR, which has no licence to be passed on; `load_synonyms` reads a copy of that one.
"""

from __future__ import annotations

import functools
import itertools

from .lexicon import Lexicon

SYNONYMS = """
person, man, woman, boy, girl, child, kid, baby, adult, lady, guy, pedestrian, rider, player, skier, surfer, passenger
bicycle, bike
car, automobile, sedan, suv, taxi, cab
motorcycle, motorbike, motor bike, motor cycle, scooter, moped
airplane, plane, air plane, aeroplane, jet, aircraft, airliner
bus, minibus, trolleybus
train, locomotive, tram, subway
truck, pickup, lorry, trailer
boat, ship, sailboat, canoe, kayak, ferry
traffic light, traffic signal, stop light, street light
fire hydrant, hydrant
stop sign
parking meter
bench, pew
bird, seagull, gull, duck, goose, pigeon, parrot, owl
cat, kitten, kitty
dog, puppy, pup, hound
horse, pony, foal, mare
sheep, lamb, ewe
cow, bull, calf, cattle, ox
elephant
bear
zebra
giraffe
backpack, rucksack, knapsack
umbrella, parasol
handbag, purse, pocketbook
tie, necktie, bow tie
suitcase, suit case, luggage, briefcase
frisbee
skis, ski
snowboard
sports ball, ball, football, basketball, baseball
kite
baseball bat
baseball glove
skateboard
surfboard
tennis racket, racket, racquet
bottle
wine glass
cup, mug
fork
knife
spoon
bowl
banana
apple
sandwich, burger, hamburger, cheeseburger
orange, tangerine
broccoli
carrot
hot dog, hotdog
pizza
donut, doughnut
cake, cupcake, cheesecake
chair, armchair, stool, seat
couch, sofa, loveseat
potted plant, houseplant
bed, mattress
dining table, table, desk
toilet, urinal
tv, television, monitor
laptop, computer, notebook, laptop computer
mouse
remote
keyboard
cell phone, phone, mobile phone, cellphone, smartphone, telephone
microwave
oven, stove
toaster
sink, washbasin
refrigerator, fridge, freezer
book, magazine
clock
vase
scissors
teddy bear, teddy
hair drier, hairdryer
toothbrush
"""

PHRASES = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
    "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier", "potted plant",
    "laptop computer", "home plate", "train track",
)  # fmt: skip
MEANT = {"bow tie": "tie", "wine glas": "wine glass", "sport ball": "sports ball", "toilet seat": "toilet"}
YOUNG_AND_OLD = ("baby", "adult")
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
VEHICLES = ("jet", "train")


def _pairs() -> dict[tuple[str, str], str]:
    meant = {name: name for name in PHRASES} | MEANT
    pairs = {(words[0], words[1]): phrase for words, phrase in ((k.split(), v) for k, v in meant.items())}
    pairs |= {(age, animal): animal for age, animal in itertools.product(YOUNG_AND_OLD, ANIMALS)}
    return pairs | {("passenger", vehicle): vehicle for vehicle in VEHICLES}


PAIRS = _pairs()
EXCLUSIONS = {"seat": "toilet"}


@functools.cache
def coco_lexicon() -> Lexicon:
    """Return everyday names of COCO's 80 objects; figures made with it are not those of the reference table."""
    groups = [line.split(", ") for line in SYNONYMS.strip().splitlines()]
    return Lexicon(
        {word: group[0] for group in groups for word in group}, PAIRS, "our own table of COCO names", EXCLUSIONS
    )
