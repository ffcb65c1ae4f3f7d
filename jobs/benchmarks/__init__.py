"""Benchmarks: one file each, from the dataset as it is published to questions, and from answers to scores."""

from jobs.benchmarks.pope import POPE
from jobs.benchmarks.textvqa import TEXTVQA
from jobs.benchmarks.vqav2 import VQAV2
from schemas.benchmark import Benchmark

BENCHMARKS: tuple[Benchmark, ...] = (VQAV2, TEXTVQA, POPE)
