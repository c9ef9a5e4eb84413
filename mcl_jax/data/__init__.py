"""One-to-many data: from verses, pictures, clips or anyone's files to batches of tokens.

Reading order: `pictures`; `sound_sizes`, `mp3_frames`, `sound_files`, `clips`; `media`, `paths`, `records`, `sources`;
text from `debian`, `sword`, `verses`, `features`, `verses_builder`, `jsonl`, `parallel`; captions from `stamps`,
`csv_rows`, `published`, `captions_builder`, `captions`; `loading`; then `encoding`, `schedule`, `batches`. `classify`
says which kind of answer a text is.
"""

from mcl_jax.data.batches import Batches, eval_batches, train_batches
from mcl_jax.data.captions import read_captions
from mcl_jax.data.captions_builder import CAPTIONS, AudioCaps, Clotho, Stamps, TextCaps
from mcl_jax.data.classify import caption_language, is_archaic, language_of
from mcl_jax.data.clips import SAMPLE_RATE, fit_length
from mcl_jax.data.encoding import NO_MODE, Encoded, Instruction, Prompt, encode_records
from mcl_jax.data.jsonl import read_jsonl, write_jsonl
from mcl_jax.data.loading import load_captions, load_corpus
from mcl_jax.data.media import Clip, Media, Picture, Unreadable
from mcl_jax.data.parallel import load_wmt, read_parallel, read_wmt
from mcl_jax.data.records import SPLITS, Corpus, Record, Target, split_of
from mcl_jax.data.schedule import NO_RECORD, BatchConfig
from mcl_jax.data.stamps import LANGUAGES, in_family, read_stamps, spoken_language, without_families
from mcl_jax.data.verses import Verse, read_verses, to_corpus
from mcl_jax.data.verses_builder import Verses, load_verses

__all__ = [
    "CAPTIONS",
    "LANGUAGES",
    "NO_MODE",
    "NO_RECORD",
    "SAMPLE_RATE",
    "SPLITS",
    "AudioCaps",
    "BatchConfig",
    "Batches",
    "Clip",
    "Clotho",
    "Corpus",
    "Encoded",
    "Instruction",
    "Media",
    "Picture",
    "Prompt",
    "Record",
    "Stamps",
    "Target",
    "TextCaps",
    "Unreadable",
    "Verse",
    "Verses",
    "caption_language",
    "encode_records",
    "eval_batches",
    "fit_length",
    "in_family",
    "is_archaic",
    "language_of",
    "load_captions",
    "load_corpus",
    "load_verses",
    "load_wmt",
    "read_captions",
    "read_jsonl",
    "read_parallel",
    "read_stamps",
    "read_verses",
    "read_wmt",
    "split_of",
    "spoken_language",
    "to_corpus",
    "train_batches",
    "without_families",
    "write_jsonl",
]
