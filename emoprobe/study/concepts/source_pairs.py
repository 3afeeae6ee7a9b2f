"""Pairs of sentences that differ in a word or two, one of them with an emotion in it, and end alike.

The emotion is not named; the end of the sentence, the same for both, is where the read-out is looked for. For each pair there
are several words to choose from, so that for any tokenizer two can be found with as many tokens: then the sentences are aligned
token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from emoprobe.models.live import LiveModel


@dataclass(frozen=True)
class Pair:
    """A sentence with a gap: words that bring a `concept` into it, and words that do not."""

    concept: str
    before: str
    emotional: tuple[str, ...]
    neutral: tuple[str, ...]
    after: str

    def written(self, word: str) -> str:
        """Return the sentence with `word` in the gap."""
        return f"{self.before} {word}{self.after}"


@dataclass(frozen=True, eq=False)
class Aligned:
    """A pair as a model reads it: two texts of as many tokens, and which of these differ, boolean (position,)."""

    concept: str
    emotional: str
    neutral: str
    changed: Tensor


def aligned(model: LiveModel, pairs: Sequence[Pair]) -> list[Aligned]:
    """Return the pairs that can be aligned for this model's tokenizer: with as many tokens, the last of them the same."""
    found = []
    for pair in pairs:
        for word, other in product(pair.emotional, pair.neutral):
            texts = pair.written(word), pair.written(other)
            one, two = (model.tokenize(text).input_ids[0].cpu() for text in texts)
            if len(one) == len(two) and one[-1] == two[-1]:
                found.append(Aligned(pair.concept, *texts, one != two))
                break
    return found


PAIRS = (
    Pair("fear", "When he turned round, the man in the doorway was holding a", ("knife", "gun", "rifle"),
         ("cup", "spoon", "coat"), ", and he took one step into the room"),
    Pair("fear", "Down in the cellar the child heard something", ("growling", "breathing", "crawling"),
         ("dripping", "ticking", "humming"), " behind the wall and stood still by the stairs"),
    Pair("fear", "The letter said that the doctor had found a", ("tumour", "growth", "cancer"), ("book", "key", "glove"),
         " last week and wanted to see her about it"),
    Pair("sadness", "They carried his", ("coffin", "body", "corpse"), ("basket", "table", "piano"),
         " slowly across the yard, and she walked behind it"),
    Pair("sadness", "His mother had", ("died", "drowned"), ("called", "dined", "moved"),
         " that morning, and he sat down on the step with the message in his hand"),
    Pair("sadness", "In the box by the fire lay the", ("dead", "dying"), ("brown", "young", "big"),
         " dog, and the boy looked at it for a long time"),
    Pair("anger", "Her neighbour had", ("poisoned", "kicked", "beaten"), ("brushed", "washed", "fed"),
         " the dog again, and she went straight across the road to him"),
    Pair("anger", "He looked at her over the table and called her a", ("liar", "thief", "coward"), ("cab", "nurse", "doctor"),
         " in front of everyone, and she put down her glass"),
    Pair("anger", "The boss had", ("stolen", "burned", "ruined"), ("signed", "copied", "read"),
         " all of her work, and now she stood in front of his desk"),
    Pair("disgust", "He lifted the lid, and the pot was full of", ("worms", "maggots", "slime"), ("apples", "beans", "water"),
         " up to the brim, and he bent over it"),
    Pair("disgust", "There was a wet patch of", ("slime", "vomit", "pus"), ("paint", "water", "milk", "rain"),
         " on the chair where she had just put her hand"),
    Pair("disgust", "The meat had gone", ("rotten", "bad", "green"), ("brown", "soft", "crisp"),
         " underneath, and he had a piece of it in his mouth"),
    Pair("shame", "In front of the whole class the boy had", ("wet", "soiled"), ("cut", "turned", "mended"),
         " his trousers, and now they all looked at him"),
    Pair("shame", "They found the", ("stolen", "missing"), ("borrowed", "empty", "little"),
         " purse in her bag, and everyone at the table looked at her"),
    Pair("shame", "He had", ("cheated", "lied"), ("written", "sat", "drawn"),
         " in the examination, and the teacher read his name out to the others"),
    Pair("joy", "At last the judge held up her card: she had", ("won",), ("sat", "gone", "left"),
         ", and her friends came running across the grass"),
    Pair("joy", "Everyone in the garden was", ("dancing", "singing", "laughing"), ("digging", "sitting", "waiting"),
         " when she came out in her new dress"),
    Pair("joy", "The telegram said that the war was", ("over", "won", "ended"), ("near", "long", "known"),
         ", and he read it out to the street"),
    Pair("love", "She laid her head on his shoulder and", ("kissed", "stroked"), ("washed", "dried"),
         " his hand until the fire had burned down"),
    Pair("love", "He wrote to his", ("sweetheart", "bride", "wife"), ("landlord", "grocer", "tailor"),
         " every evening and kept all of the answers"),
    Pair("love", "For the child asleep in her", ("arms", "lap"), ("street", "ward", "house"),
         " she would have done anything at all"),
    Pair("relief", "The doctor came out and said that the boy would", ("live", "recover"), ("wait", "read", "wash"),
         ", and she sat down on the bench by the door"),
    Pair("relief", "The answer from the hospital came, and it was", ("nothing", "harmless"), ("something", "typed", "printed"),
         ", so she folded the paper and went outside"),
    Pair("surprise", "She opened the drawer, and there lay a", ("snake", "crocodile", "foot"), ("spoon", "pencil", "scarf"),
         " on top of the towels"),
    Pair("surprise", "The man at the door was his own", ("double", "twin", "ghost"), ("cousin", "tailor", "baker"),
         ", with a hat in his hand"),
    Pair("pride", "His daughter had been given a", ("medal", "prize", "crown"), ("ticket", "form", "spoon"),
         " by the king, and he told everyone in the street about it"),
    Pair("pride", "She had", ("built", "designed"), ("passed", "seen"),
         " the bridge herself, and she showed it to everyone who came"),
    Pair("boredom", "It was the", ("hundredth", "fiftieth"), ("second", "first", "third"),
         " speech of the day, and he looked at the clock over the door"),
)  # fmt: skip
"""Twenty-eight pairs for eleven emotions."""


def by_length(pairs: Sequence[Aligned], most: int) -> list[list[int]]:
    """Return positions of pairs of one length together, at most `most` in a group: read so, they need no padding."""
    lengths = [len(pair.changed) for pair in pairs]
    groups = [
        [index for index, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))
    ]
    return [group[first : first + most] for group in groups for first in range(0, len(group), most)]


def partners(pairs: Sequence[Aligned]) -> list[int]:
    """Return for each pair the position of the next one of its length, the first after the last; its own where it is alone."""
    found = list(range(len(pairs)))
    for group in by_length(pairs, len(pairs)):
        for place, index in enumerate(group):
            found[index] = group[(place + 1) % len(group)]
    return found
