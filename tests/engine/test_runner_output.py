"""What a job prints: in order, live, clean, masked, and within bounds."""

from __future__ import annotations

import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kytecron.core.ansi import segments, unfinished
from kytecron.core.states import Status
from kytecron.engine.output import BLOCK, MASKED, PIECE, Mask, Output
from kytecron.engine.runner import Ended, Progressed
from tests.runs import Runs, is_alive, wait_until


def printed(*pieces: bytes, limit: int = 10_000, secrets: tuple[str, ...] = ()) -> str:
    output = Output(limit, Mask(secrets))
    for piece in pieces:
        output.feed(piece)
    output.finish()
    return output.rest()[0]


def test_invalid_utf8_and_nul_are_made_visible() -> None:
    assert printed(b"a\0b \xff\xfe caf\xc3\xa9") == "a␀b \\xff\\xfe café"


def test_a_character_split_across_reads_stays_whole() -> None:
    snowman = "☃".encode()
    assert printed(*(snowman[i : i + 1] for i in range(3))) == "☃"
    assert printed(snowman[:2], b"x") == "\\xe2\\x98x"
    assert printed(snowman[:2]) == "\\xe2\\x98"


def test_any_bytes_in_any_pieces_come_out_the_same() -> None:
    chance = random.Random(7)
    secrets = ("secret!", "secret", "cret!x", "xsecret!secretx")
    alphabet = [b"secret!", b"sec", b"ret", b"x", b"!", "é☃𝄞".encode(), b"\xff", b"\0", b"\n", b"plain text "]
    for _ in range(200):
        data = b"".join(chance.choices(alphabet, k=30))
        cuts = sorted(chance.choices(range(len(data)), k=5))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert printed(*pieces, secrets=secrets) == printed(data, secrets=secrets)
        assert "secret" not in printed(*pieces, secrets=secrets)


def test_secrets_are_masked_also_across_pieces_and_in_other_spellings() -> None:
    secrets = ('pass"word\n', "hunter22", "hunter", "abc")
    assert printed(b"hun", b"ter", b"22 hunter hunt", secrets=secrets) == f"{MASKED} {MASKED} hunt"
    assert (
        Mask(secrets).text('pass"word\n ' + repr('pass"word\n') + r" pass\"word\n")
        == f"{MASKED} '{MASKED}' {MASKED}"
    )
    assert Mask(secrets).text("abc is too short to be masked") == "abc is too short to be masked"
    masked = Mask(secrets).value({"hunter22": ["x hunter22", 1, None, {"deep": "hunter22"}]})
    assert masked == {MASKED: [f"x {MASKED}", 1, None, {"deep": MASKED}]}


def test_each_line_of_a_secret_is_masked_however_it_is_indented() -> None:
    key = "-----BEGIN KEY-----\n  MIIEvgIBADANBg\r\nkqhkiG9w0BAQ\n\n"
    assert Mask([key]).text(key) == MASKED
    assert Mask([key]).text("  | MIIEvgIBADANBg\n  | kqhkiG9w0BAQ") == f"  | {MASKED}\n  | {MASKED}"
    assert printed(b"    kqhkiG9w", b"0BAQ", secrets=(key,)) == f"    {MASKED}"
    assert Mask(["token\n"]).text("token") == MASKED


def test_text_that_no_database_could_store_is_made_storable() -> None:
    assert Mask().text("nul \0, half a pair \ud800, fine ☃") == "nul ␀, half a pair \\ud800, fine ☃"


def take_all(output: Output) -> list[tuple[str, bool]]:
    taken = []
    while piece := output.take():
        taken.append((piece.text, piece.tail))
        if not piece.more:
            break
    return taken


def test_the_head_is_taken_exactly_once_in_bounded_pieces() -> None:
    output = Output(8 * PIECE, Mask())
    text = "é" * (PIECE - 1) + "\n"
    output.feed(text.encode())
    pieces = take_all(output)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece.encode()) <= PIECE and not tail for piece, tail in pieces)
    assert output.take() is None
    output.feed(b"more")
    output.finish()
    assert output.rest() == ("more", False)


def test_the_first_and_the_last_half_are_kept_with_a_line_on_what_was_cut() -> None:
    lines = b"".join(b"line %06d\n" % n for n in range(1000))  # 12 bytes each
    output = Output(2400, Mask())
    output.feed(lines)
    output.finish()
    text, replaces = output.rest()
    assert replaces
    assert text == f"{lines[:1200].decode()}[... 9,600 bytes cut ...]\n{lines[-1200:].decode()}"
    assert output.printed == 12_000


