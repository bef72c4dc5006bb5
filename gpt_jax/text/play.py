"""The built-in corpus: a small grammar that writes a play and knows its own entropy.

This module owns the words of the play, draws speeches, and computes the exact entropy of what it
draws: the loss in nats per character that no model of the play beats on average. It does not
touch files, split the text, or turn characters into token ids.

At every choice the alternatives begin with different words, and none is a prefix of another. So a
text has exactly one derivation, and its probability is that of the derivation. This is why no
alternative is empty: an optional part starts with punctuation, as in "." or ", alas.". Only the
blank line that ends a speech begins with a newline.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

from gpt_jax.text.grammar import Choice, Node, draw, expectation, read

SEED = 0
CHARACTERS = 1_100_000  # The play ends with the speech that reaches this length.

# Adjectives begin with consonants, because they follow "a". Things form their plural with "s".
# Verbs are stems that take "s" and "ed". Things `stir` people; people do a `deed` to things.
WORLD = """
adjective: 3 rusty crooked patient humble stubborn hollow painted | 2 salted lopsided drowsy
  haunted penniless thrifty barnacled jealous moonlit doubtful faithful tarnished virtuous sulky
  whiskered worm-eaten fog-bound borrowed famous greasy noble pious damp mad proud | 1 bald bashful
  bent blameless brittle ceremonial comic counterfeit cruel curly deaf dizzy dusty feeble fickle
  forgotten frosty furry gaunt giddy glum godly gouty grim half-drowned hoarse holy hungry jaunty
  jolly knock-kneed lazy leaky lean limp lofty lonely loud lucky lukewarm lumpy meek merry mildewed
  mute nervous nimble pickled plump polite purple queasy rickety rude sad scaly second-hand secret
  shabby shy silent sleepy sly smug sober solemn sour stale stern sticky stout sunburnt tame timid
  tipsy toothless twisted vain velvet weary wet wild wise witty woolly yellow zealous zigzag
stir: 3 haunt comfort mock await outlast offend follow | 2 frighten remember summon flatter betray
  deafen delight bewilder insult annoy pester warn | 1 alarm astound charm cheer chill conquer
  corrupt disgust distract doom elect enchant exhaust foil fool gladden goad harm heal hinder irk
  jilt jolt lull madden need obey outrank pain pardon reward ruin sadden scald scold scorn shadow
  sober soften spook spurn suspect taunt thrill torment trick trust warm weaken woo wound
deed: 3 mend borrow count weigh hoard pawn guard | 2 inspect covet auction barter paint mourn doubt
  plunder butter salt sharpen pocket inherit repair | 1 adorn anoint boil claim clean fasten fear
  fill gather gild greet grill hail hammer haul heat hook jail kick land lick lift lock loosen loot
  mail mark melt milk nail neglect oil own pack peel pilfer plant poison ponder pound powder print
  pull reject rent return roll scatter scour seal shift sniff soak sort spoil stack stain steam
  stow stuff swallow tattoo thaw tilt toast tow trumpet unearth unlock visit want weed yank
trade: 3 miller salter parson ferryman lamplighter warden | 2 cooper chandler beadle fishwife
  tollkeeper bell-ringer smuggler ropemaker widow midwife constable innkeeper | 1 baker barber bard
  brewer butler clerk cobbler cook drummer eel-catcher falconer friar goose-girl groom hatter
  hermit judge juggler knight mason mayor monk nun nurse pilot piper poet porter sailor scribe
  sexton shepherd smith spy squire tailor tanner thatcher thief tinker undertaker weaver wizard
kin: 3 aunt uncle cousin grandmother brother sister goose | 2 nephew niece godfather parrot
  landlord lawyer rival creditor donkey | 1 bridegroom cat daughter dentist dog enemy father goat
  heir hound lodger maid mother-in-law physician pig pony son tutor twin ward
spot: 3 quay chapel lighthouse market tavern belfry | 2 bridge gallows garden ferry sea-wall weir
  granary jetty | 1 barn brewery cliff crypt dovecote fountain haystack hedge hill kiln maypole oak
  pier pillory pond prison pulpit pump stable theatre toll-gate tomb well willow yard
ware: 2 spoon hammer kettle ladder pigeon wig mirror | 1 apron basket bat bed beehive blanket
  bottle bowl broom button cage cart chair cheese cloak cobweb crown cupboard egg elbow fan feather
  fence frog goblet hat hedgehog jar jug kitten lid map mitten mop mousetrap mug napkin needle nest
  onion parsnip pebble pew pillow pipe poker pot pulley purse quill quilt rabbit razor rope saddle
  shoe snail spade spider sword teapot thorn toad towel trunk vest wart
bell: 2 bell clapper gong steeple chime tower | 1 peal tune psalm drum whistle trumpet fiddle
  jackdaw carillon anthem bugle flute horn jig knell lute organ tambourine viol
