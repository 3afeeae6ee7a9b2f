"""Find the direction from sad to happy on half of a set of events, read it on the other half, and steer along it.

    python benchmarks/happy_sad.py [MODEL]

MODEL is what `load_model` takes, by default "bundled". The events are told without naming a feeling, in twelve topics, of
which half are fitted on and half are read, both ways round. Steering measures log P of three words for happy less that of
three for sad after eight beginnings; beside it stand random directions of equal norm, and directions fitted in the same way to
labels that were shuffled within topics, which lie where activations vary as the direction itself does. Writes
benchmarks/happy_sad.json and benchmarks/happy_sad.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.steering import Measure
from emoprobe.study import feelings
from emoprobe.study.outcomes import leaning

HERE = Path(__file__).resolve().parent
STRENGTHS = tuple(round(float(s), 1) for s in np.linspace(-0.3, 0.3, 7))
CONTROLS = 20
SHUFFLES = 200
EVENTS = {
    "journeys": (
        "After nine years abroad he came up the lane and his mother ran to meet him.",
        "The ship sailed into the harbour with every man safe on board.",
        "They reached the inn before dark and found a warm fire and a hot supper.",
        "The fog lifted, and there below them lay the valley they had looked for.",
        "The train left with her brother on it, and she never saw him again.",
        "The ship went down within sight of the harbour, with every man on board.",
        "They reached the inn after dark and found it burnt to the ground.",
        "He stood on the platform till night, but she was not in any of the trains.",
    ),
    "births and deaths": (
        "The doctor came down and told him that he had a daughter, and that both were well.",
        "Three generations sat round the table to keep the old man's ninetieth birthday.",
        "The baby took her first steps that morning, straight into her father's arms.",
        "The twins were born at sunrise, and the whole house came in to look at them.",
        "The doctor came down and told him that neither of them had lived.",
        "They laid the old man in the ground beside the wife he had buried in spring.",
        "The little bed stood empty, and nobody had yet put away the shoes.",
        "She closed his eyes, and sat on beside him till it was light.",
    ),
    "money": (
        "The debt was paid at last, and the house was their own again.",
        "He opened the letter and read that his uncle had left him the whole farm.",
        "Her first book had sold every copy, and the cheque lay on the table.",
        "The shop was full all day, and in the evening they counted the money and laughed.",
        "The bank took the house, and they carried out what they could in a cart.",
        "He opened the letter and read that everything he had saved was gone.",
        "She sold her mother's ring, and it did not pay for a week's bread.",
        "The shop had no customer all winter, and at Easter they closed it for good.",
    ),
    "illness": (
        "In the morning the fever had left the child, and he asked for milk.",
        "The bandage came off, and for the first time in a year she saw the window.",
        "He walked to the gate and back that day without his stick.",
        "The nurse smiled and said that they might take her home.",
        "In the morning the fever had risen, and the child no longer knew them.",
        "The bandage came off, and it was as dark as it had been before.",
        "He would not walk again, the doctor said, and there was nothing to be done.",
        "The cough came back in autumn, and there was blood in the handkerchief.",
    ),
    "school": (
        "She ran home with the prize in her hand and her name printed on it.",
        "The master read his story aloud, and the whole class clapped.",
        "The holidays began that day, and the boys threw their caps into the air.",
        "The new girl asked her to sit beside her, and they shared an apple.",
        "She walked home with a bad report and did not dare to go in.",
        "The master tore up his story, and the whole class laughed at him.",
        "The other children went out to play, and nobody asked him to come.",
        "The boys had broken the toy that his father had carved for him.",
    ),
    "animals": (
        "The lost dog barked at the door that night and leapt into the boy's arms.",
        "The mare had her foal at dawn, and it stood up on its long legs.",
        "The bird with the mended wing flew up from her hand and sang.",
        "The kittens had opened their eyes and tumbled over each other in the hay.",
        "The lost dog was found by the road, and the boy carried it home in his coat.",
        "The mare lay still in the straw, and her foal would not leave her.",
        "The bird lay on its back in the cage, and its wings were cold.",
        "The kittens had been drowned in the pond before the children woke.",
    ),
    "marriage": (
        "She said yes, and they danced in the kitchen till the candle went out.",
        "The bells rang, and they came out of the church arm in arm into the sun.",
        "His letter said that he would come home and marry her in May.",
        "They sat hand in hand on the bench where they had met forty years before.",
        "She said no, and he went out without his hat into the rain.",
        "The guests had come, but the bridegroom was not there, nor did he write.",
        "His letter said that he had married another woman in May.",
        "He sat alone on the bench where they had met forty years before.",
    ),
    "war": (
        "The war was over, and strangers kissed each other in the street.",
        "The soldier they had given up for dead walked in at the garden gate.",
        "The prisoners were set free that night and sang all the way home.",
        "The last gun was silent, and the children came out of the cellar to play.",
        "The telegram said that their only son had fallen on the first day.",
        "The soldier came back to the village, and there was not a house left of it.",
        "The prisoners were marched away in the snow, and few of them were seen again.",
        "They buried the children in one grave, for there was no time to dig more.",
    ),
    "harvest and weather": (
        "Rain fell at last on the dry fields, and the farmer held out his hands to it.",
        "The barns were full to the roof, and they danced till the moon went down.",
        "The first warm day came, and all the windows of the street stood open.",
        "The ice broke, and the boats went out and came back heavy with fish.",
        "No rain fell that year, and the farmer shot the last of his cattle.",
        "The hail took the whole harvest in the time it takes to say a prayer.",
        "The frost killed the blossom in one night, and there was no fruit at all.",
        "The flood had carried off the bridge, the mill and the miller's two girls.",
    ),
    "work": (
        "He was made foreman that day, and the men carried him round the yard.",
        "After a hundred failures the engine turned, and ran, and went on running.",
        "The picture hung in the great hall, and the crowd before it would not go.",
        "She was given the place she had asked for, with a room of her own.",
        "He was sent away that day, after thirty years, without a word.",
        "The engine burst, and the work of his whole life lay in pieces on the floor.",
        "The picture came back from the exhibition with a hole in it.",
        "She asked at every door in the street, and there was no place for her.",
    ),
    "friends": (
        "They had not met for twenty years, and they talked till the sun came up.",
        "All her friends had hidden in the parlour with a cake and lanterns.",
        "He forgave him the old quarrel, and they drank to it and laughed.",
        "The neighbours came with hammers and built up their barn in a day.",
        "They had been friends for twenty years, and now he crossed the street to avoid him.",
        "She had laid the table for twelve, and nobody came.",
        "He came to make up the old quarrel, and was a day too late for it.",
        "The neighbours watched from their windows while the barn burnt down.",
    ),
    "children and gifts": (
        "Under the tree stood the very sledge that he had not dared to ask for.",
        "Her grandfather had mended the doll so well that one could not see the crack.",
        "They were to go to the sea tomorrow, all of them, for a whole week.",
        "The boy got the trumpet down from the shelf, and it was his to keep.",
        "Under the tree there was nothing, and his mother would not look at him.",
        "The doll fell on the stones, and there was no grandfather now to mend it.",
        "They were not to go to the sea after all, for there was no money left.",
        "The boy's trumpet was sold with the rest, and he watched it carried away.",
    ),
}
"""Topic -> four happy events, then four sad ones."""


def events() -> Corpus:
    """Return the events with their labels, grouped by topic."""
    rows = [
        (text, ["happy" if place < 4 else "sad"], topic)
        for topic, texts in EVENTS.items()
        for place, text in enumerate(texts)
    ]
    texts, labels, topics = map(list, zip(*rows, strict=True))
    return Corpus.from_columns({"text": texts, "labels": labels, "group": topics}, name="events")


def shuffled_slopes(
    model: LiveModel, corpus: Corpus, layer: int, words: Measure, shuffles: int
) -> list[float]:
    """Return the slope of steering along directions fitted to labels that are shuffled within topics."""
    features = model.capture(corpus.texts, [layer])[:, 0].double()
    happy = torch.from_numpy(corpus.label_matrix()[:, corpus.labels.index("happy")] > 0)
    topics = np.unique(corpus.groups, return_inverse=True)[1]
    order = np.random.default_rng(0)
    slopes = []
    for _ in range(shuffles):
        label = happy.clone()
        for topic in range(topics.max() + 1):
            label[topics == topic] = happy[order.permutation(np.flatnonzero(topics == topic))]
        direction = (features[label].mean(0) - features[~label].mean(0)).float()
        swept = ep.sweep(
            model,
            direction,
            STRENGTHS[::3],
            feelings.PROMPTS,
            [words],
            layers=layer,
            controls=0,
            progress=False,
        )
        slopes.append(float(swept.summary().iloc[0].slope))
    return slopes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="bundled")
    given = parser.parse_args()
    model = ep.load_model(given.model)
    probes = ep.fit_probes(
        model, events(), estimator="mean_difference", folds=2, permutations=40, bootstrap=2000, progress=False
    )
    scores = probes.scores[probes.scores.concept == "happy"].set_index("layer")
    best = int(scores.value.idxmax())
    words = leaning("log P(happy) − log P(sad), nats", *(feelings.words("valence") or ()), feelings.PROMPTS)
    layer = model.n_layers // 2
    swept = ep.sweep(
        model,
        probes["happy"],
        STRENGTHS,
        feelings.PROMPTS,
        [words],
        layers=layer,
        controls=CONTROLS,
        progress=False,
    )
    summary = swept.summary().iloc[0]
    shuffled = shuffled_slopes(model, events(), layer, words, SHUFFLES)
    low, high = np.quantile(shuffled, [0.025, 0.975])
    above = (1 + sum(slope >= summary.slope for slope in shuffled)) / (1 + SHUFFLES)
    lines = [
        f"{model.name}: AUC of happy against sad by layer, six topics fitted on and six read, both ways round",
        "",
        "| layer | AUC [95 %] | layer 0 | bag of words | shuffled |",
        "|---|---|---|---|---|",
    ]
    for number, row in scores.iterrows():
        value = f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
        by_chance = f"{row.shuffled:.2f} [{row.shuffled_low:.2f}, {row.shuffled_high:.2f}]"
        lines.append(f"| {number} | {value} | {row.layer0:.2f} | {row.bag_of_words:.2f} | {by_chance} |")
    lines += [
        "",
        f"Steering at layer {layer}, s from {STRENGTHS[0]} to {STRENGTHS[-1]}: {summary.measure}",
        "",
        "| s | steered [95 %] | random directions, range |",
        "|---|---|---|",
    ]
    frame = swept.frame
    for strength in STRENGTHS:
        here = frame[frame.strength == strength]
        steered = here[here.condition == "steered"].iloc[0]
        random = here[here.condition == "random"].value
        value = f"{steered.value:+.2f} [{steered.low:+.2f}, {steered.high:+.2f}]"
        lines.append(f"| {strength:+.1f} | {value} | {random.min():+.2f} to {random.max():+.2f} |")
    slope = f"{summary.slope:+.2f} [{summary.low:+.2f}, {summary.high:+.2f}]"
    chance = f"{summary.random_low:+.2f} to {summary.random_high:+.2f}"
    lines += [
        "",
        f"Slope {slope} nats per unit of s; of one more random direction {chance} (95 %); of directions fitted to labels "
        f"shuffled within topics {low:+.2f} to {high:+.2f} (95 % of {SHUFFLES}), p = {above:.3f}, one-sided.",
        "",
    ]
    record = {
        "model": model.name,
        "best_layer": best,
        "scores": scores.reset_index().to_dict("records"),
        "steering_layer": layer,
        "steering": summary.drop("verdict").to_dict(),
        "shuffled_slopes": shuffled,
        "p": above,
        "curve": frame.drop(columns="seed").to_dict("records"),
    }
    text = "\n".join(lines)
    write_bytes(
        HERE / "happy_sad.json",
        (json.dumps(record, indent=1, default=float, ensure_ascii=False) + "\n").encode(),
    )
    write_bytes(HERE / "happy_sad.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
