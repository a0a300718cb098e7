"""The fast splitter against its definition, the regular expression: equal on whatever can be written."""

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from pipeline.dataset.tokenizer import character_splitter, split_by_regex

WAYS = [(hangul, drop) for hangul in (True, False) for drop in (True, False)]
# Plain letters meet every kind of character more often than chance would have it.
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aZ09 .\n\t\x0b\x85\u3000가ก我é\u0301"))
)


def same(texts: list[str], split_hangul: bool, drop: bool) -> None:
    column = pa.array(texts, pa.string())
    fast = character_splitter(split_hangul, drop).split(column)
    fast.validate(full=True)
    assert fast.to_pylist() == split_by_regex(column, split_hangul=split_hangul, drop_punctuation=drop).to_pylist()


@pytest.mark.parametrize(("split_hangul", "drop"), WAYS)
@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, max_size=8))
def test_any_text_is_split_as_the_definition_says(split_hangul: bool, drop: bool, texts: list[str]) -> None:
    same(texts, split_hangul, drop)


@pytest.mark.slow  # the splitter learns each of a million characters
@pytest.mark.parametrize(("split_hangul", "drop"), WAYS)
def test_every_character_there_is_is_split_as_the_definition_says(split_hangul: bool, drop: bool) -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    same(
        ["".join(characters[start : start + 4000 : 2]) for start in range(0, len(characters), 4000)], split_hangul, drop
    )
    same([f"b{character}{character}7" for character in characters[:0x3200]], split_hangul, drop)


def test_a_word_ends_with_its_text_also_in_a_slice() -> None:
    column = pa.array(["aa", "", "bb", "cc dd", "é", "我"])
    assert character_splitter(True, False).split(column.slice(1, 4)).to_pylist() == [[], ["bb"], ["cc", "dd"], ["é"]]
    assert character_splitter(True, False).split(column.slice(6)).to_pylist() == []
