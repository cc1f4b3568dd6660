import ast

import pytest

from hf_muscaling.data.cleaning import code_without_docstrings, documentation, is_prose, paragraphs, top_level_blocks

NUMPY_STYLE = """
    Return the widths of a model, from the :class:`~package.Config` that was used to build it.

    Parameters
    ----------
    config : Config
        The configuration of the model, as it is stored [1]_ in the ``config.json`` of the folder.
    strict : bool, optional
        Whether a missing width is an error, which is the case for every model that was trained here.

    >>> widths(config)
    a result that the doctest prints, which is not a sentence of the prose

    .. math:: a line that is not prose but stands in a directive of the text
    .. note:: The note is a sentence of the prose, and so it is kept as the others are.

    This paragraph ends in two colons, which announce a block of code::

        some = "code that is not prose and is to be left out of it"

    * The first item of a list is one paragraph, which goes
      over two lines.
    * The second item of the list is another paragraph of it.
"""


def test_markup_code_and_doctests_go_and_sentences_stay():
    assert paragraphs(NUMPY_STYLE) == [
        "Return the widths of a model, from the package.Config that was used to build it.",
        "The configuration of the model, as it is stored in the config.json of the folder.",
        "Whether a missing width is an error, which is the case for every model that was trained here.",
        "The note is a sentence of the prose, and so it is kept as the others are.",
        "This paragraph ends in two colons, which announce a block of code:",
        "The first item of a list is one paragraph, which goes over two lines.",
        "The second item of the list is another paragraph of it.",
    ]


def test_google_style_arguments_lose_their_types():
    text = "Args:\n    x (`int`, *optional*, defaults to 3): The number of layers that the model has in it.\n"
    assert paragraphs(text) == ["x: The number of layers that the model has in it."]


@pytest.mark.parametrize(
    "text",
    ["too short", "alpha beta gamma delta epsilon zeta eta", "f(x) = a[0] + b[1] * (c - 2) / 3 ** 4 of the a and"],
)
def test_lists_of_names_formulas_and_fragments_are_not_prose(text):
    assert not is_prose(text)


def test_documentation_finds_docstrings_and_added_ones_but_no_templates():
    source = '''
"""The module's own documentation, which is long enough."""
x = "a string with # no comment and no \\" end that would be long enough"  # the width at first
add_docstr(f, r"""
Return \\alpha of the model, documented from outside.
""")
t = f"""A template with {x}, which is no documentation at all."""
# A comment of two lines, which says
#: why something is as it is.
'''
    found = documentation(source)
    assert found == [
        "The module's own documentation, which is long enough.",
        "\nReturn \\alpha of the model, documented from outside.\n",
    ]
    with_comments = documentation(source, comments=True)
    assert with_comments[2:] == ["A comment of two lines, which says\nwhy something is as it is."]


def test_escapes_are_read_as_python_reads_them():
    body = r"One line of the text,\nthen another with a \"quote\" in it."
    assert documentation(f'"""{body}"""') == [ast.literal_eval(f'"""{body}"""')]


def test_code_keeps_comments_and_loses_docstrings_and_stays_valid():
    source = (
        '"""Module."""\n\nx = """kept"""\n\n\nclass A:\n    """Class."""\n\n'
        '    def f(self):\n        """Only a docstring."""\n'
        "\n    def g(self):\n        '''Two\n        lines.'''\n        return 1  # one\n"
    )
    code = code_without_docstrings(source)
    assert "Class" not in code and "Module" not in code and "lines" not in code
    assert '"""kept"""' in code and "# one" in code
    functions = ast.parse(code).body[1].body
    assert [function.name for function in functions] == ["f", "g"]
    assert [block.split("\n")[0] for block in top_level_blocks(code)] == ['x = """kept"""', "class A:"]


def test_invalid_source_is_an_error_not_an_empty_document():
    with pytest.raises(SyntaxError):
        code_without_docstrings("def f(:\n")
