"""What is read at a place of a prompt is the probes' read-out of the tokens there, whatever stands beside the prompt."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_probes import model, probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.probes import ProbeSet
from emoprobe.probes.readout import UNITS
from emoprobe.study.concepts.places import (
    Prompt,
    chosen_layer,
    plain,
    read_at,
    read_beside_random,
    turn,
)

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
WORDS = ("The sun came up.", "She was sad that the dog had run away, and so were we.", "I am glad", "Calm?")
PLACES = ("user", "user_end", "before_reply")
LAYERS = (1, 3)


def prompts() -> list[Prompt]:
    return [turn(model(), words) for words in WORDS]


def by_hand(prompt: Prompt, place: str, layer: int, kind: str, directions: torch.Tensor) -> np.ndarray:
    """Return the read-out at a place from the model's own hidden states, in float64, one text at a time."""
    held = probes()
    encoded = model().tokenizer(prompt.text, return_offsets_mapping=True)
    spans = np.reshape(prompt.places[place], (-1, 2))
    mask = [any(a < end and start < b for start, end in spans) for a, b in encoded["offset_mapping"]]
    ids = torch.tensor([encoded["input_ids"]])
    streams: list[torch.Tensor] = []
    # What enters the next block, or leaves the last one before the final norm.
    body = model().underlying.transformer
    hooks = [body.h[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _, __, out: streams.append(_first(out))) for block in body.h]
    with torch.no_grad():
        model().underlying(ids)
    for hook in hooks:
        hook.remove()
    x = streams[layer][0][torch.tensor(mask)].double().numpy()
    row = held.layer_index(layer)
    mean = held.reference_mean[row].double().numpy()
    u = directions[row].double().numpy()  # (concepts, d_model)
    if kind == "centred_cosine":
        x = x - mean
        return (x @ u.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(u, axis=1)).mean(0)
    assert kind == "dot"
    return (x @ u.T).mean(0)


def _first(out: object) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["centred_cosine", "dot"])
def test_a_place_is_the_mean_over_its_tokens(kind: str) -> None:
    read = read_at(model(), probes(), prompts(), PLACES, LAYERS, kind=kind, batch_size=3)
    assert read.shape == (4, 3, 2, len(probes().concepts))
    for row, prompt in enumerate(prompts()):
        for column, place in enumerate(PLACES):
            for depth, layer in enumerate(LAYERS):
                expected = by_hand(prompt, place, layer, kind, probes().directions)
                np.testing.assert_allclose(read[row, column, depth], expected, atol=1e-5)


def test_several_spans_are_one_place() -> None:
    text = "The sun came up and the old man was happy to see it."
    spans = ((0, 7), (20, 31))
    prompt = Prompt(text, {"both": spans, "first": spans[0], "second": spans[1]})
    read = read_at(model(), probes(), [prompt], ["both"], [2], kind="dot")[0, 0, 0]
    np.testing.assert_allclose(read, by_hand(prompt, "both", 2, "dot", probes().directions), atol=1e-5)
    apart = read_at(model(), probes(), [prompt], ["first", "second"], [2], kind="dot")[0, :, 0]
    assert not np.allclose(read, apart[0]) and not np.allclose(read, apart[1])


def test_padding_and_batches_change_nothing() -> None:
    alone = read_at(model(), probes(), prompts(), PLACES, LAYERS, batch_size=1)
    for batch_size in (2, 32):
        np.testing.assert_allclose(
            read_at(model(), probes(), prompts(), PLACES, LAYERS, batch_size=batch_size), alone, atol=1e-6
        )
    back = read_at(model(), probes(), prompts()[::-1], PLACES, LAYERS, batch_size=2)[::-1]
    np.testing.assert_allclose(back, alone, atol=1e-6)


def test_concepts_are_read_in_the_order_asked_for() -> None:
    names = list(probes().concepts)
    whole = read_at(model(), probes(), prompts(), ["user"], LAYERS)
    some = read_at(model(), probes(), prompts(), ["user"], LAYERS, concepts=names[2:0:-1])
    np.testing.assert_allclose(some, whole[..., 2:0:-1], atol=1e-7)


