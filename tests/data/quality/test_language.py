"""Answers in another language are found; the shortcut through the model gives what the library gives."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from llmops.data.quality.config import Language
from llmops.data.quality.language import language_of, languages
from llmops.errors import ConfigError
from tests.data.quality.planted import pair, row

ENGLISH = "The function returns the number of rows that were read from the file."
GERMAN = "Die Funktion gibt die Anzahl der Zeilen zurück, die aus der Datei gelesen wurden."
FRENCH = "La fonction renvoie le nombre de lignes qui ont été lues dans le fichier."
CHINESE = "这个函数返回从文件中读取的行数，如果文件不存在则返回零，并且会在日志中记录下这一情况，方便以后查看和分析。"
TEXTS = (ENGLISH, GERMAN, FRENCH, CHINESE, "x", "def f(a, b): return a + b", "", "Ünïcödé 123")


def test_language_and_probability_are_those_of_the_librarys_own_call() -> None:
    model = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)
    for text in TEXTS:
        language, probability = model.classify(text, datatype="uint32")
        found = language_of(text)
        assert found[0] == language
        assert found[1] == pytest.approx(float(probability), rel=1e-3)


def test_planted_rows_in_other_languages_are_found_by_name() -> None:
    rows = [
        row("Explain.", text, line=i) for i, text in enumerate((ENGLISH, GERMAN, ENGLISH, CHINESE), start=1)
    ]
    found = languages(rows, Language(expected=("en",)))
    assert [(f.index, f.reason) for f in found.findings] == [
        (1, "language: de (1.00), expected en"),
        (3, "language: zh (1.00), expected en"),
    ]
    assert found.distribution == {"en": 2, "de": 1, "zh": 1}
    assert languages(rows, Language(expected=("en", "de", "zh"))).findings == ()


def test_without_expected_languages_the_most_common_one_is() -> None:
    rows = [row("?", FRENCH), row("?", FRENCH), row("?", ENGLISH)]
    assert [f.index for f in languages(rows, Language()).findings] == [2]


def test_only_what_is_learnt_is_judged() -> None:
    assert languages([row(f"Translate: {GERMAN}", ENGLISH)], Language(expected=("en",))).findings == ()
    assert len(languages([pair(ENGLISH, GERMAN, GERMAN)], Language(expected=("en",))).findings) == 1


def test_short_answers_are_counted_and_not_judged() -> None:
    found = languages([row("?", "Ja."), row("?", ENGLISH)], Language(expected=("en",)))
    assert found.findings == ()
    assert found.distribution == {"en": 1, "too_short": 1}


def test_unknown_language_code_is_refused() -> None:
    with pytest.raises(ConfigError, match="'english' is not a language that can be told"):
        languages([row("?", ENGLISH)], Language(expected=("english",)))
