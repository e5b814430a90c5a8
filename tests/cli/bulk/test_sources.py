"""Messages out of files, Maildirs and mboxes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from asmtp.cli.bulk import sources as sources_module
from asmtp.cli.bulk.sources import Item, Sources, _entries, _fields, _split

MESSAGE = b"From: a@example.com\nTo: b@example.com\nSubject: x\n\nbody\n"


def items(*paths: Path | str, **options: object) -> list[Item]:
    return list(Sources([str(path) for path in paths], **options))  # type: ignore[arg-type]


def only(path: Path, octets: bytes, **options: object) -> Item:
    path.write_bytes(octets)
    (item,) = items(path, **options)
    return item


def sent(item: Item) -> tuple[str, list[str], object]:
    assert item.envelope is not None, item.error
    return item.envelope.sender, list(item.envelope.recipients), item.envelope.content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "message.eml"


# ---- one message --------------------------------------------------------------------------------


def test_a_message(path: Path) -> None:
    item = only(path, MESSAGE)
    assert sent(item) == ("a@example.com", ["b@example.com"], MESSAGE)
    assert (item.name, item.octets, item.error) == (str(path), len(MESSAGE), "")
    assert item.key == f"{path}#{hashlib.sha256(MESSAGE).hexdigest()[:16]}"


@pytest.mark.parametrize(
    ("header", "sender", "recipients"),
    [
        (b"From: A <a@x>\nTo: b@x, C <c@x>\nCc: d@x\nBcc: e@x\nTo: f@x", "a@x", ["b@x", "c@x", "f@x", "e@x", "d@x"]),
        (b"Sender: s@x\nFrom: a@x, b@x\nTo: c@x", "s@x", ["c@x"]),
        (b"Resent-Date: today\nResent-From: r@x\nResent-To: s@x\nFrom: a@x\nTo: b@x", "r@x", ["s@x"]),
        (b"Resent-From: r@x\nFrom: a@x\nTo: b@x", "a@x", ["b@x"]),
        (b"FROM:a@x\nto :\n b@x,\n\tc@x", "a@x", ["b@x", "c@x"]),
        (b"From: a@x\rTo: b@x\r\nCc: c@x", "a@x", ["b@x", "c@x"]),
        (b"From: a@x\nTo: b@x, b@x\nCc: b@x", "a@x", ["b@x"]),
        (b"From: a@x\nTo: friends: b@x, c@x;", "a@x", ["b@x", "c@x"]),
        (b'From: a@x\nTo: "Doe, J" <b@x> (c@x, d@x)', "a@x", ["b@x"]),
        (b"From: a@x\nTo: =?utf-8?Q?Doe,_J?= <b@x>", "a@x", ["b@x"]),
        ("From: a@x\nTo: J\xf6rg <j\xf6rg@x>".encode(), "a@x", ["j\xf6rg@x"]),
        (b"From: a@x\nTo: b@x\nSubject: \xff=?x", "a@x", ["b@x"]),
    ],
)
@pytest.mark.parametrize("end", [b"\n\nbody", b"\r\n\r\nbody", b"\n", b""])
def test_addresses(path: Path, header: bytes, sender: str, recipients: list[str], end: bytes) -> None:
    assert sent(only(path, header + end))[:2] == (sender, recipients)


def test_addresses_that_are_given(path: Path) -> None:
    assert sent(only(path, MESSAGE, sender="s@x"))[:2] == ("s@x", ["b@example.com"])
    assert sent(only(path, MESSAGE, sender=""))[:2] == ("", ["b@example.com"])
    assert sent(only(path, MESSAGE, recipients=["r@x", "s@x"]))[:2] == ("a@example.com", ["r@x", "s@x"])
    # The header is not looked at then.
    assert sent(only(path, b"no header\n", sender="s@x", recipients=["r@x"])) == ("s@x", ["r@x"], b"no header\n")


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (b"", "the message has no From or Sender"),
        (b"\nFrom: a@x\n", "the message has no From or Sender"),
        (b"From: a@x\nSubject: x\n\n", "no recipients"),
        (b"From: a@x\nTo: undisclosed-recipients:;\n\n", "no recipients"),
        (b"From:\nTo: b@x\n\n", "there is no address in From or Sender"),
        (b"Resent-Date: x\nResent-Date: y\nFrom: a@x\nTo: b@x\n\n", "more than one 'Resent-' header block"),
        (b"From: a@x\nTo: b@x\nwhat?\nBcc: c@x\n\n", r"a line in the header is no field: b'what\?\\n'"),
        (b" From: a@x\nTo: b@x\n\n", "a line in the header is no field"),
        (b'From: a@x\nTo: "b\\\x01"@x\n\n', "control character"),
        (b"\x00\xff\xfe\n", "no field"),
    ],
)
def test_what_is_no_message(path: Path, octets: bytes, error: str) -> None:
    item = only(path, octets)
    assert item.envelope is None
    with pytest.raises(AssertionError, match=error):
        raise AssertionError(item.error)


def test_what_the_email_package_stumbles_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise IndexError

    monkeypatch.setattr(sources_module, "addresses_from_headers", stumble)
    assert only(path, MESSAGE).error == "IndexError"


# ---- Bcc ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("body", [b"\nBcc: in the body\n", b"\n", b""])
def test_bcc_is_cut_out(path: Path, line_end: bytes, body: bytes) -> None:
    lines = [
        b"DKIM-Signature: v=1;  b=abc", b"\tdef", b"From: A  <a@x>", b"bCC: c@x,", b" d@x,", b"\te@x", b" ",
        b"To: b@x", b"RESENT-BCC  : f@x", b" (g@x)", b"Bcc:", b"X-Bcc: stays", b" Bcc: stays", b"Subject: =?x?= \xff",
    ]  # fmt: skip
    kept = [*lines[:3], lines[7], *lines[11:]]
    body = body.replace(b"\n", line_end)
    sender, recipients, content = sent(only(path, line_end.join([*lines, b""]) + body))
    assert content == line_end.join([*kept, b""]) + body
    assert (sender, recipients) == ("a@x", ["b@x", "c@x", "d@x", "e@x"])


def test_bcc_is_cut_out_where_addresses_are_given(path: Path) -> None:
    octets = b"strange line\nBcc: c@x\nFrom: a@x\n\nBcc: body"
    assert sent(only(path, octets, sender="s@x", recipients=["r@x"]))[2] == b"strange line\nFrom: a@x\n\nBcc: body"


def test_nothing_but_bcc(path: Path) -> None:
    assert sent(only(path, b"Bcc: c@x\n\nbody", sender="s@x")) == ("s@x", ["c@x"], b"\nbody")
    assert sent(only(path, b"Bcc: c@x", sender="s@x")) == ("s@x", ["c@x"], b"")


PIECES = st.sampled_from([b"Bcc", b"bcc: x", b"To:", b"a", b":", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\n\n", b"\x0b"])


@given(st.lists(PIECES, max_size=30).map(b"".join))
@example(b"\r\n\nBcc: x")
@example(b"a\r\rBcc: x")
def test_fields_are_all_of_the_header(octets: bytes) -> None:
    header, rest = _split(octets)
    assert header + rest == octets
    assert b"".join(field for _, field in _fields(header)) == header
    lines = octets.splitlines(keepends=True)
    empty = next((place for place, line in enumerate(lines) if not line.strip(b"\r\n")), len(lines))
    assert header == b"".join(lines[:empty])


@given(st.lists(PIECES, max_size=30).map(b"".join))
def test_no_reader_finds_a_bcc(octets: bytes) -> None:
    kept = b"".join(field for name, field in _fields(_split(octets)[0]) if name != b"bcc")
    for line in kept.splitlines():
        assert not line.lower().startswith(b"bcc:")
        assert not line.lower().startswith(b"bcc ") or b":" not in line.split(b" ", 1)[1].strip()[:1]


# ---- large files --------------------------------------------------------------------------------


def test_a_large_file_is_streamed(path: Path) -> None:
    octets = MESSAGE + b"x" * sources_module.STREAMED
    item = only(path, octets)
    assert sent(item)[2] == path
    first = item.key
    assert only(path, octets + b"y").key != first  # all of it counts
    assert only(path, octets).key == first


def test_a_large_file_with_bcc_is_not(path: Path) -> None:
    rest = b"\n" + b"x" * (2 * sources_module.STREAMED)
    first = only(path, b"From: a@x\nBcc: b@x\n" + rest)
    assert sent(first)[2] == b"From: a@x\n" + rest
    assert only(path, b"From: a@x\nBcc: b@x\n" + rest + b"y").key != first.key


def test_a_file_that_is_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "LARGEST", 10)
    octets = b"From: a@x\nBcc: b@x\n\n" + b"x" * (2 * sources_module.STREAMED)
    assert only(path, octets).error == "with a Bcc field, and larger than 10 octets"


def test_a_header_that_is_too_large(path: Path) -> None:
    octets = b"From: a@x\nTo: b@x\nX: " + b"x" * sources_module.STREAMED + b"\n\n"
    assert only(path, octets).error == f"its header is longer than {sources_module.STREAMED} octets"


# ---- directories --------------------------------------------------------------------------------


def test_a_directory(tmp_path: Path) -> None:
    for name in ("b.eml", "a.EML", "c.txt", ".eml"):
        (tmp_path / name).write_bytes(MESSAGE + name.encode())
    (tmp_path / "d.eml").mkdir()
    (tmp_path / "e.eml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "f.eml").symlink_to(tmp_path / "f.eml")
    found = items(tmp_path)
    assert [os.path.basename(item.name) for item in found] == [".eml", "a.EML", "b.eml", "e.eml", "f.eml"]
    assert [item.error for item in found] == ["", "", "", "No such file or directory", os.strerror(errno.ELOOP)]


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.eml")
    assert [item.error for item in items(tmp_path)] == ["not a file"]
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        Sources([str(tmp_path / "pipe.eml")])
    with pytest.raises(FileNotFoundError):
        Sources([str(tmp_path / "none.eml")])


def test_a_url_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^a PATH is a URL, which belongs behind --url$"):
        Sources(["smtp://user:secret@host", str(tmp_path)])


def test_wrong_addresses(tmp_path: Path) -> None:
    wrong: dict[str, object] = {"sender": "a\nb", "recipients": ["a, b"]}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            items(tmp_path, **{name: value})


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    sources = Sources([str(tmp_path)])
    monkeypatch.setattr(os, "scandir", refuse)
    assert [(item.name, item.error) for item in sources] == [(str(tmp_path), "Permission denied")]
    assert sources.octets() == 0


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "inbox").write_bytes(b"")
    assert items(tmp_path / "inbox") == []


def test_how_much_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(MESSAGE)
    (tmp_path / "b.eml").write_bytes(b"From x\n" + MESSAGE + b"\n" + b"From y\n" + MESSAGE)
    (tmp_path / "a.eml.eml").symlink_to(tmp_path / "nowhere")
    sources = Sources([str(tmp_path)])
    assert sum(item.octets for item in sources) == sources.octets() == 3 * len(MESSAGE) + 15


def test_the_same_key_wherever_it_is_called_from(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = only(path, MESSAGE).key
    monkeypatch.chdir(path.parent)
    assert items("message.eml")[0].key == items("./message.eml")[0].key == key


# ---- Maildirs -----------------------------------------------------------------------------------


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for name in ("cur", "new", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_maildir(maildir: Path) -> None:
    (maildir / "new" / "2.host").write_bytes(MESSAGE)
    (maildir / "cur" / "1.host:2,S").write_bytes(MESSAGE)
    (maildir / "tmp" / "3.host").write_bytes(MESSAGE)
    (maildir / "cur" / ".hidden").write_bytes(MESSAGE)
    (maildir / "x.eml").write_bytes(MESSAGE)
    found = items(maildir)
    assert [os.path.relpath(item.name, maildir) for item in found] == ["cur/1.host:2,S", "new/2.host"]
    assert found[0].key.startswith(f"{maildir}/1.host#")


def test_a_message_that_moves_is_the_same(maildir: Path) -> None:
    file = maildir / "new" / "1.host"
    file.write_bytes(MESSAGE)
    key = items(maildir)[0].key
    file = file.rename(maildir / "cur" / "1.host:2,")
    assert items(maildir)[0].key == key
    file.rename(maildir / "cur" / "1.host:2,RS")
    assert items(maildir)[0].key == key


def test_a_message_that_moves_meanwhile(maildir: Path) -> None:
    for name in ("1.host", "2.host", "3.host"):
        (maildir / "new" / name).write_bytes(MESSAGE)
    found = iter(Sources([str(maildir)]))
    next(found)
    (maildir / "new" / "2.host").rename(maildir / "cur" / "2.host:2,S")
    assert sent(next(found))
    (maildir / "new" / "3.host").unlink()
    assert next(found).error == "No such file or directory"


def test_in_a_maildir_there_are_no_mboxes(maildir: Path) -> None:
    (maildir / "new" / "1.host").write_bytes(b"From x\n" + MESSAGE)
    assert [item.error for item in items(maildir)] == ["a line in the header is no field: b'From x\\n'"]
    (maildir / "new" / "1.host").write_bytes(b"")
    assert [item.error for item in items(maildir)] == ["the message has no From or Sender"]


# ---- mboxes -------------------------------------------------------------------------------------


def test_an_mbox(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    one, two = MESSAGE.replace(b"x", b"1"), MESSAGE.replace(b"x", b"2") + b"\n>From here\n>>From there\nFrom here\n"
    path.write_bytes(b"From a  Thu Jan  1\n" + one + b"\nFrom b\n" + two + b"\n" + b"From c\nFrom: broken\n")
    found = items(path)
    assert [item.name for item in found] == [f"{path} (message {number})" for number in (1, 2, 3)]
    assert sent(found[0])[2] == one
    assert sent(found[1])[2] == two.replace(b">From", b"From")
    assert found[2].error
    assert sum(item.octets for item in found) <= path.stat().st_size


def test_an_mbox_with_crlf(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    message = MESSAGE.replace(b"\n", b"\r\n")
    path.write_bytes((b"From a\r\n" + message + b"\r\n") * 2)
    assert [sent(item)[2] for item in items(path)] == [message, message]


def test_bcc_in_an_mbox(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    path.write_bytes(b"From a\nFrom: a@x\nBcc: b@x\n\nbody\n")
    assert [sent(item) for item in items(path)] == [("a@x", ["b@x"], b"From: a@x\n\nbody\n")]


def test_identical_messages_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "inbox"
    other = MESSAGE.replace(b"x", b"y")
    path.write_bytes(b"\n".join(b"From a\n" + message for message in (MESSAGE, other, MESSAGE, MESSAGE)))
    keys = [item.key for item in items(path)]
    assert keys[2:] == [keys[0] + ".2", keys[0] + ".3"]
    assert len(set(keys)) == 4
    # Others before them change nothing.
    path.write_bytes(b"\n".join(b"From a\n" + message for message in (other, MESSAGE, MESSAGE)))
    assert [item.key for item in items(path)] == [keys[1], keys[0], keys[2]]


def test_a_message_in_an_mbox_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "LARGEST", 1000)
    path = tmp_path / "inbox"
    path.write_bytes(b"From a\n" + MESSAGE + b"x" * 1000 + b"\n\nFrom b\n" + MESSAGE)
    first, second = items(path)
    assert first.error == "larger than 1000 octets"
    assert sent(second)


BODIES = st.lists(
    st.sampled_from([b"a", b"", b"From b", b">From c", b">>From d", b"x" * 20, b"\r"]), min_size=1, max_size=12
)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], list[bytes | None]]:
    path = tmp_path_factory.mktemp("mbox") / "inbox"

    def read(octets: bytes) -> list[bytes | None]:
        path.write_bytes(octets)
        with path.open("rb") as file:
            found = list(_entries(file))
        assert sum(size for _, size in found) == len(octets)
        return [entry for entry, _ in found]

    return read


@given(messages=st.lists(BODIES, min_size=1, max_size=5), piece=st.integers(6, 30))
def test_what_is_written_is_read(
    entries: Callable[[bytes], list[bytes | None]], messages: list[list[bytes]], piece: int
) -> None:
    octets = b""
    written = []
    for lines in messages:
        body = b"".join(line + b"\n" for line in lines)
        written.append(body)
        quoted = b"".join((b">" if line.lstrip(b">").startswith(b"From ") else b"") + line + b"\n" for line in lines)
        octets += b"From somebody\n" + quoted + b"\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module, "_PIECE", piece)
        assert entries(octets) == written


READING = """
import sys
from asmtp.cli.bulk.sources import Sources
print(sum(item.envelope is not None for item in Sources([sys.argv[1]])))
print(open("/proc/self/status").read())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """An mbox of 64 MiB, and a message of 64 MiB."""
    body = (b"x" * 76 + b"\n") * 850
    with (tmp_path / "a.eml").open("wb") as file:
        for number in range(1024):
            file.write(b"From a\n" + MESSAGE + b"%d\n" % number + body + b"\n")
    with (tmp_path / "b.eml").open("wb") as file:
        file.write(MESSAGE)
        for _ in range(1024):
            file.write(body)
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    count, _, status = done.stdout.partition("\n")
    assert count == "1025"
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found is not None
    assert int(found[1]) < 48 << 10


def test_the_email_package_writes_what_can_be_read(path: Path) -> None:
    message = EmailMessage()
    message["From"] = '"J\xf6rg M\xfcller, esq." <a@x.example>'
    message["To"] = [f"Reader {number} <reader{number}@x.example>" for number in range(20)]
    message["Subject"] = "gr\xfc\xdfe " * 20
    message.set_content("hello\n")
    sender, recipients, content = sent(only(path, message.as_bytes()))
    assert (sender, len(recipients)) == ("a@x.example", 20)
    assert content == message.as_bytes()
