"""Benchmarks: one file each, from the dataset as it is published to questions, and from answers to scores."""

from jobs.benchmarks.ai2d import AI2D
from jobs.benchmarks.chartqa import CHARTQA
from jobs.benchmarks.coco import COCO
from jobs.benchmarks.docvqa import DOCVQA
from jobs.benchmarks.gqa import GQA
from jobs.benchmarks.infovqa import INFOVQA
from jobs.benchmarks.mmbench import MMBENCH
from jobs.benchmarks.mmmu import MMMU
from jobs.benchmarks.ocrbench import OCRBENCH
from jobs.benchmarks.own import OWN
from jobs.benchmarks.pope import POPE
from jobs.benchmarks.scienceqa import SCIENCEQA
from jobs.benchmarks.seedbench import SEEDBENCH
from jobs.benchmarks.textvqa import TEXTVQA
from jobs.benchmarks.vizwiz import VIZWIZ
from jobs.benchmarks.vqav2 import VQAV2
from schemas.benchmark import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = (
    *(VQAV2, TEXTVQA, VIZWIZ, GQA, DOCVQA, INFOVQA, CHARTQA),
    *(AI2D, SCIENCEQA, MMMU, MMBENCH, SEEDBENCH, POPE, OCRBENCH, COCO, OWN),
)