salt: 2 barrel ladle sieve herring ledger salt-pan | 1 sack crate gherkin kipper wagon permit bushel
  tariff brine-tub bucket cask funnel hogshead invoice keg mule receipt scoop sluice thimble
sea: 2 boat anchor mast gull oar net | 1 tide plank rudder harpoon eel buoy hammock seashell
  mermaid whale storm crab galleon keel lobster mackerel puffin raft squid urchin whelk
bread: 2 millstone bun pie oven windmill hopper | 1 cog dumpling muffin pancake pudding rat weevil
  sickle scythe turnip cake crumpet custard griddle rolling-pin scarecrow sparrow wheel
light: 2 lantern candle beacon moth shadow star | 1 stairway ghost taper window flint bonfire
  chimney comet ember owl dream cinder keyhole moonbeam nightcap prism rainbow snuffer wick
love: 2 ring bonnet sonnet letter ribbon heart | 1 bouquet veil garter slipper rose suitor locket
  serenade valentine vow poem corset dimple dove garland glove minuet pearl sigh swan jewel
owner: 5 my | 3 thy our | 2 her his their | 1 Nan's Fennimore's
modal: 3 would must shall | 1 may might cannot
number: 4 two three seven nine | 2 four five eight ten twelve forty | 1 3
coin: 3 pence herrings | 1 shillings turnips candles apologies kisses eels
day: 3 dawn noon Sunday Monday | 1 dusk midnight supper Tuesday Thursday Friday Easter Yuletide
conjunction: 1 And Yet So
near: 3 behind beside beneath | 2 near above | 1 beyond
name = 3 Old Nan | 3 Zebedee | 3 Xanthe | 2 Dame Quillet | 2 Hob Miller | 2 Kit Umber | 2 Barnaby
  | 1 Lady Fennimore | 1 Ursula | 1 Goody Flounder | 1 Quillet & Daughters
tradesman = 1 {trade} | 1 {adjective} {trade}
relative = 1 {kin} | 1 {adjective} {kin}
person = 4 the {tradesman} | 4 {owner} {relative} | 1 {name}
price = 6 {number} {coin} | 1 nothing | 1 half a crown | 2 $3
state = 4 as {adjective} as {person} | 2 too {adjective} for {person} | 3 {near} the {spot}
"""

# What is said on a topic; {own} stands for the things of the topic.
SENTENCES = """
thing = 3 {own} | 2 {ware}
wares = 2 {thing} | 3 {adjective} {thing}
goods = 5 the {wares} | 3 {owner} {wares} | 2 a {adjective} {thing} | 2 {number} {wares}s
aside = 2 they say | 1 alas | 3 by {owner} {wares} | 2 before {day} | 2 or so says {person}
acts = 5 {stir}s {person} | 3 {stir}ed {person} | 2 is {state} | 1 {modal} {stir} {person}
act = 5 {stir} {person} | 3 {stir}ed {person} | 2 are {state} | 1 {modal} {stir} {person}
fate = 3 {thing} {acts} | 2 {thing}s {act}
fate = 3 {thing} {acts} | 2 {thing}s {act} | 5 {adjective} {fate}
does = 5 {deed}ed {goods} | 3 {deed}s {goods} | 2 is {state} | 1 {modal} {deed} {goods}
do = 5 {deed}ed {goods} | 2 {modal} {deed} {goods} | 1 never {deed}ed {goods}
  | 2 sold {person} {goods} / For {price} | 1 saw {person} / Asleep {near} the {spot}
clause = 4 the {fate} | 3 {owner} {relative} {does} | 2 {name} {does} | 2 I {do}
end = 8 . | 2 ! | 2 , {aside}. | 3 ; / {conjunction} {clause}.
sentence = 9 The {fate}{end} | 6 My {relative} {does}{end} | 2 Thy {relative} {does}{end}
  | 6 I {do}{end} | 3 We {do}{end} | 3 {name} {does}{end} | 4 Let {person} {deed} {goods}{end}
  | 1 Who {deed}ed {goods} {near} the {spot}? | 2 Why should {person} {deed} {goods}?
  | 1 Was it {person} that {deed}ed {goods}? | 3 Though {clause}, / Yet {clause}{end}
  | 3 Because the {fate}, / I {deed}ed {goods}{end} | 5 Bring {goods}, {goods} / And {goods}{end}
  | 2 Beware of {goods}, thou {adjective} {trade}! | 4 O {adjective}, {adjective} {thing}!
  | 2 A {adjective} {thing} is worth {number} {adjective} {thing}s{end}
  | 1 'Tis said {person} {deed}ed {goods}{end} | 2 No {trade} in Codwallow {deed}s {goods}{end}
