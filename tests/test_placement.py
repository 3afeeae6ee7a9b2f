"""Weights that lie elsewhere, are quantised or compiled, and what loading passes on to transformers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import GREEDY, LAM, TEXTS, load, make_edits, make_valuation, random_model, saved, sizes
from parity import relative
from tiny import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, dynamic_module_utils

from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model, wrap
from emoprobe.valattn import inject


def check_the_same(placed: LiveModel, reference: LiveModel, tolerance: float = 1e-5) -> None:
    """Reading, injecting, steering, generating and telling models apart give what the reference gives."""
    real = reference.tokenize(TEXTS).real
    found = []
    for model in (placed, reference):
        plain, captured = model.logits(TEXTS)[real], model.capture(TEXTS)
        with inject(model, make_valuation(model), LAM), model.intervene(*make_edits(model)):
            found.append((plain, captured, model.logits(TEXTS)[real], model.generate(TEXTS, **GREEDY)))
    for ours, theirs in zip(*found, strict=True):
        assert ours == theirs if isinstance(ours, list) else relative(ours, theirs) < tolerance
    assert relative(found[1][0], found[1][2]) > 0.1
    assert placed.fingerprint() == reference.fingerprint()
    vectors = torch.eye(reference.d_model)
    assert torch.allclose(placed.logit_lens(vectors), reference.logit_lens(vectors), atol=1e-5)


# Where weights lie ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offloaded", [(), ("model.layers.1", "lm_head"), ("model.embed_tokens", "model.norm")]
)
def test_a_device_map_may_leave_parts_on_disk(offloaded: tuple[str, ...]) -> None:
    parts = ["model.embed_tokens", *(f"model.layers.{i}" for i in range(3)), "model.norm", "lm_head"]
    places = {part: "disk" if part in offloaded else "cpu" for part in [*parts, "model.rotary_emb"]}
    placed = load_model(saved("llama"), device_map=places)
    assert any(weight.is_meta for weight in placed.underlying.parameters()) == bool(offloaded)
    check_the_same(placed, load(saved("llama"), "transformers"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_weights_may_be_offloaded(family: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    reference = load(saved(family), "transformers")
    model = copy.deepcopy(reference.underlying)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in model.parameters())
    check_the_same(wrap(model, reference.tokenizer, name="offloaded"), reference)


# Quantised -----------------------------------------------------------------------------------------------------------


def wider(folder: Path) -> LiveModel:
    """A model whose width is one that 4 and 8 bits can be packed into."""
    shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    random_model(LlamaConfig(**sizes(), **shape, num_key_value_heads=2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(folder)


def test_torchao_weights_give_what_their_dequantised_values_give(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import TorchAoConfig

    original = wider(tmp_path)
    config = TorchAoConfig(quant_type=quantization.Int8WeightOnlyConfig())
    quantised = load_model(tmp_path, quantization_config=config)
    values = {
        name: weight.detach().dequantize() if type(weight.detach()) is not torch.Tensor else weight.detach()
        for name, weight in quantised.underlying.named_parameters()
    }
    reference = copy.deepcopy(original.underlying)
    reference.load_state_dict(values, strict=False)
    plain = wrap(reference, original.tokenizer, name="dequantised")
    assert plain.fingerprint() != original.fingerprint()
    check_the_same(quantised, plain, tolerance=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_weights_are_read_and_injected(tmp_path: Path, bits: int) -> None:
    """Its arithmetic is its own, so that nothing exact can be asked of it but that an injection acts and goes away."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import BitsAndBytesConfig

    original = wider(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    quantised = load_model(tmp_path, quantization_config=config, device_map={"": "cpu"})
    real, valuation = original.tokenize(TEXTS).real, make_valuation(original)
    untouched = quantised.logits(TEXTS)[real]
    with inject(original, valuation, LAM):
        truth = original.logits(TEXTS)[real]
    with inject(quantised, valuation, LAM):
        injected = quantised.logits(TEXTS)[real]
    assert relative(injected, truth) < relative(untouched, truth)
    assert torch.equal(quantised.logits(TEXTS)[real], untouched)
    assert quantised.capture(TEXTS).isfinite().all() and len(quantised.fingerprint()) == 16


# Compiled ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_meets_interventions_that_came_after(backend: str) -> None:
    reference = load(saved("gpt2"), "transformers")
    model = copy.deepcopy(reference.underlying)
    model.compile(backend=backend)
    live, real = wrap(model, reference.tokenizer), reference.tokenize(TEXTS).real
    try:
        untouched = live.logits(TEXTS)[real]  # compiled without any
        for strength in (LAM, -LAM):  # and what was compiled for one is not used for the other
            found = []
            for one in (live, reference):
                with inject(one, make_valuation(one), strength), one.intervene(*make_edits(one)):
                    found.append(one.logits(TEXTS)[real])
            assert relative(*found) < 1e-5
            assert relative(found[0], untouched) > 0.1
        assert torch.equal(live.logits(TEXTS)[real], untouched)
    finally:
        torch._dynamo.reset()


def test_a_module_around_the_model_is_refused_with_a_way_out() -> None:
    reference = load(saved("gpt2"), "transformers")
    with pytest.raises(InputError, match=r"compile it in place, model\.compile\(\)"):
        wrap(torch.compile(reference.underlying, backend="eager"), reference.tokenizer)


# What loading passes on ----------------------------------------------------------------------------------------------


def test_options_reach_transformers_and_foreign_code_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict[str, Any]] = {}
    for kind in (AutoTokenizer, AutoConfig, AutoModelForCausalLM):
        own = kind.from_pretrained

        def record(source: str, _own: Any = own, _name: str = kind.__name__, **options: Any) -> Any:
            given[_name] = options
            return _own(source, **options)

        monkeypatch.setattr(kind, "from_pretrained", record)
    load_model(saved("llama"), revision="abc", attn_implementation="eager", dtype="bfloat16")
    for options in given.values():
        assert options["revision"] == "abc" and options["trust_remote_code"] is False
    model = given["AutoModelForCausalLM"]
    assert model["attn_implementation"] == "eager" and model["dtype"] == "bfloat16"
    load_model(saved("llama"), trust_remote_code=True)
    assert all(options["trust_remote_code"] is True for options in given.values()) and len(given) == 3


def test_code_in_a_checkpoint_runs_only_where_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "model", tmp_path / "ran"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "configuration_foreign.py").write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
        "from transformers import PretrainedConfig\n"
        "class ForeignConfig(PretrainedConfig):\n    model_type = 'foreign'\n"
    )
    (folder / "config.json").write_text(
        '{"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.ForeignConfig"}}'
    )
    with pytest.raises(InputError, match=r"brings code of its own.* trust_remote_code=True"):
        load_model(folder)
    assert not ran.exists()
    with pytest.raises(InputError):  # there is a configuration only, no model
        load_model(folder, trust_remote_code=True)
    assert ran.exists()
