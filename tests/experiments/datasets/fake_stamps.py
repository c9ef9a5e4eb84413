"""A folder of stamps with the traps of the real one, and the package that has it."""

import subprocess

from tiny_media import ogg, png, sound, tone, write

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def captions(english, french, **others):
    lines = [english, "", *(f"{k}.utf8={v}" for k, v in {"af": "x", "fr": french, **others}.items())]
    return "\n".join(lines) + "\n"


def write_stamps(folder):
    """40 animals in 20 kinds, 52 letters, a drawing, and what has no stamp."""
    for number in range(40):
        kind = number % 20
        name = folder / f"animals/beast{number:02}"
        spanish = {} if number == 3 else {"es": f"Una bestia {kind}."}
        write(name.with_suffix(".txt"), captions(f" A beast  {kind}. ", f"Une bête {kind}.", **spanish))
        write(name.with_suffix(".png"), png())
    for letter in LETTERS + LETTERS.upper():
        name = folder / f"symbols/alphabets/{letter}_filled"
        write(name.with_suffix(".txt"), captions(f"The letter {letter}.", f"La lettre {letter}."))
        write(name.with_suffix(".png"), png())
    write(folder / "symbols/alphabets/a_filled_en_GB.ogg", ogg())
    write(folder / "people/drawn.txt", captions("A drawing.", "Un dessin."))
    write(folder / "people/drawn.svg", "<svg/>")
    write(folder / "people/drawn_desc_fr.ogg", ogg())
    write(folder / "animals/beast00_mirror.png", png())
    for language in ("", "_ru", "_fr", "_da.ogg"):
        write(folder / f"animals/beast00_desc{language}.ogg", ogg(hertz=300.0 + len(language)))
    write(folder / "animals/beast01_desc_pt_BR.wav", sound(tone(rate=8000, loudness=0.01), 8000, subtype="PCM_16"))
    write(folder / "animals/gone_desc_fr.ogg", ogg())
    sound_of_all = ogg(seconds=0.1)
    for number in range(40):
        write(folder / f"animals/beast{number:02}.ogg", sound_of_all)


def install(monkeypatch):
    """Makes apt and dpkg give a package with these stamps; returns the list of commands."""
    commands = []

    def run(command, cwd, **options):
        commands.append(command[0])
        if command[0] == "apt-get":
            (cwd / f"{command[-1]}_1_all.deb").write_bytes(b"")
        else:
            write_stamps(cwd / "usr/share/tuxpaint/stamps")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands
