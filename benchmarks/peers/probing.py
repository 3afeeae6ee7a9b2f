"""Logistic probes of all layers out of labelled texts, each score beside shuffled labels and a bag of words.

Given a folder of a model, texts with `labels` and `groups`, and the `fold` that each text belongs to (no group is cut), each
returns `accuracy` (layers,) of texts in folds that the probe has not seen, mean-pooled from the second token on and
standardised, with the inverse penalty C; `shuffled` (layers,), the mean of ten fits to shuffled labels; and `words` (1,), that
of logistic regression on counts of words. emoprobe finds more (`benchmarks/peers.md` says what), and is timed with it.
"""

# what is installed here is one environment's; imports are lines of the user's code
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Given = dict[str, Any]
Work = Callable[[], dict[str, Tensor]]

CONTESTANTS = {"emoprobe": "own", "scikit_learn": "own"}
COMPARED, TOLERANCE = "accuracy", 0.02
REASONS = {
    "scikit_learn": "transformers' hidden states, batched by length, then cross-validation of a pipeline for every layer and "
    "shuffle"
}


def emoprobe(given: Given) -> Work:
    """Fit and validate probes with emoprobe."""
    import pandas as pd
    import torch

    import emoprobe as ep

    model = ep.load_model(given["model"])
    data = pd.DataFrame({"text": given["texts"], "label": given["labels"], "group": given["groups"]})
    corpus = ep.load_corpus(data)

    def work() -> dict[str, Tensor]:
        probes = ep.fit_probes(model, corpus, estimator="logistic", bootstrap=0, progress=False)
        rows = probes.scores[probes.scores.concept == "(labels)"].sort_values("layer")
        return {
            "accuracy": torch.tensor(rows["value"].to_numpy()),
            "shuffled": torch.tensor(rows["shuffled"].to_numpy()),
            "words": torch.tensor(rows["bag_of_words"].to_numpy()[:1]),
        }

    return work


def scikit_learn(given: Given) -> Work:
    """Fit and validate probes with scikit-learn."""
    import numpy as np
    import torch
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).base_model.eval()
    # Or the last state is normed.
    setattr(model, "norm" if hasattr(model, "norm") else "ln_f", torch.nn.Identity())
    labels, folds = np.array(given["labels"]), PredefinedSplit(given["fold"])

    def read() -> np.ndarray:
        texts = given["texts"]
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.empty((len(texts), model.config.num_hidden_layers + 1, model.config.hidden_size))
        for first in range(0, len(texts), 32):
            rows = order[first : first + 32]
            batch = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            mask = batch.attention_mask
            states = model(batch.input_ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            counted = (mask.bool() & (mask.cumsum(-1) > 1))[..., None]
            vectors[rows] = torch.stack(
                [(s * counted).sum(1) / counted.sum(1) for s in states.hidden_states], dim=1
            )
        return vectors

    def work() -> dict[str, Tensor]:
        vectors, random = read(), np.random.default_rng(0)
        shuffles = [random.permutation(labels) for _ in range(10)]
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=10 / vectors.shape[-1], max_iter=10_000))
        accuracy, shuffled = [], []
        for layer in range(vectors.shape[1]):
            here = vectors[:, layer]
            accuracy.append(cross_val_score(probe, here, labels, cv=folds).mean())
            shuffled.append(np.mean([cross_val_score(probe, here, one, cv=folds).mean() for one in shuffles]))
        words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=10_000))
        counted = cross_val_score(words, given["texts"], labels, cv=folds).mean()
        return {
            "accuracy": torch.tensor(accuracy),
            "shuffled": torch.tensor(shuffled),
            "words": torch.tensor([counted]),
        }

    return work
