"""Runs that tests of exports and reports only read, made once a session."""

import pytest

from tests.exports.runs import make_images, make_run

NAMES = ("a/one.jpg", "a/two.png", "b/broken.jpg", *(f"b/{number}.jpg" for number in range(9)), "zoë 🐈.png")
TEXTS = {
    "a/one.jpg#ask": '=HYPERLINK("http://x")\nsecond line, with a comma\u2028and a "quote"',
    "a/two.png#ask": "The image shows a cat.",
    "b/0.jpg#ask": "+1 is a number",
    "b/1.jpg#ask": "",
    "b/2.jpg#ask": "cut short...",
    "zoë 🐈.png#ask": "猫</script><b>",
}


@pytest.fixture(scope="session")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """13 images, one of them broken, two prompts: `ask` and `tell`."""
    folder = tmp_path_factory.mktemp("several")
    return make_run(folder, make_images(folder / "in", NAMES), TEXTS, prompt=("ask=Q?", "tell=T?"))


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same images and one prompt."""
    folder = tmp_path_factory.mktemp("single")
    texts = {name.removesuffix("#ask"): text for name, text in TEXTS.items()}
    return make_run(folder, make_images(folder / "in", NAMES), texts)
