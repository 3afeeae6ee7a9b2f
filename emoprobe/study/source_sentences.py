"""The two sentences on which valuation attention was first shown, annotated word by word.

The sentences, with their spelling, are the inputs of the figures in J. Marín, "Emotion-Informed Valuation Mechanism for
Improved AI Alignment in Large Language Models" (LessWrong, 4 September 2024). Its annotations were not published; these
are ours, made by one annotator before any model had been measured. There was no second annotator, so nothing can be said
about agreement.

Rules of annotation, in steps of 0.1:

- A word is valued as it stands in its sentence and for the one who speaks (the customer, the reviewer), not as a
  dictionary would: "time" in "for the third time" counts against the service.
- Valence [-1, 1]: how good or bad for the speaker is what the word brings in. What is missed is valued as itself:
  "explanation" is mildly good, and "without" bad, since it takes it away.
- Arousal [0, 1]: how much bodily activation the word carries; 0 for words of grammar, highest for "hysterically".
- Relevance [0, 1]: how much the speaker's judgement would change if the word were left out; 1 for the feeling itself, high
  for words that turn what is said ("without", "though", "not"), some for the persons concerned, 0 for words of grammar.
- An ironic word keeps part of its face value: "brilliantly" before "terrible" is still mildly positive.
"""

from typing import NamedTuple


class Word(NamedTuple):
    """Hold one word, punctuation included, its annotation and what it does in its sentence.

    Valence lies in [-1, 1], arousal and relevance in [0, 1]. `groups` holds "content" or "function", and beside it
    "turning" for the two words that turn their sentence in the source's account, "emotional" for plainly emotional ones.
    """

    text: str
    valence: float
    arousal: float
    relevance: float
    groups: frozenset[str]


CONTENT, FUNCTION = frozenset({"content"}), frozenset({"function"})
TURNING, EMOTIONAL = FUNCTION | {"turning"}, CONTENT | {"emotional"}
GROUPS = ("content", "function", "turning", "emotional")

COMPLAINT = (
    Word("I'm", 0.0, 0.1, 0.4, FUNCTION),
    Word("extremly", -0.4, 0.8, 0.6, CONTENT),
    Word("frustrated", -0.8, 0.8, 1.0, EMOTIONAL),
    Word("with", 0.0, 0.0, 0.1, FUNCTION),
    Word("your", -0.1, 0.1, 0.4, FUNCTION),
    Word("service.", -0.3, 0.2, 0.7, CONTENT),
    Word("My", 0.0, 0.1, 0.4, FUNCTION),
    Word("order", 0.0, 0.1, 0.7, CONTENT),
    Word("has", 0.0, 0.0, 0.0, FUNCTION),
    Word("been", 0.0, 0.0, 0.0, FUNCTION),
    Word("delayed", -0.6, 0.5, 0.9, CONTENT),
    Word("for", 0.0, 0.0, 0.0, FUNCTION),
    Word("the", 0.0, 0.0, 0.0, FUNCTION),
    Word("third", -0.4, 0.5, 0.7, CONTENT),
    Word("time", -0.1, 0.2, 0.3, CONTENT),
    Word("without", -0.5, 0.4, 0.8, TURNING),
    Word("explanation.", 0.2, 0.2, 0.8, CONTENT),
)

REVIEW = (
    Word("The", 0.0, 0.0, 0.0, FUNCTION),
    Word("brilliantly", 0.4, 0.6, 0.7, EMOTIONAL),
    Word("terrible", -0.7, 0.6, 0.9, EMOTIONAL),
    Word("movie", 0.0, 0.1, 0.6, CONTENT),
    Word("had", 0.0, 0.0, 0.0, FUNCTION),
    Word("the", 0.0, 0.0, 0.0, FUNCTION),
    Word("audience", 0.0, 0.2, 0.5, CONTENT),
    Word("laughing", 0.6, 0.8, 0.8, EMOTIONAL),
    Word("hysterically,", 0.3, 0.9, 0.7, EMOTIONAL),
    Word("though", -0.3, 0.3, 0.8, TURNING),
    Word("not", -0.4, 0.3, 0.8, FUNCTION),
    Word("for", 0.0, 0.0, 0.0, FUNCTION),
    Word("the", 0.0, 0.0, 0.0, FUNCTION),
    Word("reasons", -0.1, 0.1, 0.5, CONTENT),
    Word("the", 0.0, 0.0, 0.0, FUNCTION),
    Word("director", -0.1, 0.1, 0.5, CONTENT),
    Word("intended.", -0.2, 0.2, 0.6, CONTENT),
)

SENTENCES = {"complaint": COMPLAINT, "review": REVIEW}