def test_nothing_is_cut_below_the_limit() -> None:
    output = Output(2400, Mask())
    output.feed(b"x" * 2400)
    output.finish()
    assert output.rest() == ("x" * 2400, True)


def test_live_pieces_after_the_head_show_the_newest_and_are_replaced_at_the_end() -> None:
    output = Output(8 * PIECE, Mask())
    head = b"h" * (4 * PIECE)
    output.feed(head)
    assert "".join(text for text, _ in take_all(output)) == head.decode()
    output.feed(b"a" * 100)
    assert take_all(output) == [("a" * 100, True)]
    output.feed(b"b" * PIECE + b"c" * PIECE)
    assert take_all(output) == [
        (f"\n[... {PIECE:,} bytes not shown while the job runs ...]\n{'c' * PIECE}", True)
    ]
    assert output.take() is None
    output.feed(b"d" * 6 * PIECE)
    output.finish()
    text, replaces = output.rest()
    assert replaces
    assert text == f"\n[... {100 + 4 * PIECE:,} bytes cut ...]\n{'d' * 4 * PIECE}"


@given(
    pieces=st.lists(st.text("aé€😀\n", max_size=40), max_size=30),
    limit=st.integers(0, 400),
    block=st.sampled_from([1, 5, 64, BLOCK]),
)
def test_the_kept_halves_are_the_same_in_whatever_pieces_the_text_came(
    pieces: list[str], limit: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kytecron.engine.output.BLOCK", block)
        in_pieces, whole = Output(limit, Mask()), Output(limit, Mask())
        for piece in pieces:
            in_pieces.feed(piece.encode())
        whole.feed("".join(pieces).encode())
        for output in (in_pieces, whole):
            output.finish()
        kept = in_pieces.rest()
    assert kept == whole.rest()
    data = "".join(pieces).encode()
    newest = data[max(0, len(data) - limit + limit // 2) :]
    assert kept[0].endswith(newest.decode(errors="ignore"))


@pytest.mark.parametrize(
    "pieces",
    [
        [b"a \x1b[3", b"2mgreen\x1b[0m\n"],
        [b"a\r", b"\nb\n"],
        [b"\x1b]0;ti", b"tle\x07b\n"],
        ["é".encode()[:1], "é".encode()[1:] + b"\n"],
    ],
)
@pytest.mark.parametrize("limit", [1_000_000, 0, 8])
def test_no_live_piece_ends_in_half_a_sequence(pieces: list[bytes], limit: int) -> None:
    output = Output(limit, Mask())
    shown = []
    for piece in pieces:
        output.feed(piece)
        while chunk := output.take():
            shown.append(chunk.text)
    assert "".join(shown) == b"".join(pieces).decode()
    if limit != 8:
        assert not any(unfinished(text) for text in shown)


def test_the_kept_end_of_a_long_output_does_not_begin_in_a_sequence() -> None:
    for limit in range(20, 60):
        output = Output(limit, Mask())
        output.feed(b"x" * 100 + b"\x1b[1;32mgreen\x1b[0m and plain\n")
        output.finish()
        text = "".join(piece for _, piece in segments(output.rest()[0].partition("cut ...]\n")[2]))
        assert not re.search(r"[0-9;\[]+m", text), (limit, text)


def test_a_cut_never_splits_a_character() -> None:
    for limit in range(20, 40):
        text = printed("☃".encode() * 100, limit=limit)
        head, note, tail = text.splitlines()
        assert set(head) == set(tail) == {"☃"}
        assert len(head.encode()) + len(tail.encode()) <= limit
        assert note == f"[... {300 - len(head.encode()) - len(tail.encode())} bytes cut ...]"


def test_the_two_streams_come_in_the_order_they_were_written(runs: Runs) -> None:
    body = """
    for n in range(100):
        print("out", n)
        print("err", n, file=sys.stderr)
        os.system(f"echo sub {n}")
    """
    lines = [f"{stream} {n}" for n in range(100) for stream in ("out", "err", "sub")]
    assert runs.run(body).output.splitlines() == lines


def test_output_is_there_while_the_job_runs(runs: Runs) -> None:
    execution_id = runs.start("print('first line')\ntime.sleep(60)")
    chunk = wait_until(lambda: runs.runner.take_output(execution_id), 5)
    assert (chunk.text, chunk.tail, chunk.more) == ("first line\n", False, False)
    assert runs.runner.take_output(execution_id) is None
    runs.runner.stop(execution_id, Status.CANCELLED, "enough")
    assert runs.outcome(execution_id).output == ""


def test_odd_bytes_and_logging_reach_the_worker(runs: Runs) -> None:
    body = """
    import logging
    sys.stdout.buffer.write(b"\\0 \\xe2\\x98"); sys.stdout.flush()
    time.sleep(0.05)
    sys.stdout.buffer.write(b"\\x83 \\xff\\n"); sys.stdout.flush()
    print("half a pair", "\\ud800")
    logging.getLogger("shop").info("sold %d", 3)
    logging.getLogger("shop").debug("not shown")
    logging.basicConfig(level=logging.DEBUG, format="mine: %(message)s", stream=sys.stdout)
    logging.debug("shown")
    """
    first, second, third, fourth = runs.run(body).output.splitlines()
    assert first == "␀ ☃ \\xff"
    assert second == "half a pair \\ud800"
    assert third.endswith("Z INFO shop: sold 3")
    assert fourth == "mine: shown"


def test_a_job_that_closes_its_output_goes_on(runs: Runs) -> None:
    outcome = runs.run("print('x', flush=True); os.close(1); os.close(2); time.sleep(0.2); return 'quiet'")
    assert (outcome.result, outcome.output) == ("quiet", "x\n")


def test_secrets_are_masked_in_all_that_a_run_leaves(runs: Runs) -> None:
    body = """
    token = self.secrets["token"]
    print("the token is", token)
    sys.stdout.write(token[:5]); sys.stdout.flush(); time.sleep(0.05); print(token[5:])
    """
    secrets = {"token": "hunter22-hunter22", "pin": "12"}
    completed = runs.run(f"{body}self.state['t'] = token; return {{'token': token}}", secrets=secrets)
    assert completed.output == "the token is ***\n***\n"
    assert completed.result == {"token": "***"}
    assert completed.state == {"t": "hunter22-hunter22"}  # the job's own
    failed = runs.run(f"{body}raise ValueError(token)", secrets=secrets)
    assert failed.error == "ValueError: ***"
    assert "hunter22" not in str(failed)
    skipped = runs.run(f"{body}raise SkipRun(token)", secrets=secrets)
    assert skipped.skipped_reason == "***"


ENCODINGS = {
    "repr": "repr(key)",
    "ascii": "ascii(key)",
    "bytes": "repr(key.encode())",
    "JSON": "json.dumps({'k': key})",
    "JSON in UTF-8": "json.dumps([key], ensure_ascii=False)",
    "an address": "'https://x/?k=' + urllib.parse.quote(key)",
    "a part of a path": "urllib.parse.quote(key, safe='')",
    "a form": "urllib.parse.urlencode({'k': key})",
    "lower-case quoting": "re.sub('%..', lambda code: code[0].lower(), urllib.parse.quote(key, safe=''))",
    "base64": "base64.b64encode(key.encode()).decode()",
    "base64 for addresses": "base64.urlsafe_b64encode(key.encode()).decode().rstrip('=')",
    "base64 in lines": "base64.encodebytes(key.encode()).decode()",
    "base64 of a line": "base64.b64encode(key.encode() + bytes([10])).decode()",
    "hexadecimal": "key.encode().hex()",
    "indented": "textwrap.indent(key, '    ')",
}
SECRETS = {
    "short": "p/ss+wörd \"x\" 'y'",
    "several lines": "-----BEGIN KEY-----\n" + "Zm9vYmFy+/hidden=\n" * 8 + "-----END KEY-----",
}


@pytest.mark.parametrize("written", ENCODINGS.values(), ids=list(ENCODINGS))
@pytest.mark.parametrize("secret", SECRETS.values(), ids=list(SECRETS))
def test_a_secret_is_masked_in_whatever_common_encoding_a_run_leaves_it(
    runs: Runs, written: str, secret: str
) -> None:
    body = (
        "import base64, json, re, textwrap, urllib.parse\n"
        f"key = self.secrets['key']\ntext = {written}\n"
        "print('<' + text + '>')\nself.progress(50, '<' + text + '>')\n"
    )
    execution_id = runs.start(f"{body}return ['<' + text + '>']", secrets={"key": secret})
    done = runs.outcome(execution_id)
    failed = runs.run(
        f"{body}error = ValueError(text)\nerror.add_note(text)\nraise error", secrets={"key": secret}
    )
    skipped = runs.run(f"{body}raise SkipRun(text)", secrets={"key": secret})
    left = f"{done} {runs.of(Progressed, execution_id)} {failed} {skipped}"
    scope = {"key": secret, **{name: __import__(name) for name in ("base64", "json", "re", "textwrap")}}
    scope["urllib"] = __import__("urllib.parse")
    given_away = {line.strip(" []{}'\"") for line in eval(written, scope).splitlines()}
    for line in given_away:
        assert len(line) < 12 or line not in left, line
    assert (failed.error or "").startswith("ValueError: ")
    assert "***" in left


def test_a_secret_that_is_a_number_is_masked_as_one(runs: Runs) -> None:
    body = "return [int(self.secrets['pin']), 12345, {'deep': [12345678]}]"
    assert runs.run(body, secrets={"pin": "12345678"}).result == ["***", 12345, {"deep": ["***"]}]


def test_what_is_cut_short_never_ends_in_half_a_secret(runs: Runs) -> None:
    secrets = {"key": "swordfish-alpha\nswordfish-omega"}
    key = "key = self.secrets['key']"
    assert (
        runs.run(f"{key}; raise ValueError('with ' + key)", secrets=secrets).error == "ValueError: with ***"
    )
    for filling in range(0, 36, 5):
        long = f"{key}; text = {{}} * 'x' + key + 70_000 * 'y'"
        for body in (
            long.format(1000 - filling) + "; raise ValueError(text)",
            long.format(32_768 - filling) + "; raise ValueError(70_000 * 'z' + text)",
            long.format(65_536 - filling) + "; return text",
            long.format(65_536 - filling) + "; return [text]",
            long.format(500 - filling) + "; self.progress(1, text); raise ValueError(text)",
        ):
            execution_id = runs.start(body, secrets=secrets)
            outcome = runs.outcome(execution_id)
            assert "swordfish" not in f"{outcome} {runs.of(Progressed, execution_id)}", body


def test_200_megabytes_leave_the_worker_small_and_other_runs_alone(make_runs: Callable[..., Runs]) -> None:
    runs = make_runs()
    assert runs.run("return 1").result == 1
    before = resident_mb()
    body = "line = 'x' * 999\nfor _ in range(200_000): print(line)"
    execution_id = runs.start(body)
    live, highest, quick = 0, 0.0, []
    while not runs.of(Ended, execution_id):
        runs.collect()
        while (chunk := runs.runner.take_output(execution_id)) is not None:
            live += len(chunk.text)
            if not chunk.more:
                break
        highest = max(highest, resident_mb())
        begun = time.monotonic()
        assert runs.run("return 1").result == 1
        quick.append(time.monotonic() - begun)
    outcome = runs.outcome(execution_id)
    assert outcome.output_bytes == 200_000_000
    assert outcome.output_replaces_tail
    assert "[... 189,514,240 bytes cut ...]" in outcome.output
    assert live > 5 * 1024 * 1024
    assert highest - before < 30
    assert sorted(quick)[len(quick) // 2] < 0.5


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024 / 1024


@pytest.mark.parametrize("taken", [True, False])
def test_a_job_never_waits_for_its_output_to_be_taken(make_runs: Callable[..., Runs], taken: bool) -> None:
    """Nobody takes it while the database is away: the bounds hold, and the job ends as soon as it would."""
    runs = make_runs(output_limit_bytes=100_000)
    execution_id = runs.start("for n in range(50_000): print(n)")
    if taken:
        wait_until(lambda: runs.runner.take_output(execution_id))
    outcome = runs.outcome(execution_id, 30)
    assert outcome.status is Status.COMPLETED
    assert outcome.output.endswith("49998\n49999\n")
    assert len(outcome.output) <= 100_100
    assert outcome.output.startswith("0\n1\n") is not taken


def test_a_run_that_cannot_be_supervised_harms_no_other(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Output.feed

    def fail_on_poison(self: Output, data: bytes) -> None:
        if b"poison" in data:
            raise ZeroDivisionError
        feed(self, data)

    monkeypatch.setattr(Output, "feed", fail_on_poison)
    poisoned = runs.start("while True: print('poison'); time.sleep(0.01)")
    pid = runs.pid(poisoned)
    assert runs.run("print('fine'); return 1").output == "fine\n"
    assert runs.outcome(poisoned).status is Status.FAILED
    assert not is_alive(pid)
