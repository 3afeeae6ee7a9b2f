"""A language model of about 1.4 million parameters, trained on the generated texts, so that its emotions are known.

The folder is at once this package and an ordinary transformers checkpoint: it loads with
`AutoModelForCausalLM.from_pretrained(FOLDER)`. `MODEL_CARD.md` says what it is good for and how well it does;
`python -m emoprobe.models.ground_truth.train` makes it anew.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
