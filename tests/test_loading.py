"""Loading encoders and others from disk, conversations, and what a model says of itself."""

from pathlib import Path

import pytest
import torch
from families import family_model
from parity import TEXTS, relative
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, Gemma2PreTrainedModel

from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model, wrap

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
MESSAGES = [
    {"role": "system", "content": "user"},  # a content that is also the name of a role
    {"role": "user", "content": " I am so glad! "},
    {"role": "assistant", "content": "calm"},
    {"role": "user", "content": "The dog"},
]


def saved(model: LiveModel, folder: Path) -> Path:
    model.underlying.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def test_encoders_are_loaded_with_the_head_they_have(tmp_path: Path) -> None:
    model = family_model("BERT")
    loaded = load_model(saved(model, tmp_path / "whole"))
    assert type(loaded.underlying) is type(model.underlying)
    assert torch.allclose(loaded.logits(TEXTS), model.logits(TEXTS), atol=1e-5)
    model.underlying.bert.save_pretrained(tmp_path / "bare")
    model.tokenizer.save_pretrained(tmp_path / "bare")
    bare = load_model(tmp_path / "bare")
    assert torch.allclose(bare.capture(TEXTS), model.capture(TEXTS), atol=1e-5)
    for call, words in [
        (lambda: bare.logits(TEXTS), "no language-model head, and so no logits"),
        (lambda: bare.generate("a"), "is an encoder, and so cannot generate"),
        (lambda: loaded.generate("a"), "is an encoder, and so cannot generate"),
        (lambda: loaded.logit_lens(torch.ones(32)), "transforms the stream first"),
    ]:
        with pytest.raises(InputError, match=words):
            call()


def test_a_path_that_leads_to_no_model_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise OSError("the hub was asked")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in (
        "./models/foo",
        "../foo",
        "~/foo",
        "runs/x/model",
        "runs/",
        str(tmp_path / "foo"),
        Path("foo"),
    ):
        with pytest.raises(InputError, match=f'^no folder "{name}": check the path'):
            load_model(name)
    with pytest.raises(InputError, match=r'"weights\.bin" is a file: give the folder'):
        load_model("weights.bin")
    for name in ("runs/x", "foo"):  # names that the hub may have
        with pytest.raises(
            InputError, match=f'"{name}": there is no folder of that name here.*the hub was asked'
        ):
            load_model(name)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_bundled_model_loads_without_a_bar_and_leaves_others_theirs(
    wanted: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if wanted else logging.disable_progress_bar)()
    try:
        folder = saved(tiny_model("llama"), tmp_path)
        capfd.readouterr()
        load_model("bundled")
        assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled() == wanted
        load_model(folder)
        assert ("Loading weights" in capfd.readouterr().err) == wanted
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_a_soft_cap_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capped = family_model("Gemma 2")
    folder, logits = saved(capped, tmp_path), capped.logits(TEXTS)
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as transformers thought before 5.21
    assert AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"
    assert torch.allclose(load_model(folder).logits(TEXTS), logits, atol=1e-5)
    with pytest.raises(InputError, match='leaves the cap out: load it with attn_implementation="eager"'):
        load_model(folder, attn_implementation="sdpa")
    capped.underlying.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match=r'model.set_attn_implementation\("eager"\)'):
        wrap(capped.underlying, capped.tokenizer)
    capped.underlying.set_attn_implementation("eager")
    assert torch.equal(wrap(capped.underlying, capped.tokenizer).logits(TEXTS), logits)


def test_dtype_attention_and_device_map_are_passed_through(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    folder = saved(model, tmp_path)
    loaded = load_model(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert loaded.dtype == torch.bfloat16 and loaded.underlying.config._attn_implementation == "eager"
    assert loaded.capture(TEXTS).dtype == torch.float32
    assert relative(loaded.capture(TEXTS), model.capture(TEXTS)) < 0.1
    pytest.importorskip("accelerate")
    placed = load_model(folder, device_map={"": "cpu"})
    assert torch.allclose(placed.logits(TEXTS), model.logits(TEXTS), atol=1e-5)
    with pytest.raises(InputError, match="not both"):
        load_model(folder, device="cpu", device_map="auto")


@pytest.mark.parametrize("start", [False, True])
def test_a_conversation_has_one_start_token_and_a_span_for_each_message(start: bool) -> None:
    model = tiny_model("llama" if start else "gpt2")
    model.tokenizer.chat_template = TEMPLATE
    chat = model.chat_text(MESSAGES)
    assert chat.roles == ("system", "user", "assistant", "user")
    assert [chat.text[a:b] for a, b in chat.spans] == ["user", "I am so glad!", "calm", "The dog"]
    assert chat.of("user") == [chat.spans[1], chat.spans[3]]
    assert chat.text.endswith("[assistant] ")
    ids = model.tokenize(chat.text).input_ids[0].tolist()
    assert ids.count(model.tokenizer.bos_token_id) == 1 and ids[0] == model.tokenizer.bos_token_id
    assert not model.chat_text(MESSAGES, add_generation_prompt=False).text.endswith("[assistant] ")
    with pytest.raises(InputError, match='no message has the role "tool"'):
        chat.of("tool")


def test_conversations_that_cannot_be_rendered_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="no chat template"):
        model.chat_text(MESSAGES)
    for template, words in [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "rewrites message 0"),
        ("{{ messages[0]['content'] }}", "rewrites message 1"),
        ("{{ raise_exception('no system role') }}", "refuses this conversation: no system role"),
    ]:
        model.tokenizer.chat_template = template
        with pytest.raises(InputError, match=words):
            model.chat_text(MESSAGES)
    for messages, words in [([], "no message"), ([{"role": "user"}], "message 0 is not a dict")]:
        with pytest.raises(InputError, match=words):
            model.chat_text(messages)


def test_info_says_what_holds_and_why_not() -> None:
    found = family_model("Gemma 2").info().set_index("what")["found"]
    assert (
        found["inject, blocks 0, 2"]
        == "yes, at the softmax (quadratic memory): Gemma2Attention, sliding_attention"
    )
    assert found["generate"] == "yes" and found["blocks"] == "3" and found["attention"] == "eager"
    found = family_model("Qwen3-Next").info().set_index("what")["found"]
    assert found["inject, blocks 0, 2"].startswith("no: it is of type linear_attention")
    assert found["inject, blocks 1"].startswith("yes, folded")
    found = family_model("BERT").info().set_index("what")["found"]
    assert found["generate"] == "no: an encoder" and found["logits"] == "yes"
    assert found["logit lens"] == "no: its head transforms the stream first"
    assert tiny_tokenizer().chat_template is None and found["chat template"] == "no"
