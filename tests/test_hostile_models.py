"""Models that are damaged, do not fit, or overflow, and texts far longer than they read: named, or right."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, tiny_model

from emoprobe.activations import Residuals, named_pool
from emoprobe.errors import InputError
from emoprobe.interventions import ResidualEdit
from emoprobe.models import _not_finite, load_model
from emoprobe.probes.tokens import TokenMeans

TEXTS = ["The sun came up.", "She was sad.", "I am so glad that you came!"]


def kept(folder: Path) -> Path:
    model = tiny_model("llama", dtype=torch.float32)
    model.underlying.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_a_stream_that_is_not_finite_is_counted_and_named() -> None:
    model = tiny_model("gpt2")

    def spoil(stream: torch.Tensor) -> torch.Tensor:
        stream = stream.clone()
        stream[1, -2:] = torch.tensor(float("nan"))  # two tokens of the second row
        return stream

    untouched = model.capture(TEXTS)
    with model.intervene(ResidualEdit(2, spoil)):
        assert torch.equal(model.capture(TEXTS, [0, 1]), untouched[:, :2]), "below it nothing is wrong"
        # Rows are sorted by length: the second is text 0.
        tokens = int(model.tokenize(TEXTS).real.sum())
        with pytest.raises(
            InputError, match=rf"^text 0: .* for 2 of {tokens} tokens of a batch, first at layer 2"
        ):
            model.capture(TEXTS)
    assert torch.equal(model.capture(TEXTS), untouched)


def test_a_pool_that_is_not_finite_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="pool= gave what is infinite or NaN"):
        model.capture(TEXTS, [1], lambda stream, counted: stream.sum(-2) / 0)
    assert model.capture(TEXTS, [1], lambda stream, counted: stream[:, :, -1]).isfinite().all()


def test_padding_may_be_anything() -> None:
    model = tiny_model("gpt2")
    real = model.tokenize(sorted(TEXTS, key=len)).real
    assert not real.all()

    def read() -> list[torch.Tensor]:
        tokens = TokenMeans("mean")
        found = [model.capture(TEXTS, [2], pool) for pool in ("mean", "last", tokens)]
        return [*found, tokens.mean, tokens.norm]

    untouched = read()
    with model.intervene(ResidualEdit(2, lambda x: x.masked_fill(~real[..., None], float("nan")))):
        for found, wanted in zip(read(), untouched, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_layers_are_pooled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    wanted = {name: model.capture(TEXTS, "all", named_pool(name)) for name in ("mean", "last")}
    monkeypatch.setattr(Residuals, "stream", None)  # all layers in one: a copy of everything
    for pool, name in (("mean", "mean"), ("last", "last"), (TokenMeans("mean"), "mean")):
        torch.testing.assert_close(model.capture(TEXTS, "all", pool), wanted[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "text",
    ["the sun and the rain " * 4000, "a" * 60_000, "é👩‍👩‍👧 " * 20_000, " " * 60_000 + "the end of it"],
)
def test_the_head_of_a_long_text_gives_the_tokens_of_the_whole(family: str, text: str) -> None:
    model = tiny_model(family)
    whole = model.tokenizer([text], add_special_tokens=True, return_offsets_mapping=True)
    with pytest.warns(UserWarning, match="were cut"):
        batch = model.tokenize([text, "short"], truncate=True)
    assert batch.input_ids[0].tolist() == whole["input_ids"][0][:CONTEXT]
    assert batch.offsets is not None and list(batch.offsets[0]) == [
        tuple(s) for s in whole["offset_mapping"][0][:CONTEXT]
    ]


def test_only_a_head_is_read_unless_characters_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    read: list[int] = []
    tokenizer = model.tokenizer

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **options: object) -> object:
            read.append(max(map(len, texts)))
            if dropping:
                texts = [text.replace("x", "") for text in texts]
            return tokenizer(texts, **options)

    model.tokenizer = Watched()
    dropping = False
    with pytest.warns(UserWarning, match="were cut"):
        model.tokenize(["sun " * 1_000_000], truncate=True)
    assert max(read) < 100_000
    dropping = True
    batch = model.tokenize(["x" * 1_000_000 + "the end"], truncate=True)
    assert tokenizer.decode(batch.input_ids[0]) == "the end"


@pytest.mark.parametrize("missing", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_would_be_made_up_are_refused(missing: str, tmp_path: Path) -> None:
    folder = kept(tmp_path)
    load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[missing]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"lacks 1 weights .*{missing}"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_counted_and_named(value: float, tmp_path: Path) -> None:
    folder = kept(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[[3, 70]] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match=r"2 of the 2048 numbers of model.layers.1.mlp.up_proj.weight are not finite"
    ):
        load_model(folder)


def test_large_weights_are_none_of_these(tmp_path: Path) -> None:
    folder = kept(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].fill_(3e38)  # their sum overflows
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_numbers_of_any_width_are_counted(dtype: torch.dtype) -> None:
    largest = torch.full((3, 2**20), torch.finfo(dtype).max, dtype=dtype)  # more than one part; sums overflow
    assert _not_finite(largest) == 0
    largest[0, 0] = largest[2, -1] = float("nan")
    assert _not_finite(largest) == 2
    assert _not_finite(torch.full((3,), float("nan"), device="meta")) == _not_finite(torch.ones(3).int()) == 0


def test_a_token_without_an_embedding_is_refused() -> None:
    model = tiny_model("gpt2")
    model.tokenizer.add_tokens(["sunshine"])
    assert model.logits("the sun").isfinite().all()
    with pytest.raises(InputError, match=r"^text 1 has token 330, but .* knows 330"):
        model.logits(["the sun", "the sunshine"])
