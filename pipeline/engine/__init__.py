"""Samples in, answers out, on the devices of one model. Imports torch and transformers; never Ray, tables or files.

Read `Scheduler.step` first: schedule, run, postprocess. From there:

    engine.py          Engine: one checkpoint, any number of callers; loop.py has the thread that steps the scheduler
    admit.py           a sample's prompts become sequences, and groups of those that share their beginning
    scheduler.py       WAITING (waiting.py: the queue) -> RUNNING (a slot and pages) -> FINISHED or FAILED
    model_runner.py    what runs on the device: image encoding, prefills (batch.py), decode steps (slots.py)
    sequence.py        one prompt being generated; completion.py has its tokens, and says when they end
    sampling.py        logits to tokens; stops.py and repetition.py end an answer
    shapes.py          how many slots, pages and tokens; out_of_memory.py tries what may not fit
    network/           the model: vision tower, decoder, key-value cache, forms.py: what its vocabulary may write next
    kernels/           attention, products, pages, and how a batch is laid out for them

A slot is a row of the decode batch (vLLM's max_num_seqs), a page a block of the key-value cache. A prefill runs prompts
of several sequences side by side, in one shape for all prefills; a decode step runs all slots, in one CUDA graph.
"""
