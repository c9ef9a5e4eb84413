"""One-to-many text: from verses or anyone's file to batches of tokens.

Reading order: `records`, `sword`, `verses`, `verses_builder`, `jsonl`, `parallel`, `loading`; then `encoding`,
`schedule`, `batches`. `classify` says which kind of answer a text is.
"""

from mcl_jax.data.batches import Batches, eval_batches, train_batches
from mcl_jax.data.classify import is_archaic, language_of
from mcl_jax.data.encoding import NO_MODE, Encoded, Prompt, encode_records
from mcl_jax.data.jsonl import read_jsonl, write_jsonl
from mcl_jax.data.loading import load_corpus
from mcl_jax.data.parallel import load_wmt, read_parallel, read_wmt
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, split_of
from mcl_jax.data.schedule import NO_RECORD, BatchConfig
from mcl_jax.data.verses import Verse, read_verses, to_corpus
from mcl_jax.data.verses_builder import Verses, load_verses

__all__ = [
    "NO_MODE",
    "NO_RECORD",
    "SPLITS",
    "BatchConfig",
    "Batches",
    "Corpus",
    "Encoded",
    "Prompt",
    "Record",
    "Target",
    "Verse",
    "Verses",
    "encode_records",
    "eval_batches",
    "is_archaic",
    "language_of",
    "load_corpus",
    "load_verses",
    "load_wmt",
    "read_jsonl",
    "read_parallel",
    "read_verses",
    "read_wmt",
    "split_of",
    "to_corpus",
    "train_batches",
    "write_jsonl",
]
