"""Bad input becomes one line that says what is wrong, where, and what to do, and leaves nothing behind."""

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_tools import left_behind, refuse, take, texts, write

from pipeline.errors import BatchError, ConfigError, InputError, RejectRateError, WorkspaceError
from pipeline.workspace import Workspace

GOOD = "text,label\n" + "".join(f"text {number},a\n" for number in range(100))


def test_a_file_that_is_not_there(workspace: Workspace, tmp_path: Path) -> None:
    message = refuse(InputError, workspace, tmp_path / "no.csv")
    assert message == f"{tmp_path}/no.csv: there is no such file or folder"


@pytest.mark.parametrize("name", ["", "nul\0byte.csv", "x" * 5000 + ".csv"])
def test_a_name_that_no_file_can_have(workspace: Workspace, name: str) -> None:
    assert "no such file" in refuse(InputError, workspace, name)


def test_a_link_to_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert "link.csv" in refuse(InputError, workspace, tmp_path / "link.csv")
    assert "link.csv" in refuse(InputError, workspace, tmp_path / "*.csv")


def test_a_glob_that_matches_nothing(workspace: Workspace, tmp_path: Path) -> None:
    assert refuse(InputError, workspace, f"{tmp_path}/*.csv") == f"{tmp_path}/*.csv: no file matches"


def test_no_sources(workspace: Workspace) -> None:
    assert "no sources" in refuse(InputError, workspace)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n  \n"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "csv.gz"])
def test_a_file_with_nothing_in_it(workspace: Workspace, tmp_path: Path, content: bytes, suffix: str) -> None:
    packed = gzip.compress(content) if suffix.endswith("gz") else content
    path = write(tmp_path / f"empty.{suffix}", packed)
    assert refuse(InputError, workspace, path) == f"{path}: is empty"


def test_a_header_without_rows(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "header.csv", "text,label\n")
    assert refuse(InputError, workspace, path) == f"{path}: has no rows"


def test_an_empty_file_among_good_ones(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "a.csv", GOOD)
    write(tmp_path / "b.csv", "")
    assert refuse(InputError, workspace, tmp_path / "*.csv") == f"{tmp_path}/b.csv: is empty"


def test_a_folder_without_texts(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "folder" / "picture.png", b"\x89PNG")
    message = refuse(InputError, workspace, tmp_path / "folder")
    assert message.startswith(f"{tmp_path}/folder: holds no data files and no text files in class folders")


@pytest.mark.parametrize(("option", "setting"), [("--text", "text"), ("--label", "label"), ("--id", "id")])
def test_a_column_that_is_not_there(workspace: Workspace, tmp_path: Path, option: str, setting: str) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    value = ["body"] if setting == "text" else "body"
    message = refuse(InputError, workspace, path, **{setting: value})
    assert message == f"{path}: no column 'body' (there are: text, label); choose one with {option}"


