"""InfographicVQA, questions about infographics: lmms-lab's DocVQA, folder InfographicVQA, validation (2,801 questions).

Columns, scores and prompt are those of DocVQA.
"""

from dataclasses import replace

from jobs.benchmarks.docvqa import DOCVQA

INFOVQA = replace(DOCVQA, name="infovqa", data="hf://datasets/lmms-lab/DocVQA/InfographicVQA/validation-*.parquet")
