"""Words by which an emotion might be told, for models whose texts nobody generated.

"I feel so …" is gone on with; each concept has a few plain adjectives, and a dimension also has those of its other end. They
are the commonest that dictionaries give, and were not chosen by looking at any model.
"""

PROMPTS = (
    "I feel so",
    "She told me that she was very",
    "After all that happened, he was",
    "We were all rather",
    "When I woke up I was",
    "The old man looked",
    "Her letter said that she felt",
    "All day long they were",
)
"""Beginnings that go with any feeling."""

POLES = {
    "valence": (("happy", "glad", "pleased"), ("sad", "unhappy", "upset")),
    "pleasantness": (("happy", "glad", "pleased"), ("sad", "unhappy", "upset")),
    "unpleasantness": (("sad", "unhappy", "upset"), ("happy", "glad", "pleased")),
    "arousal": (("excited", "nervous", "angry"), ("calm", "sleepy", "tired")),
    "dominance": (("strong", "proud", "sure"), ("weak", "small", "helpless")),
}
"""Dimension -> adjectives of its upper and of its lower end."""

ADJECTIVES = {
    "admiration": ("impressed", "amazed"),
    "amusement": ("amused", "silly"),
    "anger": ("angry", "mad", "furious"),
    "annoyance": ("annoyed", "cross"),
    "approval": ("pleased", "satisfied"),
    "boredom": ("bored", "weary"),
    "caring": ("caring", "gentle"),
    "confusion": ("confused", "puzzled"),
    "contentment": ("content", "calm"),
    "curiosity": ("curious", "interested"),
    "desire": ("eager", "hungry"),
    "disappointment": ("disappointed", "let down"),
    "disapproval": ("against it", "displeased"),
    "disgust": ("disgusted", "sick"),
    "embarrassment": ("embarrassed", "shy"),
    "excitement": ("excited", "thrilled"),
    "fear": ("afraid", "scared", "frightened"),
    "gratitude": ("thankful", "grateful"),
    "grief": ("sad", "heartbroken"),
    "guilt": ("guilty", "sorry"),
    "joy": ("happy", "glad", "joyful"),
    "love": ("in love", "loving"),
    "nervousness": ("nervous", "worried"),
    "optimism": ("hopeful", "sure"),
    "pride": ("proud",),
    "relief": ("relieved", "safe"),
    "remorse": ("sorry", "guilty"),
    "sadness": ("sad", "unhappy"),
    "shame": ("ashamed", "embarrassed"),
    "surprise": ("surprised", "amazed"),
    "trust": ("sure", "safe"),
}
"""Label -> adjectives of those who feel it."""


def words(concept: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the adjectives for a concept and those against it (perhaps none), each after a space, or None."""
    toward, against = POLES.get(concept) or (ADJECTIVES.get(concept, ()), ())
    if not toward:
        return None
    return tuple(f" {word}" for word in toward), tuple(f" {word}" for word in against)