def test_a_split_that_is_neither_a_split_nor_a_column(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    assert "no column 'tset'" in refuse(InputError, workspace, path, split="tset")


def test_a_column_name_of_two_lines_does_not_break_the_message(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"the\ntext",label\nhello,a\n')
    assert "there are: the text, label" in refuse(InputError, workspace, path)


@pytest.mark.parametrize("setting", ["label", "split", "id", "text"])
def test_a_key_that_no_json_object_has(workspace: Workspace, tmp_path: Path, setting: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "hello", "topic": "a"}\n' * 10)
    value = ["colour"] if setting == "text" else "colour"
    assert "no column 'colour' (there are: text, topic)" in refuse(InputError, workspace, path, **{setting: value})


def test_a_header_of_damaged_bytes(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"t\xffxt,label\nhello,a\n")
    message = refuse(InputError, workspace, path)
    assert message.startswith(f"{path}:1: the header cannot be read (invalid_encoding); is the --encoding right")


@pytest.mark.parametrize(
    ("bad", "reason", "advice"),
    [
        (b"one,two,three\n", "ragged_row", "fix the rows, or allow more with --max-reject-rate"),
        (b'"closed" early,a\n', "malformed_quotes", "fix the rows, or allow more with --max-reject-rate"),
        (b"nul \0 byte,a\n", "nul_byte", "fix the rows, or allow more with --max-reject-rate"),
        (b"caf\xe9,a\n", "invalid_encoding", "try --encoding cp1252 or fix the file"),
    ],
)
def test_too_many_damaged_rows(workspace: Workspace, tmp_path: Path, bad: bytes, reason: str, advice: str) -> None:
    path = write(tmp_path / "a.csv", GOOD.encode() + bad * 10)
    message = refuse(RejectRateError, workspace, path)
    assert message == (
        f"10 of 110 rows refused (9.1%, at most 5.0% allowed): 10 {reason} (first at {path}:102); "
        f"nothing was written: {advice}"
    )


def test_an_unclosed_quote_where_none_is_allowed(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD.replace("text 50,", '"text 50,'))
    message = refuse(RejectRateError, workspace, path, max_reject_rate=0.0)
    assert f"1 unclosed_quote (first at {path}:52)" in message


@pytest.mark.parametrize(("line", "reason"), [("{'text': 1}", "not_json"), ('["text"]', "not_an_object")])
def test_too_many_lines_that_are_no_objects(workspace: Workspace, tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "hello"}\n' + f"{line}\n" * 3)
    assert f"3 {reason} (first at {path}:2)" in refuse(RejectRateError, workspace, path)


def test_a_file_of_which_no_row_can_be_read(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "hello\nworld\n")
    assert "2 of 2 rows refused" in refuse(RejectRateError, workspace, path)
    assert "all 2 rows were refused" in refuse(InputError, workspace, path, max_reject_rate=1.0)


@pytest.mark.parametrize("content", [b"text,label\nhello,a\n", b"PAR1 and then something else PAR1"])
def test_parquet_that_is_none(workspace: Workspace, tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.parquet", content)
    assert refuse(InputError, workspace, path) == f"{path}: is not a Parquet file, or is cut off"


def test_parquet_that_is_cut_off(workspace: Workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["hello"] * 1000}), tmp_path / "a.parquet")
    path = write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-10])
    assert "is not a Parquet file, or is cut off" in refuse(InputError, workspace, path)


