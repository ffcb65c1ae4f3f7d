"""What proves a checkpoint, which base and adapter a name means, and what a broken one is refused with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from jobs.__main__ import main
from pipeline.checkpoint import (
    NOT_SHAPING,
    at_their_folders,
    hash_code,
    pin,
    shaping_files,
    with_adapters_template,
    with_base,
)
from pipeline.engine.kernels.packages import is_there
from pipeline.plan import plan_job
from pipeline.preflight import check_machine
from schemas.errors import Refused
from schemas.job import JobSettings
from tests.adapters import NEW, attention_pairs, pairs, write_adapter
from tests.inputs import good_row, write_parquet
from tests.tiny import checkpoint

ROOT = Path(__file__).parents[1]
NO_OPTIMUM = pytest.mark.skipif(is_there("optimum"), reason="optimum is installed")


def copy_of(folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint(), folder / "model"))


def settings_of(model: Path | str, **more: Any) -> JobSettings:
    return JobSettings.model_validate({"input": ("a",), "output": "o", "model": str(model), **more})


def refused_job(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What a job on this folder's model is refused with, before it has written anything."""
    source = write_parquet(folder / "in.parquet", [good_row(0)])
    job = ["caption", "--input", str(source), "--output", str(folder / "out"), "--model", str(folder / "model"), *flags]
    assert main(job) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert not (folder / "out").exists()
    return said


def test_weights_that_changed_are_another_checkpoint(tmp_path: Path) -> None:
    model = copy_of(tmp_path)
    before = pin(str(model), None)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    after = pin(str(model), None)
    assert before == pin(str(checkpoint()), None)
    assert {name for name in after.files if after.files[name] != before.files[name]} == {"model.safetensors"}


def test_files_at_any_depth_count_and_caches_do_not(tmp_path: Path) -> None:
    model = copy_of(tmp_path)
    before = pin(str(model), None)
    for name in (".cache/huggingface/x.lock", ".git/HEAD"):
        (model / name).parent.mkdir(parents=True)
        (model / name).write_text("x")
    assert pin(str(model), None) == before
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    assert "additional_chat_templates/tool.jinja" in pin(str(model), None).files


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    model = copy_of(tmp_path)
    (model / "tokenizer.model").symlink_to("blobs/none")
    with pytest.raises(Refused, match=r"tokenizer\.model must be a file, it is a link to blobs/none"):
        pin(str(model), None)


@pytest.mark.parametrize("keep", [pytest.param(share, id=f"{share:.0%} of it") for share in (0.0, 0.001, 0.5, 0.999)])
def test_a_torn_weights_file_is_named_before_anything_starts(tmp_path: Path, keep: float, capsys) -> None:
    weights = copy_of(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(keep * weights.stat().st_size)])
    assert f"error: {weights} must " in refused_job(tmp_path, capsys)


def test_weights_that_do_not_fit_the_config_are_named_before_anything_starts(tmp_path: Path, capsys) -> None:
    config = copy_of(tmp_path) / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 262', '"vocab_size": 263'))
    assert "embed_tokens.weight must be (263, 64), it is (262, 64) in model.safetensors" in refused_job(
        tmp_path, capsys
    )


def test_an_adapter_beside_a_whole_model_is_neither_ignored_nor_guessed_at(tmp_path: Path, capsys) -> None:
    write_adapter(copy_of(tmp_path), attention_pairs())
    assert f"--adapter {tmp_path / 'model'}" in refused_job(tmp_path, capsys)
    settings = settings_of(tmp_path / "model", adapter=str(tmp_path / "model"))
    assert with_base(settings) == settings


