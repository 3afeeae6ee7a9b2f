"""Steering vectors in other tools' formats: the bytes as other readers see them, the numbering of layers, what is refused."""

import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import Direction
from emoprobe.steering import (
    export_gguf,
    export_steering_vectors,
    import_gguf,
    import_steering_vectors,
    steer,
)

gguf = pytest.importorskip("gguf")
TEXTS = ["I am so glad that you came!", "The dog"]


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return tiny_model("gpt2", dtype=torch.float32)


def direction(model: LiveModel) -> Direction:
    vectors = torch.randn(model.n_layers + 1, model.d_model, generator=torch.Generator().manual_seed(3))
    vectors /= vectors.norm(dim=-1, keepdim=True)
    return Direction("calm", tuple(range(model.n_layers + 1)), vectors, torch.tensor([1.0, 2.0, 5.0, 11.0]))


def after_block(model: LiveModel, added: dict[int, Tensor]) -> Tensor:
    """Return logits with vectors added to what leaves blocks, by plain hooks on the blocks themselves."""

    def hook(vector: Tensor) -> Callable[..., Tensor]:
        def add(_module: object, _inputs: object, output: Tensor) -> Tensor:
            assert isinstance(output, Tensor)
            return output + vector

        return add

    blocks = model.underlying.transformer.h
    handles = [blocks[block].register_forward_hook(hook(vector)) for block, vector in added.items()]
    try:
        return model.logits(TEXTS)
    finally:
        for handle in handles:
            handle.remove()


# Control vectors -----------------------------------------------------------------------------------------------------


def test_the_gguf_library_reads_what_was_written(model: LiveModel, tmp_path: Path) -> None:
    calm = direction(model)
    path = export_gguf(model, calm, tmp_path / "calm.gguf", strength=0.3, layers=[3, 2])
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "gpt2"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == {"direction.1", "direction.2"}
    for layer, norm in ((2, 5.0), (3, 11.0)):
        tensor, vector = found[f"direction.{layer - 1}"], calm.at(layer)
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and list(tensor.shape) == [model.d_model]
        expected = 0.3 * (vector / vector.norm() * norm)
        np.testing.assert_array_equal(tensor.data, expected.numpy())  # float32, to the bit
    assert list(tmp_path.iterdir()) == [path]


def test_a_control_vector_comes_back_to_the_bit_and_steers_alike(model: LiveModel, tmp_path: Path) -> None:
    calm = direction(model)
    read = import_gguf(export_gguf(model, calm, tmp_path / "calm.gguf", 0.3, [2, 3]))
    assert (read.concept, read.layers, read.residual_norms, read.basis) == ("calm", (2, 3), None, "raw")
    with steer(model, calm, 0.3, [2, 3]):
        expected = model.logits(TEXTS)
    with steer(model, read, 1.0, read.layers, unit="raw"):
        assert torch.equal(model.logits(TEXTS), expected)
    assert not torch.equal(model.logits(TEXTS), expected)


@pytest.mark.parametrize("layer", [2, 3])
def test_direction_n_is_what_leaves_block_n(model: LiveModel, tmp_path: Path, layer: int) -> None:
    calm = direction(model)
    path = export_gguf(model, calm, tmp_path / "calm.gguf", 0.3, layer)
    (tensor,) = gguf.GGUFReader(path).tensors
    added = {int(tensor.name.split(".")[1]): torch.tensor(tensor.data)}
    with steer(model, calm, 0.3, layer):
        ours = model.logits(TEXTS)
    assert torch.allclose(ours, after_block(model, added), atol=1e-5)
    wrong = {block - 1: vector for block, vector in added.items()}
    assert not torch.allclose(ours, after_block(model, wrong), atol=1e-2)


def write_gguf(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_control_vector_of_another_tool_is_read_whatever_its_order(tmp_path: Path) -> None:
    """repeng writes its layers from the last to the first, and direction.0 where it was trained there."""
    rows = {block: np.full(4, block + 1, np.float32) for block in (10, 2, 0)}
    read = import_gguf(write_gguf(tmp_path / "sad.gguf", {f"direction.{n}": v for n, v in rows.items()}))
    assert read.layers == (1, 3, 11)
    assert torch.equal(read.vectors[:, 0], torch.tensor([1.0, 3.0, 11.0]))


@pytest.mark.parametrize(
    "tensors, architecture, message",
    [
        ({"direction.1": np.zeros(4, np.float32)}, "llama", "architecture 'llama'"),
        ({"direction.x": np.zeros(4, np.float32)}, "controlvector", "direction.x"),
        ({"token_embd": np.zeros(4, np.float32)}, "controlvector", "token_embd"),
        ({"direction.1": np.zeros(4, np.int32)}, "controlvector", "I32"),
        ({}, "controlvector", "no vectors"),
        (
            {"direction.1": np.zeros(4, np.float32), "direction.2": np.zeros(5, np.float32)},
            "controlvector",
            "several widths: 4, 5",
        ),
    ],
)
def test_other_gguf_files_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray], architecture: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        import_gguf(write_gguf(tmp_path / "other.gguf", tensors, architecture))