"""

# How a speaker talks on a topic: a call, one to five sentences, and sometimes a farewell.
TALK = """
address = 3 {favourite} | 1 thou {adjective} {trade}
news = 1 ! | 3 : the {fate}.
rest = 3 / | 1 {farewell} //
rest = 3 / | 1 {farewell} // | 14 {sentence} / {rest}
rest = 3 / | 1 {farewell} // | 14 {sentence} / {rest}
rest = 3 / | 1 {farewell} // | 14 {sentence} / {rest}
rest = 3 / | 1 {farewell} // | 14 {sentence} / {rest}
talk = 1 {call}, {address}{news} / {sentence} / {rest}
"""

# The topics, and the calls that announce them at the start of a speech.
CALLS = {
    "bell": "3 Hark | 2 Ring out | 1 Stop your ears | 1 Ding and dong",
    "salt": "3 Salt for silver | 2 Pass the brine | 1 Taste and swear | 1 Weigh it fairly",
    "sea": "3 Ahoy | 2 Heave together | 1 Cast off | 1 Low water",
    "bread": "3 Bread first | 2 Grind away | 1 Knead and be still | 1 Up with the sluices",
    "light": "3 Light the lamp | 2 Darkness | 1 Trim the wick | 1 Now comes the fog",
    "love": "3 Love is abroad | 2 Kiss and be quick | 1 Blush a little | 1 Dance",
}

# The speaker's weight, name, favourite address, weights of the topics, and farewell.
SPEAKERS = (
    (6, "WARDEN OXBOW", "citizens", "323121", "Such is the law, and the {wares} has signed it."),
    (6, "DAME QUILLET", "my debtors", "181211", "Pay tomorrow, but leave the {wares} tonight."),
    (5, "ZEBEDEE", "poor sailors", "113181", "But hush, for the {wares} is listening."),
    (5, "XANTHE", "deaf neighbours", "811112", "Melt me for bronze if the {wares} be false."),
    (5, "JORY", "lads", "128112", "Drown me in gravy, and leave Hob the {wares}."),
    (5, "HOB MILLER", "masters", "111812", "Round goes the wheel, and down comes the {wares}."),
    (4, "PARSON VETCH", "beloved", "611133", "Amen, and mind the {wares} on thy way out."),
    (3, "LADY FENNIMORE", "good people", "111118", "Fie, someone fan me with the {wares}!"),
    (3, "First Fishwife", "gossip", "135112", "Fresh whelks, I say, and hang the {wares}!"),
    (3, "Second Fishwife", "gossip", "135112", "Stale whelks, I say, and bless the {wares}!"),
    (1, "Ghost of a Cooper", "ye living", "141141", "Alas, I cannot lift the {wares}."),
    (1, "Boy", "everyone", "112311", "May I go home now? I miss the {wares}."),
)


def compose() -> Choice:
    """Return the grammar of a speech: the speaker, the topic, and what the speaker says on it."""
    world = read(WORLD, {})
    topics = [
        read(f"call = {calls}{SENTENCES}", world | {"own": world[topic]})
        for topic, calls in CALLS.items()
    ]
    speakers: list[Node] = []
    for _, name, favourite, interests, farewell in SPEAKERS:
        rules = f"favourite = 1 {favourite}\nfarewell = 1 {farewell}{TALK}"
        talks = tuple(read(rules, topic)["talk"] for topic in topics)
        speakers.append((name, ":\n", Choice("topic", tuple(map(int, interests)), talks)))
    return Choice("speaker", tuple(weight for weight, *_ in SPEAKERS), tuple(speakers))


SPEECH = compose()


@dataclass(frozen=True)
class Speech:
    """One speech: its text with the blank line, and -log p of its choices in nats."""

    text: str
    nats: float


def speeches(seed: int = SEED) -> Iterator[Speech]:
    """Yield independent speeches without end. All randomness is Random(seed).random()."""
    uniform = Random(seed).random  # The one method whose numbers Python promises never to change.
    while True:
        pieces: list[str] = []
        nats = draw(SPEECH, uniform, pieces)
        yield Speech("".join(pieces), nats)


@cache
def script(seed: int) -> tuple[Speech, ...]:
    """Return the speeches of the play: the first of speeches(seed) that reach CHARACTERS."""
    written: list[Speech] = []
    source, characters = speeches(seed), 0
    while characters < CHARACTERS:
        written.append(next(source))
        characters += len(written[-1].text)
    return tuple(written)


def write(seed: int = SEED) -> str:
    """Return the play: at least CHARACTERS characters, a function of `seed`."""
    return "".join(speech.text for speech in script(seed))


def source_loss(first: int, seed: int = SEED) -> float:
    """Return the loss of the grammar on write(seed)[first:], in nats per character.

    A speech that begins before `first` counts in proportion to its characters from there on.

    Raises:
      ValueError: if `first` is not a position in the play.
    """
    start, nats = 0, 0.0
    for speech in script(seed):
        end = start + len(speech.text)
        nats += speech.nats * max(0, end - max(start, first)) / len(speech.text)
        start = end
    if not 0 <= first < start:
        raise ValueError(f"first must be a position in the play, 0 to {start - 1}, not {first}")
    return nats / (start - first)


def entropy_rate() -> float:
    """Return H(speech) / E[characters of a speech], in nats per character, without sampling."""
    entropy, length = expectation(SPEECH)
    return entropy / length
