"""Files that a parser chokes on, obeys or misreads: name -> (what it is, the file, the change of its honest bytes).

NUMBERS are well-formed files that ask a reader for too much: whatever is made of them, it is made soon.
"""

from __future__ import annotations

from collections.abc import Callable

Change = Callable[[bytes], bytes]
RECORD, SAMPLES, SPEC = "record.json", "samples.jsonl", "submission.toml"


def whole(content: bytes) -> Change:
    """Return the change that leaves nothing of the honest file."""
    return lambda honest: content


def instead(old: bytes, new: bytes) -> Change:
    """Return the change of every `old`, which the honest file has to hold."""

    def change(honest: bytes) -> bytes:
        assert old in honest
        return honest.replace(old, new)

    return change


def error(value: bytes) -> Change:
    """Return the change of a record whose `error` is this JSON."""
    return instead(b'"error": null', b'"error": ' + value)


def also(text: bytes) -> Change:
    """Return the change that adds a key to the outermost object."""
    return lambda honest: b"{" + text + b"," + honest.lstrip()[1:]


def added(text: bytes) -> Change:
    """Return the change that adds to the end."""
    return lambda honest: honest + text


def _line(value: bytes) -> bytes:
    return b'{"t":1.0,"values":{"rss_bytes":' + value + b"}}\n"


