"""Parquet files are read to the value, and no further than memory goes; seeds have a range."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from emoprobe import checks
from emoprobe.checks import read_parquet
from emoprobe.errors import InputError

LONG = pa.array(["a" * 10_000, "b"]).dictionary_encode()
COLUMNS = {
    "plain": pa.array(["a" * 10_000] * 500),
    "dictionary": LONG.take(pa.array([0] * 500)),
    "list": pa.ListArray.from_arrays(pa.array(range(501), pa.int32()), LONG.take(pa.array([0] * 500))),
    "struct": pa.StructArray.from_arrays([LONG.take(pa.array([0] * 500))], ["a"]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_unpacks_to_more_than_is_allowed_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"number": range(500), "text": COLUMNS[kind]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    assert read_parquet(tmp_path / "a.parquet").equals(table)  # five megabytes are nothing
    monkeypatch.setattr(checks, "UNPACKED", 5_100_000)
    assert read_parquet(tmp_path / "a.parquet").equals(table)
    monkeypatch.setattr(checks, "UNPACKED", 4_900_000)
    with pytest.raises(ValueError, match=r"unpacks to more than 4\.9 MB"):
        read_parquet(tmp_path / "a.parquet")


def test_large_tables_that_are_packed_as_others_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": [f"text {number} of many" for number in range(9_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2_000)
    monkeypatch.setattr(checks, "UNPACKED", 1)
    found = read_parquet(tmp_path / "a.parquet")
    assert found.equals(table) and found.schema.equals(pyarrow.parquet.read_schema(tmp_path / "a.parquet"))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_a_generator_would_not_take_are_refused_before_work(seed: int) -> None:
    from emoprobe import compare_valuations, fit_probes, learn_valuation, run_study

    nothing: Any = None
    for begun in (
        lambda: fit_probes(nothing, nothing, seed=seed),
        lambda: learn_valuation(nothing, nothing, nothing, seed=seed),
        lambda: compare_valuations(nothing, nothing, nothing, nothing, seed=seed),
        lambda: run_study(nothing, nothing, seed=seed),
    ):
        with pytest.raises(InputError, match=rf"^seed={seed} is out of range: .* 0 to 4294967295$"):
            begun()
    checks.check_seed(0)
    checks.check_seed(2**32 - 1)
