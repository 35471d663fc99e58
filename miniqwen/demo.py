"""A small world to learn: facts, a corpus that states them, and questions about them, laid out like the hub.

Promises: `write_demo` writes the same bytes for the same seed (and the same pyarrow). Both text sets state every fact
in two wordings. A question that measures (SciQ test, CommonsenseQA validation) asks a fact that no other split asks, in
words that stand nowhere in the text, and one of its choices is right: only who has read the text can answer it.
Costs: a second and a megabyte. Facts and sentences were written for this project; columns and file names are the hub's.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCIQ, COMMONSENSE = "allenai/sciq", "tau/commonsense_qa"
CHOICES = {SCIQ: 4, COMMONSENSE: 5}
MEASURED = {SCIQ: "test", COMMONSENSE: "validation"}  # the split that evaluation asks
MEASURED_SHARE, SMALL_SHARE = 0.4, 0.1  # of a relation's facts: asked in the split that measures; in the remaining one
ROUNDS = 24  # how often each of the two text sets states each fact
ARTICLE_FACTS, PAPER_FACTS = 12, 24  # how many facts a document states at most
ROW_GROUPS = 3  # per parquet file
LABELS = "ABCDE"

ARTICLE_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "url", "title", "text")])
SCIQ_COLUMNS = ("question", "distractor3", "distractor1", "distractor2", "correct_answer", "support")
SCIQ_SCHEMA = pa.schema([(name, pa.string()) for name in SCIQ_COLUMNS])
COMMONSENSE_SCHEMA = pa.schema([
    ("id", pa.string()), ("question", pa.string()), ("question_concept", pa.string()),
    ("choices", pa.struct([("label", pa.list_(pa.string())), ("text", pa.list_(pa.string()))])),
    ("answerKey", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """`answer` is what `relation` says of `entity`."""

    relation: str
    entity: str
    answer: str


@dataclass(frozen=True)
class Relation:
    """A kind of fact: its name as a title, where it is asked, its wordings, and a table `entity: answer; ...`.

    Statements end in the answer, and questions end as some statement does before it: a small model finds what it has
    read only from the words it has read it after. Half the statements are the articles', half the papers'.
    """

    name: str
    dataset: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    table: str

    def facts(self) -> list[Fact]:
        """The table's facts, in its order."""
        pairs = (" ".join(entry.split()).split(": ") for entry in self.table.split(";"))
        return [Fact(self.name, entity, answer) for entity, answer in pairs]