DOCUMENTS: dict[str, tuple[str, str, Change]] = {
    "nan": ("NaN is no JSON", RECORD, error(b"NaN")),
    "infinity": ("nor is infinity", RECORD, error(b"-Infinity")),
    "overflow": ("a number that becomes infinity", RECORD, error(b"1e400")),
    "beyond": ("a float whose square is infinity", RECORD, error(b"1e300")),
    "big-int": ("an int without a float", RECORD, error(b"1" * 400)),
    "digits": ("an int that int() refuses", RECORD, error(b"7" * 5000)),
    "many-digits": ("an int that takes the square of its length", RECORD, error(b"7" * 900_000)),
    "nan-sample": ("NaN in a .jsonl", SAMPLES, added(_line(b"NaN"))),
    "overflow-sample": ("infinity in a .jsonl", SAMPLES, added(_line(b"1E+999"))),
    "duplicate": ("the last of two keys wins, says json", RECORD, also(b'"status": "failed"')),
    "duplicate-escaped": ("the same key, written otherwise", RECORD, also(rb'"st\u0061tus": "failed"')),
    "duplicate-sample": ("a key twice in a line", SAMPLES, added(b'{"t":1.0,"t":2.0,"values":{}}\n')),
    "deep-list": ("nested beyond the stack", RECORD, error(b"[" * 100_000 + b"]" * 100_000)),
    "deep-open": ("nested and never closed", RECORD, whole(b"[" * 900_000)),
    "deep-object": ("objects beyond the stack", RECORD, error(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    "deep-33": ("one level too many", RECORD, error(b"[" * 32 + b"]" * 32)),
    "deep-sample": ("nested beyond the stack, in a .jsonl", SAMPLES, added(_line(b"[" * 50_000 + b"]" * 50_000))),
    "deep-quoted": ("brackets that strings seem to close", RECORD, error(b'["]",' * 5000 + b"1" + b"]" * 5000)),
    "deep-escaped": ("and escaped quotes hide", RECORD, error(rb'["\"]\\",' * 5000 + b"1" + b"]" * 5000)),
    "nodes": ("many values in few bytes", RECORD, error(b"[" + b"0," * 200_000 + b"0]")),
    "empty-rows": ("16 MB of the smallest rows", SAMPLES, whole(b"{}\n" * 5_000_000)),
    "fat-rows": ("the rows that take the most memory", SAMPLES, whole(b'{"":{"":{"":{"":1}}}}\n' * 700_000)),
    "quotes": ("nothing but quotes", RECORD, whole(b'"' * 999_999)),
    "quote-lines": ("lines of quotes", SAMPLES, whole((b'"' * 99 + b"\n") * 150_000)),
    "big": ("over a megabyte", RECORD, error(b'"' + b"x" * 1_000_000 + b'"')),
    "big-lines": ("over 16 megabytes", SAMPLES, lambda honest: honest * (1 + 16_000_000 // len(honest))),
    "long-line": ("a line over a megabyte", SAMPLES, added(_line(b'"' + b"x" * 1_000_000 + b'"'))),
    "long-key": ("a key over 200 characters", RECORD, also(b'"' + b"k" * 201 + b'": 1')),
    "bom": ("a byte order mark", RECORD, lambda honest: b"\xef\xbb\xbf" + honest),
    "utf-16": ("another encoding, which json would guess", RECORD, lambda honest: honest.decode().encode("utf-16")),
    "latin-1": ("bytes that are no UTF-8", RECORD, error(b'"caf\xe9"')),
    "overlong": ("a slash in two bytes", RECORD, error(b'"..\xc0\xaf"')),
    "surrogate": ("half a character, in UTF-8", RECORD, error(b'"\xed\xa0\x80"')),
    "surrogate-escaped": ("half a character, escaped", RECORD, error(rb'"\ud800"')),
    "surrogate-key": ("in a key", RECORD, also(rb'"\udfff": 1')),
    "nul": ("NUL, escaped", RECORD, error(rb'"a\u0000b"')),
    "ansi": ("a terminal's escape, escaped", RECORD, error(rb'"\u001b[2J"')),
    "ansi-raw": ("and as it is", RECORD, error(b'"\x1b[2J"')),
    "c1": ("the same in one character", RECORD, error("\"\x9b2J\"".encode())),
    "carriage": ("what overwrites a line", RECORD, error(rb'"fine\rbad"')),
    "bidi": ("text that reads backwards", RECORD, error('"\u202egpj.exe"'.encode())),
    "bidi-escaped": ("the same, escaped", RECORD, error(rb'"\u202egpj.exe"')),
    "bidi-sample": ("in a key of a .jsonl", SAMPLES, added(b'{"\\u2066t":1.0,"values":{}}\n')),
    "zero-width": ("a character without a width", RECORD, error('"me\u200bthod"'.encode())),
    "unassigned": ("a character that is none", RECORD, error('"\U000e0fff"'.encode())),
    "decomposed": ("one text in two ways", RECORD, error('"e\u0301"'.encode())),
    "decomposed-escaped": ("the same, escaped", RECORD, error(rb'"e\u0301"')),
    "marks": ("marks that sorting takes the square of", RECORD, error(
        ('"a' + "\u0301\u0316" * 200_000 + '"').encode())),
    "torn": ("a last line cut off", SAMPLES, lambda honest: honest[:-9]),
    "no-newline": ("a last line that may be cut off", SAMPLES, lambda honest: honest[:-1]),
    "blank-line": ("a line that is nothing", SAMPLES, lambda honest: honest.replace(b"\n", b"\n\n", 1)),
    "list-line": ("a line that is no object", SAMPLES, added(b"[1]\n")),
    "two-on-a-line": ("two objects on a line", SAMPLES, added(b'{"missing":{}},{"missing":{}}\n')),
    "over-two-lines": ("an object on two lines", SAMPLES, added(b'{"missing":\n{}},{"missing":{}}\n')),
    "string-over-two-lines": ("a string on two lines", SAMPLES, added(
        b'{"missing":{"a":"b\nc"}},{"missing":{}}\n')),
    "crossing-lines": ("lines that a comma would join", SAMPLES, added(b'{"t":1.0\n"values":{}},{"missing":{}}\n')),
    "json-comment": ("a comment", RECORD, lambda honest: b"// fine\n" + honest),
    "comma": ("a comma too many", RECORD, error(b"[1,]")),
    "single-quotes": ("Python's repr", RECORD, error(b"'x'")),
    "after-end": ("a second document behind", RECORD, added(b"{}")),
    "empty": ("nothing", RECORD, whole(b"")),
    "pickle": ("a pickle called .json", RECORD, whole(b"\x80\x04\x95\x1b\x00cposix\nsystem\n(S'id'\ntR.")),
    "gzip": ("a gzip called .json", RECORD, whole(b"\x1f\x8b\x08\x00" + b"\x00" * 60)),
    "not-an-object": ("a record that is a list", RECORD, whole(b"[]\n")),
    "manifest-upwards": ("a manifest of files elsewhere", "manifest.json", also(b'"../../../etc/passwd": "0"')),
    "toml-dots": ("a key of 30,000 parts", SPEC, added(b".".join([b"a"] * 30_000) + b" = 1\n")),
    "toml-header": ("a table of 300 parts, with many keys", SPEC, added(
        b"[" + b".".join([b"a"] * 290) + b"]\n" + b"".join(b"b%d = 1\n" % i for i in range(6000)))),
    "toml-list": ("lists beyond the stack", SPEC, added(b"a = " + b"[" * 30_000)),
    "toml-list-290": ("lists that just fit the stack", SPEC, added(b"a = " + b"[" * 290 + b"]" * 290 + b"\n")),
    "toml-tables": ("tables beyond the stack", SPEC, added(b"a = " + b"{a=" * 20_000)),
    "toml-hex": ("an int of 240,000 bits", SPEC, added(b"a = 0x" + b"f" * 60_000 + b"\n")),
    "toml-nan": ("NaN", SPEC, added(b"a = nan\n")),
    "toml-date": ("a date, which no key is", SPEC, added(b"a = 1979-05-27\n")),
    "toml-duplicate": ("a key twice", SPEC, lambda honest: honest + honest),
    "toml-bidi": ("a comment that reads backwards", SPEC, added("# \u202e\n".encode())),
    "toml-escaped": ("a character that cannot be seen", SPEC, added(b'a = "\\u202e"\n')),
    "toml-unknown": ("a key that nobody knows", SPEC, added(b"post_install = 'rm -rf ~'\n")),
    "toml-big": ("over 64 kB", SPEC, added(b"# long\n" * 10_000)),
    "toml-latin-1": ("bytes that are no UTF-8", SPEC, added(b"# caf\xe9\n")),
}  # fmt: skip


def many(line: bytes) -> Change:
    """Return the change that adds a line, its # the number of it, until the file is as large as it may be."""
    return lambda honest: honest + b"".join(line.replace(b"#", b"%d" % i) for i in range(900_000 // len(line)))


WORK, HISTORY, PREDICTIONS = "work.jsonl", "history.jsonl", "predictions.jsonl"
_NOUGHTS = b"0" * 17
_EDGES = b"".join(
    b'{"attempt":#,"edge":"%s","phase":"p#","t":1,"values":{}}\n' % edge for edge in (b"start", b"end")
)  # fmt: skip
_ANSWER = b'{"id":"#","prediction":"p#","reference":"r#","scores":{"nll":1,"log_likelihoods":{"a":-1}}}\n'
_KEYS = b",".join(b'"u%d":1' % i for i in range(80_000))
NUMBERS: dict[str, tuple[str, str, Change]] = {
    "unknown-keys": ("80,000 keys to look for near ones", RECORD, also(_KEYS)),
    "wrong-readings": ("95,000 values to complain about", RECORD, instead(
        b'"readings": [', b'"readings": [' + b"1," * 95_000)),
    "settings": ("80,000 settings", RECORD, instead(
        b'"method": {', b'"method": {"settings2": {' + _KEYS + b"},")),
    "submodules": ("90,000 submodules", RECORD, instead(
        b'"trained_submodules": [', b'"trained_submodules": [' + b'"ffn.1",' * 90_000)),
    "long-error": ("900,000 characters of error", RECORD, error(b'"' + b"x " * 450_000 + b'"')),
    "long-task": ("a task whose file cannot be named", RECORD, instead(b'"movie-snippets"', b'"' + b"W" * 5000 + b'"')),
    "task-upwards": ("a task somewhere else", RECORD, instead(b'"movie-snippets"', b'"../../../etc/passwd"')),
    "task-file": ("a task in a file", RECORD, instead(b'"movie-snippets"', b'"/etc/passwd.toml"')),
    "blocks": ("a block beyond counting", RECORD, instead(b'"block": 0', b'"block": 1' + _NOUGHTS)),
    "epochs": ("epochs beyond walking", RECORD, instead(b'"epochs": ', b'"epochs": 1000000')),
    "batch": ("a batch beyond memory", RECORD, instead(b'"batch_size": 16', b'"batch_size": 1' + _NOUGHTS)),
    "validations": ("validations beyond walking", RECORD, instead(b'"validations": 4', b'"validations": 1' + _NOUGHTS)),
    "attempts": ("attempts beyond walking", RECORD, instead(b'"attempts": 1', b'"attempts": 1' + _NOUGHTS)),
    "layers": ("layers beyond building", RECORD, instead(b'"num_hidden_layers": 6', b'"num_hidden_layers": 600000000')),
    "no-layers": ("no layers to divide by", RECORD, instead(b'"num_hidden_layers": 6', b'"num_hidden_layers": 0')),
    "no-heads": ("no heads to divide by", RECORD, instead(b'"num_attention_heads": 12', b'"num_attention_heads": 0')),
    "vocabulary": ("a vocabulary below nothing", RECORD, instead(b'"vocab_size": 30522', b'"vocab_size": -30522')),
    "times": ("passes beyond walking", WORK, instead(b'"times":1', b'"times":1' + _NOUGHTS)),
    "length": ("texts beyond memory", WORK, instead(b'"length":', b'"length":1' + _NOUGHTS)),
    "negative": ("batches below nothing", WORK, instead(b'"batch":', b'"batch":-')),
    "passes": ("passes by the ten thousand", WORK, lambda honest: honest * (2_000_000 // len(honest))),
    "steps": ("steps by the thousand", HISTORY, lambda honest: honest * (2_000_000 // len(honest))),
    "time": ("time that comes again", SAMPLES, lambda honest: honest * (2_000_000 // len(honest))),
    "phases": ("phases by the thousand", SAMPLES, many(_EDGES)),
    "quantities": ("60,000 quantities", SAMPLES, lambda honest: (
        b'{"t":1,"values":{' + b",".join(b'"q%d":1' % i for i in range(60_000)) + b"}}\n" + honest)),
    "missing": ("60,000 quantities that are missing", SAMPLES, lambda honest: (
        b'{"missing":{' + b",".join(b'"q%d":"no"' % i for i in range(60_000)) + b"}}\n" + honest)),
    "answers": ("answers by the thousand, each a label of its own", PREDICTIONS, many(_ANSWER)),
    "values": ("samples that are texts", SAMPLES, instead(b'"rss_bytes":', b'"rss_bytes":"x","r":')),
    "rows-of-lists": ("rows without a key that is looked for", SAMPLES, added(b'{"t":[],"values":[]}\n')),
    "rows-of-nothing": ("empty rows", WORK, whole(b"{}\n" * 1000)),
    "scores-of-text": ("scores that are texts", PREDICTIONS, instead(b'"scores": {', b'"scores": "x", "old": {')),
    "deep-settings": ("a value as deep as may be", RECORD, instead(
        b'"limits": {', b'"limits": {"x": ' + b"[" * 29 + b"1" + b"]" * 29 + b", ")),
}  # fmt: skip
