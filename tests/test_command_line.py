"""Errors in a line, full disks, and texts that are never taken for markup."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import rich.console

from mcl_jax import command_line, console, json_io, json_lines
from mcl_jax.checkpoint import BrokenCheckpoint
from mcl_jax.command_line import attempt, errors_in_a_line
from mcl_jax.events import Events
from mcl_jax.extras import MissingExtra
from mcl_jax.run import Run

MARKUP = ("[/en]", "[fr]", "[bold]b[/bold]", ":smile:", r"a\[b]\\", "[link=x]y", "[@click=quit]z[/]")
full_disk = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


# --------------------------------------------------------------------------------------------------------- Errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("--steps must be 1"), "--steps must be 1"),
        (FloatingPointError("the loss is nan at step 3"), "the loss is nan at step 3"),
        (BrokenCheckpoint("checkpoint 3 is broken"), "checkpoint 3 is broken"),
        (MissingExtra("that needs PIL"), "that needs PIL"),
        (FileNotFoundError("no checkpoint in x"), "no checkpoint in x"),
        (MemoryError(), "MemoryError: "),
        (
            PermissionError(errno.EACCES, "Permission denied", "a/b"),
            "a/b: Permission denied; change its permissions or ",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "m"), "m: No space left on device; free some space and run"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"),
            "f/x: Not a directory; the path must be a directory",
        ),
    ],
)
def test_errors_for_people_are_a_line(error, line):
    with pytest.raises(SystemExit) as found, errors_in_a_line():
        raise error
    assert found.value.code.startswith(f"error: {line}") and "\n" not in found.value.code


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(KeyError), errors_in_a_line():
        raise KeyError("purity")


def test_an_interrupt_is_no_traceback():
    with pytest.raises(SystemExit) as found, errors_in_a_line():
        raise KeyboardInterrupt
    assert found.value.code == 130


def test_a_reader_that_goes_away_ends_the_command_silently():
    program = (
        "from mcl_jax.command_line import errors_in_a_line\n"
        "with errors_in_a_line():\n    [print('x' * 99) for _ in range(9999)]"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_what_fails_costs_itself_alone(capsys):
    with attempt("page.html"):
        raise KeyError("[/samples]")
    with attempt("loss.png"):
        raise OSError(errno.ENOSPC, "No space left on device", "x/loss.png")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "page.html could not be made: KeyError: '[/samples]'"
    assert second.startswith("loss.png could not be made: x/loss.png: No space left on device; free")
    with pytest.raises(KeyboardInterrupt), attempt("page.html"):
        raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------------------- Files


class FullDisk(io.BytesIO):
    """A file of which half of what is written arrives."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def __enter__(self):
        return self

    def write(self, content):
        with open(self.path, "ab") as file:
            file.write(content[: len(content) // 2] if isinstance(content, bytes) else content[:7].encode())
        raise OSError(errno.ENOSPC, "No space left on device")  # as write(2): without a name


@pytest.fixture
def disk_is_full(monkeypatch):
    def fill():
        for module in (json_io, json_lines):
            monkeypatch.setattr(module, "open", lambda path, *_, **__: FullDisk(path), raising=False)

    return fill


def test_a_file_that_finds_no_room_is_as_it_was(tmp_path, disk_is_full):
    path = tmp_path / "results.json"
    json_io.write_json(path, {"loss": 1.5})
    disk_is_full()
    with pytest.raises(OSError, match=r"No space left on device: '.*results\.json'$"):
        json_io.write_json(path, {"loss": 2.5, "longer": "x" * 99})
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"] and json_io.read_json(path) == {"loss": 1.5}


def test_a_line_that_finds_no_room_is_not_there_at_all(tmp_path, disk_is_full):
    with Run(tmp_path, {}) as run:
        run.log(1, {"loss": 1.0})
        disk_is_full()
        with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'$"):
            run.log(2, {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"run": "", "step": 1, "loss": 1.0}\n'


def test_a_torn_line_is_cut_off_without_room(tmp_path, disk_is_full):
    (tmp_path / "metrics.jsonl").write_bytes('{"a": 1}\n{"é'.encode()[:-1])
    disk_is_full()
    assert json_lines.read(tmp_path / "metrics.jsonl") == ['{"a": 1}']
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"a": 1}\n'


@pytest.mark.parametrize("levels", [101, 400, 100_000])
def test_brackets_that_are_nested_too_deep_are_refused(tmp_path, levels):
    """json takes 400 levels, and what walks through them runs out of stack."""
    deep = '{"a": ' * levels + "1" + "}" * levels
    (tmp_path / "config.json").write_text(deep)
    (tmp_path / "metrics.jsonl").write_text(deep + "\n")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON \(its brackets are nested"):
        json_io.read_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl is not JSON \(its brackets are nested"):
        json_lines.read(tmp_path / "metrics.jsonl")
    assert json_io.parse('{"a": ' * 99 + "[]" + "}" * 99)


@pytest.mark.parametrize("line", ["null", "[1]", "3"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"run": "", "step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl must be a JSON object, got"):
        Run(tmp_path, {}).__enter__()


@full_disk
def test_events_that_find_no_room_are_an_error_of_who_logs(tmp_path):
    events = Events(tmp_path / "tensorboard")
    file = events._writer._py_recordio_writer
    file._writer.close()
    full = pytest.raises(OSError, match=r"No space left on device: '.*tensorboard'")
    with open("/dev/full", "wb", buffering=0) as file._writer, full:
        events.add(1, {"loss": 1.0})


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match=r"a run needs a directory, but .*run is a file; choose another workdir"):
        Run(tmp_path / "run", {}).__enter__()
    message = r"^error: .*run/below: Not a directory; the path must be a directory"
    with pytest.raises(SystemExit, match=message), errors_in_a_line(), Run(tmp_path / "run" / "below", {}):
        pass
    assert (tmp_path / "run").read_text() == "mine"


def test_what_is_no_file_is_written_to_and_a_link_stays_one(tmp_path):
    read, write = os.pipe()
    json_io.write_json(json_io.Path(f"/dev/fd/{write}"), {"loss": 1.5})
    os.close(write)
    with open(read) as file:
        assert json.load(file) == {"loss": 1.5}
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for text in ("one", "two"):
        json_io.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == text
    assert json_io.Path(os.devnull).is_char_device()
    json_io.write_text(json_io.Path(os.devnull), "x")
    assert json_io.Path(os.devnull).is_char_device()
    with pytest.raises(IsADirectoryError):
        json_io.write_text(tmp_path, "x")


def test_half_an_emoji_can_be_written_and_read_again(tmp_path):
    json_io.write_json(tmp_path / "a.json", {"text": "\ud83d é 😀", "\udcff": r"\ud83d"})
    assert json_io.read_json(tmp_path / "a.json") == {"text": "\ud83d é 😀", "\udcff": r"\ud83d"}
    with Run(tmp_path / "run", {"name": "\udcff"}) as run:
        run.log(1, {"text": "\ud83d"})
        assert run.lines()[0]["text"] == "\ud83d"
        run.rewind("", 1)
        assert run.lines()[0]["text"] == "\ud83d"


# -------------------------------------------------------------------------------------------------------- Console


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", MARKUP)
def test_nothing_is_taken_for_markup(text, terminal):
    shown = rich.console.Console(file=(out := io.StringIO()), force_terminal=terminal, width=200, color_system=None)
    console.table(text, [text, "n"], [[text, 1.0], [console.plain(text, "bold"), None]], console=shown)
    console.say("at ", text, console.plain(text, "red"), console=shown)
    assert out.getvalue().count(text) == 6
    with console.Progress(3, description=text, console=shown) as progress:
        progress.update(1, **{text: 2.0})
    assert f"{text} 2" in out.getvalue().split("at ")[1]


def test_control_characters_are_shown_and_not_obeyed():
    shown = rich.console.Console(file=(out := io.StringIO()), width=200)
    console.say("a\x1b[2Jb\x07\x9b1mc\rd\x7f", console=shown)
    assert out.getvalue() == "a␛[2Jb␇\ufffd1mc␍d␡\n"


def test_a_finished_run_in_a_folder_of_any_name(tmp_path, capsys):
    with Run(tmp_path / "[/b] :smile:", {}) as run:
        run.finish({})
        run.say_finished()
    assert "[/b] :smile: is finished" in capsys.readouterr().out


def test_describe_names_the_type_of_a_fault():
    assert command_line.describe(KeyError("x")) == "KeyError: 'x'"
