"""One-to-many data: from images, audio clips, JSON lines, parallel text and tables to batches of tokens.

Reading order: `pictures`; `sound_sizes`, `mp3_frames`, `sound_files`, `clips`; `media`, `paths`, `records`; text from
`jsonl` and `parallel_text`, captions from `captions`, published CSV files from `csv_rows`, tables of any layout from
`columns` and `tables`; then `encoding`, `schedule`, `batches`.
Data sets by name are in `experiments.datasets`.
"""

from mcl_jax.data.batches import Batches, eval_batches, train_batches
from mcl_jax.data.captions import read_captions
from mcl_jax.data.clips import SAMPLE_RATE, fit_length
from mcl_jax.data.encoding import NO_MODE, Encoded, Instruction, Prompt, encode_records
from mcl_jax.data.jsonl import read_jsonl, write_jsonl
from mcl_jax.data.media import Clip, Media, Picture, Unreadable
from mcl_jax.data.parallel_text import read_parallel
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, split_of
from mcl_jax.data.schedule import NO_RECORD, BatchConfig
from mcl_jax.data.tables import read_table

__all__ = [
    "NO_MODE",
    "NO_RECORD",
    "SAMPLE_RATE",
    "SPLITS",
    "BatchConfig",
    "Batches",
    "Clip",
    "Corpus",
    "Encoded",
    "Instruction",
    "Media",
    "Picture",
    "Prompt",
    "Record",
    "Target",
    "Unreadable",
    "encode_records",
    "eval_batches",
    "fit_length",
    "read_captions",
    "read_jsonl",
    "read_parallel",
    "read_table",
    "split_of",
    "train_batches",
    "write_jsonl",
]
