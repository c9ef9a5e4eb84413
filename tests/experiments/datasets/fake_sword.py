"""Three tiny versions with the traps of the real ones, in place of SWORD modules."""

from experiments.datasets.sword import Place

NOTE = '<note type="study" n="1">Or, <catchWord>only</catchWord> a note</note>'


def _texts(book, chapter, *texts):
    return {Place("nt", book, chapter, number): text for number, text in enumerate(texts, 1)}


def versions(chapters=8):
    """Raw texts by module and place: chapters of Matt that fit, Rom 16 that does not, Luke 17:2 that WEB lacks."""
    kjv, web, spanish = {}, {}, {}
    for c in range(1, chapters + 1):
        kjv |= _texts("Matt", c, f"<w>And</w> <w>he</w> saith{NOTE} unto them {c},", f"¶ Blessed<lb/>are ye {c}.")
        web |= _texts("Matt", c, f"He said to them {c},{NOTE}", f"<title>Beatitudes</title>Blessed are you {c}.")
        spanish |= _texts("Matt", c, f"Y les dijo &#x2014; {c},", f"Bienaventurados sois {c}.")
    kjv |= _texts("Rom", 16, "a", "b", "c") | _texts("Luke", 17, "d", "e", "f")
    web |= _texts("Rom", 16, "a", "b", "") | _texts("Luke", 17, "d", NOTE, "f")
    spanish |= _texts("Rom", 16, "a", "b", "c") | _texts("Luke", 17, "d", "e", "f")
    return {"engKJV2006eb": kjv, "engWEB2015eb": web, "spaRV1909eb": spanish}


def install(monkeypatch, chapters=8):
    """Makes `mcl_jax.data` read these; returns the list of modules read."""
    texts, read = versions(chapters), []

    def read_module(folder, module, testament="whole"):
        read.append(module)
        yield from texts[module].items()

    monkeypatch.setattr("experiments.datasets.sword.read_module", read_module)
    monkeypatch.setattr("experiments.datasets.sword.fetch_module", lambda package, cache_dir: cache_dir)
    return read