def test_an_adapter_as_the_model_brings_its_base(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", attention_pairs())
    found = with_base(settings_of(adapter))
    assert (found.model, found.adapter) == (str(checkpoint()), str(adapter))
    assert with_base(found) == found


@pytest.mark.parametrize(
    ("model", "adapter", "words"),
    [
        pytest.param("adapter", "adapter", "is an adapter itself", id="an adapter on an adapter"),
        pytest.param("nameless", None, "without a base", id="no base named"),
        pytest.param("base", "none", "neither a folder here nor", id="no such adapter"),
        pytest.param("base", "empty", "adapter_config.json", id="no adapter in the folder"),
    ],
)
def test_a_base_or_adapter_that_cannot_be_had_is_refused(
    tmp_path: Path, model: str, adapter: str | None, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_adapter(tmp_path / "adapter", attention_pairs())
    write_adapter(tmp_path / "nameless", attention_pairs(), base_model_name_or_path=None)
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    where = checkpoint() if model == "base" else tmp_path / model
    told = {"input": (str(source),), "adapter": adapter and str(tmp_path / adapter)}
    with pytest.raises(Refused, match=words):
        plan_job("caption", settings_of(where, **told), "Q?")


def test_an_adapter_is_part_of_what_a_resume_compares_and_is_said(tmp_path: Path, capsys) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    adapter = write_adapter(tmp_path / "adapter", attention_pairs())
    settings = settings_of(checkpoint(), input=(str(source),), adapter=str(adapter))
    first = plan_job("caption", settings, "Q?").identity()
    assert f"adapter {adapter} (LoRA, rank 4): 4 tensors of {checkpoint()} changed" in capsys.readouterr().err
    assert "adapter: adapter_model.safetensors" in first["model_files"]
    module, weight = f"{NEW}layers.0.self_attn.q_proj", "language_model.model.layers.0.self_attn.q_proj.weight"
    write_adapter(adapter, pairs({module: weight}), target_modules=["q_proj"])
    other = plan_job("caption", settings, "Q?").identity()
    plain = plan_job("caption", settings.model_copy(update={"adapter": None}), "Q?").identity()
    assert len({one["model_hash"] for one in (first, other, plain)}) == 3
    assert plain["adapter"] is None


def test_an_adapter_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path, capsys) -> None:
    copy_of(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", attention_pairs(), r=8)
    assert "(8, 64)" in refused_job(tmp_path, capsys, "--adapter", str(adapter))


def test_an_adapter_is_asked_by_the_template_it_was_trained_with(tmp_path: Path, capsys) -> None:
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    adapter = write_adapter(tmp_path / "adapter", attention_pairs())
    settings = settings_of(checkpoint(), input=(str(source),), adapter=str(adapter))
    for name in ("chat_template.jinja", "tokenizer.json"):
        shutil.copy(checkpoint() / name, adapter / name)
    assert with_adapters_template(settings) == settings
    (adapter / "chat_template.jinja").write_text("{% for message in messages %}[{{ message.role }}]{% endfor %}")
    capsys.readouterr()
    assert with_adapters_template(settings).chat_template.startswith("{% for message in messages %}[")
    assert capsys.readouterr().err.count("its own chat template") == 1
    asked = settings.model_copy(update={"chat_template": "vicuna"})
    assert with_adapters_template(asked) == asked
    assert capsys.readouterr().err.count("not asked for") == 1


def test_a_base_whose_tokenizer_cannot_be_read_is_refused_in_a_line_where_an_adapter_has_a_template(tmp_path) -> None:
    base = copy_of(tmp_path)
    (base / "tokenizer.json").write_text("{")
    adapter = write_adapter(tmp_path / "adapter", attention_pairs())
    shutil.copy(checkpoint() / "chat_template.jinja", adapter)
    with pytest.raises(Refused, match="must have a tokenizer and a processor config"):
        with_adapters_template(settings_of(base, adapter=str(adapter)))


def test_an_adapter_with_tokens_of_its_own_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", attention_pairs())
    (adapter / "added_tokens.json").write_text(json.dumps({"<box>": 262}))
    with pytest.raises(Refused, match="'<box>' as 262 and the base has not"):
        with_adapters_template(settings_of(checkpoint(), adapter=str(adapter)))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        pytest.param("model", "{here}/model", id="beside"),
        pytest.param("../here/model/", "{here}/model", id="by a way round"),
        pytest.param("~/model", "{here}/model", id="at home"),
        pytest.param("owner/name", "owner/name", id="on the hub"),
        pytest.param("owner/name@main", "owner/name@main", id="at a revision"),
        pytest.param("demo", "demo", id="the bundled one"),
    ],
)
def test_a_folder_is_found_from_anywhere_and_the_hub_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str
) -> None:
    here = tmp_path / "here"
    for folder in ("model", "demo"):
        (here / folder).mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    settings = at_their_folders(JobSettings(input=("a",), output="o", model=name, adapter=name))
    assert (settings.model, settings.adapter) == (found.format(here=here),) * 2


def pack(file: Path) -> None:
    """Give a product of the text network the name and the type that GPTQ's packed numbers have."""
    weights = load_file(file)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weights[name.replace("weight", "qweight")] = weights.pop(name).int()
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("method", "words"),
    [
        pytest.param({"quant_method": "gptq", "bits": 4}, "optimum", id="without its package", marks=NO_OPTIMUM),
        pytest.param({"quant_method": "of-next-year"}, "of-next-year", id="that nobody knows"),
    ],
)
def test_a_quantised_checkpoint_that_cannot_be_loaded_here_is_refused(tmp_path: Path, method: Any, words: str) -> None:
    config = copy_of(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": method}))
    pack(config.parent / "model.safetensors")
    source = write_parquet(tmp_path / "in.parquet", [good_row(0)])
    with pytest.raises(Refused, match=words):
        check_machine(plan_job("caption", settings_of(config.parent, input=(str(source),)), "Q?").settings, ())


def test_all_code_shapes_answers_but_for_what_is_named() -> None:
    covered = {path.relative_to(ROOT).as_posix() for path in shaping_files()}
    for name in (
        "preprocess/strips.py",
        "engine/model_runner.py",
        "stages/preprocess.py",
        "sources/fetch.py",
        "stages/strips.py",
    ):
        assert f"pipeline/{name}" in covered
    assert {"schemas/request.py", "schemas/sample.py", "schemas/engine.py"} <= covered
    assert [name for name in NOT_SHAPING if not (ROOT / name).exists()] == []


def test_new_code_at_any_depth_changes_the_hash(tmp_path: Path) -> None:
    for name in ("pipeline", "schemas"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = hash_code(tmp_path)
    assert before == hash_code()
    (tmp_path / "pipeline" / "verify.py").write_text("")
    assert hash_code(tmp_path) == before
    (tmp_path / "pipeline" / "preprocess" / "deep").mkdir()
    (tmp_path / "pipeline" / "preprocess" / "deep" / "new.py").write_text("x = 1\n")
    assert hash_code(tmp_path) != before