def test_parquet_with_a_hole_in_its_data(workspace: Workspace, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(20_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10_000, use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = bytes(len(data) * 3 // 4 - len(data) // 2)
    path = write(tmp_path / "b.parquet", bytes(data))
    assert f"{path}: is damaged after row" in refuse(InputError, workspace, path)


def test_parquet_without_rows(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert refuse(InputError, workspace, path) == f"{path}: has no rows"


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [["a"], ["b"]]])
def test_parquet_whose_text_is_no_text(workspace: Workspace, tmp_path: Path, values: list[object]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": values}), path)
    message = refuse(InputError, workspace, path)
    assert message.startswith(f"{path}: text column 'text' is ")
    assert message.endswith("not text; name another with --text")


@pytest.mark.parametrize("text", ["", "   ", "\t\u3000"])
def test_texts_that_are_all_empty(workspace: Workspace, tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + f'"{text}",a\n' * 10)
    message = refuse(InputError, workspace, path)
    assert message == f"{path}: every text is empty; is 'text' the right column (--text)?"


def test_an_encoding_nobody_knows(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    for name in ("utf-88", "rot13", "base64", "a\0b"):
        message = refuse(InputError, workspace, path, encoding=name)
        assert message.startswith(f"encoding {name!r} is unknown; common ones are utf-8"), name


def test_an_encoding_the_file_does_not_have(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD + "x")
    assert f"{path}: " in refuse(InputError, workspace, path, encoding="utf-16-le")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("inner", ["csv", "jsonl", "parquet"])
def test_compressed_data_that_is_cut_off(workspace: Workspace, tmp_path: Path, suffix: str, inner: str) -> None:
    content = "".join(f'{{"text": "row {number * 7919 % 10007}"}}\n' for number in range(5000)).encode()
    packed = gzip.compress(content) if suffix == "gz" else pa.compress(content, "zstd", asbytes=True)
    path = write(tmp_path / f"a.{inner}.{suffix}", packed[: len(packed) // 2])
    kind = "gzip" if suffix == "gz" else "zstd"
    settings = {"text": ["1"], "header": False} if inner == "csv" else {}
    message = refuse(InputError, workspace, path, **settings)
    assert message == f"{path}: the {kind} data is damaged or cut off; copy the file again"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_name_that_says_compressed_and_data_that_is_not(workspace: Workspace, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.csv.{suffix}", GOOD)
    assert "data is damaged or cut off" in refuse(InputError, workspace, path)


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "SMSCollection.data"])
def test_a_name_that_does_not_tell_the_format(workspace: Workspace, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GOOD)
    message = refuse(InputError, workspace, path)
    assert message == f"{path}: the format is not clear from its name; use --format csv, tsv, jsonl or parquet"


def test_a_file_where_a_folder_was_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    assert "is a file" in refuse(InputError, workspace, path, format="folder")


def test_labels_that_are_no_labels(workspace: Workspace, tmp_path: Path) -> None:
    rows = "".join(f"text {number},{number}\n" for number in range(10_001))
    path = write(tmp_path / "a.csv", "text,number\n" + rows)
    message = refuse(InputError, workspace, path, label="number")
    assert message.startswith("the label column has more than 10,000 different values")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b", "x" * 101])
def test_a_batch_name_that_cannot_be_a_folder(workspace: Workspace, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    message = refuse(ConfigError, workspace, path, batch=name)
    assert message.startswith(f"batch {name!r} cannot be used: start with a letter or digit")


def test_a_batch_that_exists_with_other_content(workspace: Workspace, tmp_path: Path) -> None:
    take(workspace, write(tmp_path / "a.csv", GOOD))
    path = write(tmp_path / "a.csv", GOOD + "one more,a\n")
    message = refuse(BatchError, workspace, path)
    assert message == "batch 'b' exists with other content; choose another --batch or pass --replace"


def test_a_damaged_batch_is_mended_by_replacing_it(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", GOOD)
    report = take(workspace, path)
    write(report.path / "manifest.json", "{")
    assert "ingest the batch again with --replace" in refuse(BatchError, workspace, path)
    assert take(workspace, path, replace=True).documents == 100


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_a_workspace_that_cannot_be(tmp_path: Path, below: str) -> None:
    write(tmp_path / "file", "")
    path = write(tmp_path / "a.csv", GOOD)
    message = refuse(WorkspaceError, Workspace(tmp_path / below), path)
    assert message.startswith(f"cannot write to {tmp_path / below}: ")
    assert message.endswith("choose another folder with --workspace or NIGHTLABEL_WORKSPACE")


def test_a_disk_that_fills_up(workspace: Workspace, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\n" + "".join(f"{number * 7919 % 100_003}\n" for number in range(20_000)))
    code = f"""
import resource
from pipeline.config import IngestConfig
from pipeline.errors import WorkspaceError
from pipeline.ingest import ingest
from pipeline.workspace import Workspace
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, {resource.RLIM_INFINITY}))
try:
    ingest(Workspace({str(workspace.root)!r}), [{str(path)!r}], IngestConfig())
except WorkspaceError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write to {workspace.root}: ")
    assert not left_behind(workspace)


def test_a_failed_replacement_leaves_the_batch_as_it_was(workspace: Workspace, tmp_path: Path) -> None:
    take(workspace, write(tmp_path / "a.csv", GOOD))
    before = texts(workspace)
    manifest = json.loads((workspace.documents_dir("b") / "manifest.json").read_text())
    bad = write(tmp_path / "bad.csv", "text,label\n" + "ragged\n" * 10)
    refuse(RejectRateError, workspace, bad, replace=True)
    assert texts(workspace) == before
    assert workspace.batch("b").manifest == manifest
