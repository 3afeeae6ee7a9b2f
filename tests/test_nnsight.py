"""What is nnsight's own: its traces, and interventions as stored edits that can be sent elsewhere."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from backends import FAMILIES, GREEDY, LAM, TEXTS, difference, load, make_edits, make_valuation, saved
from families import family_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, ResidualEdit
from emoprobe.models import wrap
from emoprobe.valattn import biases, inject

nnsight = pytest.importorskip("nnsight")

# nnsight says at the end of each run of a stored edit that it could have gone on.
pytestmark = pytest.mark.filterwarnings("ignore:.*was never reached.*:UserWarning")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_interventions_act_inside_the_users_own_traces(family: str) -> None:
    live = load(saved(family), "nnsight")
    model, batch = live.underlying, live.tokenize(TEXTS)
    block = model.transformer.h[1] if family == "gpt2" else model.model.layers[1]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
    with torch.no_grad(), live.intervene(*make_edits(live)), inject(live, make_valuation(live), LAM):
        with model.trace(inputs):
            stream = block.input.save()
            logits = model.output.logits.save()
        with model.trace(inputs):  # the user's own intervention comes on top
            block.input = block.input * 2
            both = model.output.logits.save()
        with model.generate(inputs, **GREEDY) as tracer:
            ids = tracer.result.save()
        with model.trace() as tracer:
            with tracer.invoke(TEXTS[0]):
                first = model.output.logits[:, -1].save()
            with tracer.invoke(TEXTS[2]):
                second = model.output.logits[:, -1].save()
        expected, texts = live.logits(TEXTS), live.generate(TEXTS, **GREEDY)
        assert difference(live, TEXTS, stream, live.streams(batch, [1])[0]) < 1e-5
        with live.intervene(ResidualEdit(1, lambda x: 2 * x)):
            assert difference(live, TEXTS, both, live.logits(TEXTS)) < 1e-4
    assert difference(live, TEXTS, logits, expected) < 1e-5
    assert torch.allclose(first[0], expected[0, -1], atol=1e-4)
    assert torch.allclose(second[0], expected[2, -1], atol=1e-4)
    assert live.tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True) == texts
    assert difference(live, TEXTS, logits, live.logits(TEXTS)) > 0.1


@pytest.mark.parametrize("remote", [False, "local"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edits_are_nnsight_operations(family: str, remote: bool | str) -> None:
    live = load(saved(family), "nnsight")
    model, batch = live.underlying, live.tokenize(TEXTS)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
    interventions = [*make_edits(live), *biases(live, make_valuation(live), LAM)]
    untouched = live.logits(TEXTS)
    edited = live.edited(*interventions)
    with torch.no_grad(), edited.trace(inputs, remote=remote):
        logits = edited.output.logits.save()
    with torch.no_grad(), edited.generate(inputs, **GREEDY, remote=remote) as tracer:
        ids = tracer.result.save()
    with live.intervene(*interventions):
        expected, texts = live.logits(TEXTS), live.generate(TEXTS, **GREEDY)
    assert difference(live, TEXTS, logits, expected) < 1e-5
    assert difference(live, TEXTS, logits, untouched) > 0.1
    assert live.tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True) == texts
    with torch.no_grad(), model.trace(inputs):  # the model itself has no edits
        plain = model.output.logits.save()
    assert difference(live, TEXTS, plain, untouched) < 1e-5


def test_edits_refuse_a_cache_they_cannot_follow() -> None:
    live = load(saved("llama"), "nnsight")
    edited, batch = live.edited(*biases(live, make_valuation(live), LAM)), live.tokenize(TEXTS)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
    with pytest.raises(ValueError, match="reordered"):
        with torch.no_grad(), edited.generate(inputs, **GREEDY, num_beams=3):
            pass


def test_edits_are_made_without_weights() -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved("llama"))
    model = nnsight.TransformersModel(str(saved("llama")), tokenizer=tokenizer, task="text-generation")
    live, local = wrap(model), load(saved("llama"), "nnsight")
    with pytest.raises(InputError, match="not loaded"):
        live.tokenize(TEXTS)
    with pytest.raises(InputError, match="not loaded"):
        with live.intervene(*make_edits(live)):
            pass
    interventions = [*make_edits(local), *biases(local, make_valuation(local), LAM)]
    edited = live.edited(*interventions)
    batch = local.tokenize(TEXTS)
    with torch.no_grad(), edited.trace({"input_ids": batch.input_ids, "attention_mask": batch.real.long()}):
        logits = edited.output.logits.save()  # which loads them
    with local.intervene(*interventions):
        assert difference(local, TEXTS, logits, local.logits(TEXTS)) < 1e-5
    model.dispatch()
    assert difference(local, TEXTS, live.logits(TEXTS), local.logits(TEXTS)) < 1e-5


def test_edits_refuse_attention_that_is_computed_twice() -> None:
    other = family_model("DiffLlama")
    model = nnsight.TransformersModel(other.underlying, tokenizer=other.tokenizer, task="text-generation")
    with pytest.raises(InputError, match=r"block 1 of .* computes several attentions"):
        wrap(model).edited(AttentionBias(1, lambda x, _: x[..., :2], 1.0))


def test_info_says_which_blocks_take_edits() -> None:
    found = load(saved("llama"), "nnsight").info().set_index("what")["found"]
    assert found["inject as nnsight edits, blocks 0-2"].startswith("yes, at attention_interface")
    other = family_model("GPT-J")
    model = nnsight.TransformersModel(other.underlying, tokenizer=other.tokenizer, task="text-generation")
    found = wrap(model).info().set_index("what")["found"]
    assert found["inject, blocks 0-2"].startswith("yes, at the softmax")
    assert found["inject as nnsight edits, blocks 0-2"].startswith("no: it computes attention outside")
    with pytest.raises(InputError, match="block 1 of GPTJForCausalLM computes attention outside"):
        wrap(model).edited(AttentionBias(1, lambda x, _: x[..., :2], 1.0))


def test_the_deprecated_language_model_is_one_too() -> None:
    with pytest.warns(nnsight.NNsightDeprecationWarning):
        model = nnsight.LanguageModel(str(saved("gpt2")), dispatch=True)
    live = wrap(model)
    assert live.backend == "nnsight"
    assert (
        difference(live, TEXTS, live.logits(TEXTS), load(saved("gpt2"), "transformers").logits(TEXTS)) < 1e-5
    )


def test_a_server_needs_no_emoprobe_and_wrapping_no_other_library(tmp_path: Path) -> None:
    """Two things that only a fresh interpreter can show, in one, for its imports take long.

    A transformers model is wrapped without importing nnsight or TransformerLens. Stored edits, serialised by nnsight, run in
    an interpreter in which emoprobe cannot be imported, as on a server.
    """
    from nnsight.intervention.serialization import dumps

    live = load(saved("llama"), "nnsight")
    interventions = [*make_edits(live), *biases(live, make_valuation(live), LAM)]
    (tmp_path / "edits").write_bytes(dumps(live.edited(*interventions)._edits))
    batch = live.tokenize(TEXTS)
    save_file({"input_ids": batch.input_ids, "attention_mask": batch.real.long()}, tmp_path / "inputs")
    code = f"""
        import sys
        from emoprobe.models import load_model
        folder = {str(saved("llama"))!r}
        live = load_model(folder)
        assert not {{"nnsight", "transformer_lens"}} & set(sys.modules), "imported"

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "emoprobe":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Missing())
        for name in [name for name in sys.modules if name.split(".")[0] == "emoprobe"]:
            del sys.modules[name]
        import nnsight, torch
        from nnsight.intervention.serialization import loads
        from safetensors.torch import load_file, save_file
        model = nnsight.TransformersModel(live.underlying, tokenizer=live.tokenizer, task="text-generation")
        model._edits = loads(open("edits", "rb").read(), model._remoteable_persistent_objects())
        with torch.no_grad(), model.trace(load_file("inputs")):
            logits = model.output.logits.save()
        save_file({{"logits": logits.contiguous()}}, "outputs")
    """
    script = tmp_path / "server.py"  # nnsight reads the source of a trace
    script.write_text(textwrap.dedent(code))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    with live.intervene(*interventions):
        assert difference(live, TEXTS, load_file(tmp_path / "outputs")["logits"], live.logits(TEXTS)) < 1e-5
