"""Measure what the ground-truth model knows of the emotions its texts were made from; every figure has its control.

    python -m emoprobe.models.ground_truth.evaluate [FOLDER] [--parts PART ...] [--json FILE]

It uses transformers, forward hooks and scikit-learn alone, none of this package's own capture, probes or steering, so
that those can be checked against it. The texts are made with seeds that training never uses: the sentences are the
trained ones, their combinations, names and degrees are new. `MODEL_CARD.md` quotes the output, which is kept beside it in
`evaluation.json`.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest, spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoprobe.corpora.generator import EMOTIONS, GeneratedText, aftermaths, generate
from emoprobe.models.ground_truth import FOLDER

Array = np.ndarray[Any, np.dtype[Any]]
NAMES = list(EMOTIONS)
SINGLE = ("first", "third")
STRENGTHS = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)


class Bench:
    """Hold a checkpoint with its tokenizer, score continuations and pool residual streams."""

    def __init__(self, folder: str | Path = FOLDER) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def log_probs(self, text: str, continuations: Sequence[str], copies: int = 1) -> Array:
        """Return the mean log-probability per token (copies, continuation) of each continuation after a text.

        `copies` runs the text that many times in one batch, which a hook may then edit one by one.
        """
        prefix = torch.tensor([self.tokenizer(text)["input_ids"]]).repeat(copies, 1)
        tails = [self.tokenizer(" " + c, add_special_tokens=False)["input_ids"] for c in continuations]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in tails], True).repeat(copies, 1)
        real = torch.arange(ids.shape[1]) < torch.tensor([len(t) for t in tails]).repeat(copies)[:, None]
        head = self.model(input_ids=prefix, use_cache=True)
        cache = head.past_key_values
        cache.batch_repeat_interleave(len(tails))
        last = head.logits[:, -1:].repeat_interleave(len(tails), 0)
        rest = self.model(input_ids=ids[:, :-1], past_key_values=cache).logits
        each = torch.cat([last, rest], 1).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return np.asarray(((each * real).sum(1) / real.sum(1)).view(copies, -1))

    @torch.no_grad()
    def pooled(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Return each text's mean residual stream (text, layer, width) and each layer's mean norm over tokens.

        Layer l enters block l, the last one leaves the last block; `<s>` is left out.
        """
        pools, norms, tokens = [], torch.zeros(len(self.model.model.layers) + 1), 0
        for text in texts:
            with self._streams() as streams:
                self.model.model(input_ids=torch.tensor([self.tokenizer(text)["input_ids"]]))
            stream = torch.stack(streams)[:, 0, 1:]
            pools.append(stream.mean(1))
            norms += stream.norm(dim=-1).sum(1)
            tokens += stream.shape[1]
        return torch.stack(pools).numpy(), (norms / tokens).numpy()

    @contextmanager
    def _streams(self) -> Iterator[list[torch.Tensor]]:
        streams: list[torch.Tensor] = []
        blocks = self.model.model.layers
        hooks = [b.register_forward_pre_hook(lambda _, args: streams.append(args[0])) for b in blocks]
        hooks.append(blocks[-1].register_forward_hook(lambda _, args, out: streams.append(out)))
        try:
            yield streams
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def editing(self, layer: int, edits: torch.Tensor) -> Iterator[None]:
        """Add edits (copies, width) to the stream that enters a block, on the tokens of the text, `<s>` excepted."""

        def add(_: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> Any:
            stream = args[0].clone()
            if len(stream) == len(edits):  # the text; the continuations come in a larger batch
                stream[:, 1:] += edits[:, None]
            return (stream, *args[1:]), kwargs

        hook = self.model.model.layers[layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def all_aftermaths(who: str, intensity: float = 0.6) -> list[str]:
    """List every emotion's aftermaths, in the order of `NAMES`, the same number for each."""
    return [sentence for name in NAMES for sentence in aftermaths(name, who, intensity=intensity)]


def interval(values: Array, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of values, one per text, with its 95 % interval over texts.

    By bootstrap; where all are 0 or all are 1, which no resample can tell from certainty, by Clopper and Pearson (1934).
    """
    if set(values.tolist()) in ({0.0}, {1.0}):
        exact = binomtest(int(values.sum()), len(values)).proportion_ci()
        return float(values[0]), float(exact.low), float(exact.high)
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (2_000, len(values))).mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def understanding(bench: Bench, n: int = 260) -> dict[str, Any]:
    """Compare the right with the wrong contexts of an aftermath, and choose the emotion by its aftermaths."""
    texts = generate(n, seed=1, forms=SINGLE)
    scores = np.stack(
        [
            bench.log_probs(t.text, all_aftermaths(t.experiencer, t.intensity)).reshape(len(NAMES), -1)
            for t in texts
        ]
    )
    rng, differences = np.random.default_rng(0), []
    for text, score in zip(texts, scores, strict=True):
        wrong = [
            j
            for j, other in enumerate(texts)
            if (other.world, other.form) == (text.world, text.form) and other.emotion != text.emotion
        ]
        truth = NAMES.index(text.emotion)
        differences.append((score[truth] - scores[rng.choice(wrong), truth]).mean())
    said = scores.mean(-1).argmax(1)
    right = np.array([NAMES[s] == t.emotion for s, t in zip(said, texts, strict=True)])
    return {
        "texts": n,
        "nats per aftermath token, wrong minus right context": interval(np.array(differences)),
        "accuracy of choosing the emotion by its aftermaths (chance 0.077)": interval(right.astype(float)),
    }


def by_text(answers: Sequence[bool]) -> Array:
    """Average the answers about the two persons of each text, which follow one another."""
    means: Array = np.array(answers, float).reshape(-1, 2).mean(1)
    return means


def binding(bench: Bench, n: int = 260) -> dict[str, Any]:
    """Ask of each person in a pair whose aftermath fits: their own emotion's or the other's; and which of all.

    A text counts once, with the mean of its two persons: where one is preferred wrongly, the other mostly is rightly.
    """
    own, exact = [], []
    for text in generate(n, seed=2, forms=("pair",)):
        assert text.other and text.other_emotion and text.other_intensity
        people = (
            (text.experiencer, text.emotion, text.other_emotion, text.intensity),
            (text.other, text.other_emotion, text.emotion, text.other_intensity),
        )
        for who, emotion, foreign, intensity in people:
            score = bench.log_probs(text.text, all_aftermaths(who, intensity)).reshape(len(NAMES), -1).mean(1)
            own.append(score[NAMES.index(emotion)] > score[NAMES.index(foreign)])
            exact.append(NAMES[int(score.argmax())] == emotion)
    return {
        "texts with two people": len(own) // 2,
        "own aftermath preferred to the other person's (chance 0.5)": interval(by_text(own)),
        "own emotion chosen among all (chance 0.077; 0.5 without binding)": interval(by_text(exact)),
    }


def estimators(words: bool = False) -> tuple[Pipeline, Pipeline]:
    """Make the classifier of emotions and the regressor of valence, over streams or over words."""
    prepare = TfidfVectorizer(sublinear_tf=True) if words else StandardScaler()
    classifier = LogisticRegression(C=10.0 if words else 0.1, max_iter=500)
    return make_pipeline(prepare, classifier), make_pipeline(prepare, Ridge(1.0 if words else 1_000.0))


def probe_scores(features: Any, texts: Sequence[GeneratedText], words: bool = False) -> tuple[float, float]:
    """Return 13-way accuracy and valence correlation on held-out worlds, five folds."""
    emotions, valence = np.array([t.emotion for t in texts]), np.array([t.valence for t in texts])
    classifier, regressor = estimators(words)
    grouped = {"groups": [t.world for t in texts], "cv": GroupKFold(5)}
    said = cross_val_predict(classifier, features, emotions, **grouped)
    predicted = cross_val_predict(regressor, features, valence, **grouped)
    return float((said == emotions).mean()), float(np.corrcoef(predicted, valence)[0, 1])


def probing(bench: Bench, n: int = 2_600) -> dict[str, Any]:
    """Probe every layer's mean-pooled stream on held-out worlds, beside words alone."""
    texts = generate(n, seed=3, forms=SINGLE)
    pools, _ = bench.pooled([t.text for t in texts])
    table = {f"layer {layer}": probe_scores(pools[:, layer], texts) for layer in range(pools.shape[1])}
    table["tf-idf words"] = probe_scores([t.text for t in texts], texts, words=True)
    return {"accuracy over 13 emotions and valence r, worlds held out": table}


def directions(pools: Array, texts: Sequence[GeneratedText]) -> dict[str, Array]:
    """Return, from one layer's pools, the mean-difference and logistic directions (emotion, width) and valence's."""
    emotions = np.array([t.emotion for t in texts])
    classifier, regressor = estimators()
    classifier.fit(pools, emotions)
    regressor.fit(pools, [t.valence for t in texts])
    order = [list(classifier.classes_).index(name) for name in NAMES]
    found = {
        "mean difference": np.stack([pools[emotions == name].mean(0) for name in NAMES]) - pools.mean(0),
        "logistic": classifier[-1].coef_[order] / classifier[0].scale_,
        "ridge valence": regressor[-1].coef_[None] / regressor[0].scale_,
    }
    return {kind: d / np.linalg.norm(d, axis=-1, keepdims=True) for kind, d in found.items()}


def axes(bench: Bench, n: int = 1_300, shuffles: int = 39) -> dict[str, Any]:
    """Look for valence and arousal among the first principal components of the emotions' mean streams at every layer.

    Beside them stand the components of as many sets of means as `shuffles` says, of texts whose emotions were shuffled.
    """
    texts = generate(n, seed=8, forms=SINGLE)
    pools, _ = bench.pooled([t.text for t in texts])
    emotions, rng, table = np.array([t.emotion for t in texts]), np.random.default_rng(0), {}
    for layer in range(pools.shape[1]):
        found, shares = components(pools[:, layer], emotions)
        chance = [components(pools[:, layer], rng.permutation(emotions))[0] for _ in range(shuffles)]
        table[f"layer {layer}"] = {
            "valence": found[0],
            "arousal": found[1],
            "shares of the variance": shares,
            "highest in shuffled sets (valence, arousal)": np.max(chance, axis=(0, 2)),
        }
    return {"|r| of the first five components of emotions with their valence and arousal": table}


def components(pools: Array, emotions: Array, count: int = 5) -> tuple[Array, Array]:
    """Return |r| of the emotions' first components with valence and arousal (2, count), and their shares (count,).

    Components are of the emotions' mean differences, each of unit length, so that none counts more for being far off.
    """
    vectors = np.stack([pools[emotions == name].mean(0) for name in NAMES])
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    places = [[e.valence for e in EMOTIONS.values()], [e.arousal for e in EMOTIONS.values()]]
    r = np.corrcoef(places, left[:, :count].T)[:2, 2:]
    return np.abs(r), (singular**2 / (singular**2).sum())[:count]


def agreement(bench: Bench, layer: int, n: int = 2_600) -> dict[str, Any]:
    """Compare the directions found in two sets of texts without a seed in common."""
    found = []
    for seed in (4, 5):
        texts = generate(n, seed=seed, forms=SINGLE)
        found.append(directions(bench.pooled([t.text for t in texts])[0][:, layer], texts))
    cosines = {kind: (found[0][kind] * found[1][kind]).sum(-1) for kind in found[0]}
    return {
        f"cosine of two seeds, layer {layer} (mean, least)": {
            k: (c.mean(), c.min()) for k, c in cosines.items()
        }
    }


def steering(bench: Bench, layer: int, n: int = 130) -> dict[str, Any]:
    """Add each emotion's direction, or a random one, to contexts and score that emotion's aftermaths."""
    texts = generate(1_300, seed=6, forms=SINGLE)
    pools, norms = bench.pooled([t.text for t in texts])
    unit = directions(pools[:, layer], texts)["mean difference"]
    noise = np.random.default_rng(0).standard_normal(unit.shape)
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    contexts = generate(n, seed=7, forms=SINGLE)
    table = {}
    for kind, vectors in (("mean difference", unit), ("random", noise)):
        curve = np.zeros((len(STRENGTHS), len(NAMES)))
        for i, name in enumerate(NAMES):
            edits = torch.tensor(norms[layer] * np.outer(STRENGTHS, vectors[i]), dtype=torch.float32)
            with bench.editing(layer, edits):
                for text in contexts:
                    tails = aftermaths(name, text.experiencer, intensity=text.intensity)
                    curve[:, i] += bench.log_probs(text.text, tails, len(edits)).mean(1) / len(contexts)
        rising = [spearmanr(STRENGTHS, curve[:, i])[0] for i in range(len(NAMES))]
        change = (curve - curve[STRENGTHS.index(0.0)]).mean(1)
        table[kind] = {
            "mean change in log-probability per token": dict(
                zip(map(str, STRENGTHS), change.round(3), strict=True)
            ),
            "emotions that rise at every step": int((np.diff(curve, axis=0) > 0).all(0).sum()),
            "least rank correlation with strength": min(rising),
        }
    return {f"steering at layer {layer}": table}


PARTS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "understanding": lambda bench, _: understanding(bench),
    "binding": lambda bench, _: binding(bench),
    "probing": lambda bench, _: probing(bench),
    "axes": lambda bench, _: axes(bench),
    "agreement": agreement,
    "steering": steering,
}


def evaluate(
    folder: str | Path = FOLDER,
    layer: int = 3,
    parts: Iterable[str] = PARTS,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the measurements on a checkpoint and return them by name; `layer` is where directions are taken."""
    bench, results = Bench(folder), {}
    for part in parts:
        found = PARTS[part](bench, layer)
        show(json.dumps(rounded(found), indent=2))
        results.update(found)
    return results


def rounded(found: Any) -> Any:
    """Return nested figures to four decimals, as plain numbers: what is beyond differs between machines."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list | tuple | np.ndarray):
        return [rounded(value) for value in found]
    return found if isinstance(found, int) else round(float(found), 4)


def main() -> None:
    """Read the command line, evaluate, print and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help="checkpoint (default: the package's)"
    )
    parser.add_argument(
        "--layer", type=int, default=3, help="layer of the directions that are compared and added"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    results = evaluate(given.folder, given.layer, given.parts)
    if given.json:
        given.json.write_text(json.dumps(rounded(results), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
