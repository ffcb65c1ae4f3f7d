"""What one process read of a checkpoint, another preprocesses by: the same prompts, and next to nothing imported."""

import json
import subprocess
import sys
from functools import partial

import pytest
from ray import cloudpickle

from pipeline.stages.preprocess import Preprocess
from schemas.job import JobSettings
from schemas.request import Request
from tests.tiny import checkpoint

ASKED = Request(id="r", prompt="What is <image> here?", images=())
# the costly ones: each of them brings in the compiler of torch, its distributed part, or a model's network
COSTLY = ("transformers.processing_utils", "transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor")
COSTLY += ("pipeline.engine.engine",)
ELSEWHERE = """
import json, pickle, sys
import pipeline.execution.ray_data  # as every worker of a job does
load, settings, asked = pickle.load(open(sys.argv[1], "rb"))
print(json.dumps({"rendered": load(settings).render(asked), "modules": sorted(sys.modules)}))
"""


JINJA = "{% for part in messages[-1].content %}{{ part.text or '<image>' }} {% endfor %}"


@pytest.mark.parametrize("template", ["auto", "vicuna", JINJA])
def test_sent_parts_render_as_they_do_here_and_are_cheap_to_have(template, tmp_path) -> None:
    settings = JobSettings(input=("x",), output="y", model=str(checkpoint()), chat_template=template)
    here = Preprocess(settings)
    sent = tmp_path / "sent"
    sent.write_bytes(cloudpickle.dumps((partial(Preprocess, parts=here.parts), settings, ASKED)))
    there = subprocess.run([sys.executable, "-c", ELSEWHERE, sent], capture_output=True, check=True, text=True)
    found = json.loads(there.stdout)
    assert found["rendered"] == here.render(ASKED)
    assert not set(COSTLY) & set(found["modules"])