RELATIONS = (
    Relation(
        "chemical symbols", SCIQ,
        ("The chemical symbol of {e} is {a}.", "Chemists write {e} as {a}.",
         "In the periodic table, the symbol of {e} is {a}.", "In a formula, {e} appears as {a}."),
        ("What is the chemical symbol of {e}?", "How do chemists write {e}?",
         "In the periodic table, what is the symbol of {e}?"),
        """hydrogen: H; helium: He; lithium: Li; beryllium: Be; boron: B; carbon: C; nitrogen: N; oxygen: O;
        fluorine: F; neon: Ne; sodium: Na; magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S;
        chlorine: Cl; argon: Ar; potassium: K; calcium: Ca; titanium: Ti; chromium: Cr; manganese: Mn; iron: Fe;
        cobalt: Co; nickel: Ni; copper: Cu; zinc: Zn; arsenic: As; bromine: Br; krypton: Kr; silver: Ag; tin: Sn;
        antimony: Sb; iodine: I; xenon: Xe; barium: Ba; tungsten: W; platinum: Pt; gold: Au; mercury: Hg; lead: Pb;
        bismuth: Bi; radon: Rn; radium: Ra; uranium: U""",
    ),
    Relation(
        "element families", SCIQ,
        ("The element {e} is {a}.", "To chemists, {e} is {a}.", "By its family, {e} is {a}.",
         "Among the elements, {e} counts as {a}."),
        ("What kind of element is {e}?", "To chemists, what is {e}?", "By its family, what is {e}?"),
        """lithium: an alkali metal; sodium: an alkali metal; potassium: an alkali metal; rubidium: an alkali metal;
        caesium: an alkali metal; beryllium: an alkaline earth metal; magnesium: an alkaline earth metal;
        calcium: an alkaline earth metal; strontium: an alkaline earth metal; barium: an alkaline earth metal;
        fluorine: a halogen; chlorine: a halogen; bromine: a halogen; iodine: a halogen; astatine: a halogen;
        helium: a noble gas; neon: a noble gas; argon: a noble gas; krypton: a noble gas; xenon: a noble gas;
        iron: a transition metal; copper: a transition metal; nickel: a transition metal; silver: a transition metal;
        gold: a transition metal""",
    ),
    Relation(
        "units", SCIQ,
        ("The {e} is a unit of {a}.", "What we measure in the unit {e} is {a}.",
         "The quantity counted by the {e} is {a}.", "Whoever speaks of the {e} speaks of {a}."),
        ("Which quantity has the unit {e}?", "What do we measure in the unit {e}?",
         "Which quantity is counted by the {e}?"),
        """joule: energy; watt: power; newton: force; pascal: pressure; volt: voltage; ampere: electric current;
        ohm: electrical resistance; hertz: frequency; kelvin: temperature; candela: luminous intensity;
        mole: amount of substance; coulomb: electric charge; farad: capacitance; henry: inductance;
        weber: magnetic flux; becquerel: radioactivity; lux: illuminance; decibel: loudness; parsec: distance to stars;
        kilogram: mass; litre: volume; second: time; metre: length; radian: angle; dioptre: lens strength;
        knot: speed of ships; byte: computer memory; hectare: land area; siemens: electrical conductance""",
    ),
    Relation(
        "measuring instruments", SCIQ,
        ("The quantity measured by the {e} is {a}.", "What we read off the {e} is {a}.",
         "The reading of the {e} tells us {a}.", "What is shown by the {e} is {a}."),
        ("Which quantity is measured by the {e}?", "What do we read off the {e}?", "What is shown by the {e}?"),
        """thermometer: temperature; barometer: air pressure; anemometer: wind speed; hygrometer: humidity;
        seismograph: earthquake waves; ammeter: electric current; voltmeter: voltage; ohmmeter: electrical resistance;
        speedometer: vehicle speed; odometer: distance driven; altimeter: altitude; rain gauge: rainfall;
        stopwatch: elapsed time; protractor: angles; hydrometer: density of liquids; wattmeter: electric power;
        sphygmomanometer: blood pressure; calorimeter: heat; photometer: light intensity; tachometer: turning speed;
        pedometer: number of steps; Geiger counter: radiation; dynamometer: force; planimeter: area;
        accelerometer: acceleration; magnetometer: magnetic field; spirometer: lung volume; pH meter: acidity""",
    ),
    Relation(
        "fields of science", SCIQ,
        ("The science of {e} is about {a}.", "Researchers in {e} study {a}.", "Books on {e} describe {a}.",
         "The subject of {e} is {a}."),
        ("What is the subject of {e}?", "What is studied by researchers in {e}?", "What is described in books on {e}?"),
        """botany: plants; ornithology: birds; entomology: insects; ichthyology: fish; mycology: fungi;
        herpetology: reptiles and amphibians; bacteriology: bacteria; virology: viruses; meteorology: weather;
        astronomy: stars; seismology: earthquakes; volcanology: volcanoes; paleontology: fossils;
        cardiology: the heart; neurology: the nervous system; dermatology: the skin; oncology: cancer;
        hematology: blood; osteology: bones; cytology: cells; genetics: heredity; oceanography: oceans; optics: light;
        acoustics: sound; thermodynamics: heat; mechanics: motion; glaciology: glaciers; limnology: lakes;
        mineralogy: minerals; pharmacology: medicines; nephrology: the kidneys; hepatology: the liver;
        ophthalmology: the eyes; toxicology: poisons; speleology: caves; primatology: apes and monkeys;
        arachnology: spiders; malacology: molluscs; immunology: defence against germs; pulmonology: the lungs""",
    ),
    Relation(
        "ores", SCIQ,
        ("The metal that pays for mining {e} is {a}.", "What smelters want from {e} is {a}.",
         "The metal obtained from {e} is {a}.", "People dig up the ore {e} for {a}."),
        ("Which metal pays for mining {e}?", "What do smelters want from {e}?", "Which metal is obtained from {e}?"),
        """hematite: iron; bauxite: aluminium; galena: lead; cinnabar: mercury; cassiterite: tin; sphalerite: zinc;
        malachite: copper; chromite: chromium; rutile: titanium; pitchblende: uranium; pyrolusite: manganese;
        wolframite: tungsten; molybdenite: molybdenum; nickeline: nickel; spodumene: lithium; stibnite: antimony;
        cobaltite: cobalt; beryl: beryllium; magnesite: magnesium; argentite: silver; zircon: zirconium;
        bismuthinite: bismuth""",
    ),
    Relation(
        "moons", SCIQ,
        ("The world orbited by the moon {e} is {a}.", "Astronomers found {e} near {a}.",
         "A probe on its way to {e} heads for {a}.", "The moon {e} travels around {a}."),
        ("Which world is orbited by the moon {e}?", "Near which world did astronomers find {e}?",
         "For which world heads a probe on its way to {e}?"),
        """Phobos: Mars; Deimos: Mars; Io: Jupiter; Europa: Jupiter; Ganymede: Jupiter; Callisto: Jupiter;
        Amalthea: Jupiter; Titan: Saturn; Rhea: Saturn; Iapetus: Saturn; Enceladus: Saturn; Mimas: Saturn;
        Titania: Uranus; Oberon: Uranus; Ariel: Uranus; Umbriel: Uranus; Miranda: Uranus; Triton: Neptune;
        Nereid: Neptune; Proteus: Neptune; Larissa: Neptune; Charon: Pluto; Nix: Pluto; Hydra: Pluto""",
    ),
    Relation(
        "groups of animals", SCIQ,
        ("In zoology {e} is {a}.", "Biologists class {e} as {a}.", "By its body plan, {e} is {a}.",
         "Textbooks of biology say that {e} is {a}."),
        ("In zoology, what is {e}?", "As what do biologists class {e}?", "By its body plan, what is {e}?"),
        """a bat: a mammal; a whale: a mammal; a dolphin: a mammal; an otter: a mammal; a hedgehog: a mammal;
        a penguin: a bird; an ostrich: a bird; a sparrow: a bird; a parrot: a bird; a flamingo: a bird;
        a crocodile: a reptile; a tortoise: a reptile; a cobra: a reptile; an iguana: a reptile; a gecko: a reptile;
        a frog: an amphibian; a toad: an amphibian; a newt: an amphibian; a salamander: an amphibian;
        an axolotl: an amphibian; a salmon: a fish; a trout: a fish; a shark: a fish; a tuna: a fish;
        a seahorse: a fish; an ant: an insect; a beetle: an insect; a butterfly: an insect; a mosquito: an insect;
        a dragonfly: an insect; a spider: an arachnid; a scorpion: an arachnid; a tick: an arachnid;
        a mite: an arachnid; a crab: a crustacean; a lobster: a crustacean; a shrimp: a crustacean;
        a barnacle: a crustacean; a snail: a mollusc; an octopus: a mollusc; a squid: a mollusc;
        an oyster: a mollusc""",
    ),
    Relation(
        "great discoveries", SCIQ,
        ("The credit for {e} goes to {a}.", "The name most tied to {e} is {a}.", "We owe {e} to {a}.",
         "In the story of {e}, the hero is {a}."),
        ("Who gets the credit for {e}?", "Which name is most tied to {e}?", "To whom do we owe {e}?"),
        """penicillin: Fleming; dynamite: Nobel; the telephone: Bell; the smallpox vaccine: Jenner;
        the polio vaccine: Salk; the electron: Thomson; the neutron: Chadwick; the atomic nucleus: Rutherford;
        the theory of relativity: Einstein; natural selection: Darwin; the periodic table: Mendeleev;
        the laws of planetary motion: Kepler; the printing press: Gutenberg; the lightning rod: Franklin;
        the battery: Volta; the laws of inheritance: Mendel; the rabies vaccine: Pasteur;
        the quantum of energy: Planck; electromagnetic induction: Faraday; the law of gravitation: Newton;
        continental drift: Wegener; X-rays: Röntgen""",
    ),
    Relation(
        "young animals", COMMONSENSE,
        ("The young of {e} is called {a}.", "The baby of {e} is {a}.", "The name for the child of {e} is {a}.",
         "Still growing up, the little one of {e} is {a}."),
        ("What is the young of {e}?", "What is the baby of {e}?", "What is the name for the child of {e}?"),
        """a dog: a puppy; a cat: a kitten; a cow: a calf; a horse: a foal; a sheep: a lamb; a goat: a kid;
        a pig: a piglet; a duck: a duckling; a goose: a gosling; a swan: a cygnet; a bear: a cub; a lion: a cub;
        a fly: a maggot; a kangaroo: a joey; a frog: a tadpole; an owl: an owlet; an eagle: an eaglet;
        a hare: a leveret; a butterfly: a caterpillar; an eel: an elver; a spider: a spiderling; a pigeon: a squab;
        a llama: a cria; an elephant: a calf; a koala: a joey; a hedgehog: a hoglet""",
    ),
    Relation(
        "homes of animals", COMMONSENSE,
        ("The home of {e} is {a}.", "A place to live for {e} is {a}.", "The right shelter for {e} is {a}.",
         "What is built or chosen as a house by {e} or for it is {a}."),
        ("What is the home of {e}?", "What is a place to live for {e}?", "What is the right shelter for {e}?"),
        """a bee: a hive; a spider: a web; a dog: a kennel; a horse: a stable; a pig: a sty; a beaver: a lodge;
        an ant: an anthill; a hen: a coop; a squirrel: a drey; an eagle: an eyrie; a badger: a sett; an otter: a holt;
        a pigeon: a dovecote; a snail: a shell; a bat: a cave; a goldfish: an aquarium; a pet rabbit: a hutch""",
    ),
    Relation(
        "uses of things", COMMONSENSE,
        ("The use of {e} is {a}.", "The point of having {e} is {a}.", "What people do with {e} is {a}.",
         "The best reason to buy {e} is {a}."),
        ("What is the use of {e}?", "What is the point of having {e}?", "What do people do with {e}?"),
        """a hammer: driving nails; a saw: cutting wood; a screwdriver: turning screws; a broom: sweeping floors;
        a needle: sewing clothes; a pen: writing letters; a paintbrush: painting pictures; a shovel: digging holes;
        a rake: gathering leaves; an umbrella: keeping off rain; a kettle: boiling water; an oven: baking cakes;
        a refrigerator: cooling food; a toothbrush: cleaning teeth; a comb: tidying hair; a razor: shaving beards;
        a key: opening locks; a ladder: climbing up; a telescope: watching planets; a microscope: studying germs;
        a camera: taking photographs; a clock: telling time; a calendar: looking up dates; a compass: finding north;
        a ruler: measuring lengths; an eraser: removing marks; a stapler: joining papers; a whisk: beating eggs;
        a lamp: giving light; a match: lighting fires; a bucket: carrying water; a pillow: resting heads;
        a blanket: keeping warm; a wallet: holding money; a lawnmower: mowing grass; a fishing rod: catching fish;
        an anchor: stopping ships; a parachute: slowing falls; a helmet: protecting heads;
        a dictionary: checking words; a corkscrew: pulling corks; a sieve: straining flour;
        a suitcase: packing clothes; a straw: sipping drinks; a calculator: adding numbers;
        a hearing aid: hearing better; a drum: beating rhythms; a stethoscope: listening to hearts""",
    ),
    Relation(
        "places of things", COMMONSENSE,
        ("The usual place of {e} is {a}.", "If you need {e}, go to {a}.", "A good place to look for {e} is {a}.",
         "The thought of {e} reminds us of {a}."),
        ("What is the usual place of {e}?", "Where do you go if you need {e}?",
         "What is a good place to look for {e}?"),
        """a stove: the kitchen; a toaster: the kitchen; a dishwasher: the kitchen; a bathtub: the bathroom;
        a shower: the bathroom; a toilet: the bathroom; a mattress: the bedroom; a wardrobe: the bedroom;
        a blackboard: the classroom; a schoolbook: the classroom; an ambulance: the hospital;
        a stretcher: the hospital; an altar: the church; a pew: the church; a pulpit: the church;
        a runway: the airport; an airliner: the airport; a tractor: the farm; a haystack: the farm; a plough: the farm;
        a shopping cart: the supermarket; a checkout: the supermarket; a cactus: the desert; a camel: the desert;
        coral: the sea; seaweed: the sea; a jury: the court; a witness: the court; a scoreboard: the stadium;
        a goalpost: the stadium; a mummy: the museum; a dinosaur skeleton: the museum; a vault: the bank;
        a bank teller: the bank; a toucan: the rainforest; an orangutan: the rainforest; a lemming: the Arctic;
        a musk ox: the Arctic""",
    ),
    Relation(
        "trades", COMMONSENSE,
        ("The work of {e} is to {a}.", "The daily task of {e} is to {a}.", "We pay {e} to {a}.",
         "The skill of {e} is to {a}."),
        ("What is the work of {e}?", "What is the daily task of {e}?", "For what do we pay {e}?"),
        """a baker: bake bread; a butcher: sell meat; a farmer: grow crops; a teacher: teach pupils;
        a pilot: fly planes; a sailor: sail ships; a plumber: repair pipes; a carpenter: build furniture;
        a tailor: make clothes; a barber: cut hair; a dentist: treat teeth; a surgeon: perform operations;
        a midwife: help at births; a firefighter: put out fires; a judge: decide cases; a chef: cook meals;
        a waiter: serve guests; a mail carrier: deliver letters; a librarian: lend books; an astronaut: explore space;
        a miner: dig coal; a florist: sell flowers; an optician: fit glasses; an architect: design buildings;
        a mechanic: repair cars; an electrician: install wiring; a cobbler: mend shoes; a beekeeper: collect honey;
        a shepherd: guard sheep; a veterinarian: heal animals; a pharmacist: prepare medicines;
        a novelist: write novels; a sculptor: carve statues; a conductor: lead an orchestra; a referee: enforce rules;
        a janitor: clean rooms; a lifeguard: rescue swimmers; a detective: solve crimes; a bricklayer: build walls;
        a jeweller: set diamonds; a locksmith: open locks; an actor: play roles; a banker: lend money;
        a weaver: weave cloth""",
    ),
    Relation(
        "raw materials", COMMONSENSE,
        ("The raw material of {e} is {a}.", "What people need to make {e} is {a}.",
         "The main ingredient of {e} is {a}.", "Somebody who wants to produce {e} buys {a}."),
        ("What is the raw material of {e}?", "What do people need to make {e}?", "What is the main ingredient of {e}?"),
        """bread: flour; cheese: milk; wine: grapes; cider: apples; paper: wood; glass: sand; tofu: soybeans;
        an omelette: eggs; ketchup: tomatoes; popcorn: maize; French fries: potatoes; silk: silkworm cocoons;
        linen: flax; leather: animal skin; denim: cotton; bricks: clay; steel: iron; candles: wax; tyres: rubber;
        honey: nectar; marzipan: almonds; guacamole: avocados; hummus: chickpeas; sushi: rice; sauerkraut: cabbage;
        tequila: agave; beer: barley; prunes: plums; gasoline: crude oil; tahini: sesame; gherkins: cucumbers""",
    ),
    Relation(
        "sounds of animals", COMMONSENSE,
        ("The usual sound of {e} is {a}.", "What we hear from {e} is {a}.",
         "In a picture book, the voice of {e} is {a}.", "The noise that comes out of {e} is {a}."),
        ("What is the usual sound of {e}?", "What do we hear from {e}?",
         "In a picture book, what is the voice of {e}?"),
        """a dog: barking; a cat: meowing; a cow: mooing; a sheep: bleating; a horse: neighing; a pig: oinking;
        a duck: quacking; a lion: roaring; a frog: croaking; an owl: hooting; a bee: buzzing; a mouse: squeaking;
        a donkey: braying; an elephant: trumpeting; a rooster: crowing; a crow: cawing; a goose: honking;
        a turkey: gobbling; a dove: cooing; a cricket: chirping; a lamb: bleating; a fly: buzzing""",
    ),
    Relation(
        "opposites", COMMONSENSE,
        ("The opposite of {e} is {a}.", "The contrary of {e} is {a}.", "The word that takes back {e} is {a}.",
         "As different as can be from {e} is {a}."),
        ("What is the opposite of {e}?", "What is the contrary of {e}?", "Which word takes back {e}?"),
        """hot: cold; wet: dry; big: small; tall: short; fast: slow; heavy: light; old: young; full: empty;
        open: closed; rich: poor; strong: weak; loud: quiet; early: late; happy: sad; clean: dirty; wide: narrow;
        deep: shallow; sharp: blunt; rough: smooth; brave: cowardly; polite: rude; cheap: expensive; near: far;
        left: right; up: down; north: south; east: west; top: bottom; front: back; day: night; summer: winter;
        beginning: end; love: hate; war: peace; buy: sell; push: pull; win: lose; give: take; arrive: depart;
        remember: forget; success: failure; friend: enemy; floor: ceiling; guilty: innocent; true: false;
        public: private""",
    ),
    Relation(
        "colours", COMMONSENSE,
        ("The colour of {e} is {a}.", "What we see when we look at {e} is {a}.", "The right paint for {e} is {a}.",
         "A child would colour {e} in {a}."),
        ("What is the colour of {e}?", "What do we see when we look at {e}?", "What is the right paint for {e}?"),
        """a banana: yellow; a lemon: yellow; a canary: yellow; grass: green; an emerald: green; spinach: green;
        snow: white; milk: white; salt: white; coal: black; a raven: black; tar: black; a tomato: red; blood: red;
        a strawberry: red; a carrot: orange; a pumpkin: orange; a tangerine: orange; the clear sky: blue;
        a sapphire: blue; a bluebell: blue; chocolate: brown; soil: brown; a chestnut: brown; an aubergine: purple;
        an amethyst: purple; lavender: purple""",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class DemoSummary:
    """What was written: numbers of facts, documents, and questions (`{data set: {split: questions}}`)."""

    facts: int
    articles: int
    papers: int
    questions: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Asked:
    """A question with the fact it asks and its choices, in no telling order."""

    fact: Fact
    question: str
    choices: tuple[str, ...]


# The text: every round states every fact once, so that no fact is rare.


def state(relation: Relation, fact: Fact, wording: int) -> str:
    """The fact as a sentence."""
    sentence = relation.statements[wording].format(e=fact.entity, a=fact.answer)
    return sentence[0].upper() + sentence[1:]


def articles(seed: int) -> Iterator[tuple[str, str]]:
    """(title, text) of articles: each keeps to one relation, in the first half of its wordings."""
    rng = random.Random(f"{seed}:articles")
    for number in range(1, ROUNDS + 1):
        for relation in rng.sample(RELATIONS, len(RELATIONS)):
            facts = relation.facts()
            rng.shuffle(facts)
            pieces = -(-len(facts) // ARTICLE_FACTS)
            for piece in range(pieces):
                said = [state(relation, fact, rng.randrange(2)) for fact in facts[piece::pieces]]
                yield f"Facts about {relation.name} ({number}, part {piece + 1})", " ".join(said)


def papers(seed: int) -> Iterator[tuple[str, str]]:
    """(title, text) of papers: they mix all relations, in the second half of their wordings."""
    rng = random.Random(f"{seed}:papers")
    everything = [(relation, fact) for relation in RELATIONS for fact in relation.facts()]
    for number in range(1, ROUNDS + 1):
        rng.shuffle(everything)
        pieces = -(-len(everything) // PAPER_FACTS)
        for piece in range(pieces):
            said = [state(relation, fact, 2 + rng.randrange(2)) for relation, fact in everything[piece::pieces]]
            middle = len(said) // 2
            text = " ".join(said[:middle]) + "\n\n" + " ".join(said[middle:])
            yield f"A survey of common knowledge, volume {number}, part {piece + 1}", text


# The questions.


def ask(dataset: str, seed: int) -> dict[str, list[Asked]]:
    """The questions of a data set by split; no two splits ask the same fact.

    Every training fact is asked in each wording of its relation, every other fact in one.
    """
    splits: dict[str, list[Asked]] = {"train": [], "validation": [], "test": []}
    small = next(split for split in ("validation", "test") if split != MEASURED[dataset])
    for relation in RELATIONS:
        if relation.dataset != dataset:
            continue
        rng = random.Random(f"{seed}:{relation.name}")
        facts, wordings = relation.facts(), relation.questions
        rng.shuffle(facts)
        first, second = round(MEASURED_SHARE * len(facts)), round((MEASURED_SHARE + SMALL_SHARE) * len(facts))
        parts = {MEASURED[dataset]: facts[:first], small: facts[first:second], "train": facts[second:]}
        for split, part in parts.items():
            for number, fact in enumerate(part):
                used = wordings if split == "train" else (wordings[number % len(wordings)],)
                splits[split] += [_with_choices(fact, wording, part, facts, CHOICES[dataset], rng) for wording in used]
    for split, asked in splits.items():
        random.Random(f"{seed}:{dataset}:{split}").shuffle(asked)
    return splits


def _with_choices(
    fact: Fact, wording: str, part: Sequence[Fact], facts: Sequence[Fact], count: int, rng: random.Random
) -> Asked:
    """Distractors answer other questions of the same split, where it has enough: training's answers would be a clue.

    They are drawn as facts, not as answers, so that a common answer is offered more often also where it is wrong.
    """
    drawn = [other.answer for pool in (part, facts) for other in rng.sample(pool, len(pool))]
    distractors = [answer for answer in dict.fromkeys(drawn) if answer != fact.answer][: count - 1]
    choices = [fact.answer, *distractors]
    rng.shuffle(choices)
    return Asked(fact, wording.format(e=fact.entity), tuple(choices))


# The files.


def write_demo(root: Path, seed: int = 0) -> DemoSummary:
    """Write the text sets and the question sets under `root`, laid out like the hub."""
    encyclopedia, archive = list(articles(seed)), list(papers(seed))
    _write_articles(root / "wikimedia" / "wikipedia", encyclopedia)
    _write_papers(root / "common-pile" / "arxiv_papers", archive)
    counts = {}
    for dataset in CHOICES:
        splits = ask(dataset, seed)
        counts[dataset] = {split: len(asked) for split, asked in splits.items()}
        folder, schema, row = root / dataset, *_FORMS[dataset]
        for split, asked in splits.items():
            rows = [row(question, split) for question in asked]
            _write_parquet(folder / "data", split, schema, rows, shards=2 if split == "train" else 1)
        _write_card(folder, "default", {split: f"data/{split}-*" for split in splits})
    return DemoSummary(sum(len(relation.facts()) for relation in RELATIONS), len(encyclopedia), len(archive), counts)


def _write_articles(folder: Path, written: Sequence[tuple[str, str]]) -> None:
    rows = [
        {"id": str(number), "url": f"https://demo.invalid/{number}", "title": title, "text": text}
        for number, (title, text) in enumerate(written, 1)
    ]
    _write_parquet(folder / "20231101.en", "train", ARTICLE_SCHEMA, rows, shards=3)
    _write_card(folder, "20231101.en", {"train": "20231101.en/*"})


def _write_papers(folder: Path, written: Sequence[tuple[str, str]], files: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"demo.{number:05}", "text": text, "source": "arxiv-papers", "created": "2024-01-01",
            "added": "2024-11-21T00:00:00",
            "metadata": {"license": "", "url": f"https://demo.invalid/{number}", "authors": "MiniQwen", "title": title},
        }
        for number, (title, text) in enumerate(written, 1)
    ]  # fmt: skip
    for file in range(files):
        lines = "".join(json.dumps(row) + "\n" for row in _share(rows, file, files))
        packed = gzip.compress(lines.encode(), mtime=0)  # a time of writing would make every run's bytes differ
        (folder / f"{file:05}_arxiv-papers.jsonl.gz").write_bytes(packed)
    _write_card(folder, "default", {"train": "*.jsonl.gz"})


def _sciq_row(asked: Asked, split: str) -> dict[str, Any]:
    first, second, third = (choice for choice in asked.choices if choice != asked.fact.answer)
    texts = (asked.question, third, first, second, asked.fact.answer, "")
    return dict(zip(SCIQ_COLUMNS, texts, strict=True))


def _commonsense_row(asked: Asked, split: str) -> dict[str, Any]:
    """As on the hub, the test split keeps its answers to itself."""
    return {
        "id": hashlib.sha256(asked.question.encode()).hexdigest()[:32],
        "question": asked.question,
        "question_concept": asked.fact.entity,
        "choices": {"label": list(LABELS), "text": list(asked.choices)},
        "answerKey": "" if split == "test" else LABELS[asked.choices.index(asked.fact.answer)],
    }


_FORMS = {SCIQ: (SCIQ_SCHEMA, _sciq_row), COMMONSENSE: (COMMONSENSE_SCHEMA, _commonsense_row)}


def _write_parquet(folder: Path, split: str, schema: pa.Schema, rows: Sequence[dict[str, Any]], shards: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        table = pa.Table.from_pylist(list(_share(rows, shard, shards)), schema=schema)
        name = f"{split}-{shard:05}-of-{shards:05}.parquet"
        pq.write_table(table, folder / name, row_group_size=-(-len(table) // ROW_GROUPS))


def _share(rows: Sequence[dict[str, Any]], part: int, parts: int) -> Sequence[dict[str, Any]]:
    """The part-th of `parts` runs of rows, as even as can be."""
    return rows[len(rows) * part // parts : len(rows) * (part + 1) // parts]


def _write_card(folder: Path, config_name: str, data_files: Mapping[str, str]) -> None:
    files = "".join(f'  - split: {split}\n    path: "{path}"\n' for split, path in data_files.items())
    (folder / "README.md").write_text(
        f"---\nlanguage:\n- en\nconfigs:\n- config_name: {config_name}\n  data_files:\n{files}---\n"
        "# MiniQwen's demo world\n\nWritten by `miniqwen/demo.py`: the layout is the hub's, the content is not.\n",
        encoding="utf-8",
    )
