"""Renders the pictures that the project shows its answers on, with faces held out from training, and their truth.

    python -m demo.pictures

`pictures/truth.json` maps each file to its prompts and their true answers; a file without any cannot be decoded.
"""

import argparse
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo import draw, pages, scenes
from demo.draw import Box, Colour
from demo.fonts import HELD_OUT_FAMILIES, Family, find_faces
from demo.questions import DESCRIBE, READ, Content, ask, describe_truth
from demo.scenes import Mark
from demo.settings import FONTS
from schemas.sample import Size

FOLDER = Path(__file__).parent / "pictures"
ORIENTATION, TURNED_RIGHT = 0x0112, 6  # the EXIF tag, and its value for a camera held sideways


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A picture of text to render."""

    file: str
    lines: tuple[str, ...]
    size: Size
    layout: str
    family: str
    paper: Colour
    ink: Colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture of shapes to render; each shape is its colour, its name and its ninth."""

    file: str
    shapes: tuple[tuple[str, str, int], ...]
    size: Size
    paper: Colour

    def marks(self) -> tuple[Mark, ...]:
        """The shapes as records."""
        return tuple(Mark(colour=colour, shape=shape, place=place) for colour, shape, place in self.shapes)


_WHITE, _BLACK, _CREAM, _NAVY = (250, 250, 248), (20, 20, 20), (248, 240, 214), (18, 36, 92)


def _page(file: str, text: str, size: tuple[int, int], look: tuple[str, str, Colour, Colour]) -> Page:
    layout, family, paper, ink = look
    lines = tuple(text.split("\n"))
    return Page(file=file, lines=lines, size=Size(*size), layout=layout, family=family, paper=paper, ink=ink)


PAGES = (
    _page("sign-exit.png", "EXIT", (420, 200), ("sign", "Lato", (10, 120, 60), _WHITE)),
    _page("sign-parking.jpg", "PARKING\n24 hours", (480, 360), ("plate", "PT Sans", _NAVY, _WHITE)),
    _page("sign-school.webp", "Slow down\nSchool ahead", (500, 380), ("sign", "Karla", (250, 210, 40), _BLACK)),
    _page("sign-bakery.png", "Fresh bread\n7:30 - 18:00", (560, 320), ("card", "Caladea", _CREAM, (110, 50, 20))),
    _page("sign-platform.gif", "Platform 9", (360, 160), ("plain", "Carlito", (235, 235, 235), _NAVY)),
    _page(
        "label-jam.png", "Plum jam\n350 g\nBest before 2027", (380, 380), ("ticket", "PT Serif", _WHITE, (90, 20, 70))
    ),
    _page(
        "label-parcel.jpg", "To: Ada Moss\n12 Hill Street\nNewtown", (640, 420), ("ticket", "PT Mono", _CREAM, _BLACK)
    ),
    _page("label-cable.bmp", "Cable 4 - 230 V", (420, 80), ("plain", "JetBrains Mono", (250, 220, 60), _BLACK)),
    _page("label-crate.tiff", "HANDLE WITH CARE", (400, 140), ("plain", "Lato", (225, 200, 160), (150, 20, 20))),
    _page("label-grey-16-bit.png", "Sample 27\nKeep cold", (300, 220), ("ticket", "Karla", (240, 240, 240), _BLACK)),
    _page("receipt-cafe.png", "Coffee 2.80\nCake 3.50\nTotal 6.30", (220, 420), ("receipt", "PT Mono", _WHITE, _BLACK)),
    _page(
        "receipt-shop.jpg",
        "Paint $14.99\nBrush $3.25\nTape $2.10\nTotal $20.34",
        (260, 520),
        ("receipt", "PT Sans", _WHITE, _BLACK),
    ),
    _page("note-list.png", "Milk, eggs\nCall Sam at 5", (420, 320), ("note", "Karla", (255, 250, 190), _NAVY)),
    _page("note-code.webp", "Door code:\n4729", (320, 260), ("note", "Gentium", _WHITE, (20, 60, 140))),
    _page("ticket-train.png", "Seat 42 B\n2026-11-22", (480, 240), ("ticket", "PT Sans", (205, 230, 240), _BLACK)),
)
SCENES = (
    Scene(
        file="shapes-three.png",
        shapes=(("red", "circle", 0), ("blue", "square", 4), ("green", "star", 8)),
        size=Size(480, 360),
        paper=(240, 240, 235),
    ),
    Scene(file="shapes-one.jpg", shapes=(("yellow", "triangle", 4),), size=Size(320, 320), paper=(60, 60, 110)),
    Scene(
        file="shapes-four.webp",
        shapes=(("orange", "ring", 1), ("purple", "cross", 3), ("blue", "circle", 5), ("red", "square", 7)),
        size=Size(600, 600),
        paper=(225, 240, 225),
    ),
    Scene(
        file="shapes-night.png",
        shapes=(("white", "star", 2), ("yellow", "circle", 6)),
        size=Size(640, 400),
        paper=(20, 25, 60),
    ),
    Scene(
        file="shapes-turned-by-exif.jpg",
        shapes=(("green", "triangle", 1), ("purple", "ring", 7)),
        size=Size(360, 480),
        paper=(245, 235, 220),
    ),
    Scene(
        file="shapes-cmyk.jpg",
        shapes=(("red", "star", 3), ("green", "square", 5)),
        size=Size(480, 300),
        paper=(250, 250, 250),
    ),
    Scene(
        file="shapes-transparent.png",
        shapes=(("blue", "cross", 0), ("orange", "circle", 8)),
        size=Size(400, 400),
        paper=(255, 255, 255),
    ),
)
NOTHING, BROKEN = "nothing.png", "broken.jpg"