def test_controls_keep_norms_and_angles_and_read_the_same_tokens() -> None:
    concepts = ["planted", "high", "noise"]
    read = read_beside_random(
        model(), probes(), prompts(), PLACES, LAYERS, kind="dot", concepts=concepts, controls=3, seed=5
    )
    assert read.shape == (4, 4, 3, 2, 3)
    np.testing.assert_allclose(
        read[0],
        read_at(model(), probes(), prompts(), PLACES, LAYERS, kind="dot", concepts=concepts),
        atol=1e-6,
    )
    # A direction turned at random reads the tokens like some unit vector: sum over a full basis of them is the squared norm.
    assert len({round(float(value), 6) for value in read[:, 0, 0, 0, 0]}) == 4  # all different
    again = read_beside_random(
        model(), probes(), prompts(), PLACES, LAYERS, kind="dot", concepts=concepts, controls=3, seed=5
    )
    np.testing.assert_array_equal(read, again)
    # Linearity survives the turn: if c = a + b in the probes, it is so in every control.
    summed = with_sum(probes())
    read = read_beside_random(model(), summed, prompts(), ["user"], [2], kind="dot", controls=2)
    a, b, c = (read[..., summed.concepts.index(name)] for name in ("planted", "high", "sum"))
    np.testing.assert_allclose(c, a + b, atol=1e-4)
    assert not np.allclose(read[1], read[0]) and not np.allclose(read[1], read[2])


def with_sum(held: ProbeSet) -> ProbeSet:
    """Return probes with one more concept, whose direction is the sum of two others'."""
    directions = torch.cat([held.directions, (held["planted"] + held["high"]).vectors[:, None]], dim=1)

    def longer(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([values, values[:, :1]], dim=1)

    return replace(
        held,
        concepts=(*held.concepts, "sum"),
        kinds={**held.kinds, "sum": "label"},
        directions=directions,
        scale=longer(held.scale),
        offset=longer(held.offset),
        reference_std=longer(held.reference_std),
    )


def test_too_few_controls_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        read_beside_random(model(), probes(), prompts(), PLACES, LAYERS, controls=1)


def test_turns_of_models_without_a_template() -> None:
    found = turn(model(), "She was sad.", "So was I.")
    assert found.text == "Human: She was sad.\n\nAssistant: So was I."
    shown = {name: found.text[a:b] for name, (a, b) in found.places.items()}
    assert shown == {"user": "She was sad.", "user_end": ".", "before_reply": ":", "reply": " So was I."}
    assert "reply" not in turn(model(), "She was sad.").places


def test_turns_of_chat_models_are_in_their_template() -> None:
    chat = tiny_model("gpt2")
    chat.tokenizer.chat_template = TEMPLATE
    found = turn(chat, "She was sad.", "So was I.")
    assert found.text == "<user> She was sad.\n<reply>So was I."
    shown = {name: found.text[a:b] for name, (a, b) in found.places.items()}
    assert shown == {"user": "She was sad.", "user_end": ".", "before_reply": ">", "reply": "So was I."}


def test_places_by_words() -> None:
    prompt = plain("Ann met Bob. Then Ann left Bob.").with_place("again", "Ann", 1)
    assert prompt.places["again"] == (18, 21)
    assert prompt.at_end_of("again").places["again"] == (20, 21)
    assert prompt.places["last"] == (30, 31) and prompt.places["text"] == (0, 31)
    assert prompt.with_place("first", "Ann").span("first") == (0, 3)
    assert Prompt("a b c", {"both": ((0, 1), (4, 5))}).span("both") == (0, 5)
    with pytest.raises(InputError, match="after character 19"):
        prompt.with_place("third", "Ann", 19)


def test_a_place_beyond_the_context_is_refused() -> None:
    long = turn(model(), "so " * 700)
    with pytest.warns(UserWarning, match="were cut"), pytest.raises(InputError, match="too long"):
        read_at(model(), probes(), [long], ["before_reply"], [1])
    with pytest.warns(UserWarning, match="were cut"), pytest.raises(InputError, match="too long"):
        read_at(model(), probes(), [long], ["user"], [1])  # of which some tokens were read
    with pytest.raises(InputError, match="no place 'reply'"):
        read_at(model(), probes(), prompts(), ["reply"], [1])


def test_the_layer_is_two_thirds_down_unless_told() -> None:
    assert chosen_layer(probes()) == 2  # of 0 to 3
    assert chosen_layer(probes(), 1) == 1 and chosen_layer(probes(), 1.0) == 3
    with pytest.raises(InputError):
        chosen_layer(probes(), 9)


def test_every_unit_can_be_read() -> None:
    for kind in UNITS:
        assert np.isfinite(read_at(model(), probes(), prompts(), ["user"], [2], kind=kind)).all()


def test_a_tokenizer_that_does_not_say_where_tokens_lie_is_refused() -> None:
    live = tiny_model("gpt2")
    batch = replace(live.tokenize("It is so."), offsets=None)
    with pytest.raises(InputError, match="tiny-gpt2-0: its tokenizer does not say where tokens lie"):
        live.token_spans(batch)
