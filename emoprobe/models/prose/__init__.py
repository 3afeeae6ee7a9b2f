"""A small Llama trained from scratch on public-domain fiction: the script, its corpus and its evaluation.

`python -m emoprobe.models.prose.train` makes the checkpoint, `python -m emoprobe.models.prose.evaluate` measures it.
"""