def render_all(fonts: Path) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    """Every file's bytes, and its prompts with their true answers."""
    families = {family.name: family for family in find_faces(fonts, HELD_OUT_FAMILIES)}
    files: dict[str, bytes] = {}
    truth: dict[str, dict[str, str]] = {}
    for page in PAGES:
        files[page.file] = _encode(page.file, _draw_page(page, families[page.family]))
        truth[page.file] = _truth(page.file, Content(lines=page.lines))
    for scene in SCENES:
        files[scene.file] = _encode(scene.file, _draw_scene(scene))
        truth[scene.file] = _truth(scene.file, Content(marks=scene.marks()))
    files[NOTHING] = _encode(NOTHING, Image.new("RGB", (300, 200), (200, 215, 230)))
    truth[NOTHING] = _truth(NOTHING, Content())
    whole = files["sign-parking.jpg"]
    files[BROKEN], truth[BROKEN] = whole[: len(whole) // 2], {}
    return files, truth


def _draw_page(page: Page, family: Family) -> Image.Image:
    rng = random.Random(page.file)
    canvas = draw.new_canvas(rng, page.size.width, page.size.height, page.paper, ("plain",))
    region, _ = pages.decorate(rng, canvas, "plain" if page.layout in ("sign", "plate") else page.layout, page.paper)
    if page.layout in ("sign", "plate"):
        edge = 0.04 * min(page.size.width, page.size.height)
        corners = (edge, edge, page.size.width - edge, page.size.height - edge)
        canvas.pen.rounded_rectangle(corners, radius=3 * edge, outline=page.ink, width=round(edge / 2))
        region = Box(left=3 * edge, top=3 * edge, width=corners[2] - 5 * edge, height=corners[3] - 5 * edge)
    face = family.upright[0]
    text = pages.fitted(page.lines, face, region, share=0.85)
    printer = pages.print_columns if page.layout == "receipt" else pages.print_text
    printer(rng, canvas, text, region, page.ink)
    return canvas.image


def _draw_scene(scene: Scene) -> Image.Image:
    rng = random.Random(scene.file)
    canvas = draw.new_canvas(rng, scene.size.width, scene.size.height, scene.paper, ("plain",))
    scenes.draw_marks(rng, canvas, scene.marks(), least=40)
    return canvas.image


def _truth(file: str, content: Content) -> dict[str, str]:
    """Every kind of question with its first wording, and the pipeline's own prompt for captions."""
    asked = {question.prompt: question.truth for question in ask(random.Random(file), content, reword=False)}
    return {READ[0]: asked[READ[0]], DESCRIBE[1]: describe_truth(content), **asked}


def _encode(file: str, image: Image.Image) -> bytes:
    """The bytes of a file, in the format and oddity that its name says."""
    buffer = io.BytesIO()
    oddities: dict[str, Callable[[Image.Image, io.BytesIO], None]] = {
        "label-grey-16-bit.png": _save_16_bit,
        "shapes-turned-by-exif.jpg": _save_turned,
        "shapes-cmyk.jpg": lambda picture, to: picture.convert("CMYK").save(to, "JPEG", quality=92),
        "shapes-transparent.png": _save_transparent,
    }
    if file in oddities:
        oddities[file](image, buffer)
    else:
        format = {"jpg": "JPEG", "tiff": "TIFF"}.get(file.rpartition(".")[2], file.rpartition(".")[2].upper())
        options: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": 90},
            "TIFF": {"compression": "tiff_lzw"},
            "WEBP": {"quality": 90},
        }
        image.save(buffer, format, **options.get(format, {}))
    return buffer.getvalue()


def _save_16_bit(image: Image.Image, to: io.BytesIO) -> None:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(to, "PNG")


def _save_turned(image: Image.Image, to: io.BytesIO) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED_RIGHT
    image.transpose(Image.Transpose.ROTATE_90).save(to, "JPEG", quality=92, exif=exif)


def _save_transparent(image: Image.Image, to: io.BytesIO) -> None:
    """A palette one of whose colours is transparent: the paper's."""
    paper = np.asarray(image).min(axis=2) == 255
    alpha = Image.fromarray(np.where(paper, 0, 255).astype(np.uint8))
    transparent = image.copy()
    transparent.putalpha(alpha)
    transparent.quantize(64, Image.Quantize.FASTOCTREE).save(to, "PNG")


def main() -> None:
    """Write the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fonts", type=Path, default=FONTS)
    parser.add_argument("--out", type=Path, default=FOLDER)
    flags = parser.parse_args()
    files, truth = render_all(flags.fonts)
    flags.out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (flags.out / name).write_bytes(data)
    (flags.out / "truth.json").write_text(
        json.dumps(truth, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
