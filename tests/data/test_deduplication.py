import random

import pytest

from hf_muscaling.data.deduplication import new_paragraphs, repeated_share, shared_share

NUMBERS = "one two three four five six seven eight nine ten eleven twelve"


def test_exact_near_and_renamed_repeats_go_and_the_first_stays():
    paragraphs = [
        "The BertModel has a width of 768 and is trained on text of many kinds.",
        "Another paragraph, which says something else about how a model is built.",
        "The GPT2Model has a width of 1024 and is trained on text of many kinds.",
        "the BertModel has a width of 768, and is trained on text of MANY kinds!",
        NUMBERS,
        NUMBERS.replace("twelve", "thirteen"),
    ]
    assert new_paragraphs(paragraphs).tolist() == [True, True, False, False, True, False]


def test_names_count_when_asked():
    code = ["layer_1(w_1) + layer_2(w_2) * a_b * c_d * e_f * g_h", "x_y(z_a) + b_c(d_e) * f_g * h_i * j_k * l_m"]
    assert new_paragraphs(code).tolist() == [True, False]
    assert new_paragraphs(code, names_alike=False).tolist() == [True, True]


def test_a_paragraph_shorter_than_eight_words_is_compared_as_a_whole():
    assert new_paragraphs(["a short one here", "a short one there", "A short one here."]).tolist() == [
        True,
        True,
        False,
    ]


def test_shares_of_known_texts():
    assert repeated_share([NUMBERS]) == 0  # 12 words, 5 grams
    assert repeated_share([NUMBERS, NUMBERS]) == 0.5
    assert shared_share([NUMBERS], ["zero " + NUMBERS.replace("twelve", "dozen")]) == pytest.approx(4 / 5)
    assert repeated_share([]) == 0 and shared_share([], [NUMBERS]) == 0 and new_paragraphs([]).size == 0


def test_grams_do_not_cross_paragraphs():
    words = NUMBERS.split()
    first = [" ".join(words[:6]), " ".join(words[6:])]
    assert shared_share([NUMBERS], first) == 0


def test_against_a_plain_count():
    generator = random.Random(0)
    paragraphs = [" ".join(generator.choices("abc", k=generator.randint(8, 400))) for _ in range(40)]
    grams = [tuple(p.split()[i : i + 8]) for p in paragraphs for i in range(len(p.split()) - 7)]
    assert repeated_share(paragraphs) == pytest.approx(1 - len(set(grams)) / len(grams))