def test_missing_and_damaged_control_vectors_are_refused(model: LiveModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        import_gguf(tmp_path / "none.gguf")
    whole = export_gguf(model, direction(model), tmp_path / "calm.gguf", layers=2).read_bytes()
    for damaged in (b"", b"GGUF", b"something else altogether", whole[:100], whole[:-40]):
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged\.gguf"):
            import_gguf(tmp_path / "damaged.gguf")


def test_without_gguf_the_message_says_what_to_install(
    model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for call in (
        lambda: import_gguf(tmp_path / "x.gguf"),
        lambda: export_gguf(model, direction(model), tmp_path / "x.gguf"),
    ):
        with pytest.raises(InputError, match=r"emoprobe\[interchange\]"):
            call()


# Both ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export", [export_gguf, export_steering_vectors])
def test_what_cannot_be_written_is_refused(
    model: LiveModel, tmp_path: Path, export: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, path = direction(model), tmp_path / "calm"
    with pytest.raises(InputError, match="layer 0 cannot be written"):
        export(model, calm, path, layers=[0, 2])
    with pytest.raises(InputError, match="strength=0 adds nothing"):
        export(model, calm, path, strength=0)
    monkeypatch.setattr(model, "basis", "centred", raising=False)
    with pytest.raises(InputError, match="a file for other tools cannot be used"):
        export(model, calm, path)
    assert not path.exists()


def test_layer_1_is_refused_for_llama_cpp_and_written_for_steering_vectors(
    model: LiveModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"refuses direction\.0"):
        export_gguf(model, direction(model), tmp_path / "calm.gguf", layers=[1, 2])
    assert set(load_file(export_steering_vectors(model, direction(model), tmp_path / "calm", layers=1))) == {
        "0"
    }


# steering-vectors ----------------------------------------------------------------------------------------------------


def test_steering_vectors_come_back_to_the_bit_and_mean_what_leaves_a_block(
    model: LiveModel, tmp_path: Path
) -> None:
    calm = direction(model)
    path = export_steering_vectors(model, calm, tmp_path / "calm.safetensors", 0.3, [1, 3])
    read = import_steering_vectors(path)
    assert (read.concept, read.layers) == ("calm", (1, 3))
    with steer(model, calm, 0.3, [1, 3]):
        expected = model.logits(TEXTS)
    with steer(model, read, 1.0, read.layers, unit="raw"):
        assert torch.equal(model.logits(TEXTS), expected)
    added = {int(block): vector for block, vector in load_file(path).items()}
    assert torch.allclose(after_block(model, added), expected, atol=1e-5)


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> type:
    """Stand in for steering_vectors while a file is written, so that it names the class; reading must not need it."""
    module = types.ModuleType("steering_vectors.steering_vector")
    named = type("SteeringVector", (), {"__module__": module.__name__})
    module.SteeringVector = named  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return named


def pickled(peer: type, path: Path, **fields: object) -> Path:
    vector = peer()
    vector.__dict__.update(fields)
    torch.save(vector, path)
    return path


def test_a_pickled_steering_vector_is_read_without_its_package(
    peer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {4: torch.arange(3.0), 1: torch.ones(3, dtype=torch.bfloat16)}
    whole = pickled(peer, tmp_path / "sad.pt", layer_activations=rows, layer_type="decoder_block")
    torch.save(rows, tmp_path / "bare.pt")
    monkeypatch.delitem(sys.modules, "steering_vectors")
    monkeypatch.setitem(sys.modules, "steering_vectors.steering_vector", None)  # an import would raise
    for path in (whole, tmp_path / "bare.pt"):
        read = import_steering_vectors(path)
        assert (read.concept, read.layers) == (path.stem, (2, 5))
        assert torch.equal(read.vectors, torch.stack([torch.ones(3), torch.arange(3.0)]))


def test_vectors_of_other_places_are_refused(peer: type, tmp_path: Path) -> None:
    path = pickled(peer, tmp_path / "mlp.pt", layer_activations={1: torch.ones(3)}, layer_type="mlp")
    with pytest.raises(InputError, match="'mlp'"):
        import_steering_vectors(path)


class Trap:
    """Run code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("sprung"),))


def test_code_in_a_pickle_is_never_run(peer: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Trap(), "bare.pt")
    pickled(peer, Path("inside.pt"), layer_activations={1: Trap()})
    Path("plain.pkl").write_bytes(pickle.dumps(Trap()))
    for name in ("bare.pt", "inside.pt", "plain.pkl"):
        with pytest.raises(InputError, match=name):
            import_steering_vectors(name)
    assert not Path("sprung").exists()
    torch.load("bare.pt", weights_only=False)
    assert Path("sprung").exists()  # the trap works


@pytest.mark.parametrize(
    "content, message",
    [
        ([torch.ones(3)], "no SteeringVector"),
        ({"1": torch.ones(3)}, "no SteeringVector"),
        ({1: 2.0}, "no SteeringVector"),
        ({}, "holds no vectors"),
        ({-1: torch.ones(3)}, "from the last"),
        ({1: torch.ones(3), 2: torch.ones(4)}, "several widths"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match=message):
        import_steering_vectors(tmp_path / "other.pt")


def test_other_safetensors_and_missing_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("hello")
    for name in ("other.safetensors", "text"):
        with pytest.raises(InputError, match="holds no steering vectors"):
            import_steering_vectors(tmp_path / name)
    with pytest.raises(InputError, match="no file"):
        import_steering_vectors(tmp_path / "none")
